"""A reward function from outside the checkout: found by file or module, and every failure of it in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from model_data import make
from reward_data import rows

from grpo_bench.rewards import PARTS, check, function, score
from grpo_bench.types import UserError

CODE = """
import torch

def brevity(rows):
    return [1 / n for n in rows.lengths]

def tensor(rows):
    return torch.tensor(rows.lengths) / 4

def sees(rows):
    assert rows.problems[0].answer == "1" and rows.prompts[0].startswith("question 0")
    return [rows.step + rows.grades[i].strict for i in range(len(rows.responses))]

def fails(rows):
    return [1 / (n - 2) for n in rows.lengths]

def fails_together(rows):
    if len(rows.responses) > 1:
        raise KeyError("many")
    return [0.0]

def short(rows):
    return [0.0]

def none(rows):
    return [None if n == 2 else 1.0 for n in rows.lengths]

def nan(rows):
    return [float("nan") if n == 4 else 1.0 for n in rows.lengths]

def nothing(rows):
    pass

number = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(CODE)
    return tmp_path / "mine.py"


def call(name: str) -> list[float]:
    scored = rows("a", "b", "c", lengths=[1, 2, 4], step=5)
    return PARTS["function"](scored, make("reward=function", f"reward.function='{name}'"))


def error(name: str) -> str:
    with pytest.raises(UserError) as caught:
        call(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_it_is_found_in_a_file_anywhere(file: Path) -> None:
    assert call(f"{file}:brevity") == [1, 0.5, 0.25]
    assert call(f"{file}:tensor") == [0.25, 0.5, 1]
    assert call(f"{file}:sees") == [6, 6, 6]


def test_it_is_found_in_a_module(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = file.parent / "my_package_of_rewards"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "inner.py").write_text(CODE)
    monkeypatch.syspath_prepend(file.parent)
    assert call("my_package_of_rewards.inner:brevity") == [1, 0.5, 0.25]
    assert function.file_of("my_package_of_rewards.inner:brevity") == package / "inner.py"
    assert function.file_of("no_such_package.inner:brevity") is None


def test_it_is_weighted_like_any_part(file: Path) -> None:
    cfg = make("reward.parts={correct:1,function:-2}", f"reward.function='{file}:brevity'")
    total, parts = score(cfg, rows("a", "b", lengths=[1, 2]))
    assert total == [1 - 2, 1 - 1]
    assert parts == {"correct": [1, 1], "function": [1, 0.5]}


def test_an_error_in_it_names_function_row_and_place(file: Path) -> None:
    line = CODE.splitlines().index("    return [1 / (n - 2) for n in rows.lengths]") + 1
    assert error(f"{file}:fails") == (
        f"reward.function={file}:fails failed on row 1 (problem p/1): "
        f"ZeroDivisionError: division by zero (mine.py, line {line})"
    )
    assert "failed on all 3 rows together: KeyError: 'many' (mine.py, line" in error(f"{file}:fails_together")


def test_what_it_returns_is_one_finite_number_for_each_row(file: Path) -> None:
    assert "short returned 1 values for 3 completions; return one number for each" in error(f"{file}:short")
    assert "none returned None for row 1; return a finite number" in error(f"{file}:none")
    assert "nan returned nan for row 2; return a finite number" in error(f"{file}:nan")
    assert "nothing failed on" in error(f"{file}:nothing")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("{folder}/mine.py:no_such", "has no function no_such"),
        ("{folder}/mine.py:number", "has no function number"),
        ("{folder}/other.py:brevity", "there is no file"),
        ("{folder}/broken.py:brevity", "cannot be imported: SyntaxError"),
        ("{folder}/raises.py:brevity", "cannot be imported: RuntimeError: no such device (raises.py, line 1)"),
        ("no_such_module:brevity", "cannot be imported: ModuleNotFoundError: No module named 'no_such_module'"),
        ("brevity", "names no function; give path/to/file.py:name or package.module:name"),
    ],
)
def test_one_that_cannot_be_had_is_found_before_a_run(file: Path, name: str, line: str) -> None:
    (file.parent / "broken.py").write_text("def brevity(rows)\n")
    (file.parent / "raises.py").write_text("raise RuntimeError('no such device')\n")
    cfg = make("reward=function", f"reward.function='{name.format(folder=file.parent)}'")
    assert line in check.missing(cfg)[0]
    assert "\n" not in check.missing(cfg)[0]


def test_checking_a_configuration_costs_no_torch() -> None:
    code = "import sys, grpo_bench.config, grpo_bench.rewards.check; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
