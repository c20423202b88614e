"""From completions to a batch: masks from lengths, padding, rewards and what is said about a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from model_data import make

from grpo_bench.collect import Experience, collect, describe, drop, make_batch, repetition, sampling_of
from grpo_bench.cost import Meter
from grpo_bench.policy import Policy
from grpo_bench.rollout import Noise, Sampling
from grpo_bench.signals import shown, signals
from grpo_bench.tasks import load_task
from grpo_bench.tiny import tiny_model, tiny_tokenizer
from grpo_bench.types import Problem, Rollouts

CPU = torch.device("cpu")


def test_prompts_are_padded_left_and_completions_right() -> None:
    rollouts = Rollouts([[1, 2, 3], [4]], [[5, 6], [7], [8], [0, 0, 9]], [""] * 4, [True, True, False, True], 2)
    batch = make_batch(rollouts, [1.0, 0.0, 0.5, 0.25], [True, False, False, True], CPU)
    assert batch.tokens.tolist() == [
        [1, 2, 3, 5, 6, 0],
        [1, 2, 3, 7, 0, 0],
        [0, 0, 4, 8, 0, 0],
        [0, 0, 4, 0, 0, 9],
    ]
    # by lengths 2, 1, 1, 3: the sampled zeros of the last row are inside, the padding zeros are not
    assert batch.mask.tolist() == [[1, 1, 0], [1, 0, 0], [1, 0, 0], [1, 1, 1]]
    assert batch.group_ids.tolist() == [0, 0, 1, 1]
    assert batch.group_size == 2
    assert batch.prompt_lengths is not None
    assert batch.prompt_lengths.tolist() == [3, 3, 1, 1]
    assert batch.rewards.tolist() == [1.0, 0.0, 0.5, 0.25]
    assert batch.correct.tolist() == [True, False, False, True]
    assert batch.finished.tolist() == [True, True, False, True]


def test_dropped_rows_keep_their_place() -> None:
    batch = make_batch(Rollouts([[1]], [[5, 6], [7]], ["", ""], [True, False], 2), [1.0, 0.0], [True, False], CPU)
    kept = drop(batch, batch.finished)
    assert kept.mask.tolist() == [[1, 1], [0, 0]]
    assert torch.equal(kept.tokens, batch.tokens)
    assert torch.equal(kept.rewards, batch.rewards)
    assert batch.mask.tolist() == [[1, 1], [1, 0]]  # the batch itself is never changed


def test_repetition_by_hand() -> None:
    # 4-grams of 1 2 1 2 1 2 1: 1212 2121 1212 2121: two of four are distinct
    assert repetition([1, 2, 1, 2, 1, 2, 1]) == 0.5
    assert repetition([1, 2, 3, 4, 5]) == 0.0
    assert repetition([1, 1, 1]) == 0.0  # too short for one


class Canned:
    """An engine whose completions are given."""

    def __init__(self, texts: list[str], ids: list[list[int]], finished: list[bool]) -> None:
        self.texts, self.ids, self.finished = texts, ids, finished

    def generate(
        self,
        policy: Any,
        tokenizer: Any,
        prompt_ids: list[list[int]],
        group_size: int,
        sampling: Sampling,
        noise: Noise,
        progress: Any = None,
        ended: Any = None,
    ) -> Rollouts:
        self.seen = (sampling, noise)
        logps = [[-0.25 * (1 + row)] * len(own) for row, own in enumerate(self.ids)]
        return Rollouts(prompt_ids, self.ids, self.texts, self.finished, group_size, logps)


@pytest.fixture(scope="module")
def experience() -> Experience:
    """Two problems (answers 12 and 9) with three completions each."""
    cfg = make("group_size=3", "samples_per_step=6", "reward.parts={correct:1,finished:0.5}", "minibatches=1")
    task = load_task(cfg.task, 0)
    problems = [Problem("a", "7 + 5?", "12"), Problem("b", "4 + 5?", "9")]
    texts = ["7 + 5 = 12 #### 12", "#### 12", "so 12", "#### 9", "#### 9", "#### 8"]
    ids = [[1, 2, 1, 2, 1, 2, 1], [1, 2, 3], [1, 2], [4, 5, 6], [4, 5, 6, 7], [4, 5]]
    engine = Canned(texts, ids, [True, False, True, True, True, True])
    assert cfg.model.tiny is not None
    policy, tokenizer = Policy(tiny_model(cfg.model.tiny), torch.float32), tiny_tokenizer(cfg.model.tiny)
    meter = Meter(CPU)
    out = collect(cfg, task, policy, tokenizer, engine, problems, 4, meter)
    assert engine.seen == (sampling_of(cfg), Noise(cfg.seed, "train", 4))
    assert set(meter.step) == {"rollout", "reward"}
    return out


def test_correct_is_a_strict_match_that_ended_by_itself(experience: Experience) -> None:
    batch = experience.batch
    # row 1 is right but cut off, row 2 right but unmarked, row 5 wrong
    assert batch.correct.tolist() == [True, False, False, True, True, False]
    assert batch.rewards.tolist() == [1.5, 0.0, 0.5, 1.5, 1.5, 0.5]  # correct + finished/2
    assert experience.parts == {"correct": [1, 0, 0, 1, 1, 0], "finished": [1, 0, 1, 1, 1, 1]}
    assert [problem.id for problem in experience.rows] == ["a", "a", "a", "b", "b", "b"]
    assert [g.flexible for g in experience.grades] == [True, True, True, True, True, False]


def test_a_step_described_by_hand(experience: Experience) -> None:
    got = describe(experience, torch.ones(6, dtype=torch.bool))
    lengths = [7, 3, 2, 3, 4, 2]
    # rewards 1.5 0 0.5 | 1.5 1.5 0.5: mean 5.5/6; group a: mean 2/3, Σ(r−μ)² = 0.6944 + 0.4444 + 0.0278 = 1.1667;
    # group b: mean 7/6, Σ = 0.1111 + 0.1111 + 0.4444 = 0.6667; stds sqrt(1.1667/3) = 0.62361, sqrt(0.6667/3) = 0.47140
    # all: Σ r² = 2.25·3 + 0.25·2 = 7.25, variance 7.25/6 − (5.5/6)² = 0.368056
    want = {
        "reward/mean": 5.5 / 6,
        "reward/std": 0.368056**0.5,
        "reward/min": 0.0,
        "reward/max": 1.5,
        "reward/group_std_mean": (0.62361 + 0.47140) / 2,
        "reward/correct": 3 / 6,
        "reward/flexible": 5 / 6,
        "reward/format": 5 / 6,  # all but "so 12" carry a marked answer
        "reward/correct/mean": 3 / 6,
        "reward/finished/mean": 5 / 6,
        "group/frac_zero_std": 0.0,
        "group/frac_all_correct": 0.0,
        "group/frac_all_wrong": 0.0,
        "group/effective": 2.0,
        "group/filtered": 0.0,
        "group/frac_kept": 1.0,
        "completions/len_mean": sum(lengths) / 6,
        "completions/len_min": 2.0,
        "completions/len_max": 7.0,
        "completions/len_correct": (7 + 3 + 4) / 3,
        "completions/len_wrong": (3 + 2 + 2) / 3,
        "completions/truncated_frac": 1 / 6,
        "completions/eos_frac": 5 / 6,
        "completions/terminated_len_mean": (7 + 2 + 3 + 4 + 2) / 5,
        "completions/repetition": 0.5 / 6,  # the first row's, see above
        "rollout/entropy": 0.25 * sum((1 + row) * n for row, n in enumerate(lengths)) / sum(lengths),
    }
    assert got == pytest.approx(want, abs=1e-5)


def with_rewards(experience: Experience, values: Sequence[float], correct: Sequence[bool]) -> Experience:
    batch = replace(experience.batch, rewards=torch.tensor(values, dtype=torch.float32), correct=torch.tensor(correct))
    return replace(experience, batch=batch)


def test_groups_without_a_signal_are_counted(experience: Experience) -> None:
    same = with_rewards(experience, [1, 1, 1, 0, 0, 0], [True] * 3 + [False] * 3)
    got = describe(same, torch.tensor([True] * 6))
    names = ("frac_zero_std", "frac_all_correct", "frac_all_wrong", "effective", "filtered")
    assert [got[f"group/{name}"] for name in names] == [1.0, 0.5, 0.5, 0.0, 0.0]
    mixed = with_rewards(experience, [1, 0, 1, 1, 0, 0], [True, False, True, True, False, False])
    got = describe(mixed, torch.tensor([False] * 3 + [True] * 3))
    assert [got[f"group/{name}"] for name in names] == [0.0, 0.0, 0.0, 1.0, 1.0]


def test_what_has_no_value_is_none_and_not_zero(experience: Experience) -> None:
    got = describe(with_rewards(experience, [0.0] * 6, [False] * 6), torch.ones(6, dtype=torch.bool))
    assert got["completions/len_correct"] is None
    assert got["completions/len_wrong"] == 21 / 6


def test_rows_for_people_to_read(experience: Experience) -> None:
    advantages = torch.arange(6.0)[:, None] * experience.batch.mask
    rows = shown(experience, replace(experience.batch, advantages=advantages), step=4, count=2)
    assert [row["row"] for row in rows] == [0, 1]
    assert rows[1] == {
        "step": 4, "row": 1, "id": "a", "response": "#### 12", "extracted": "12", "correct": False, "finished": False,
        "length": 3, "reward": 0.0, "reward/correct": 0.0, "reward/finished": 0.0, "advantage": 1.0,
    }  # fmt: skip


def test_signals_by_hand() -> None:
    # advantages 1, −1 | 2; log-ratios old − ref: 0.1, 0 | −0.2
    batch = make_batch(Rollouts([[1], [2]], [[5, 6], [7]], ["", ""], [True, True], 1), [1.0, 0.0], [True, False], CPU)
    batch = replace(
        batch,
        advantages=torch.tensor([[1.0, -1], [2, 0]]),
        old_logp=torch.tensor([[-1.0, -1], [-1, 0]]),
        ref_logp=torch.tensor([[-1.1, -1], [-0.8, 0]]),
        values=torch.tensor([[0.5, 0.5], [1, 0]]),
        returns=torch.tensor([[1.0, 0], [1, 0]]),
    )
    got = signals(batch)
    # k1: (0.1 + 0 − 0.2)/3; k2: (0.005 + 0.02)/3
    # k3: (e^−0.1 − 1 + 0.1 + e^0.2 − 1 − 0.2)/3 = (0.0048374 + 0.0214028)/3
    # returns 1, 0, 1: variance 2/9; residuals 0.5, −0.5, 0: variance 1/6; explained 1 − (1/6)/(2/9) = 0.25
    want = {
        "adv/mean": 2 / 3, "adv/std": (6 / 3 - 4 / 9) ** 0.5, "adv/min": -1, "adv/max": 2, "adv/abs_mean": 4 / 3,
        "kl/ref_k1_token": -0.1 / 3, "kl/ref_k2_token": 0.025 / 3, "kl/ref_k3_token": 0.0262402 / 3,
        "kl/ref_seq": (0.1 - 0.2) / 2, "value/explained_var": 0.25, "value/mean": 2 / 3,
        "value/first_token_mean": 0.75, "value/return_mean": 2 / 3,
    }  # fmt: skip
    assert got == pytest.approx(want, abs=1e-6)
