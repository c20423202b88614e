"""Evaluation: rows, and their summary by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from model_data import make

from grpo_bench.evaluate import evaluate, flat, summarise
from grpo_bench.policy import Policy
from grpo_bench.rollout import Ended, Noise, Progress, Sampling
from grpo_bench.rollout.native import NativeEngine
from grpo_bench.tasks import load_task
from grpo_bench.tiny import tiny_model, tiny_tokenizer
from grpo_bench.types import Rollouts


def row(id: str, sample: int, extracted: str | None, correct: bool, length: int = 5, **more: Any) -> dict[str, Any]:
    base = {"mode": "sampled", "id": id, "sample": sample, "extracted": extracted, "length": length, "finished": True}
    return base | {"correct": correct, "strict": correct, "flexible": correct} | more


def test_greedy_answers_summarised_by_hand() -> None:
    rows = [
        row("a", 0, "1", True, 4, mode="greedy"),
        row("b", 0, "2", False, 6, mode="greedy", flexible=True),
        row("c", 0, "3", False, 40, mode="greedy", strict=True, flexible=True, finished=False),
        row("d", 0, None, False, 10, mode="greedy"),
    ]
    got = summarise(rows, [1, 2], "gsm8k")
    assert list(got) == ["greedy"]
    # acc 1/4; deviations 0.75, −0.25 (3x): variance (0.5625 + 3·0.0625)/3 = 0.25; standard error sqrt(0.25/4) = 0.25
    want = {"acc": 0.25, "acc_strict": 0.5, "acc_flexible": 0.75, "stderr": 0.25, "n": 4, "truncated": 0.25,
            "len_mean": 15.0, "len_correct": 4.0, "len_wrong": 56 / 3}  # fmt: skip
    assert got["greedy"] == pytest.approx(want, abs=1e-12)


def test_the_standard_error_is_over_problems_not_samples() -> None:
    # two problems, four samples each: all right, all wrong. Means 1 and 0, acc 1/2, variance (0.25 + 0.25)/1 = 0.5,
    # standard error sqrt(0.5/2) = 0.5; eight independent samples would claim sqrt(0.2857/8) = 0.19
    rows = [row(p, i, "1", p == "a") for p in "ab" for i in range(4)]
    assert summarise(rows, [1], "gsm8k")["sampled"]["stderr"] == pytest.approx(0.5)


def test_one_problem_has_no_spread() -> None:
    assert summarise([row("a", 0, "1", True, mode="greedy")], [], "gsm8k")["greedy"]["stderr"] == 0.0


def test_pass_at_k_is_unbiased() -> None:
    # 1 of 4 right: pass@1 = 1/4; pass@2 = 1 − C(3,2)/C(4,2) = 1 − 3/6; pass@4 = 1. 0 of 4: 0.
    rows = [row("a", i, str(i), i == 2) for i in range(4)] + [row("b", i, "9", False) for i in range(4)]
    got = summarise(rows, [1, 2, 4, 8], "gsm8k")["sampled"]
    assert [got[f"pass@{k}"] for k in (1, 2, 4)] == pytest.approx([0.125, 0.25, 0.5])
    assert "pass@8" not in got  # of four samples
    assert got["pass@1"] == got["acc"]


@pytest.mark.parametrize(
    ("answers", "k", "wins"),
    [
        ([("7", True), ("8", False), ("8", False), ("7", True)], 4, True),  # 2 : 2, the earliest wins
        ([("8", False), ("7", True), ("7", True), ("8", False)], 4, False),
        ([("8", False), ("7", True), ("7", True), ("8", False)], 3, True),  # the first three only
        ([(None, False), (None, False), ("7", True)], 3, True),  # what cannot be read does not vote
        ([(None, False), (None, False)], 2, False),
        ([("8", False), ("7", True)], 1, False),
        ([("7", False), ("7", True)], 2, True),  # the first was cut off after its answer: the vote is right
    ],
)
def test_majority_votes(answers: list[tuple[str | None, bool]], k: int, wins: bool) -> None:
    rows = [row("a", i, text, right) for i, (text, right) in enumerate(answers)]
    assert summarise(rows, [k], "gsm8k")["sampled"][f"maj@{k}"] == float(wins)


def test_equal_expressions_vote_together() -> None:
    answers = [("\\dfrac12", True), ("3", False), ("\\frac{1}{2}", True), ("3", False), ("\\frac12", True)]
    rows = [row("a", i, text, right) for i, (text, right) in enumerate(answers)]
    assert summarise(rows, [5], "math")["sampled"]["maj@5"] == 1.0


def test_lengths_of_none_are_none() -> None:
    got = summarise([row("a", 0, "1", True)], [], "gsm8k")["sampled"]
    assert got["len_wrong"] is None
    assert got["len_correct"] == 5.0


def test_names_of_the_glossary() -> None:
    assert flat("dev", {"greedy": {"acc": 0.5}, "sampled": {"pass@2": None}}) == {
        "eval/dev/greedy/acc": 0.5,
        "eval/dev/sampled/pass@2": None,
    }


class Engine:
    """Answers greedily right, sampled: right, wrong, right but cut off."""

    def __init__(self) -> None:
        self.seen: list[tuple[Sampling, Noise, int]] = []

    def generate(
        self,
        policy: Any,
        tokenizer: Any,
        prompt_ids: list[list[int]],
        group_size: int,
        sampling: Sampling,
        noise: Noise,
        progress: Progress | None = None,
        ended: Ended | None = None,
    ) -> Rollouts:
        if progress is not None:
            progress(len(prompt_ids) * group_size)
        self.seen.append((sampling, noise, group_size))
        texts = ["#### 1", "#### 2", "#### 1"][:group_size] * len(prompt_ids)
        finished = [True, True, False][:group_size] * len(prompt_ids)
        return Rollouts(prompt_ids, [[5] * (i % 3 + 1) for i in range(len(texts))], texts, finished, group_size)


def test_a_row_for_every_answer() -> None:
    cfg = make("eval.temperature=0.6", "task.stop=['Q:']", "rollout.temperature=2.0", "rollout.top_p=0.5")
    task = load_task(cfg.task, 0)
    problems = [p for p in task.test(400) if p.answer == "1"][:2]
    assert cfg.model.tiny is not None
    engine = Engine()
    rows = evaluate(cfg, task, None, tiny_tokenizer(cfg.model.tiny), engine, problems, "test", 7, 3)  # type: ignore[arg-type]
    greedy, sampled = engine.seen
    assert greedy == (Sampling(0.0, cfg.task.max_new_tokens, stop=("Q:",)), Noise(0, "test"), 1)
    # at its own temperature and without truncation of the distribution, whatever training samples at
    assert sampled == (Sampling(0.6, cfg.task.max_new_tokens, stop=("Q:",)), Noise(0, "test"), 3)
    assert [(r["mode"], r["id"], r["sample"]) for r in rows] == [
        *(("greedy", p.id, 0) for p in problems),
        *(("sampled", p.id, i) for p in problems for i in range(3)),
    ]
    assert [r["correct"] for r in rows] == [True, True] + [True, False, False] * 2
    assert [r["strict"] for r in rows[2:5]] == [True, False, True]
    assert rows[4] == {
        "step": 7, "split": "test", "mode": "sampled", "id": problems[0].id, "sample": 2, "response": "#### 1",
        "extracted": "1", "strict": True, "flexible": True, "correct": False, "length": 3, "finished": False,
    }  # fmt: skip


def test_greedy_only() -> None:
    cfg = make()
    task, engine = load_task(cfg.task, 0), Engine()
    assert cfg.model.tiny is not None
    rows = evaluate(cfg, task, None, tiny_tokenizer(cfg.model.tiny), engine, task.dev(3), "dev", 0, 0)  # type: ignore[arg-type]
    assert len(rows) == 3
    assert len(engine.seen) == 1


def test_every_arm_and_seed_is_asked_with_the_same_numbers() -> None:
    rows = []
    for seed in (0, 1):
        cfg = make(f"seed={seed}", "task.max_new_tokens=6")
        task = load_task(cfg.task, seed)
        assert cfg.model.tiny is not None
        policy = Policy(tiny_model(cfg.model.tiny), torch.float32)
        tokenizer = tiny_tokenizer(cfg.model.tiny)
        rows.append(evaluate(cfg, task, policy, tokenizer, NativeEngine(None), task.test(4), "test", 0, 2))
    assert rows[0] == rows[1]
    assert len({r["response"] for r in rows[0] if r["mode"] == "sampled"}) > 4


def test_progress_counts_greedy_and_sampled_answers_together() -> None:
    cfg = make()
    task, seen = load_task(cfg.task, 0), []
    assert cfg.model.tiny is not None
    evaluate(
        cfg, task, None, tiny_tokenizer(cfg.model.tiny), Engine(), task.dev(3), "dev", 0, 2,  # type: ignore[arg-type]
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(3, 9), (9, 9)]  # 3 greedy, then 6 sampled
