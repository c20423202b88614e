"""report.html holds what the records say, whole and escaped, in one file that fetches nothing."""

from __future__ import annotations

import base64
import gzip
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from study_builder import HASHES, rows, write_gz, write_jobs, write_run

from grpo_bench.records import load_study
from grpo_bench.report import write
from grpo_bench.report.__main__ import main
from grpo_bench.report.completions import ANSWERS, completions
from grpo_bench.report.page import asks
from grpo_bench.report.settings import ABSENT, settings
from grpo_bench.report.sheets import number, shown
from grpo_bench.table.compare import compare
from grpo_bench.table.layout import Bold, Sheet

REPO = Path(__file__).resolve().parent.parent
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & \"quoted\" 'text' \u2028"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return build(tmp_path / "demo-arithmetic")


def build(folder: Path) -> Path:
    """Two rows with two seeds each; what one of them wrote while training is hostile."""
    for seed in (0, 1):
        write_run(folder, "ppo", seed, [1, 0, 0, 0], base=[0] * 4)
        run = write_run(folder, "grpo_g8", seed, [1, 1, 0, 0], base=[0] * 4)
        lines = [
            {"step": 1, "row": i, "id": f"arithmetic/train-{seed}/0", "response": HOSTILE, "correct": False,
             "finished": True, "length": 7, "reward": -0.25}
            for i in range(8)
        ]  # fmt: skip
        (run / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_jobs(folder, ("ppo", 0), ("ppo", 1), ("grpo_g8", 0), ("grpo_g8", 1))
    return folder


class Page(HTMLParser):
    """What a browser would see: elements, their attributes, text outside scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.scripts: dict[str, str] = {}
        self._script: str | None = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._script = (dict(attrs).get("id") or "") if tag == "script" else None

    def handle_data(self, data):
        if self._script is None:
            self.text.append(data)
        else:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data

    def packed(self, name: str):
        return json.loads(gzip.decompress(base64.b64decode(self.scripts[f"packed-{name}"])))


def page_of(folder: Path) -> Page:
    path, _ = write(folder)
    return Page(path.read_text(encoding="utf-8"))


def test_one_file_that_refers_to_nothing_outside(study):
    page = page_of(study)
    for tag, attributes in page.tags:
        assert tag not in ("iframe", "object", "embed"), tag
        for name in ("src", "href", "action", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith("#") or value == "data:,", (tag, value)
    (policy,) = [a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in str(policy)
    assert "plotly.js" in "".join(page.text)
    assert "MIT licence" in "".join(page.text)


def test_verdicts_come_first_and_every_table_is_there(study):
    page = page_of(study)
    sections = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    assert sections[:3] == ["verdicts", "pictures", "tables"]
    assert {"answers", "settings", "runs"} <= set(sections)
    tables = [str(a["id"]) for t, a in page.tags if t == "figure" and str(a.get("id", "")).startswith("table-")]
    assert tables[0] == "table-contrasts"
    assert "table-runs" in tables
    assert tables[-1] == "table-card"


def test_what_a_model_wrote_is_never_markup(study):
    text = write(study)[0].read_text(encoding="utf-8")
    assert "alert(" not in text  # it is inside the packed data
    page = Page(text)
    assert not [tag for tag, attributes in page.tags if "onerror" in attributes]
    assert page.packed("answers")["texts"].count(HOSTILE) == 1  # once, however often it was said


def test_text_of_records_is_escaped_in_the_page(study):
    run = study / f"ppo-s1-{HASHES['ppo']}"
    (run / "result.json").unlink()
    (run / "state.json").write_text(
        json.dumps({"status": "failed", "reason": "<b onclick=alert(3)>`oops`", "exit_code": 1})
    )
    page = page_of(study)
    assert not [attributes for _, attributes in page.tags if "onclick" in attributes]
    assert "<b onclick=alert(3)>" in "".join(page.text)
    assert any(tag == "code" for tag, _ in page.tags)


def test_answers_carry_reward_length_and_where_they_come_from(study):
    found = completions(compare(load_study(study)))
    columns = found.columns
    trained = [i for i, kind in enumerate(columns["kind"]) if kind == 2]
    assert len(trained) == 16
    assert {columns["reward"][i] for i in trained} == {-0.25}
    assert {found.rows[columns["row"][i]] for i in trained} == {"grpo_g8"}
    tested = [i for i, kind in enumerate(columns["kind"]) if kind == 0]
    assert {found.rows[columns["row"][i]] for i in tested} == {"before RL", "ppo", "grpo_g8"}
    of_ppo = [i for i in tested if found.rows[columns["row"][i]] == "ppo" and columns["seed"][i] == 0]
    assert sorted(columns["right"][i] for i in of_ppo) == [False, False, False, True]
    assert {columns["length"][i] for i in of_ppo} == {10}
    assert found.notes[0] == "20 answers to all 4 problems of the final test."


def test_the_cap_on_answers_is_stated_and_chosen_by_no_answer(tmp_path):
    folder = tmp_path / "demo-arithmetic"
    for seed in range(3):
        run = write_run(folder, "ppo", seed, [1, 0], base=[0, 0])
        write_gz(run, [row for _ in range(20) for row in rows([seed % 2] * 300)])
    found = completions(compare(load_study(folder)))
    assert found.count <= ANSWERS
    said = re.match(r"([\d,]+) answers to (\d+) of 300 problems of the final test, chosen by a hash", found.notes[0])
    assert said is not None
    assert int(said[2]) == 100  # PROBLEMS
    # the same problems whatever the answers are
    ids = [problem.id for problem in found.problems]
    for seed in range(3):
        write_gz(folder / f"ppo-s{seed}-{HASHES['ppo']}", [row for _ in range(20) for row in rows([1] * 300)])
    assert [problem.id for problem in completions(compare(load_study(folder))).problems] == ids


def test_questions_are_joined_from_the_task(study):
    """The settings of a real record name the task whole, and the same ids give the same questions."""
    real = REPO / "results" / "zoo-arithmetic" / "grpo_g8-s0-162128be" / "config.yaml"
    task = yaml.safe_load(real.read_text())["task"]
    for run in study.glob("*-s*"):
        config = yaml.safe_load((run / "config.yaml").read_text()) | {"task": task}
        (run / "config.yaml").write_text(yaml.safe_dump(config))
    found = completions(compare(load_study(study)))
    by_id = {problem.id: problem for problem in found.problems}
    assert by_id["arithmetic/test/0"].question is not None
    assert by_id["arithmetic/test/0"].question.endswith("?")
    assert not any("Questions" in note for note in found.notes)


def test_without_the_data_ids_stand_for_questions(study):
    for run in study.glob("*-s*"):
        real = REPO / "results" / "zoo-arithmetic" / "grpo_g8-s0-162128be" / "config.yaml"
        task = yaml.safe_load(real.read_text())["task"] | {"name": "gsm8k", "path": "/nowhere", "arithmetic": None}
        config = yaml.safe_load((run / "config.yaml").read_text()) | {"task": task}
        (run / "config.yaml").write_text(yaml.safe_dump(config))
    found = completions(compare(load_study(study)))
    assert all(problem.question is None for problem in found.problems)
    assert any("data=FOLDER" in note for note in found.notes)


def test_settings_that_differ_and_no_others(study):
    found = settings(compare(load_study(study)))
    assert found.columns == ["ppo", "grpo_g8"]  # the baseline first
    assert found.rows["group_size"] == ["1", "8"]
    assert found.rows["algo.lam"] == ["0.95", ABSENT]
    assert "seed" not in found.rows
    assert "task.name" not in found.rows


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,024", 1024), ("86.4 [85.0, 88.1]", 86.4), ("+3.2 [-1.0, +7.4]", 3.2), ("-0.5", -0.5), ("0.61 M", 610_000),
        ("570 MB", 5.7e8), ("1.25 GB", 1.25e9), ("5.23e11", 5.23e11), ("< 0.001", 0.001), ("3 of 5", 3), ("12 %", 12),
        ("−2.0", -2), ("–", None), ("grpo_g8", None), ("2x", None), ("", None),
    ],
)  # fmt: skip
def test_what_a_cell_is_sorted_by(text, value):
    assert number(text) == (value if value is None else pytest.approx(value))


def test_a_table_keeps_its_cells_and_shows_verdicts_early():
    sheet = Sheet("t", "T", ["", "n", "verdict"], [["a", Bold("1.0"), "better"], ["b", "–", "worse"]])
    found = shown(sheet)
    assert found.header == ["", "verdict", "n"]
    assert [[cell.text for cell in row] for row in found.rows] == [["a", "better", "1.0"], ["b", "worse", "–"]]
    assert found.numeric == [False, False, True]
    assert found.rows[0][2].bold


def test_the_same_records_give_the_same_page(study):
    assert write(study)[0].read_bytes() == write(study)[0].read_bytes()


def test_a_page_with_licensed_questions_says_that_git_ignores_it(study, shared_data):
    real = yaml.safe_load((REPO / "results/first_light-gsm8k/grpo_g8-s0-ff8c6b9e/config.yaml").read_text())["task"]
    ids = [f"gsm8k/test/{i}" for i in range(4)]
    for run in study.glob("*-s*"):
        config = yaml.safe_load((run / "config.yaml").read_text()) | {"task": real}
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        write_gz(run, [row | {"id": id} for row, id in zip(rows([1, 0, 0, 0]), ids, strict=True)])
    path, notes = write(study, data=shared_data / "gsm8k")
    assert any("git ignores it" in note for note in notes)
    assert asks(path)
    path, notes = write(study)  # without the data there are ids alone
    assert notes == []
    assert not asks(path)


def test_git_ignores_the_pages_of_every_task_whose_questions_are_not_ours():
    tasks = [file.stem for file in (REPO / "conf" / "task").glob("*.yaml")]
    assert "gsm8k_short" in tasks
    for task in tasks:
        page = f"results/x-{task}/report.html"
        ignored = subprocess.run(["git", "check-ignore", "-q", page], cwd=REPO, check=False).returncode == 0
        assert ignored == (not task.startswith("arithmetic")), page


def test_the_command(study, capsys):
    assert main([str(study)]) == 0
    assert capsys.readouterr().out.strip() == str(study / "report.html")


@pytest.mark.parametrize(
    "argv", [[], ["a", "b"], ["--fast", "a"], ["colour=red", "a"], ["nowhere"], ["a", "data=nowhere"]]
)
def test_a_bad_command_says_what_to_do_in_one_line(argv, capsys):
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_no_torch_and_no_matplotlib(study):
    code = (
        "import sys; from pathlib import Path; from grpo_bench.report import write; write(Path(sys.argv[1]));"
        "print({'torch', 'matplotlib', 'plotly', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(study)], cwd=REPO, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
