"""The same name, other mathematics: the knobs that make an algorithm what a released system computes under its name.

``dialect=paper|trl|verl|openrlhf`` sets ddof, ε, guard, clamps, aggregation, KL place and estimator, whitening; never a
learning rate, a batch size or a KL coefficient. What a system does not have is not listed. ``paper`` is the YAML.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import yaml

from grpo_bench.paths import conf_dir
from grpo_bench.types import UserError

if TYPE_CHECKING:
    from grpo_bench.algos.base import Algorithm

SYSTEMS = ("paper", "trl", "verl", "openrlhf")

DIALECTS: dict[str, dict[str, dict[str, Any]]] = {
    "grpo": {
        # scale_rewards="group", loss_type="dapo": both are its defaults
        "trl": {"ddof": 1, "eps": 1e-4, "guard": "eps", "aggregation": "token_mean"},
        # adv_estimator=grpo, loss_agg_mode=token-mean, kl_loss_type=low_var_kl; its dual clip is always on
        "verl": {
            "ddof": 1, "eps": 1e-6, "guard": "eps", "aggregation": "token_mean", "dual_clip": 3.0, "log_clamp": 20.0,
            "kl": {"clamp_in": 20.0, "clamp_out": 10.0},
        },
        # advantage_estimator=group_norm; its KL is in the reward, taken after the group is normalised
        "openrlhf": {
            "ddof": 1, "eps": 1e-9, "guard": "eps", "aggregation": "token_mean", "log_clamp": 20.0,
            "kl": {"place": "advantage", "estimator": "k1", "clamp_out": 10.0},
        },
    },
    "ppo": {
        # its PPOTrainer (released until 1.10): KL in the reward, whitening with ddof 1, 0.1 · ½ of the value loss
        "trl": {
            "whiten": True, "whiten_ddof": 1, "value_clip": 0.2, "vf_coef": 0.05, "aggregation": "token_mean",
            "kl": {"place": "reward", "estimator": "k1"},
        },
        # adv_estimator=gae always whitens; its dual clip is always on; ½ of the value loss
        "verl": {
            "whiten": True, "whiten_ddof": 1, "value_clip": 0.5, "vf_coef": 0.5, "aggregation": "token_mean",
            "dual_clip": 3.0, "log_clamp": 20.0, "kl": {"place": "reward", "estimator": "k1"},
        },
        # advantage_estimator=gae
        "openrlhf": {
            "whiten": True, "whiten_ddof": 0, "value_clip": 0.5, "vf_coef": 0.5, "aggregation": "token_mean",
            "log_clamp": 20.0, "kl": {"place": "reward", "estimator": "k1", "clamp_out": 10.0},
        },
    },
}  # fmt: skip


def dialects_of(found: type[Algorithm], name: str) -> dict[str, dict[str, Any]]:
    """System -> knobs of an algorithm; ``paper`` is always there."""
    return {"paper": {}, **DIALECTS.get(name, {}), **found.dialects}


def speak(node: dict[str, Any], found: type[Algorithm], dialect: str) -> dict[str, Any]:
    """An ``algo:`` node with the knobs that ``dialect`` sets.

    Raises UserError for a dialect that the algorithm does not have, and where a knob that it sets was given another
    value by an arm or by hand: which of the two is meant cannot be known.
    """
    name = str(node.get("name"))
    known = dialects_of(found, name)
    if dialect not in known:
        raise UserError(f"dialect={dialect} is not known to algo={name}; it has {', '.join(known)}")
    knobs, own = known[dialect], _yaml(name) if node.get("class") is None else {}
    result = dict(node)
    for key, value in _leaves(knobs):
        given, usual = _at(node, key), _at(own, key)
        if given not in (usual, value) and own:
            raise UserError(
                f"dialect={dialect} sets algo.{'.'.join(key)}={value}, and algo.{'.'.join(key)}={given} contradicts "
                "it; drop one of the two"
            )
        place = result
        for parent in key[:-1]:
            place[parent] = dict(place.get(parent) or {})
            place = place[parent]
        place[key[-1]] = value
    return result


@functools.cache
def _yaml(name: str) -> dict[str, Any]:
    file = conf_dir() / "algo" / f"{name}.yaml"
    return dict(yaml.safe_load(file.read_text())["algo"]) if file.is_file() else {}


def _leaves(tree: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    found: list[tuple[tuple[str, ...], Any]] = []
    for key, value in tree.items():
        found += _leaves(value, (*path, key)) if isinstance(value, dict) else [((*path, key), value)]
    return found


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree
