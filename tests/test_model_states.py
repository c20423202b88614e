"""Bytes of model states by hand, for a network of 4,896 weights."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from model_data import batch_of, make, make_double, network, ragged
from torch import Tensor, nn

from grpo_bench.model_states import _bytes, model_states
from grpo_bench.optimiser import Optimiser
from grpo_bench.policy import Models, Policy, make_models
from grpo_bench.policy.score import score
from grpo_bench.rollout.hf import HFEngine
from grpo_bench.rollout.native import NativeEngine
from grpo_bench.rollout.weights import SamplingCopy
from grpo_bench.update import Learner

# llama, tied, 61 words of 16: the embedding 976; per layer the products 1920 (see test_cost) and two norms of 16; a
# last norm of 16: 976 + 2·(1920 + 32) + 16 = 4,896, in 1 + 2·9 + 1 = 20 tensors
WEIGHTS, TENSORS = 4_896, 20
ENGINE = HFEngine(None)


def trained(*overrides: str) -> tuple[Learner, Models]:
    """One step of updates on a random batch."""
    cfg = make(*overrides, "samples_per_step=8")
    model = network("llama", double=False)
    models = make_models(model, cfg.model, torch.float32, cfg.algo.needs_critic, cfg.kl_coef > 0)
    learner = Learner(cfg, cfg.algo, models)
    batch = replace(batch_of(ragged(8, cfg.group_size)), kl_coef=cfg.kl_coef)
    batch = score(batch, models, 1.0, 50, True, cfg.algo.needs_critic)
    advantages, returns = cfg.algo.advantages(batch)
    learner.update(replace(batch, advantages=advantages, returns=returns), 1, 0.0)
    return learner, models


def states(learner: Learner, models: Models) -> dict[str, int]:
    return model_states(models, learner, ENGINE)


def test_grpo_holds_one_network_and_its_reference() -> None:
    found = states(*trained("algo=grpo", "group_size=2", "kl_coef=0.04"))
    assert found == {
        "policy": 4 * WEIGHTS,
        "critic": 0,
        "reference": 4 * WEIGHTS,
        "gradients": 4 * WEIGHTS,
        "optimizer": 8 * WEIGHTS + 4 * TENSORS,  # two moments, and a count of updates per tensor
        "sampler": 0,
    }
    assert sum(found.values()) == 20 * WEIGHTS + 80  # 16 bytes a trained weight, 4 a frozen one


def test_ppo_holds_a_second_network_of_the_same_kind() -> None:
    # the head of the critic: 16 weights and a bias, two tensors more
    found = states(*trained("algo=ppo", "kl_coef=0"))
    both = 2 * WEIGHTS + 17
    assert found["critic"] == 4 * (WEIGHTS + 17)
    assert (found["reference"], found["gradients"]) == (0, 4 * both)
    assert found["optimizer"] == 8 * both + 4 * (2 * TENSORS + 2)


def test_a_shared_trunk_adds_its_head_alone() -> None:
    found = states(*trained("algo=ppo", "model.critic=shared", "kl_coef=0"))
    assert (found["critic"], found["gradients"]) == (4 * 17, 4 * (WEIGHTS + 17))


def test_adapters_are_all_that_is_trained() -> None:
    pytest.importorskip("peft")
    learner, models = trained("algo=grpo", "group_size=2", "model.lora={r: 2, alpha: 4, targets: null}")
    adapters = sum(p.numel() for p in models.policy.parameters() if p.requires_grad)
    found = states(learner, models)
    assert found["policy"] == 4 * (WEIGHTS + adapters)
    assert (found["reference"], found["gradients"]) == (0, 4 * adapters)  # the reference is the policy without them


def test_a_waiting_policy_has_neither_gradient_nor_moments() -> None:
    # the critic's warm-up: only the critic has been trained
    found = states(*trained("algo=ppo", "algo.critic_warmup=5", "kl_coef=0"))
    assert (found["policy"], found["gradients"]) == (4 * WEIGHTS, 4 * (WEIGHTS + 17))


def test_nothing_is_held_before_the_first_update() -> None:
    cfg = make("algo=grpo")
    models = make_double("llama", cfg, False, False)
    found = states(Learner(cfg, cfg.algo, models), models)
    assert found == {**dict.fromkeys(found, 0), "policy": 8 * WEIGHTS}  # double precision


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_gradients_are_those_that_an_update_holds(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Counted on the gradients themselves when the first network is stepped: the critic's stand beside them."""
    held: list[int] = []
    step = Optimiser.step

    def counted(optimiser: Optimiser, *args: Any) -> tuple[float, bool]:
        networks = [one for one in (learners[0].policy, learners[0].critic) if one is not None]
        gradients = [p.grad for one in networks for p in one.parameters if p.grad is not None]
        held.append(sum(g.numel() * g.element_size() for g in gradients))
        return step(optimiser, *args)

    learners: list[Learner] = []
    made = Learner.__init__

    def kept(learner: Learner, *args: Any) -> None:
        made(learner, *args)
        learners.append(learner)

    monkeypatch.setattr(Optimiser, "step", counted)
    monkeypatch.setattr(Learner, "__init__", kept)
    learner, models = trained(f"algo={name}", "group_size=2", "kl_coef=0")
    assert states(learner, models)["gradients"] == max(held)


def test_shared_memory_counts_once() -> None:
    one, seen = torch.zeros(3, dtype=torch.bfloat16), set[tuple[str, int]]()
    assert _bytes([one, one.view(3), nn.Parameter(one)], seen) == 6
    assert _bytes([one, torch.zeros(2)], seen) == 8  # of another kind, but the same memory


def test_a_kept_copy_for_sampling_is_counted() -> None:
    learner, models = trained("algo=grpo", "group_size=2")
    engine = NativeEngine(None, torch.float16)
    assert model_states(models, learner, engine)["sampler"] == 0
    # as captured or recorded steps keep it; bfloat16 would be packed beside it on some processors
    engine._copies[models.policy] = SamplingCopy(models.policy, torch.float16)
    assert model_states(models, learner, engine)["sampler"] == 2 * WEIGHTS


def test_the_copy_goes_with_its_policy() -> None:
    policy = Policy(network("llama", double=False), torch.float32)
    engine = NativeEngine(None, torch.bfloat16)
    engine._copies[policy] = SamplingCopy(policy, torch.bfloat16)
    low: weakref.ref[Tensor] = weakref.ref(engine.kept_weights(policy)[0])
    del policy
    gc.collect()
    assert low() is None
