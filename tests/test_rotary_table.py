"""Rotary angles that are looked up are those that a model computes, and only where positions are known to be few."""

from __future__ import annotations

import copy

import pytest
import torch
from kernel_data import kernels_on, needs_compiler  # noqa: F401 (a fixture)
from model_data import ARCHITECTURES, network
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from grpo_bench.policy import Policy, rotary_table
from grpo_bench.policy.rotary_table import bounded, prepare


def looking_up(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if hasattr(type(module), "looks_up")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_what_is_looked_up_is_what_is_computed(kind, dtype):
    model = Policy(network(kind, double=False), torch.float32).model.to(dtype)
    positions = torch.tensor([[0, 5, 5, 2, 40, 63, 17]])
    prepare(model, 64)
    found = looking_up(model)
    assert found or kind not in ("llama", "qwen2", "qwen3")
    for module in found:
        x = torch.zeros(1, 7, 8, dtype=dtype)
        want = module(x, positions)
        got = module(x, bounded(positions.clone(), 64))
        assert all(torch.equal(a, b) and a.dtype == b.dtype == dtype for a, b in zip(got, want, strict=True))


def test_a_table_grows_and_another_models_is_its_own():
    model = Policy(network("llama", double=False), torch.float32).model
    (module,) = looking_up(model)
    x, far = torch.zeros(1, 1, 8), torch.tensor([[200]])
    prepare(model, 10)
    assert len(next(iter(rotary_table._tables[module].values()))[0]) == 16
    want = module(x, far)
    assert torch.equal(module(x, bounded(far.clone(), 201))[0], want[0])  # not in the table: computed
    prepare(model, 201)
    assert torch.equal(module(x, bounded(far.clone(), 201))[0], want[0])
    assert len(rotary_table._tables[module]) == 1
    (other,) = looking_up(copy.deepcopy(model))
    assert other not in rotary_table._tables


def test_frequencies_that_change_are_computed_with():
    model = Policy(network("llama", double=False), torch.float32).model
    (module,) = looking_up(model)
    x, positions = torch.zeros(1, 1, 8), bounded(torch.tensor([[3]]), 4)
    prepare(model, 4)
    before = module(x, positions)[0]
    module.inv_freq.mul_(0.5)
    assert not torch.equal(module(x, positions)[0], before)
    assert torch.equal(module(x, positions)[0], module(x, torch.tensor([[3]]))[0])


@pytest.mark.parametrize("kind", ["dynamic", "yarn"])
def test_frequencies_that_are_not_fixed_are_left_to_the_model(kind):
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, rope_parameters={"rope_type": kind, "factor": 2.0, "rope_theta": 10000.0},
    )  # fmt: skip
    assert not looking_up(Policy(LlamaForCausalLM(config).eval(), torch.float32).model)
