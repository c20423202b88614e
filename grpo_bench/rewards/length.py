"""Correctness and length in one reward: the cosine reward."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from grpo_bench.rewards.scored import Scored

if TYPE_CHECKING:
    from grpo_bench.config import Config


def cosine(length: int, longest: int, at_zero: float, at_longest: float) -> float:
    """From ``at_zero`` at length 0 to ``at_longest``, along half a cosine."""
    return at_longest + 0.5 * (at_zero - at_longest) * (1 + math.cos(math.pi * length / longest))


def part(rows: Scored, cfg: Config) -> list[float]:
    """The cosine reward of Yeo et al. 2025 (arXiv:2502.03373, §4.2), lengths in tokens.

    R = cos-interpolation from r_0 to r_L over L/L_max, with (r_0, r_L) of ``correct`` or of ``wrong``; r_e
    (``exceeded``) where L ≥ L_max. Right answers are worth more when short, wrong ones cost less when long. It replaces
    ``correct`` rather than adding to it. ``max_length: null`` is ``task.max_new_tokens``.
    """
    knobs = cfg.reward.length
    longest = knobs.max_length or rows.max_new_tokens
    return [
        knobs.exceeded if length >= longest else cosine(length, longest, *(knobs.correct if right else knobs.wrong))
        for length, right in zip(rows.lengths, rows.right, strict=True)
    ]
