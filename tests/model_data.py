"""Very small models and batches: random weights, double precision where a test compares two ways to one number."""

from __future__ import annotations

import functools
import json
import random
from dataclasses import replace
from typing import Any

import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from grpo_bench.collect import make_batch
from grpo_bench.compose import compose, composing
from grpo_bench.config import Config, parse, plain
from grpo_bench.policy import Models, Policy, make_models
from grpo_bench.types import Batch, Rollouts

torch.set_num_threads(1)  # networks this small lose more to threads than they gain

VOCAB = 61
ARCHITECTURES = ("llama", "qwen2", "gpt2", "gemma2")
# Tokens of the embedded task's prompts stay words (512 of them), the network becomes tiny.
SMALL = (
    "device=cpu",
    "model.tiny.hidden_size=16",
    "model.tiny.layers=2",
    "model.tiny.heads=2",
    "model.tiny.kv_heads=1",
    "model.tiny.intermediate_size=24",
)


GROUPS = {"algo", "arm", "model", "reward", "rollout", "task"}


@functools.lru_cache
def _composed(groups: tuple[str, ...]) -> str:
    with composing():
        return json.dumps(plain(compose([*SMALL, *groups])))


def make(*overrides: str) -> Config:
    """The default run with a network of a few thousand parameters, and these overrides.

    Only choices of files are composed (once); values are put in place, which takes a hundredth of the time.
    """
    pairs = [(key, value) for key, _, value in (line.partition("=") for line in overrides)]
    data = json.loads(_composed(tuple(f"{key}={value}" for key, value in pairs if key in GROUPS)))
    for key, value in pairs:
        if key in GROUPS:
            continue
        *path, last = key.split(".")
        node = data
        for name in path:
            node = node[name]
        assert last in node, key
        node[last] = OverridesParser.create().parse_override(f"{key}={value}").value()
    return parse(data)


def network(kind: str, seed: int = 0, vocab: int = VOCAB, double: bool = True) -> PreTrainedModel:
    """A random causal LM of 2 layers x 16; weights large enough that its distributions are far from uniform."""
    common: dict[str, Any] = {
        "vocab_size": vocab,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "initializer_range": 0.4,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": None,
    }
    torch.manual_seed(seed)
    model: PreTrainedModel
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**common, tie_word_embeddings=True))
    elif kind == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**common, tie_word_embeddings=False))
    elif kind == "gpt2":  # learned positions, dropout as published
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=vocab, n_positions=96, n_embd=16, n_layer=2, n_head=2, initializer_range=0.4,
                       bos_token_id=None, eos_token_id=0)
        )  # fmt: skip
    elif kind == "gemma2":  # capped logits, a sliding window shorter than the sequences
        model = Gemma2ForCausalLM(
            Gemma2Config(**common, head_dim=8, query_pre_attn_scalar=8, sliding_window=6, final_logit_softcapping=3.0,
                         attn_logit_softcapping=None)
        )  # fmt: skip
    else:
        raise ValueError(kind)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return model.double().eval() if double else model.eval()


def policy(kind: str = "llama", seed: int = 0, vocab: int = VOCAB) -> Policy:
    """A policy in double precision: ``torch.float32`` names no autocast."""
    return Policy(network(kind, seed, vocab), torch.float32)


def ragged(rows: int, group_size: int = 1, seed: int = 0, vocab: int = VOCAB, longest: int = 9) -> Rollouts:
    """Random prompts of 2 to 7 tokens with random completions of 1 to ``longest``."""
    rng = random.Random(seed)

    def ids(length: int) -> list[int]:
        return [rng.randrange(vocab) for _ in range(length)]

    prompts = [ids(rng.randint(2, 7)) for _ in range(rows // group_size)]
    completions = [ids(rng.randint(1, longest)) for _ in range(rows)]
    return Rollouts(prompts, completions, [""] * rows, [True] * rows, group_size)


def batch_of(rollouts: Rollouts, rewards: list[float] | None = None) -> Batch:
    """The batch of these rollouts, in double precision."""
    rows = len(rollouts.completion_ids)
    rewards = rewards or [float(i % 3) for i in range(rows)]
    batch = make_batch(rollouts, rewards, [r > 0 for r in rewards], torch.device("cpu"))
    return replace(batch, mask=batch.mask.double(), rewards=batch.rewards.double())


def make_double(kind: str, cfg: Config, critic: bool, reference: bool, seed: int = 0) -> Models:
    """Policy, critic (with a head that is not zero) and reference in double precision."""
    models = make_models(network(kind, seed), cfg.model, torch.float32, critic, reference)
    if models.critic is not None:
        models.critic.double()
        torch.manual_seed(1)
        torch.nn.init.normal_(models.critic.head.weight, std=0.5)
    return models


def snapshot(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def same(before: dict[str, Tensor], module: torch.nn.Module) -> bool:
    """Bit for bit."""
    return all(torch.equal(before[name], p) for name, p in module.named_parameters())
