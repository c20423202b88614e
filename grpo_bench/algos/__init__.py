"""The algorithms by name. A new one is a file here, a YAML in conf/algo and a golden test."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from grpo_bench.algos.base import KL, Algorithm, Card
from grpo_bench.algos.cispo import CISPO
from grpo_bench.algos.dapo import DAPO
from grpo_bench.algos.dialects import speak
from grpo_bench.algos.dr_grpo import DrGRPO
from grpo_bench.algos.gmpo import GMPO
from grpo_bench.algos.grpo import GRPO
from grpo_bench.algos.gspo import GSPO
from grpo_bench.algos.lite_ppo import LitePPO
from grpo_bench.algos.maxrl import MaxRL
from grpo_bench.algos.opo import OPO
from grpo_bench.algos.ppo import PPO
from grpo_bench.algos.raft import RAFT
from grpo_bench.algos.reinforce import Reinforce
from grpo_bench.algos.reinforce_pp import ReinforcePP
from grpo_bench.algos.reinforce_pp_baseline import ReinforcePPBaseline
from grpo_bench.algos.remax import ReMax
from grpo_bench.algos.rloo import RLOO
from grpo_bench.algos.rloo_sequence import RLOOSequence
from grpo_bench.algos.sapo import SAPO
from grpo_bench.algos.vapo import VAPO
from grpo_bench.algos.vc_ppo import VCPPO
from grpo_bench.algos.vineppo import VinePPO
from grpo_bench.types import UserError, error_line

ALGORITHMS: dict[str, type[Algorithm]] = {
    "ppo": PPO,
    "grpo": GRPO,
    "dr_grpo": DrGRPO,
    "dapo": DAPO,
    "gspo": GSPO,
    "cispo": CISPO,
    "gmpo": GMPO,
    "sapo": SAPO,
    "lite_ppo": LitePPO,
    "maxrl": MaxRL,
    "vc_ppo": VCPPO,
    "vapo": VAPO,
    "rloo": RLOO,
    "rloo_sequence": RLOOSequence,
    "reinforce": Reinforce,
    "reinforce_pp": ReinforcePP,
    "reinforce_pp_baseline": ReinforcePPBaseline,
    "remax": ReMax,
    "opo": OPO,
    "vineppo": VinePPO,
    "raft": RAFT,
}


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
    except Exception as e:  # whatever a user's module does when it is imported
        raise UserError(
            f"algo.class={path} cannot be loaded ({error_line(e)}); give package.module:Class, importable from here"
        ) from None
    if not (isinstance(found, type) and issubclass(found, Algorithm)):
        raise UserError(f"algo.class={path} is not a subclass of grpo_bench.algos.Algorithm")
    if inspect.isabstract(found):
        lacks = ", ".join(sorted(found.__abstractmethods__))
        raise UserError(f"algo.class={path} lacks {lacks}; an algorithm defines advantages and token_loss")
    return found


def load(node: dict[str, Any], dialect: str = "paper") -> Algorithm:
    """An ``algo:`` node -> its algorithm, in a ``dialect``.

    Raises pydantic's ValidationError for knobs, UserError for the name and the dialect.
    """
    found = algorithm_class(node)
    return found.model_validate(speak(node, found, dialect))


__all__ = ["ALGORITHMS", "KL", "Algorithm", "Card", "algorithm_class", "load"]
