"""report.html in a real Chromium: opens from disk without errors or network, sorts, filters, shows answers, fits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from test_report import HOSTILE, build

from grpo_bench.report import write

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no Chromium with its driver: apt-get install chromium chromium-driver"
)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
)  # fmt: skip
SECONDS = 120  # a busy machine takes its time; a page that never gets ready fails by this


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    from selenium.webdriver.chrome.service import Service

    browser = webdriver.Chrome(options=options, service=Service(DRIVER))
    browser.set_script_timeout(SECONDS)
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def opened(driver: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Any]:
    """Opens the page of one study at a width, anew; returns what runs JavaScript in it."""
    path, _ = write(build(tmp_path_factory.mktemp("study") / "demo-arithmetic"))

    def at(width: int) -> Any:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.get("about:blank")
        driver.get_log("browser")
        driver.get_log("performance")  # what came before is not this page's
        driver.get(path.resolve().as_uri())
        wait = """const done = arguments[0], look = () =>
            document.documentElement.classList.contains('ready') ? done(true) : setTimeout(look, 50); look();"""
        assert driver.execute_async_script(wait)
        return driver.execute_script

    return at


@pytest.fixture(scope="module")
def js(opened: Callable[[int], Any]) -> Any:
    """The page on a desktop, opened once: it takes a browser seconds to read the plotting library."""
    return opened(1280)


def cells(js: Any, table: str, column: int) -> list[str]:
    rows = f"[...document.querySelectorAll('#{table} tbody tr')].filter(r => !r.hidden)"
    return js(f"return {rows}.map(r => r.cells[{column}].textContent)")


def test_opens_from_disk_without_errors_or_network(js, driver):
    assert [entry for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    asked = {url for url in urls if not url.startswith(("data:", "blob:", "chrome:", "about:"))}
    assert len(asked) == 1, asked
    assert asked.pop().startswith("file://")


def test_pictures_are_drawn(js):
    drawn = js("return [...document.querySelectorAll('.chart')].map(c => [c.id, c.querySelectorAll('.trace').length])")
    assert {"chart-differences", "chart-curves", "chart-accuracy", "chart-cost", "chart-phases", "chart-passes"} <= {
        name for name, _ in drawn
    }
    assert all(traces > 0 for _, traces in drawn), drawn
    title = "return document.querySelector('#chart-curves .xtitle').textContent"
    assert js(title) == "training samples"
    js("const s = document.querySelector('[data-axis]'); s.value = 'seconds'; s.dispatchEvent(new Event('change'))")
    assert js(title) == "seconds of training, evaluations left out"


def test_a_row_is_put_in_colour_and_out_again(js):
    count = "return document.querySelectorAll('#chart-curves .lines path.js-fill, #chart-curves .fills path').length"
    before = js(count)
    js("document.querySelector('.chip').click()")
    assert js("return document.querySelector('.chip').getAttribute('aria-pressed')") == "false"
    assert js(count) < before


def test_tables_sort_by_number_and_by_name(js):
    click = "document.querySelectorAll('#table-runs thead button')[{}].click()"
    js(click.format(3))  # accuracy
    assert cells(js, "table-runs", 3) == ["25.0", "25.0", "50.0", "50.0"]
    js(click.format(3))
    assert cells(js, "table-runs", 3) == ["50.0", "50.0", "25.0", "25.0"]
    assert js("return document.querySelectorAll('#table-runs thead th')[3].getAttribute('aria-sort')") == "descending"
    js(click.format(0))
    assert cells(js, "table-runs", 0) == ["grpo_g8", "grpo_g8", "ppo", "ppo"]


def test_settings_are_filtered(js):
    js(
        "const f = document.querySelector('#settings [data-filter]'); f.value = 'group';"
        "f.dispatchEvent(new Event('input'))"
    )
    assert cells(js, "settings", 0) == ["group_size"]


CHOOSE = """const f = document.querySelector('#answers form');
for (const [name, value] of Object.entries(arguments[0])) {
  f.elements[name].value = value; f.elements[name].dispatchEvent(new Event('input', {bubbles: true}));
}"""


def test_answers_to_a_problem_side_by_side(js):
    shown = "return [...document.querySelectorAll('.answer')].map(a => a.textContent)"
    js(CHOOSE, {"kind": "0", "problem": ""})
    assert len(js(shown)) == 20
    js(CHOOSE, {"right": "1"})
    assert all("✓ right" in text for text in js(shown))
    assert js("return document.querySelector('#answers .count').textContent") == "6 answers, 6 right."
    js(CHOOSE, {"right": "", "seed": "1"})
    assert {text.split("seed")[0] for text in js(shown)} == {"ppo", "grpo_g8"}
    js("document.querySelector('[data-step=\"1\"]').click()")
    assert len(js(shown)) == 2  # one problem, seed 1, both rows


def test_a_hostile_answer_is_text(js, driver):
    js(CHOOSE, {"kind": "2", "right": "", "seed": ""})
    texts = js("return [...document.querySelectorAll('.answer pre')].map(a => a.textContent)")
    assert texts
    assert set(texts) == {HOSTILE.strip().strip("\u2028").rstrip()}
    assert js("return document.querySelectorAll('.answer script, .answer img').length") == 0
    assert "reward -0.25" in js("return document.querySelector('.answer').textContent")
    assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_print_is_light_and_whole(js, driver):
    printed = driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert len(printed["data"]) > 20_000
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": [
        {"name": "prefers-color-scheme", "value": "dark"}]})  # fmt: skip
    try:
        assert js("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert js("return getComputedStyle(document.querySelector('nav')).display") == "none"
    finally:
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})


def test_nothing_overflows_sideways(opened, driver):
    """Opened on a phone, then widened: the page fits, and tables scroll inside their own box. The last test here, since
    it opens the page anew."""
    js = opened(360)
    assert js("return document.documentElement.scrollWidth") <= 360
    assert js("return [...document.querySelectorAll('.scroll')].some(s => s.scrollWidth > s.clientWidth)")
    for width in (390, 768, 1280):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        settled = "const done = arguments[0]; requestAnimationFrame(() => setTimeout(() => done(true), 500));"
        driver.execute_async_script(settled)
        assert js("return document.documentElement.scrollWidth") <= width
