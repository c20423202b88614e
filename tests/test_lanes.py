"""Lanes: who computes what side by side, and that updates and scores are those of one lane."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from kernel_data import needs_training_tiles
from model_data import batch_of, make, make_double, network, ragged
from torch import Tensor

from grpo_bench import lanes, update
from grpo_bench.config import Config
from grpo_bench.lanes import side_by_side
from grpo_bench.policy import Models, Policy, make_models, score
from grpo_bench.policy.critic import Critic
from grpo_bench.policy.linear import TrainedLinear, cast_once
from grpo_bench.policy.network import widen
from grpo_bench.policy.replica import replica
from grpo_bench.policy.score import share_out, tokens_at_once
from grpo_bench.types import Batch
from grpo_bench.update import Learner

CPU = torch.device("cpu")
GRPO = ("algo=grpo", "group_size=2", "samples_per_step=16", "lr=0.01")
PPO = ("algo=ppo", "group_size=2", "samples_per_step=16", "lr=0.01", "critic_lr=0.02")
ONCE = ("epochs=1", "minibatches=1")


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small_in_lanes(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update, "LANE_PARAMETERS", range(2**28))


# --- who computes what ---


def test_lanes_share_the_threads_of_a_processor(two_threads: None) -> None:
    assert lanes.count(CPU) == 2
    assert lanes.count(torch.device("cuda")) == 1  # a GPU has none to share out
    torch.set_num_threads(1)
    assert lanes.count(CPU) == 1
    torch.set_num_threads(3)  # one would have twice the other's
    assert lanes.count(CPU) == 1


def test_works_run_at_the_same_time_on_their_shares_and_answer_in_order(two_threads: None) -> None:
    meet = threading.Barrier(2, timeout=20)

    def work(number: int) -> tuple[int, int]:
        meet.wait()
        return number, torch.get_num_threads()

    assert side_by_side([lambda: work(7), lambda: work(8)]) == [(7, 1), (8, 1)]
    assert torch.get_num_threads() == 2
    assert side_by_side([torch.get_num_threads]) == [2]
    assert side_by_side(list[Any]()) == []


@pytest.mark.parametrize("fails", [0, 1])
def test_an_error_is_raised_once_all_have_ended(fails: int, two_threads: None) -> None:
    ended = []

    def work(number: int) -> None:
        if number == fails:
            raise MemoryError(str(number))
        time.sleep(0.05)
        ended.append(number)

    with pytest.raises(MemoryError, match=str(fails)):
        side_by_side([lambda: work(0), lambda: work(1)])
    assert ended == [1 - fails]
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("fails", [0, 1])
def test_an_error_does_not_hold_what_lanes_held(fails: int, two_threads: None) -> None:
    class Held:
        pass

    gone: list[weakref.ref[Held]] = []

    def work(number: int) -> Held:
        held = Held()
        gone.append(weakref.ref(held))
        if number == fails:
            raise MemoryError
        return held

    gc.disable()  # what it would find late is to be gone at once
    try:
        with contextlib.suppress(MemoryError):
            side_by_side([lambda: work(0), lambda: work(1)])
        assert [ref() for ref in gone] == [None, None]
    finally:
        gc.enable()


def grouped(prompts: list[int], completions: list[list[int]]) -> Batch:
    """Groups with prompts and completions of these lengths."""
    rollouts = ragged(sum(map(len, completions)), len(completions[0]))
    ids = [[1] * n for own in completions for n in own]
    return batch_of(replace(rollouts, prompt_ids=[[1] * n for n in prompts], completion_ids=ids))


def shared(batch: Batch, tokens: int, packed: bool = True, count: int = 2) -> list[list[list[int]]]:
    found = share_out(batch, torch.arange(len(batch.mask)), tokens, packed, count)
    return [[part.tolist() for part in parts] for parts in found]


def test_groups_are_shared_out_by_their_tokens() -> None:
    # 2 + 9 + 9 = 20, 3 + 6 + 5 = 14, 5 + 4 + 3 = 12, 4 + 2 + 2 = 8 tokens: 28 against 26
    batch = grouped([2, 3, 5, 4], [[9, 9], [6, 5], [4, 3], [2, 2]])
    assert shared(batch, 100) == [[[0, 1, 6, 7]], [[2, 3, 4, 5]]]


def test_what_lanes_compute_at_once_has_at_most_the_tokens_of_a_micro_batch() -> None:
    batch = grouped([2] * 8, [[4, 4]] * 8)  # 10 tokens each
    assert shared(batch, 80) == [[[0, 1, 4, 5, 8, 9, 12, 13]], [[2, 3, 6, 7, 10, 11, 14, 15]]]
    for tokens, most in ((79, 3), (60, 3), (40, 2), (20, 1)):
        found = shared(batch, tokens)
        assert len(found) == 2
        assert all(len(part) <= 2 * most for parts in found for part in parts)
        assert sorted(i for parts in found for part in parts for i in part) == list(range(16))


def test_what_cannot_be_shared_out_is_for_one_lane() -> None:
    four = grouped([2] * 4, [[4, 4]] * 4)
    assert len(shared(four, 100)) == 2
    assert len(shared(four, 100, packed=False)) == 1
    assert len(shared(four, 100, count=1)) == 1
    assert len(shared(four, 19)) == 1  # a group for each lane is too much at once
    assert len(shared(grouped([2], [[4, 4]]), 100)) == 1
    assert len(shared(grouped([2] * 3, [[4, 4]] * 3), 100)) == 1  # one lane would wait for half of the time
    assert shared(four, 19) == [[part.tolist() for part in update_parts(four, 19)]]


def test_lanes_compute_more_at_once_than_one_lane_where_memory_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    own = models_of(make(*GRPO)).policy
    assert tokens_at_once(own, 4096, None, 1) == 4096
    assert tokens_at_once(own, 4096, None, 2) == 6144  # fp32: 3072 each
    own.dtype = torch.bfloat16
    assert tokens_at_once(own, 4096, None, 2) == 8192
    assert tokens_at_once(own, 2048, None, 2) == 4096  # halved after running out of memory
    assert tokens_at_once(own, 4096, 4096, 2) == 4096  # as configured
    monkeypatch.setattr(score, "memory_tokens", lambda policy, lanes: 5000)
    assert tokens_at_once(own, 4096, None, 2) == 5000
    eight = grouped([2] * 8, [[4, 4]] * 8)  # 10 tokens each
    found = share_out(eight, torch.arange(16), 40, True, 2, at_once=80)
    assert [len(parts) for parts in found] == [1, 1]
    assert len(share_out(eight, torch.arange(16), 40, True, 1, at_once=80)[0]) == 2


def update_parts(batch: Batch, tokens: int) -> list[Tensor]:
    from grpo_bench.policy.score import micro_batches

    return list(micro_batches(batch, torch.arange(len(batch.mask)), tokens, True))


# --- replicas ---


def models_of(cfg: Config) -> Models:
    return make_double("llama", cfg, cfg.algo.needs_critic, cfg.algo.needs_reference)


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_a_replica_has_the_weights_and_gradients_of_its_own(critic: str) -> None:
    models = models_of(make(*PPO, f"model.critic={critic}"))
    before = torch.random.get_rng_state()
    lane = replica(models)
    assert torch.equal(before, torch.random.get_rng_state())
    assert lane.critic is not None
    assert isinstance(lane.critic, Critic)
    assert models.critic is not None
    originals = [*models.policy.parameters(), *models.critic.parameters()]
    own = [*lane.policy.parameters(), *lane.critic.parameters()]
    assert [p.data_ptr() for p in originals] == [p.data_ptr() for p in own]
    assert not {id(p) for p in originals} & {id(p) for p in own}
    assert lane.policy.model.get_output_embeddings().weight is lane.policy.model.get_input_embeddings().weight
    assert len(lane.policy.siblings) == len(models.policy.siblings)
    assert lane.policy.takes_plans

    own[0].grad = torch.full_like(own[0], 2.0)
    found = lane.gradients()
    assert list(found) == [originals[0]]
    assert found[originals[0]].eq(2).all()
    assert all(p.grad is None for p in [*own, *originals])

    assert lane.holds()
    originals[0].data = originals[0].data.clone()
    assert not lane.holds()


def test_frozen_weights_are_frozen_in_a_replica() -> None:
    cfg = make(*GRPO, "model.lora={r:2,alpha:4,targets:null}", "kl_coef=0")
    models = make_models(network("llama"), cfg.model, torch.float32, False, False)
    lane = replica(models)
    given = [p.requires_grad for p in models.policy.parameters()]
    assert [p.requires_grad for p in lane.policy.parameters()] == given
    assert {True, False} == set(given)
    assert lane.holds()


# --- updates ---


def given(cfg: Config, flat: int = 0, dropped: int = 0) -> Batch:
    """A batch before it is scored; of the first rows so many have one reward, and so many no tokens that count."""
    batch = batch_of(ragged(16, cfg.group_size, seed=4))
    rewards, mask = batch.rewards.clone(), batch.mask.clone()
    rewards[:flat], mask[:dropped] = 1.0, 0.0
    return replace(batch, kl_coef=cfg.kl_coef, rewards=rewards, mask=mask)


def stepped(
    one_lane: bool, *overrides: str, dtype: torch.dtype = torch.float64, flat: int = 0, dropped: int = 0
) -> tuple[dict[str, float], list[Tensor], Learner]:
    """Two steps, scored and updated."""
    cfg = make(*overrides)
    critic, reference = cfg.algo.needs_critic, cfg.algo.needs_reference
    if dtype == torch.float64:
        models = make_double("llama", cfg, critic, reference)
    else:
        models = make_models(network("llama", double=False), cfg.model, dtype, critic, reference)
    learner = Learner(cfg, cfg.algo, models)
    if one_lane:
        learner._lanes = lambda: learner.lanes[:1]  # type: ignore[method-assign]
    old = cfg.epochs * cfg.minibatches > 1
    found: dict[str, float] = {}
    for step in (1, 2):
        batch = given(cfg, flat, dropped)
        if dtype != torch.float64:
            batch = replace(batch, mask=batch.mask.float(), rewards=batch.rewards.float())
        if not critic:
            batch = replace(batch, advantages=cfg.algo.advantages(batch)[0])
        batch = learner.scored(batch, old)
        advantages, returns = cfg.algo.advantages(batch)
        found = learner.update(replace(batch, advantages=advantages, returns=returns), step, 0.0)
    weights = [*models.policy.parameters(), *(models.critic.parameters() if models.critic is not None else ())]
    return found, weights, learner


@pytest.mark.parametrize(
    "overrides",
    [
        (*GRPO, *ONCE, "kl_coef=0"),
        (*GRPO, *ONCE, "kl_coef=0.1", "micro_batch_tokens=60"),
        (*GRPO, "epochs=2", "minibatches=1", "kl_coef=0.1", "algo.entropy_coef=0.1"),
        (*GRPO, "epochs=1", "minibatches=2", "algo.aggregation=token_mean", "target_kl=0.01"),
        (*PPO, *ONCE, "model.critic=separate", "kl_coef=0"),
        (*PPO, *ONCE, "model.critic=separate", "kl_coef=0", "micro_batch_tokens=60"),
        (*PPO, *ONCE, "model.critic=shared", "kl_coef=0.1"),
        (*PPO, "epochs=2", "minibatches=1", "model.critic=separate"),
        (*PPO, *ONCE, "model.critic=separate", "algo.critic_warmup=1"),
        (*GRPO, *ONCE, "kl_coef=0", "model.gradient_checkpointing=true"),
    ],
)
def test_steps_in_lanes_are_those_of_one(
    overrides: tuple[str, ...], small_in_lanes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set[str]()
    actor, values = Learner._actor, Critic.values
    monkeypatch.setattr(Learner, "_actor", lambda *args: (seen.add(threading.current_thread().name), actor(*args))[1])
    monkeypatch.setattr(Critic, "values", lambda *args: (seen.add(threading.current_thread().name), values(*args))[1])
    want, expected, one = stepped(True, *overrides)
    assert len(one.lanes) == 1
    assert len(seen) == 1
    found, weights, learner = stepped(False, *overrides)
    assert len(learner.lanes) == 2
    assert len(seen) == 2  # threads
    assert found.keys() == want.keys()
    for name, value in want.items():
        assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name
    for w, e in zip(weights, expected, strict=True):
        torch.testing.assert_close(w, e, rtol=1e-9, atol=1e-12)
    assert learner.trained_tokens == one.trained_tokens
    # where one lane splits a group the prompt is computed, and charged, twice
    assert learner.flops == one.flops or "micro_batch_tokens=60" in overrides
    assert all(q.grad is None for lane in learner.lanes for _, q in lane.pairs)


@pytest.mark.parametrize(("flat", "dropped"), [(16, 0), (6, 0), (0, 16), (0, 4), (4, 6)])
@pytest.mark.parametrize(
    "overrides",
    [
        (*GRPO, *ONCE, "kl_coef=0"),
        (*GRPO, "epochs=1", "minibatches=2", "kl_coef=0"),
        (*PPO, *ONCE, "model.critic=separate"),
    ],
)
def test_rows_without_signal_or_tokens_are_left_out_in_lanes_too(
    overrides: tuple[str, ...], flat: int, dropped: int, small_in_lanes: None
) -> None:
    want, expected, _ = stepped(True, *overrides, flat=flat, dropped=dropped)
    found, weights, _ = stepped(False, *overrides, flat=flat, dropped=dropped)
    assert found == pytest.approx(want, rel=1e-9, abs=1e-12)
    for w, e in zip(weights, expected, strict=True):
        torch.testing.assert_close(w, e, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "overrides", [(*GRPO, *ONCE, "kl_coef=0.1", "model.lora={r:2,alpha:4,targets:null}"), (*PPO, *ONCE)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precisions_in_lanes(overrides: tuple[str, ...], dtype: torch.dtype, small_in_lanes: None) -> None:
    before = [p.detach().clone() for p in network("llama", double=False).parameters()]
    want, expected, _ = stepped(True, *overrides, dtype=dtype)
    found, weights, learner = stepped(False, *overrides, dtype=dtype)
    again = stepped(False, *overrides, dtype=dtype)[1]
    assert len(learner.lanes) == 2
    assert all(map(torch.equal, weights, again))  # bit for bit
    near = 1e-4 if dtype == torch.float32 else 0.05
    assert found["policy/grad_norm"] == pytest.approx(want["policy/grad_norm"], rel=near)
    if dtype == torch.float32 and "model.lora" not in overrides[-1]:
        far = max(float((w - e).detach().abs().max()) for w, e in zip(weights, expected, strict=True))
        moved = max(float((w - b).detach().abs().max()) for w, b in zip(weights, before, strict=False))
        assert far < 0.01 * moved


def test_models_that_change_as_they_compute_stay_in_one_lane(small_in_lanes: None) -> None:
    cfg = make(*GRPO, *ONCE)
    models = models_of(cfg)
    rotary = next(x for x in models.policy.model.modules() if hasattr(x, "rope_type"))
    assert len(Learner(cfg, cfg.algo, models)._lanes()) == 2
    rotary.rope_type = "dynamic"
    assert len(Learner(cfg, cfg.algo, models)._lanes()) == 1


def test_small_models_stay_in_one_lane(two_threads: None) -> None:
    learner = stepped(False, *GRPO, *ONCE)[2]
    assert len(learner.lanes) == 1


def test_weights_that_moved_are_found_again(small_in_lanes: None) -> None:
    learner = stepped(False, *GRPO, *ONCE)[2]
    first = learner._lanes()[1]
    assert learner._lanes()[1] is first
    weight = next(learner.models.policy.parameters())
    weight.data = weight.data.clone()
    assert learner._lanes()[1] is not first
    assert learner._lanes()[1].holds()


def test_a_lane_that_runs_out_of_memory_halves_the_micro_batches_of_all(
    small_in_lanes: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, expected, _ = stepped(True, *GRPO, *ONCE)
    states, refused = Policy.states, list[str]()

    def limited(policy: Policy, rows: Any) -> Tensor:
        out = states(policy, rows)
        if not refused and threading.current_thread().name.startswith("lane"):
            refused.append(threading.current_thread().name)
            raise torch.OutOfMemoryError("out of memory")
        return out

    monkeypatch.setattr(Policy, "states", limited)
    _, weights, learner = stepped(False, *GRPO, *ONCE)
    assert refused
    assert "out of memory: micro-batches of" in capsys.readouterr().err
    assert len(learner._lanes()) == 1  # the other's gradients take memory
    for w, e in zip(weights, expected, strict=True):
        torch.testing.assert_close(w, e, rtol=1e-9, atol=1e-12)
    assert all(q.grad is None for lane in learner.lanes for _, q in lane.pairs)


def test_steps_in_lanes_are_the_same_each_time(small_in_lanes: None) -> None:
    overrides = (*GRPO, *ONCE, "kl_coef=0.1", "micro_batch_tokens=60")
    first, second = stepped(False, *overrides)[1], stepped(False, *overrides)[1]
    assert all(map(torch.equal, first, second))


# --- copies of weights in bfloat16 ---


@needs_training_tiles
def test_weights_are_cast_once_for_all_replicas_and_let_go() -> None:
    cfg = make(*GRPO, "kl_coef=0")
    models = make_models(network("llama", double=False), cfg.model, torch.bfloat16, False, False)
    both = [models.policy.model, replica(models).policy.model]

    def layers() -> list[list[TrainedLinear]]:
        return [[x for x in model.modules() if isinstance(x, TrainedLinear)] for model in both]

    ids = torch.arange(80)[None] % 61  # enough that products are made here
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = [widen(model(input_ids=ids, use_cache=False).logits) for model in both]
        with cast_once(both):
            for first, second in zip(*layers(), strict=True):
                assert first.low is not None
                assert second.low is not None
                assert first.low.data_ptr() == second.low.data_ptr()
                assert torch.equal(first.low, first.weight.detach().to(torch.bfloat16))
                first.low.zero_()  # it is what the forward pass reads
            assert widen(both[0](input_ids=ids, use_cache=False).logits).eq(0).all()
            for first in layers()[0]:
                assert first.low is not None
                first.low.copy_(first.weight.detach())
            again = [widen(model(input_ids=ids, use_cache=False).logits) for model in both]
    assert all(x.low is None for own in layers() for x in own)
    assert all(map(torch.equal, plain, again))
