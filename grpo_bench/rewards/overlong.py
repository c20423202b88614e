"""DAPO's soft overlong punishment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_bench.rewards.scored import Scored

if TYPE_CHECKING:
    from grpo_bench.config import Config


def penalty(length: int, longest: int, buffer: int) -> float:
    """0 up to L_max − L_cache; ((L_max − L_cache) − L) / L_cache up to L_max; −1 beyond (arXiv:2503.14476, eq. 13)."""
    free = longest - buffer
    if length <= free:
        return 0.0
    return (free - length) / buffer if length <= longest else -1.0


def limits(cfg: Config) -> tuple[int, int]:
    """(L_max, L_cache) in tokens: ``task.max_new_tokens`` and a fifth of L_max (DAPO: 4,096 of 20,480) where null."""
    knobs = cfg.reward.overlong
    longest = knobs.max_length or cfg.task.max_new_tokens
    return longest, knobs.buffer if knobs.buffer is not None else max(round(longest / 5), 1)


def part(rows: Scored, cfg: Config) -> list[float]:
    """The penalty of each row by its length in tokens, the end token included; in [−1, 0]."""
    longest, buffer = limits(cfg)
    return [penalty(length, longest, buffer) for length in rows.lengths]
