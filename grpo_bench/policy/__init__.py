"""Policy, reference and critic: loading, per-token log-probs and values, export to a Hugging Face folder."""

from grpo_bench.policy.critic import Critic
from grpo_bench.policy.layout import Layout, layout, spread
from grpo_bench.policy.load import (
    Models,
    check_lengths,
    choose_device,
    compute_dtype,
    load_model,
    load_tokenizer,
    make_models,
)
from grpo_bench.policy.memory import memory_errors
from grpo_bench.policy.network import Policy

__all__ = [
    "Critic",
    "Layout",
    "Models",
    "Policy",
    "check_lengths",
    "choose_device",
    "compute_dtype",
    "layout",
    "load_model",
    "load_tokenizer",
    "make_models",
    "memory_errors",
    "spread",
]
