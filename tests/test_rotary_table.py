"""Rotary angles that are looked up are those that a model computes, and only where positions are known to be few."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from kernel_data import kernels_on, needs_compiler  # noqa: F401 (a fixture)
from model_data import ARCHITECTURES, network
from test_rollout_native import NOISE, PROMPTS, SAMPLED, model, tokenizer
from torch import nn
from transformers import DeepseekV2Config, DeepseekV2ForCausalLM, LlamaConfig, LlamaForCausalLM

from grpo_bench.policy import Policy, rotary_table
from grpo_bench.policy.rotary_table import bounded, prepare
from grpo_bench.rollout.native import NativeEngine
from grpo_bench.rollout.tape import Tape


def looking_up(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if hasattr(type(module), "looks_up")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_what_is_looked_up_is_what_is_computed(kind, dtype):
    model = Policy(network(kind, double=False), torch.float32).model.to(dtype)
    positions = torch.tensor([[0, 5, 5, 2, 40, 63, 17]])
    prepare(model, 64)
    found = looking_up(model)
    assert found or kind not in ("llama", "qwen2")
    for module in found:
        x = torch.zeros(1, 7, 8, dtype=dtype)
        want = module(x, positions)
        got = module(x, bounded(positions.clone(), 64))
        assert all(torch.equal(a, b) and a.dtype == b.dtype == dtype for a, b in zip(got, want, strict=True))


def test_a_table_grows_and_another_models_is_its_own():
    model = Policy(network("llama", double=False), torch.float32).model
    (module,) = looking_up(model)
    x, far = torch.zeros(1, 1, 8), torch.tensor([[300]])
    prepare(model, 10)
    assert len(next(iter(rotary_table._tables[module].values()))[0]) == 256
    want = module(x, far)
    assert torch.equal(module(x, bounded(far.clone(), 301))[0], want[0])  # not in the table: computed
    prepare(model, 301)
    assert torch.equal(module(x, bounded(far.clone(), 301))[0], want[0])
    assert len(rotary_table._tables[module]) == 1
    prepare(model, 10**6)  # too many to keep: what there is stays
    assert torch.equal(module(x, bounded(torch.tensor([[10**5]]), 10**6))[0], module(x, torch.tensor([[10**5]]))[0])
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


def test_what_gives_no_pair_of_cosines_and_sines_is_left_to_the_model():
    """DeepSeek-V2's gives complex numbers, under the same name and signature."""
    config = DeepseekV2Config(
        vocab_size=512, hidden_size=32, intermediate_size=32, moe_intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, n_routed_experts=2, num_experts_per_tok=1, kv_lora_rank=8,
        q_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8, first_k_dense_replace=1,
    )  # fmt: skip
    policy = Policy(DeepseekV2ForCausalLM(config).eval(), torch.float32)
    assert not looking_up(policy.model)
    NativeEngine(4).generate(policy, tokenizer(), PROMPTS, 2, SAMPLED, NOISE)


@needs_compiler
def test_steps_of_a_rollout_look_angles_up(monkeypatch):
    recorded: list[Any] = []
    made = Tape.__init__

    def seen(self: Tape, function: Any) -> None:
        made(self, function)
        recorded.extend(str(call[0]) for call in self._calls)

    monkeypatch.setattr(Tape, "__init__", seen)
    NativeEngine(None).generate(
        model(double=False), tokenizer(), PROMPTS, 2, replace(SAMPLED, max_new_tokens=40), NOISE
    )
    assert any("index_select" in name for name in recorded)
    assert not any("cos" in name or "sin" in name for name in recorded)
