"""What a step trains on: prompts drawn again, surplus and missing groups, greedy baselines; all of it charged."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gather_data import END, SIZE, Script, parts_of
from torch import Tensor

from grpo_bench.collect import describe, drop
from grpo_bench.gather import gather, with_extras
from grpo_bench.rollout import Noise
from grpo_bench.signals import costs
from grpo_bench.state import State
from grpo_bench.types import Batch


def mixed(batch: Batch) -> Tensor:
    """Groups with right and wrong answers, as DAPO keeps them."""
    right_PG = batch.correct.view(-1, batch.group_size)
    return (right_PG.any(1) & ~right_PG.all(1)).repeat_interleave(batch.group_size)


def algorithm(refill_limit: int = 0, extra_rollouts: str = "none", keep: Any = mixed) -> Any:
    return SimpleNamespace(refill_limit=refill_limit, extra_rollouts=extra_rollouts, keep=keep)


def parts(engine: Script, algo: Any) -> Any:
    """Two prompts of two completions a step; the right answer to problem i is the i-th of these."""
    return parts_of(engine, algo, "prompts_per_step=2", "samples_per_step=null", "group_size=2", answers=list("abcdef"))


FLAT_THEN_MIXED = [["a$", "no$", "x$", "y$"], ["c$", "c$", "oh$", "d$"]]  # kept: problem 0; then problem 3


def test_prompts_are_drawn_again_until_enough_groups_are_kept() -> None:
    engine, state = Script(*FLAT_THEN_MIXED, ["never"] * 4), State(step=7)
    step = gather(parts(engine, algorithm(refill_limit=5)), state)
    assert [call[0] for call in engine.calls] == [["0?", "1?"], ["2?", "3?"]]  # the stream goes on
    assert [call[3] for call in engine.calls] == [Noise(0, "train", 7, 0), Noise(0, "train", 7, 1)]
    assert step.refills == 1
    assert [p.id for p in step.experience.rows] == ["0", "0", "3", "3"]
    assert step.experience.rollouts.texts == ["a", "no", "oh", "d"]
    assert step.experience.rollouts.prompt_ids == [[ord("0"), ord("?")], [ord("3"), ord("?")]]
    batch = step.experience.batch
    assert batch.rewards.tolist() == [1, 0, 0, 1]
    assert batch.correct.tolist() == [True, False, False, True]
    assert batch.group_ids.tolist() == [0, 0, 1, 1]
    assert batch.tokens[2].tolist() == [ord("3"), ord("?"), ord("o"), ord("h"), END]
    assert batch.mask.sum(1).tolist() == [2, 3, 3, 2]
    assert step.used.tolist() == [True] * 4
    assert step.kept.tolist() == [True] * 2 + [False] * 4 + [True] * 2
    assert step.taken.tolist() == step.kept.tolist()


def test_all_that_was_drawn_is_charged_and_spoken_of() -> None:
    engine, state = Script(*FLAT_THEN_MIXED), State(step=1, samples=100)
    before = replace(state)
    step = gather(parts(engine, algorithm(refill_limit=5)), state)
    lengths = [[2, 3, 2, 2], [2, 2, 3, 2]]
    assert (state.prompts, state.samples, state.generated_tokens) == (4, 108, 18)
    assert state.flops == sum(SIZE.rollout([2, 2], 2, some) for some in lengths)
    assert (state.extra_samples, state.extra_tokens) == (0, 0)
    assert costs(before, state)["cost/samples"] == 8
    told = describe(step.sampled, step.kept, step.taken)
    # right: a, c, c, d of eight, though two of the step's four are
    assert (told["reward/correct"], told["reward/mean"], told["completions/len_mean"]) == (4 / 8, 4 / 8, 18 / 8)
    # groups: mixed, all wrong, all right, mixed
    assert [told[f"group/frac_{what}"] for what in ("zero_std", "all_correct", "all_wrong")] == [0.5, 0.25, 0.25]
    assert (told["group/filtered"], told["group/frac_kept"], told["group/effective"]) == (2, 0.5, 2)


def test_surplus_groups_are_left_out_and_are_not_filtered() -> None:
    engine = Script(["a$", "a$", "b$", "y$"], ["c$", "x$", "d$", "x$"])
    step = gather(parts(engine, algorithm(refill_limit=1)), State())
    assert [p.id for p in step.experience.rows] == ["1", "1", "2", "2"]
    assert step.taken.tolist() == [False] * 2 + [True] * 4 + [False] * 2
    told = describe(step.sampled, step.kept, step.taken)
    assert (told["group/filtered"], told["group/frac_kept"], told["group/effective"]) == (1, 0.75, 2)


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_dropped_groups_fill_the_places_when_the_limit_is_reached(limit: int) -> None:
    engine = Script(*[["x$"] * 4] * limit, ["x$", "x$", chr(ord("a") + 2 * limit + 1) + "$", "y"])
    state = State()
    step = gather(parts(engine, algorithm(refill_limit=limit)), state)
    assert step.refills == limit
    assert state.prompts == 2 * (limit + 1)
    assert len(step.experience.rows) == 4
    last = str(2 * limit + 1)
    # without further draws a dropped group keeps its place; with them kept groups come first
    assert [p.id for p in step.experience.rows] == (["0", "0", last, last] if limit == 0 else [last, last, "0", "0"])
    assert step.used.tolist() == ([False, False, True, True] if limit == 0 else [True, True, False, False])
    assert step.experience.batch.finished.tolist().count(False) == 1


def test_a_step_that_keeps_nothing_is_still_a_step() -> None:
    step = gather(parts(Script(["x$"] * 4, ["x$"] * 4), algorithm(refill_limit=1)), State())
    assert not step.used.any()
    assert [p.id for p in step.experience.rows] == ["0", "0", "1", "1"]
    assert not drop(step.experience.batch, step.used).mask.any()


def test_rows_dropped_one_by_one_leave_their_group_kept() -> None:
    step = gather(parts(Script(["a$", "x$", "y$", "b$"]), algorithm(refill_limit=3, keep=lambda b: b.correct)), State())
    assert step.refills == 0
    assert step.used.tolist() == [True, False, False, True]


def test_keep_sees_the_runs_state_and_so_does_the_step() -> None:
    def keep(batch: Batch) -> Tensor:
        assert (batch.kl_coef, batch.state) == (0.3, {"kl_coef": 0.3, "mean": 0.5})
        return mixed(batch)

    state = State(algo={"kl_coef": 0.3, "mean": 0.5})
    step = gather(parts(Script(*FLAT_THEN_MIXED), algorithm(1, keep=keep)), state)
    assert (step.experience.batch.kl_coef, step.experience.batch.state) == (0.3, state.algo)


def everything(batch: Batch) -> Tensor:
    return batch.finished.new_ones(len(batch.finished))


def test_one_greedy_answer_per_prompt_is_the_baseline() -> None:
    engine, state = Script(["a$", "no$", "x$", "y$"], ["a$", "bb"]), State(step=3)
    given = parts(engine, algorithm(extra_rollouts="greedy", keep=everything))
    step = gather(given, state)
    batch = with_extras(given, state, step.experience, drop(step.experience.batch, step.used))
    assert batch.baseline_rewards is not None
    assert batch.baseline_rewards.tolist() == [1, 1, 0, 0]  # of the group's prompt
    prompts, group_size, sampling, _ = engine.calls[1]
    assert (prompts, group_size, sampling.temperature) == (["0?", "1?"], 1, 0.0)
    assert sampling.max_new_tokens == engine.calls[0][2].max_new_tokens
    assert (state.samples, state.generated_tokens, state.prompts) == (4 + 2, 9 + 4, 2)
    assert (state.extra_samples, state.extra_tokens) == (2, 4)
    assert state.flops == SIZE.rollout([2, 2], 2, [2, 3, 2, 2]) + SIZE.rollout([2, 2], 1, [2, 2])
    assert set(given.meter.step) == {"rollout", "reward"}


def test_prompts_that_are_dropped_get_no_greedy_answer() -> None:
    engine, state = Script(["x$", "x$", "b$", "y$"], ["b$"]), State()
    given = parts(engine, algorithm(extra_rollouts="greedy"))
    step = gather(given, state)
    batch = with_extras(given, state, step.experience, drop(step.experience.batch, step.used))
    assert batch.baseline_rewards is not None
    assert batch.baseline_rewards.tolist() == [0, 0, 1, 1]
    assert engine.calls[1][0] == ["1?"]
    nothing = with_extras(given, state, step.experience, drop(step.experience.batch, torch.zeros(4, dtype=torch.bool)))
    assert nothing.baseline_rewards is not None
    assert not nothing.baseline_rewards.any()
    assert (len(engine.calls), state.extra_samples) == (2, 1)


def test_no_extra_rollouts_no_call() -> None:
    engine, state = Script(["x$", "x$", "b$", "y$"]), State()
    given = parts(engine, algorithm())
    step = gather(given, state)
    assert with_extras(given, state, step.experience, step.experience.batch) is step.experience.batch
