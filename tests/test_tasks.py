"""Tasks made of data sets: rows as problems, splits without leaks, filters, the order of the stream."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from task_data import config, gsm8k_loader, gsm8k_rows, math_rows, train_ids, write

from grpo_bench.tasks import Task, load_task
from grpo_bench.tasks.dataset import DatasetTask, pass_order
from grpo_bench.tasks.gsm8k import strip_annotations
from grpo_bench.types import Problem, UserError


@pytest.fixture
def gsm8k(tmp_path: Path) -> Callable[..., DatasetTask]:
    return gsm8k_loader(tmp_path)


@pytest.fixture
def math(tmp_path: Path) -> Iterator[Callable[..., DatasetTask]]:
    folder = tmp_path / "math"
    write(folder / "train.jsonl", math_rows(0, 60))
    write(folder / "test.jsonl", math_rows(100, 40))
    chosen = math_rows(110, 10, subject="Algebra", level=3)
    for row in chosen:
        row["problem"] = "  " + row["problem"].replace(" ", "\n").upper()  # the text differs in case and spacing only
    write(tmp_path / "math500" / "test.jsonl", chosen)
    tasks: list[Task] = []

    def load(seed: int = 0, **override: Any) -> DatasetTask:
        task = load_task(config("math", path=str(folder), **override), seed)
        tasks.append(task)
        assert isinstance(task, DatasetTask)
        return task

    yield load
    for task in tasks:
        task.close()


def test_gsm8k_row(gsm8k: Callable[..., DatasetTask]) -> None:
    task = gsm8k()
    assert task.problem("gsm8k/test/4") == Problem(
        id="gsm8k/test/4",
        question="What is 1004 plus 1004?",
        answer="2008",
        solution="It is nothing.\nIt is nothing.\n1004 + 1004 = 2008\n#### 2008",  # no <<...>>, no comma in "2,008"
        meta={"steps": 3},
    )
    assert strip_annotations("She has <<48/2=24>>24 + $<<1*2=2>>2 and 3 << 4.") == "She has 24 + $2 and 3 << 4."


def test_math_row(math: Callable[..., DatasetTask]) -> None:
    task = math()
    assert task.problem("math/train/7") == Problem(
        "math/train/7", "Find $7^2$.", "49", "It is $\\boxed{49}$.", {"level": 3, "subject": "Geometry"}
    )
    assert task.problem("math500/0").meta == {"level": 3, "subject": "Algebra"}
    with pytest.raises(UserError, match="has no problem 'math/train/60'; ids look like 'math/train/0'"):
        task.problem("math/train/60")


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"question": "a?", "answer": "seven"}, "has no line '#### n'"),
        ({"question": "a?", "answer": "x\n#### many"}, "'many' is not a number"),
        ({"question": "a?", "answer": "#### 3"}, "no worked solution"),
        ({"question": "", "answer": "x\n#### 3"}, "'question' is empty"),
    ],
)
def test_bad_gsm8k_rows_are_named(tmp_path: Path, row: dict[str, str], what: str) -> None:
    write(tmp_path / "train.jsonl", [*gsm8k_rows(0, 3), row])
    write(tmp_path / "test.jsonl", gsm8k_rows(9, 3))
    with pytest.raises(UserError) as error:
        load_task(config("gsm8k", path=str(tmp_path)), 0)
    assert f"{tmp_path}/train.jsonl:4: " in str(error.value)
    assert what in str(error.value)


@pytest.mark.parametrize(
    ("change", "what"),
    [({"solution": "none"}, "no \\boxed"), ({"level": "hard"}, "field 'level'"), ({"level": 6}, "field 'level'"),
     ({"type": 3}, "field 'type' must be a string")],
)  # fmt: skip
def test_bad_math_rows_are_named(tmp_path: Path, change: dict[str, Any], what: str) -> None:
    write(tmp_path / "train.jsonl", [*math_rows(0, 3), math_rows(3, 1)[0] | change])
    write(tmp_path / "test.jsonl", math_rows(9, 3))
    with pytest.raises(UserError) as error:
        load_task(config("math", path=str(tmp_path), split="7.5k", eval_split="test"), 0)
    assert f"{tmp_path}/train.jsonl:4: " in str(error.value)
    assert what in str(error.value)


def test_unpublished_counts_are_noted(gsm8k: Callable[..., DatasetTask]) -> None:
    assert "gsm8k train has 60 rows; the published one has 7,473" in gsm8k().notes


def test_duplicates_and_overlaps_leave_train_and_are_named(tmp_path: Path) -> None:
    train = gsm8k_rows(0, 30)
    train[12] = {**train[12], "question": "what IS 3\n plus 3 ?"}  # row 3 again
    train[20] = {**train[20], "question": " WHAT is 105 plus 105?"}  # test row 5
    write(tmp_path / "train.jsonl", train)
    write(tmp_path / "test.jsonl", gsm8k_rows(100, 10))
    task = load_task(config("gsm8k", path=str(tmp_path)), 0)
    assert isinstance(task, DatasetTask)
    assert "dropped 1 from train, duplicate within train: gsm8k/train/12 (= gsm8k/train/3)" in task.notes
    assert "dropped 1 from train, also in the test data: gsm8k/train/20 (= gsm8k/test/5)" in task.notes
    assert set(task.dropped) == {"gsm8k/train/12", "gsm8k/train/20"}
    # 28 left, of which a tenth, 2, are dev
    assert (task.train_size, len(task.dev(99)), len(task.test(None))) == (26, 2, 10)
    assert not set(task.dropped) & (train_ids(task) | {p.id for p in task.dev(99)})
    assert task.problem("gsm8k/train/12").answer == "24"  # dropped ones keep their id


def test_math_12k_trains_on_all_but_math500(math: Callable[..., DatasetTask]) -> None:
    task = math()
    assert "split=12k: 10 problems of MATH-500 taken out, 90 left" in task.notes
    assert (task.train_size, len(task.dev(99)), len(task.test(None))) == (81, 9, 10)
    assert {p.id for p in task.test(None)} == {f"math500/{i}" for i in range(10)}
    shown = train_ids(task) | {p.id for p in task.dev(99)}
    # rows 10 to 19 of test are MATH-500
    assert shown == {f"math/train/{i}" for i in range(60)} | {f"math/test/{i}" for i in range(40) if not 10 <= i < 20}


def test_math_7500_evaluates_on_either(math: Callable[..., DatasetTask]) -> None:
    for eval_split, size in (("math500", 10), ("test", 40)):
        task = math(split="7.5k", eval_split=eval_split)
        assert train_ids(task) | {p.id for p in task.dev(99)} == {f"math/train/{i}" for i in range(60)}
        assert len(task.test(None)) == size
    with pytest.raises(UserError, match="is refused"):
        math(split="12k", eval_split="test")


def test_math500_is_looked_for_inside_and_beside(math: Callable[..., DatasetTask], tmp_path: Path) -> None:
    (tmp_path / "math500").rename(tmp_path / "math" / "math500")
    assert len(math().test(None)) == 10
    (tmp_path / "math" / "math500").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"no folder math500 inside or beside .*give task\.math500_path="):
        math()
    assert len(math(math500_path=str(tmp_path / "elsewhere")).test(None)) == 10


def test_math500_that_is_not_part_of_math_is_refused(math: Callable[..., DatasetTask], tmp_path: Path) -> None:
    write(tmp_path / "math500" / "test.jsonl", math_rows(139, 2))  # 139 is there, 140 is not
    with pytest.raises(UserError, match=r"1 of 2 MATH-500 problems are not in the test split of MATH \(math500/1\)"):
        math()


def test_an_empty_gold_answer_is_not_trained_on(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [*math_rows(0, 12), math_rows(12, 1)[0] | {"solution": "It is $\\boxed{}$."}])
    write(tmp_path / "test.jsonl", math_rows(100, 3))
    task = load_task(config("math", path=str(tmp_path), split="7.5k", eval_split="test"), 0)
    assert "dropped 1 from train, gold answer is empty: math/train/12" in task.notes


def test_filters_keep_what_they_say(gsm8k: Callable[..., DatasetTask], math: Callable[..., DatasetTask]) -> None:
    task = gsm8k(filters={"steps": [1, 3]})
    problems = [task.train_problem(i) for i in range(task.train_size)] + task.dev(99)
    assert Counter(p.meta["steps"] for p in problems) == {1: 20, 3: 20}
    assert len(task.test(None)) == 20  # the test split stays whole
    task = math(filters={"level": [2], "subject": ["Geometry"]})
    problems = [task.train_problem(i) for i in range(task.train_size)] + task.dev(99)
    # i % 5 == 1 and i % 2 == 1, so i % 10 == 1: 6 in train, 3 in test, of which 111 is MATH-500's
    assert {p.id for p in problems} == {f"math/train/{i}" for i in range(1, 60, 10)} | {
        f"math/test/{i}" for i in (1, 21, 31)
    }


def test_a_problem_without_level_passes_no_level_filter(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [*math_rows(0, 20), math_rows(20, 1)[0] | {"level": "Level ?"}])
    write(tmp_path / "test.jsonl", math_rows(100, 3))
    options = {"path": str(tmp_path), "split": "7.5k", "eval_split": "test"}
    task = load_task(config("math", **options, filters={"level": [1, 2, 3, 4, 5]}), 0)
    assert isinstance(task, DatasetTask)
    assert task.problem("math/train/20").meta["level"] is None
    assert train_ids(task) | {p.id for p in task.dev(9)} == {f"math/train/{i}" for i in range(20)}


@pytest.mark.parametrize(
    ("filters", "what"),
    [
        ({"steps": [1, 9]}, "task.filters.steps: no training problem has steps 9; there are 1, 2, 3"),
        ({"steps": []}, "task.filters.steps: an empty list; there are 1, 2, 3"),
        ({"level": [1]}, "task.filters.level: no training problem has level 1; there are none"),
    ],
)
def test_a_filter_that_leaves_nothing_names_what_there_is(
    gsm8k: Callable[..., DatasetTask], filters: dict[str, Any], what: str
) -> None:
    with pytest.raises(UserError) as error:
        gsm8k(filters=filters)
    assert str(error.value) == what


def test_limit_leaves_dev_alone_and_a_longer_limit_begins_with_the_shorter(gsm8k: Callable[..., DatasetTask]) -> None:
    whole, ten, five = gsm8k(), gsm8k(filters={"limit": 10}), gsm8k(filters={"limit": 5})
    assert (ten.train_size, five.train_size) == (10, 5)
    assert train_ids(five) < train_ids(ten) < train_ids(whole)
    assert whole.dev(99) == ten.dev(99) == five.dev(99)


def test_every_pass_shows_every_training_problem_once_and_no_dev_problem(gsm8k: Callable[..., DatasetTask]) -> None:
    task = gsm8k()
    n = task.train_size
    assert n == 54  # 60 less a tenth for dev
    passes = [[task.train_problem(k * n + i).id for i in range(n)] for k in range(3)]
    assert all(len(set(ids)) == n for ids in passes)
    assert passes[0] != passes[1] != passes[2]
    assert not train_ids(task) & {p.id for p in task.dev(99)}


def test_the_stream_depends_on_the_seed_and_the_index_alone(gsm8k: Callable[..., DatasetTask]) -> None:
    forward = [p.id for p in map(gsm8k(seed=3).train_problem, range(200))]
    task = gsm8k(seed=3)
    backward = [task.train_problem(i).id for i in reversed(range(200))]
    assert forward == backward[::-1]
    assert forward != [p.id for p in map(gsm8k(seed=4).train_problem, range(200))]


def test_the_order_is_pinned() -> None:
    # A change here changes every recorded run's order: raise ORDER_RULE with it.
    assert pass_order(8, seed=0, passes=0, purpose="train").tolist() == [7, 6, 3, 5, 2, 1, 0, 4]
    assert pass_order(8, seed=0, passes=1, purpose="train").tolist() == [2, 3, 1, 7, 0, 6, 5, 4]


def test_dev_and_test_do_not_depend_on_the_seed_or_on_where_the_data_lie(
    gsm8k: Callable[..., DatasetTask], tmp_path: Path
) -> None:
    one, other = gsm8k(seed=0), gsm8k(seed=1)
    assert one.dev(3) == other.dev(99)[:3]
    assert one.test(7) == other.test(None)[:7]
    assert one.fingerprint == other.fingerprint
    assert one.prompt_stream_hash != other.prompt_stream_hash
    (tmp_path / "copy").mkdir()
    for split in ("train", "test"):
        (tmp_path / "copy" / f"{split}.jsonl").write_bytes((tmp_path / f"{split}.jsonl").read_bytes())
    copy = load_task(config("gsm8k", path=str(tmp_path / "copy")), 0)
    assert (copy.fingerprint, copy.prompt_stream_hash) == (one.fingerprint, one.prompt_stream_hash)


def test_the_fingerprint_sees_contents_version_filters_and_prompt(
    gsm8k: Callable[..., DatasetTask], tmp_path: Path
) -> None:
    prints = [
        gsm8k().fingerprint,
        gsm8k(version=2).fingerprint,
        gsm8k(filters={"limit": 5}).fingerprint,
        gsm8k(prompt={"template": "{question}"}).fingerprint,
    ]
    assert gsm8k(max_new_tokens=7, verify_seconds=1.0).fingerprint == prints[0]
    rows = gsm8k_rows(0, 60)
    rows[5]["answer"] = rows[5]["answer"].replace("#### 10", "#### 11")
    write(tmp_path / "train.jsonl", rows)
    assert len({*prints, gsm8k().fingerprint}) == 5


def test_the_same_stream_in_another_process(gsm8k: Callable[..., DatasetTask], tmp_path: Path) -> None:
    task = gsm8k(seed=5)
    code = (
        "import json, sys; from grpo_bench.config import TaskConfig; from grpo_bench.tasks import load_task;"
        "t = load_task(TaskConfig.model_validate(json.loads(sys.argv[1])), 5);"
        "print([t.train_problem(i).id for i in range(60)], t.prompt_stream_hash)"
    )
    repo = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code, task.cfg.model_dump_json()], check=True, capture_output=True, text=True, cwd=repo
    )
    assert done.stdout.strip() == f"{[task.train_problem(i).id for i in range(60)]} {task.prompt_stream_hash}"


def test_grades_follow_the_answer_rule(gsm8k: Callable[..., DatasetTask], math: Callable[..., DatasetTask]) -> None:
    task = gsm8k()
    problem = task.problem("gsm8k/train/7")
    grades = task.grade([problem] * 3, ["#### 14", "fourteen, that is 14", "#### 15"])
    assert [(g.strict, g.flexible) for g in grades] == [(True, True), (False, True), (False, False)]
    task = math()
    problem = task.problem("math/train/7")
    assert task.verifier is None
    grades = task.grade([problem] * 2, ["\\boxed{7 \\cdot 7}", "\\boxed{50}"])
    assert [g.strict for g in grades] == [True, False]
    task.close()
    assert task.verifier is None


def test_a_dev_slice_of_long_prompts_is_one_line(gsm8k: Callable[..., DatasetTask]) -> None:
    task = gsm8k(max_prompt_tokens=60)
    dev = {problem.id for problem in task.dev(99)}
    task._long_prompts = lambda _: dict.fromkeys(dev, 70)  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"every dev prompt is longer .*max_prompt_tokens=60; the shortest has 70"):
        task.fit(None)
