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

# What a system does to every group, whatever the loss; a group of equal rewards is left to ε.
_GMPO_TRL = {"ddof": 1, "eps": 1e-4, "guard": "eps"}
_TRL = {**_GMPO_TRL, "kl": {"weighted": True}}  # use_bias_correction_kl: on by default, and not in its GMPO
_VERL = {"ddof": 1, "eps": 1e-6, "guard": "eps"}
_OPENRLHF = {"ddof": 1, "eps": 1e-9, "guard": "eps"}
_VERL_KL = {"clamp_in": 20.0, "clamp_out": 10.0}
_OPENRLHF_KL = {"place": "advantage", "estimator": "k1", "clamp_out": 10.0}

DIALECTS: dict[str, dict[str, dict[str, Any]]] = {
    "grpo": {
        # scale_rewards="group", loss_type="dapo": both are its defaults
        "trl": {**_TRL, "aggregation": "token_mean"},
        # adv_estimator=grpo, loss_agg_mode=token-mean, kl_loss_type=low_var_kl; its dual clip is always on
        "verl": {**_VERL, "aggregation": "token_mean", "dual_clip": 3.0, "log_clamp": 20.0, "kl": _VERL_KL},
        # advantage_estimator=group_norm; its KL is in the reward, taken after the group is normalised
        "openrlhf": {**_OPENRLHF, "aggregation": "token_mean", "log_clamp": 20.0, "kl": _OPENRLHF_KL},
    },
    "dr_grpo": {
        # loss_type="dr_grpo" alone: its scale_rewards stays "group", so the deviation is still divided by
        "trl": {**_TRL, "scale": "std"},
        # norm_adv_by_std_in_grpo=False and loss_agg_mode=seq-mean-token-sum-norm: both halves
        "verl": {"dual_clip": 3.0, "log_clamp": 20.0, "kl": _VERL_KL},
        # advantage_estimator=dr_grpo changes the advantage alone
        "openrlhf": {"aggregation": "token_mean", "log_clamp": 20.0, "kl": _OPENRLHF_KL},
    },
    "dapo": {
        # loss_type="dapo", epsilon_high=0.28; it has no dynamic sampling
        "trl": {**_TRL, "dynamic_sampling": False},
        # its recipe of DAPO: filter_groups, clip_ratio_c=10
        "verl": {**_VERL, "dual_clip": 10.0, "log_clamp": 20.0, "kl": _VERL_KL},
        # dynamic_filtering, eps_clip_low_high=0.2 0.28
        "openrlhf": {**_OPENRLHF, "log_clamp": 20.0, "kl": _OPENRLHF_KL},
    },
    "gspo": {
        # importance_sampling_level="sequence", loss_type="grpo"
        "trl": _TRL,
        # policy_loss.loss_mode=gspo, loss_agg_mode=seq-mean-token-mean; it clamps log s from above alone
        "verl": {**_VERL, "log_clamp": 10.0, "kl": _VERL_KL},
        # policy_loss_type=gspo
        "openrlhf": {**_OPENRLHF, "kl": _OPENRLHF_KL},
    },
    "cispo": {
        # loss_type="cispo": epsilon_high is the bound itself, its documentation says 5.0 (the default 0.2 caps all)
        "trl": {**_TRL, "cap": "absolute", "clip_high": 5.0},
        # policy_loss.loss_mode=cispo: both sides, by clip_ratio
        "verl": {**_VERL, "clip_low": 0.2, "clip_high": 0.2, "log_clamp": 20.0, "kl": _VERL_KL},
    },
    "gmpo": {
        "trl": _GMPO_TRL,  # its GMPOTrainer (experimental)
        "verl": {**_VERL, "kl": _VERL_KL},  # policy_loss.loss_mode=geo_mean, clip_ratio_low and _high 0.4
    },
    "sapo": {
        "trl": _TRL,  # loss_type="sapo"
        "verl": {**_VERL, "log_clamp": 20.0, "kl": _VERL_KL},  # policy_loss.loss_mode=sapo
    },
    "lite_ppo": {
        "trl": _TRL,  # scale_rewards="batch", loss_type="dapo"
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
    # what TRL trains under this name is rloo_sequence, which has no other reading
    "rloo": {
        # adv_estimator=rloo; its dual clip is always on
        "verl": {"aggregation": "token_mean", "dual_clip": 3.0, "log_clamp": 20.0},
        # advantage_estimator=rloo; its KL is taken from each token after the baseline, and never whitened
        "openrlhf": {
            "aggregation": "token_mean", "log_clamp": 20.0,
            "kl": {"place": "advantage", "estimator": "k1", "clamp_out": 10.0},
        },
    },
    "reinforce_pp": {
        # adv_estimator=reinforce_plus_plus; its dual clip is always on
        "verl": {
            "whiten_ddof": 1, "aggregation": "token_mean", "dual_clip": 3.0, "log_clamp": 20.0,
            "kl": {"place": "reward", "estimator": "k1"},
        },
        # advantage_estimator=reinforce
        "openrlhf": {
            "whiten_ddof": 0, "aggregation": "token_mean", "log_clamp": 20.0,
            "kl": {"place": "reward", "estimator": "k1", "clamp_out": 10.0},
        },
    },
    "reinforce_pp_baseline": {
        # adv_estimator=reinforce_plus_plus_baseline, kl_loss_type=mse; its dual clip is always on
        "verl": {
            "whiten_ddof": 1, "aggregation": "token_mean", "dual_clip": 3.0, "log_clamp": 20.0,
            "kl": {"place": "loss", "estimator": "k2"},
        },
        # advantage_estimator=reinforce_baseline with use_kl_loss
        "openrlhf": {
            "whiten_ddof": 0, "aggregation": "token_mean", "log_clamp": 20.0,
            "kl": {"place": "loss", "estimator": "k2", "clamp_out": 10.0},
        },
    },
    # adv_estimator=remax and opo: mean over tokens, and PPO's ratio, which is 1 with the one update per rollout that
    # both have here
    "remax": {"verl": {"aggregation": "token_mean", "kl": {"place": "reward", "estimator": "k1"}}},
    "opo": {"verl": {"aggregation": "token_mean", "kl": _VERL_KL}},
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
    for key, value in leaves(knobs):
        given, usual = at(node, key), at(own, key)
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


def as_written(found: type[Algorithm], name: str, dialect: str) -> dict[str, Any]:
    """The ``algo:`` node of an algorithm's YAML with what a dialect sets; empty where there is no such file."""
    own = _yaml(name)
    return speak(own, found, dialect) if own else {}


@functools.cache
def _yaml(name: str) -> dict[str, Any]:
    file = conf_dir() / "algo" / f"{name}.yaml"
    return dict(yaml.safe_load(file.read_text())["algo"]) if file.is_file() else {}


def leaves(tree: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Paths and values of a nested dict."""
    found: list[tuple[tuple[str, ...], Any]] = []
    for key, value in tree.items():
        found += leaves(value, (*path, key)) if isinstance(value, dict) else [((*path, key), value)]
    return found


def at(tree: Any, path: tuple[str, ...]) -> Any:
    """What a nested dict holds at a path; None where it ends before."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree
