"""The control for gains that need no signal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_bench.rewards.scored import Scored
from grpo_bench.rollout.noise import generator

if TYPE_CHECKING:
    from grpo_bench.config import Config

DRAWS = 1 << 62  # counters of the generator are not negative


def part(rows: Scored, cfg: Config) -> list[float]:
    """A fair coin per completion, whatever it says (Shao et al. 2025, arXiv:2506.10947); keyed by seed, step, draw and
    row."""
    return [
        float(generator(rows.seed, "reward", row, rows.step, rows.draw % DRAWS).random() < 0.5)
        for row in range(len(rows.responses))
    ]
