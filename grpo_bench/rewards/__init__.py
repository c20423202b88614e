"""What a completion is worth: a weighted sum of parts, each logged by itself, one file per kind of part.

``correct`` (strict match and finished) is recorded apart from the shaped reward whatever the parts are. A part is a
function of the completions and the run's configuration; ``reward.parts`` names parts and weights, ``reward.<part>``
holds a part's knobs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from grpo_bench.rewards import answer, format, function, length, overlong, random, repetition
from grpo_bench.rewards.normalise import combine
from grpo_bench.rewards.scored import Scored
from grpo_bench.types import UserError

if TYPE_CHECKING:
    from grpo_bench.config import Config


def _model(rows: Scored, cfg: Config) -> list[float]:
    from grpo_bench.rewards import model  # here, so that checking a configuration does not cost torch

    return model.part(rows, cfg)


PARTS: dict[str, Callable[[Scored, Config], list[float]]] = {
    "correct": answer.correct,
    "flexible": answer.flexible,
    "finished": answer.finished,
    "format": format.part,
    "length": length.part,
    "overlong": overlong.part,
    "repetition": repetition.part,
    "model": _model,
    "function": function.part,
    "random": random.part,
}


def score(cfg: Config, rows: Scored) -> tuple[list[float], dict[str, list[float]]]:
    """The shaped reward of each row, and its parts before their weights and before any normalisation.

    ``reward.normalise`` acts on the groups that are trained on, ``rows.draw`` of 0 and more: one greedy answer or a
    branch has no group. Raises UserError for an unknown part and for a part that is not a finite number.
    """
    weights = cfg.reward.parts
    for name in weights:
        if name not in PARTS:
            raise UserError(f"reward.parts.{name} is not known; choose {', '.join(PARTS)}")
    parts = {name: PARTS[name](rows, cfg) for name in weights}
    for name, values in parts.items():
        if (row := next((i for i, value in enumerate(values) if not math.isfinite(value)), None)) is not None:
            raise UserError(f"reward.parts.{name} is {values[row]} for row {row} (problem {rows.problems[row].id})")
    mode = cfg.reward.normalise if rows.draw >= 0 else "none"
    return combine(parts, weights, mode, rows.group_size), parts


def load(cfg: Config) -> None:
    """Load what the parts need (a reward model, a function of one's own) before the first step instead of in it."""
    if "function" in cfg.reward.parts and cfg.reward.function is not None:
        function.load(cfg.reward.function)
    take_cost(cfg)  # of a run before in this process


def take_cost(cfg: Config) -> dict[str, float]:
    """What the reward model has cost since this was last called, see rewards/model.py; {} for other rewards."""
    if "model" not in cfg.reward.parts:
        return {}
    from grpo_bench.rewards import model

    return model.load(cfg).take_cost()


__all__ = ["PARTS", "Scored", "load", "score", "take_cost"]
