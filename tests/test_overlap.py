"""Grading beside sampling and scoring: it really runs there, and what comes out is what comes out without it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gather_data import Characters, Script, parts_of
from model_data import SMALL, make
from test_verifier import alive

from grpo_bench.collect import collect
from grpo_bench.config import Config
from grpo_bench.cost import Meter
from grpo_bench.evaluate import evaluate
from grpo_bench.gather import scores_first
from grpo_bench.identity import run_dir
from grpo_bench.rollout import Noise, Sampling
from grpo_bench.run import run
from grpo_bench.tasks import Task, load_task
from grpo_bench.tasks.grading import Grade
from grpo_bench.tasks.overlap import Grading, Lazy, Verified
from grpo_bench.tasks.verifier import Verdict, Verifier, known, then
from grpo_bench.types import Batch, Problem, Rollouts

CPU = torch.device("cpu")
SECONDS = 1.0
WAIT = 120.0  # for what comes in a second unless the machine is very busy
STUBBORN = r"\boxed{9^{9^{9^9}}}"  # sympy would compute for ages


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier(SECONDS, workers=2) as running:
        yield running


def problems(*golds: str) -> list[Problem]:
    return [Problem(str(i), f"{i}?", gold) for i, gold in enumerate(golds)]


MIXED = [
    ("x+1", r"\boxed{1+x}"),
    ("5", STUBBORN),
    ("5", r"\boxed{4}. The final answer is $5$."),
    ("5", "nothing to see"),
    (r"\frac12", r"so $\frac{2}{4}$"),
    ("5", STUBBORN),
    ("7", r"\boxed{7}"),
    ("", "5"),
]
GRADES = [
    Grade(True, True, "1+x", True),
    Grade(False, False, "9^{9^{9^9}}", True),
    Grade(False, True, "4", True),
    Grade(False, False, None),
    Grade(False, True, r"\frac{2}{4}"),
    Grade(False, False, "9^{9^{9^9}}", True),
    Grade(True, True, "7", True),
    Grade(False, False, None),
]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("order", ["none", "all", "some", "other text"])
def test_grades_do_not_depend_on_what_was_handed_in_when(order: str, workers: int) -> None:
    golds, texts = zip(*MIXED, strict=True)
    with Verifier(SECONDS, workers=workers) as verifier:
        grading = Verified(problems(*golds), verifier)
        rows = random.Random(workers).sample(range(len(MIXED)), {"none": 0, "some": 3}.get(order, len(MIXED)))
        for row in rows:
            grading.add(row, r"\boxed{77}" if order == "other text" else texts[row])
        assert grading.result(texts) == GRADES
        # both rows overran by their box, and again by their text; what is asked twice counts twice
        assert (verifier.verifier_timeouts, verifier.verifier_errors) == (4, 0)


def test_as_many_responses_as_problems(verifier: Verifier) -> None:
    with pytest.raises(ValueError, match="1 responses to 2 problems"):
        Verified(problems("5", "6"), verifier).result(["5"])


def test_rules_that_cost_nothing_wait_until_they_are_asked() -> None:
    task = load_task(make().task, 0)
    grading = task.grading(problems("5", "6"))
    assert grading.listener is None  # the engine need not even decode a text before all have ended
    assert not task.grades_aside
    assert [grade.strict for grade in grading.result(["#### 5", "#### 5"])] == [True, False]
    assert task.verifier is None  # and there is no process


def test_a_killed_worker_costs_its_question_alone() -> None:
    with Verifier(SECONDS, workers=1) as verifier:
        grading = Verified(problems("x+1", "x+2", "x+3"), verifier)
        grading.add(0, r"\boxed{1+x}")
        grading._asked[0][1].result(WAIT)
        os.killpg(verifier._running[0].process.pid, signal.SIGKILL)
        grading.add(1, r"\boxed{2+x}")
        grading.add(2, r"\boxed{3+x}")
        grades = grading.result([r"\boxed{1+x}", r"\boxed{2+x}", r"\boxed{3+x}"])
        assert [grade.strict for grade in grades] == [True, False, True]
        assert (verifier.verifier_timeouts, verifier.verifier_errors) == (0, 1)


def test_an_error_of_the_verifier_reaches_whoever_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(seconds: float) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr("grpo_bench.tasks.verifier.VerifyProcess", fail)
    with Verifier(SECONDS, workers=1) as verifier:
        for _ in range(2):  # also whoever asks next
            grading = Verified(problems("x+1"), verifier)
            grading.add(0, r"\boxed{1+x}")
            with pytest.raises(OSError, match="no more processes"):
                grading.result([r"\boxed{1+x}"])


def test_closing_leaves_nobody_waiting() -> None:
    verifier = Verifier(SECONDS, workers=1)
    asked = verifier.ask("expression", "5", "9^{9^{9^9}}"), verifier.ask("expression", "x+1", "1+x")
    verifier.close()
    assert all(future.cancelled() for future in asked)
    assert verifier.equivalent([("x+1", "1+x")])[0].equal  # closed is not the end
    verifier.close()
    verifier.close()


def test_a_chain_passes_values_and_errors_on() -> None:
    assert then(known(2), lambda x: x + 1).result() == 3
    assert then(known(2), lambda x: known(x + 1)).result() == 3
    broken = then(then(known(0), lambda x: 1 // x), lambda x: x)
    with pytest.raises(ZeroDivisionError):
        broken.result()


def test_an_interrupted_run_leaves_no_process() -> None:
    script = """
import os, signal, threading
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started the tests with it ignored
from grpo_bench.tasks.overlap import Verified
from grpo_bench.tasks.verifier import Verifier
from grpo_bench.types import Problem
try:
    with Verifier(60.0, workers=2) as verifier:
        grading = Verified([Problem("a", "?", "x+1")] + [Problem("b", "?", "5")] * 9, verifier)
        grading.add(0, "\\\\boxed{1+x}")
        grading._asked[0][1].result()
        for row in range(1, 10):
            grading.add(row, "\\\\boxed{9^{9^{9^%d}}}" % row)
        print(*(worker.process.pid for worker in verifier._running), flush=True)
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        grading.result(["\\\\boxed{1+x}"] + ["\\\\boxed{9^{9^{9^%d}}}" % row for row in range(1, 10)])
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=WAIT, check=True)
    groups, last = done.stdout.splitlines()
    assert last == "interrupted"
    assert not any(alive(int(group)) for group in groups.split())


# ------------------------------------------------------------------ order of events


class Slow(Grading):
    """A grading that writes down what happens; a row is graded when somebody else says so."""

    def __init__(self, rows: list[Problem], events: list[str]) -> None:
        self.rows, self.events = rows, events

    @property
    def listener(self) -> Callable[[int, str, bool], None]:
        return lambda row, text, finished: self.add(row, text)

    def add(self, row: int, response: str) -> None:
        self.events.append(f"row {row} handed in: {response}")

    def result(self, responses: Sequence[str]) -> list[Grade]:
        self.events.append("grades wanted")
        return [Grade(True, True, text, True) for text in responses]


class Announcing(Script):
    """Says of each row that it ended before it ends itself."""

    def __init__(self, events: list[str], *answers: list[str]) -> None:
        super().__init__(*answers)
        self.events = events

    def generate(self, *args: Any, progress: Any = None, ended: Any = None) -> Rollouts:
        out = super().generate(*args)
        self.events.append("sampling")
        if ended is not None:
            for row in reversed(range(len(out.texts))):
                ended(row, out.texts[row], out.finished[row])
        self.events.append("sampled")
        return out


def test_rows_are_handed_in_while_others_are_sampled_and_grades_taken_after_scoring() -> None:
    events: list[str] = []
    parts = parts_of(
        Announcing(events, ["a$", "b$"]), make("algo=grpo", "group_size=2").algo, "group_size=2", answers=[]
    )
    parts.task.grading = lambda rows: Slow(rows, events)

    def scored(batch: Batch) -> Batch:
        events.append("scored")
        assert batch.rewards.tolist() == [0.0, 0.0]
        assert batch.correct.tolist() == [False, False]
        return replace(batch, old_logp=batch.mask + 1, values=batch.mask + 2, rewards=batch.rewards + 9)

    policy = parts.models.policy
    asked = problems("a")
    out = collect(parts.cfg, parts.task, policy, Characters(), parts.engine, asked, 1, Meter(CPU), 0, scored)
    assert events == ["sampling", "row 1 handed in: b", "row 0 handed in: a", "sampled", "scored", "grades wanted"]
    assert out.batch.rewards.tolist() == [1.0, 1.0]  # the rewards' own, whatever scoring did
    assert out.batch.correct.tolist() == [True, True]
    assert out.batch.old_logp is not None
    assert torch.equal(out.batch.old_logp, out.batch.mask + 1)
    assert out.batch.values is not None


class Waiting:
    """An engine that goes on only when the row that it announced has been graded: without overlap it never would."""

    def __init__(self, verifier: Verifier) -> None:
        self.verifier = verifier

    def generate(
        self, policy: Any, tokenizer: Any, prompt_ids: list[list[int]], group_size: int, sampling: Sampling,
        noise: Noise, progress: Any = None, ended: Any = None,
    ) -> Rollouts:  # fmt: skip
        count = len(prompt_ids) * group_size
        texts = [rf"\boxed{{{i}+x+0}}" for i in range(count)]
        for row in range(count - 1):
            ended(row, texts[row], True)
            grade = ended.__closure__[0].cell_contents._asked[row][1].result(WAIT)
            assert grade.strict == (row % 2 == 1)
        return Rollouts(prompt_ids, [[5]] * count, texts, [True] * count, group_size)


def test_grading_runs_in_its_process_while_the_engine_samples(verifier: Verifier) -> None:
    cfg = make("group_size=1", "task.answer=math")
    task = load_task(cfg.task, 0)
    task.verifier = verifier
    asked = [replace(p, answer=f"x+{i}" if i % 2 else "x") for i, p in enumerate(task.test(4))]
    asked[0] = replace(asked[0], answer="x+9")
    engine: Any = Waiting(verifier)
    policy: Any = None
    rows = evaluate(cfg, task, policy, tiny(cfg), engine, asked, "test", 1, 1)
    assert [row["correct"] for row in rows] == [False, True, False, True] * 2


def tiny(cfg: Config) -> Any:
    from grpo_bench.tiny import tiny_tokenizer

    assert cfg.model.tiny is not None
    return tiny_tokenizer(cfg.model.tiny)


# ------------------------------------------------------------------ whole runs

SHORT = (
    *SMALL,
    "threads=1", "task.answer=math", "task.verify_seconds=2", "task.verify_workers=2", "task.stop=[e,a]",
    "model.warmstart.steps=2", "model.warmstart.batch_size=8", "group_size=4", "samples_per_step=16",
    "budget.amount=64", "task.max_new_tokens=8", "eval.every=2", "eval.n=4", "eval.test_n=6", "eval.samples=2",
    "eval.ks=[1,2]", "checkpoint.every=1",
)  # fmt: skip
RUNS = {
    "grpo": ("algo=grpo", "kl_coef=0.04", "mask_truncated=true"),  # scored while graded
    "ppo": ("algo=ppo", "group_size=4", "kl_coef=0"),
    "dapo": ("algo=dapo", "minibatches=1"),  # draws again by what was right
    "remax": ("algo=remax", "group_size=4"),  # a greedy answer beside each group
}


class Whimsical(Verifier):
    """Asks a real process and then goes by the text's length: a model of random weights is never right."""

    def equivalent_soon(self, gold: str, answer: str) -> Future[Verdict]:
        return then(self.ask("expression", gold, answer), lambda verdict: replace(verdict, equal=len(answer) % 2 == 0))

    def find_soon(self, gold: str, text: str) -> Future[Verdict]:
        return then(self.ask("text", gold, text), lambda verdict: replace(verdict, equal=len(text) % 3 == 0))


@pytest.fixture
def whims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("grpo_bench.tasks.verifier.Verifier", Whimsical)
    monkeypatch.setattr("grpo_bench.tasks.grading.last_boxed", lambda text: text[:5])


def plain_grading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything in turn: sample, grade, score."""
    monkeypatch.setattr(Task, "grades_aside", False)
    monkeypatch.setattr(Task, "grading", lambda task, rows: Lazy(rows, task.grade))


def go(folder: Path, name: str, *more: str) -> Path:
    cfg = make(*SHORT, *RUNS[name], f"results={folder}", *more)
    directory = run_dir(cfg)
    run(cfg, directory)
    return directory


@pytest.mark.usefixtures("whims")
@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_the_same_to_the_byte(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside = go(tmp_path / "beside", name)
    plain_grading(monkeypatch)
    plain = go(tmp_path / "plain", name)
    for file in ("metrics.jsonl", "samples.jsonl", "eval.jsonl.gz"):
        assert (beside / file).read_bytes() == (plain / file).read_bytes(), file
    rows = [json.loads(line) for line in (beside / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < row["reward/correct"] < 1 for row in rows[1:])


@pytest.mark.usefixtures("whims")
def test_a_continued_run_is_the_same_to_the_byte(tmp_path: Path) -> None:
    whole = go(tmp_path / "whole", "grpo")
    first = go(tmp_path / "parts", "grpo", "budget.amount=32")
    second = go(tmp_path / "parts", "grpo")
    assert first == second
    for file in ("metrics.jsonl", "samples.jsonl"):
        assert (whole / file).read_bytes() == (second / file).read_bytes(), file


@pytest.mark.parametrize(
    ("overrides", "first"),
    [
        (("algo=grpo", "kl_coef=0.04", "task.answer=math"), True),
        (("algo=ppo", "task.answer=math"), True),
        (("algo=ppo",), False),  # numbers are compared when they are asked for
        (("algo=dapo", "task.answer=math"), False),  # keeps by what is right
        (("algo=remax", "task.answer=math"), False),
    ],
)
def test_when_scoring_goes_first(overrides: tuple[str, ...], first: bool) -> None:
    cfg = make(*overrides)
    parts: Any = parts_of(Script(), cfg.algo, answers=[])
    parts.task = load_task(cfg.task, 0)
    assert scores_first(parts) is first


def test_verdicts_shared_by_those_that_ask_together(verifier: Verifier) -> None:
    before = verifier.verifier_timeouts
    asked = [verifier.ask("expression", "6", "8^{9^{9^9}}") for _ in range(3)]
    assert len({id(future) for future in asked}) == 1
    assert asked[0].result(WAIT) == Verdict(False, "timeout")
    assert verifier.verifier_timeouts == before + 3
