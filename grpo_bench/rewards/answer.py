"""Whether the answer is right, by the task's own rules (tasks/grading.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_bench.rewards.scored import Scored

if TYPE_CHECKING:
    from grpo_bench.config import Config


def correct(rows: Scored, cfg: Config) -> list[float]:
    """1 for a strict match that ended by itself, else 0: truncated answers count as wrong."""
    return [float(right) for right in rows.right]


def flexible(rows: Scored, cfg: Config) -> list[float]:
    """1 where the last number or expression is right and the answer ended by itself."""
    return [float(grade.flexible and ended) for grade, ended in zip(rows.grades, rows.finished, strict=True)]


def finished(rows: Scored, cfg: Config) -> list[float]:
    """1 for an answer that ended by itself."""
    return [float(ended) for ended in rows.finished]
