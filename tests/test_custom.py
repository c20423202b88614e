"""Questions and answers of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from task_data import config, write

from grpo_bench.tasks import load_task
from grpo_bench.types import Problem, UserError


def test_custom_folder(tmp_path: Path) -> None:
    write(
        tmp_path / "train.jsonl",
        [
            {"question": "a?", "answer": 7},
            {"question": "b?", "answer": "1,234", "solution": "It is 1234.", "id": "mine", "meta": {"level": "easy"}},
            {"question": "c?", "answer": "1 + 1 = 2\n#### 2", "id": 12},
            {"question": "d?", "answer": "#### 3", "solution": None},
        ],
    )
    write(tmp_path / "test.jsonl", [{"question": "e?", "answer": "2.50"}])
    task = load_task(config("custom", path=str(tmp_path)), 0)
    assert task.problem("custom/train/0") == Problem("custom/train/0", "a?", "7")
    assert task.problem("mine") == Problem("mine", "b?", "1234", "It is 1234.\n#### 1234", {"level": "easy"})
    assert task.problem("12") == Problem("12", "c?", "2", "1 + 1 = 2\n#### 2")
    assert task.problem("custom/train/3") == Problem("custom/train/3", "d?", "3")
    assert task.test(None)[0].answer == "2.5"
    assert task.grade(task.test(None), ["so #### 2.50"])[0].strict
    with pytest.raises(UserError, match="has no worked solution to imitate"):
        task.demonstrations(50, 0)


def test_custom_math_answers(tmp_path: Path) -> None:
    rows = [{"question": f"{i}?", "answer": "\\frac12"} for i in range(3)]
    rows[1]["answer"] = "It is $\\boxed{x^2}$."
    rows[2]["answer"] = "\\boxed{5}"
    write(tmp_path / "train.jsonl", rows)
    write(tmp_path / "test.jsonl", [{"question": "e?", "answer": "\\pi"}])
    task = load_task(config("custom", path=str(tmp_path), answer="math"), 0)
    found = [(p.answer, p.solution) for p in map(task.problem, ("custom/train/0", "custom/train/1", "custom/train/2"))]
    assert found == [("\\frac12", ""), ("x^2", "It is $\\boxed{x^2}$."), ("5", "")]


def test_custom_file_is_split_by_text(tmp_path: Path) -> None:
    file = tmp_path / "all.jsonl"
    rows = [{"question": f"{i} squared?", "answer": i * i} for i in range(300)]
    write(file, rows)
    first = load_task(config("custom", path=str(file)), 0)
    test = {p.question for p in first.test(None)}
    assert 10 <= len(test) <= 55  # 30 expected, standard deviation 5.2
    write(file, [{"question": "New?", "answer": 1}, {"question": " 7 SQUARED?", "answer": 49}, *rows])
    again = load_task(config("custom", path=str(file)), 0)
    assert test <= {p.question for p in again.test(None)} | {" 7 SQUARED?".strip()}
    write(file, rows[:1])
    with pytest.raises(UserError, match="1 rows, too few to be split"):
        load_task(config("custom", path=str(file)), 0)


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"question": "b?"}, ":2: field 'answer' is missing"),
        ({"question": "b?", "answer": "x + 1"}, "(or use task.answer=math)"),
        ({"question": "b?", "answer": True}, "field 'answer' must be a string"),
        ({"question": "b?", "answer": 1, "id": "a"}, ":2: id 'a' is taken by "),
        ({"question": "b?", "answer": 1, "id": 1.5}, "field 'id' must be a string or an integer"),
        ({"question": "b?", "answer": 1, "meta": 3}, "field 'meta' must be an object"),
        ({"question": "b?", "answer": 1, "solution": ""}, "field 'solution' is empty"),
    ],
)
def test_bad_custom_rows_are_named(tmp_path: Path, row: dict[str, Any], what: str) -> None:
    write(tmp_path / "train.jsonl", [{"question": "a?", "answer": 1, "id": "a"}, row])
    write(tmp_path / "test.jsonl", [{"question": "c?", "answer": 1}])
    with pytest.raises(UserError) as error:
        load_task(config("custom", path=str(tmp_path)), 0)
    assert what in str(error.value)
    assert "\n" not in str(error.value)


def test_custom_needs_a_path(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task=custom needs task\.path="):
        load_task(config("custom"), 0)
    (tmp_path / "rows.csv").write_text("a,b\n")
    with pytest.raises(UserError, match=r"give a \.jsonl or \.parquet file"):
        load_task(config("custom", path=str(tmp_path / "rows.csv")), 0)
    rows = [{"question": "a?", "answer": 1, "id": "a"}]
    write(tmp_path / "train.jsonl", rows)
    write(tmp_path / "test.jsonl", rows)
    with pytest.raises(UserError, match="id 'a' is in both splits"):
        load_task(config("custom", path=str(tmp_path)), 0)


def test_custom_splits_of_any_names(tmp_path: Path) -> None:
    for split, numbers in (("train_sft", range(12)), ("validation", range(20, 24))):
        write(tmp_path / f"{split}.jsonl", [{"question": f"{n} + 0?", "answer": str(n)} for n in numbers])
    task = load_task(config("custom", path=str(tmp_path), split="train_sft", eval_split="validation"), 0)
    assert {problem.id for problem in task.test(None)} == {f"custom/validation/{i}" for i in range(4)}
    assert task.train_problem(0).id.startswith("custom/train_sft/")
