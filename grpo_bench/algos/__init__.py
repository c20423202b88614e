"""The algorithms by name. A new one is a file here, a YAML in conf/algo and a golden test."""

from __future__ import annotations

import importlib
from typing import Any

from grpo_bench.algos.base import KL, Algorithm, Card
from grpo_bench.algos.dialects import speak
from grpo_bench.algos.grpo import GRPO
from grpo_bench.algos.ppo import PPO
from grpo_bench.types import UserError

ALGORITHMS: dict[str, type[Algorithm]] = {"ppo": PPO, "grpo": GRPO}


def algorithm_class(node: dict[str, Any]) -> type[Algorithm]:
    """The class that an ``algo:`` node names: by ``class`` (package.module:Class), else by ``name``."""
    path = node.get("class")
    if path is None:
        name = node.get("name")
        if name not in ALGORITHMS:
            raise UserError(
                f"algo={name} is not known; choose {', '.join(ALGORITHMS)}, or give algo.class=package.module:Class"
            )
        return ALGORITHMS[str(name)]
    module, _, attribute = str(path).partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as e:
        raise UserError(
            f"algo.class={path} cannot be loaded ({e}); give package.module:Class, importable from here"
        ) from None
    if not (isinstance(found, type) and issubclass(found, Algorithm)):
        raise UserError(f"algo.class={path} is not a subclass of grpo_bench.algos.Algorithm")
    return found


def load(node: dict[str, Any], dialect: str = "paper") -> Algorithm:
    """An ``algo:`` node -> its algorithm, in a ``dialect``.

    Raises pydantic's ValidationError for knobs, UserError for the name and the dialect.
    """
    found = algorithm_class(node)
    return found.model_validate(speak(node, found, dialect))


__all__ = ["ALGORITHMS", "KL", "Algorithm", "Card", "algorithm_class", "load"]
