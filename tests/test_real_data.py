"""GSM8K and MATH as published, and the configs that ask for them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from task_data import config

from grpo_bench.tasks import load_task
from grpo_bench.tasks.dataset import DatasetTask, normalise
from grpo_bench.tasks.demonstrations import unmarked
from grpo_bench.types import Problem


def test_real_gsm8k(shared_data: Path) -> None:
    task = load_task(config("gsm8k", path=str(shared_data / "gsm8k")), 0)
    assert isinstance(task, DatasetTask)
    assert task.notes == []  # counts as published, no duplicate, no overlap
    assert (task.train_size, len(task.dev(10**6)), len(task.test(None))) == (7473 - 512, 512, 1319)
    everything = [
        task.problem(f"gsm8k/{split}/{i}") for split, n in (("train", 7473), ("test", 1319)) for i in range(n)
    ]
    assert not any("<<" in p.solution or ">>" in p.solution for p in everything)
    assert all(p.solution.endswith(f"\n#### {p.answer}") for p in everything)
    assert all(grade.strict for grade in task.grade(everything, [p.solution for p in everything]))
    # unmarked solutions keep the number but not the mark
    assert not any(
        grade.strict for grade in task.grade(everything, [unmarked("gsm8k", p.solution) for p in everything])
    )
    assert Counter(p.meta["steps"] for p in everything if "/train/" in p.id) == {
        2: 1961,
        3: 2149,
        4: 1659,
        5: 955,
        6: 419,
        7: 227,
        8: 90,
        9: 13,
    }


def test_real_math(shared_data: Path) -> None:
    task = load_task(config("math", path=str(shared_data / "math")), 0)
    assert isinstance(task, DatasetTask)
    assert task.notes[0] == "split=12k: 500 problems of MATH-500 taken out, 12,000 left"
    # Pairs that differ in runs of white space: train 1434 and 1666, train 3192 and test 4997. Two more differ by a
    # space inside a formula: train 15 and 1618 ("\log_8 2", "\log_82"), train 306 and test 260 ("y = x^2", "y=x^2").
    # No one of them is in MATH-500, so under split=12k all four are duplicates within train.
    duplicate = {"math/train/1618", "math/train/1666", "math/test/260", "math/test/4997"}
    empty = {"math/train/5529", "math/train/5531"}  # their solutions say \boxed{}
    assert set(task.dropped) == duplicate | empty
    assert task.train_size + len(task.dev(10**6)) == 12_000 - 6
    assert len(task.test(None)) == 500
    assert all(p.answer for p in task.test(None))

    task = load_task(config("math", path=str(shared_data / "math"), split="7.5k", eval_split="test"), 0)
    assert isinstance(task, DatasetTask)
    assert {id for id, why in task.dropped.items() if why.startswith("duplicate")} == {
        "math/train/1618",
        "math/train/1666",
    }
    assert {id for id, why in task.dropped.items() if why.startswith("also")} == {"math/train/306", "math/train/3192"}
    assert task.train_size + len(task.dev(10**6)) == 7500 - 6
    assert {task.problem(f"math/train/{i}").meta["level"] for i in range(7500)} == {1, 2, 3, 4, 5, None}


@pytest.mark.parametrize(
    ("name", "golds"),
    [("gsm8k_few_shot", ["22", "34", "3", "8", "48", "16", "99", "315"]), ("math_few_shot", ["7", "2/15", "30", "9"])],
)
def test_shots_are_right_and_in_neither_split(name: str, golds: list[str], shared_data: Path) -> None:
    task = load_task(config(name, path=str(shared_data / name.split("_")[0])), 0)
    shots = task.cfg.prompt.shots
    grades = task.grade([Problem("x", "?", gold) for gold in golds], [shot["answer"] for shot in shots])
    task.close()
    assert [grade.strict for grade in grades] == [True] * len(golds)
    assert isinstance(task, DatasetTask)
    assert not any("\n" in shot["question"] for shot in shots)
    assert not {normalise(shot["question"]) for shot in shots} & {normalise(p.question) for p in task.problems()}


@pytest.mark.parametrize(
    "name", ["gsm8k", "gsm8k_chat", "gsm8k_few_shot", "math", "math_chat", "math_few_shot", "custom", "arithmetic"]
)
def test_every_task_file_is_a_whole_config(name: str) -> None:
    cfg = config(name)
    assert name.startswith(cfg.name)
    assert "{question}" in cfg.prompt.template
    assert abs(sum(cfg.demonstrations.values()) - 1) < 1e-3
