"""What a completion is worth: a weighted sum of parts, each logged by itself.

``correct`` (strict match and finished) is recorded apart from the shaped reward whatever the parts are. A part scores
prompt and answer; a reward model is one more part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from grpo_bench.rollout.noise import generator
from grpo_bench.tasks.grading import Grade
from grpo_bench.types import Problem, UserError


@dataclass(frozen=True, slots=True)
class Scored:
    """B completions as a part sees them; lists have one entry per row."""

    problems: Sequence[Problem]
    prompts: Sequence[str]
    responses: Sequence[str]
    grades: Sequence[Grade]
    finished: Sequence[bool]
    seed: int
    step: int


def correct(rows: Scored) -> list[float]:
    """1 for a strict match that ended by itself, else 0: truncated answers count as wrong."""
    return [float(g.strict and f) for g, f in zip(rows.grades, rows.finished, strict=True)]


def flexible(rows: Scored) -> list[float]:
    """1 where the last number or expression is right and the answer ended by itself."""
    return [float(g.flexible and f) for g, f in zip(rows.grades, rows.finished, strict=True)]


def finished(rows: Scored) -> list[float]:
    """1 for an answer that ended by itself."""
    return [float(f) for f in rows.finished]


def random(rows: Scored) -> list[float]:
    """A fair coin per completion, whatever it says: the control for gains that need no signal (arXiv:2506.10947)."""
    return [float(generator(rows.seed, "reward", row, rows.step).random() < 0.5) for row in range(len(rows.responses))]


PARTS: dict[str, Callable[[Scored], list[float]]] = {
    "correct": correct,
    "flexible": flexible,
    "finished": finished,
    "random": random,
}


def reward(weights: dict[str, float], rows: Scored) -> tuple[list[float], dict[str, list[float]]]:
    """The shaped reward of each row and its parts before their weights. Raises UserError for an unknown part."""
    for name in weights:
        if name not in PARTS:
            raise UserError(f"reward.parts.{name} is not known; choose {', '.join(PARTS)}")
    parts = {name: PARTS[name](rows) for name in weights}
    total = [0.0] * len(rows.responses)
    for name, values in parts.items():
        total = [t + weights[name] * v for t, v in zip(total, values, strict=True)]
    return total, parts


__all__ = ["PARTS", "Scored", "reward"]
