"""The least that a step costs: FLOPs of the work itself, and the time that this machine cannot do it under.

A prompt is counted once per group, each sampled token once, logits at sampled tokens only; what a contender computes
beside that (padding, a prompt per member, a second forward) is its own inefficiency.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from grpo_bench.cost import Size

BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class Shape:
    """What one step works on: a model, P prompt lengths, G completions of ``tokens`` tokens each."""

    size: Size
    kv_width: int  # key-value heads x head size
    prompts: tuple[int, ...]
    group_size: int
    tokens: int

    @property
    def rows(self) -> int:
        return len(self.prompts) * self.group_size

    @classmethod
    def read(cls, data: dict[str, Any]) -> Shape:
        """From its dumped fields, as a measurement holds them."""
        return cls(
            Size(**data["size"]), data["kv_width"], tuple(data["prompts"]), data["group_size"], data["tokens"]
        )  # fmt: skip


def forward_flops(shape: Shape, headless: bool = False) -> float:
    """FLOPs of one pass over all tokens of the step; ``headless``: of a critic's trunk."""
    size = replace(shape.size, head=0) if headless else shape.size
    return size.rollout(shape.prompts, shape.group_size, [shape.tokens] * shape.rows)


def training_flops(shape: Shape, critic: str = "none") -> float:
    """FLOPs of scoring and one update: 3 passes; with a separate critic 4 of its own, with a shared trunk one."""
    passes = {"none": 0, "separate": 4, "shared": 1}[critic]
    return 3 * forward_flops(shape) + passes * forward_flops(shape, headless=True)


def step_flops(shape: Shape, critic: str = "none") -> float:
    """FLOPs of a whole step: sampling is one pass more."""
    return forward_flops(shape) + training_flops(shape, critic)


def decode_seconds(shape: Shape, dtype: str, bandwidth: float, rate: float) -> float:
    """Seconds that the ``tokens`` - 1 decode steps after the prefill take at least, at B/s and FLOP/s.

    Each step reads the weights once and the keys and values that its rows attend to, a prompt's once per group; or,
    where that is longer, multiplies: the larger of the two counts, as if one hid the other.
    """
    size, width = shape.size, BYTES[dtype]
    weights = (size.trunk + size.head) * width
    per_token = 2 * size.layers * shape.kv_width * width
    context = sum(shape.prompts)
    total = 0.0
    for own in range(1, shape.tokens):  # tokens of its own that a row attends to
        read = weights + per_token * (context + shape.rows * own)
        seen = context * shape.group_size + shape.rows * own
        flops = 2.0 * (size.trunk + size.head) * shape.rows + 4.0 * size.layers * size.width * seen
        total += max(read / bandwidth, flops / rate)
    return total


def prefill_seconds(shape: Shape, rate: float) -> float:
    """Seconds of the prompts' forward at least, once per group, logits at their last tokens."""
    return shape.size.forward(shape.prompts, len(shape.prompts)) / rate
