"""The README's example of an algorithm from outside the checkout: its files as they stand there, its commands run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_bench.algos import load
from grpo_bench.types import UserError

REPO = Path(__file__).resolve().parent.parent
SECTION = (
    (REPO / "README.md").read_text(encoding="utf-8").partition("## Add your own algorithm")[2].partition("\n## ")[0]
)
FILES = {
    name: body
    for _, body in re.findall(r"```(python|yaml)\n(.*?)```", SECTION, flags=re.DOTALL)
    for name in re.findall(r"^# (\S+\.(?:py|yaml))$", body, flags=re.MULTILINE)
}
SMALL = [
    "samples_per_step=32", "budget.amount=64", "model.warmstart.steps=3", "eval.n=4", "eval.test_n=4", "eval.samples=0",
    "eval.ks=[]", "eval.every=0", "task.max_new_tokens=8", "threads=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one's own, with the three files of the README."""
    assert set(FILES) == {"median.py", "my_conf/algo/median.yaml", "test_median.py"}
    folder = tmp_path_factory.mktemp("own")
    for name, body in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(body)
    return folder


def run(home: Path, *words: str) -> str:
    """One of the README's commands, in that folder; its output."""
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=home, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_golden_test_passes(home: Path) -> None:
    assert "1 passed" in run(home, "pytest", "-q", "-p", "no:cacheprovider", "test_median.py")


def test_it_is_checked_like_one_of_ours(home: Path) -> None:
    assert "median" in run(home, "grpo_bench.selfcheck", "--config-dir", "my_conf", "algo=median")


def test_it_is_explained_like_one_of_ours(home: Path) -> None:
    said = run(home, "grpo_bench.explain", "--config-dir", "my_conf", "algo=median")
    assert "r − median of the group" in said


def test_it_trains_in_a_sweep_beside_ours(home: Path) -> None:
    words = ["-m", "--config-dir", "my_conf", "study.name=median", "algo=grpo,median", "epochs=1", "minibatches=2"]
    run(home, "grpo_bench", *words, *SMALL)
    results = [json.loads(p.read_text()) for p in (home / "results/median-arithmetic").glob("*-s0-*/result.json")]
    assert {r["algo"]: r["status"] for r in results} == {"grpo": "complete", "median": "complete"}
    assert all(r["cost"]["updates"] == 4 for r in results)  # 2 steps of 2 minibatches


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("class Mine(\n", "SyntaxError: '(' was never closed (broken.py, line 1)"),
        ("raise RuntimeError('no weights')\n", "RuntimeError: no weights (broken.py, line 1)"),
        (
            "from grpo_bench.algos import Algorithm\nclass Mine(Algorithm):\n    pass\n",
            "lacks advantages, token_loss; an algorithm defines advantages and token_loss",
        ),
    ],
)
def test_a_module_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, says: str) -> None:
    (tmp_path / "broken.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    with pytest.raises(UserError) as error:
        load({"name": "mine", "class": "broken:Mine"})
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    sys.modules.pop("broken", None)
