"""Gradient checkpointing changes what is kept in memory, and nothing that is computed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from model_data import ARCHITECTURES, batch_of, make, network, ragged, same, snapshot

from grpo_bench.policy import Models, Policy, layout, make_models
from grpo_bench.policy.score import score
from grpo_bench.rollout import Noise, Sampling
from grpo_bench.rollout.native import NativeEngine
from grpo_bench.tiny import tiny_tokenizer
from grpo_bench.update import Learner

PROMPTS = [[40, 41, 42], [50], [3, 4, 5, 6]]


def checkpointed(kind: str, on: bool) -> Any:
    model = network(kind)
    for module in model.modules():  # as load_model leaves it
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if on:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def sampled(policy: Policy) -> list[list[int]]:
    tiny = make().model.tiny
    assert tiny is not None
    noise = Noise(seed=0, stream="train", step=1)
    return NativeEngine(None).generate(policy, tiny_tokenizer(tiny), PROMPTS, 2, Sampling(1.0, 6), noise).completion_ids


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("lora", ["null", "{r:2,alpha:4,targets:null}"])
def test_sampling_and_updates_are_those_without_it(kind: str, lora: str) -> None:
    cfg = make("algo=ppo", "samples_per_step=6", "lr=0.01", "critic_lr=0.02", "minibatches=2", f"model.lora={lora}")
    after: list[tuple[Models, Any]] = []
    for on in (False, True):
        models = make_models(checkpointed(kind, on), cfg.model, torch.float32, True, True)
        assert models.critic is not None
        models.critic.double()
        learner = Learner(cfg, cfg.algo, models)
        before = sampled(models.policy)
        batch = replace(batch_of(ragged(6, cfg.group_size, seed=4)), kl_coef=cfg.kl_coef)
        batch = score(batch, models, cfg.rollout.temperature, 50, True, True)
        advantages, returns = cfg.algo.advantages(batch)
        metrics = learner.update(replace(batch, advantages=advantages, returns=returns), step=1, progress=0.0)
        after.append((models, (before, sampled(models.policy), metrics)))
        assert not any(m.training for m in models.policy.model.modules() if hasattr(m, "gradient_checkpointing"))
    (plain, seen), (ours, seen_too) = after
    assert seen[:2] == seen_too[:2]
    assert seen[2] == pytest.approx(seen_too[2], rel=1e-9)
    assert same(snapshot(plain.policy), ours.policy)
    assert plain.critic is not None
    assert ours.critic is not None
    assert same(snapshot(plain.critic), ours.critic)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_layers_are_computed_again_in_the_backward_pass_and_only_there(kind: str) -> None:
    for on, expected in ((False, 1), (True, 2)):
        policy = Policy(checkpointed(kind, on), torch.float32)
        layers: Any = policy.trunk.h if kind == "gpt2" else policy.trunk.layers
        calls: list[int] = []
        layers[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        rows = layout(batch_of(ragged(4)), torch.arange(4))
        policy.logp(rows, 1.0)[0].sum().backward()
        assert len(calls) == expected
        with torch.no_grad():
            policy.logp(rows, 1.0)
        assert len(calls) == expected + 1
