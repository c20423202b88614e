"""A reward that tells every group apart: what is measured must not depend on what a random model happens to answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grpo_bench.rewards.scored import Scored


def reward_of(row: int, group_size: int) -> float:
    """0 or 1 by turns within a group, the first member's alternating between groups."""
    return float((row // group_size + row % group_size) % 2)


def alternating(rows: Scored) -> list[float]:
    """A reward function of a run: see ``reward_of``."""
    return [reward_of(row, rows.group_size) for row in range(len(rows.responses))]
