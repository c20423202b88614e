"""What every algorithm's settings are checked for: contradictions, and knobs that are inert or half configured."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from grpo_bench.algos.base import Algorithm
from grpo_bench.config_checks import total_steps
from grpo_bench.types import UserError

if TYPE_CHECKING:
    from grpo_bench.config import Config


def check(algo: Algorithm, cfg: Config) -> list[str]:
    """Warnings about inert or half-configured settings; raises UserError on contradictions."""
    updates = cfg.epochs * cfg.minibatches
    warnings = []
    if algo.kl.place in ("reward", "advantage") and algo.kl.to == "old":
        raise UserError(
            f"algo.kl.place={algo.kl.place} with algo.kl.to=old: the old policy is the one that sampled, so this "
            "KL is 0; set algo.kl.to=reference or algo.kl.place=loss"
        )
    if algo.kl.place not in algo.kl_places:
        raise UserError(
            f"algo.kl.place={algo.kl.place} has no meaning for algo={algo.name}; "
            f"choose {', '.join(sorted(algo.kl_places))}"
        )
    if algo.whole_answer and algo.aggregation != "sequence_mean":
        raise UserError(
            f"algo={algo.name} has one loss per answer here: it needs algo.aggregation=sequence_mean, "
            f"not {algo.aggregation}"
        )
    if algo.kl.control == "adaptive" and cfg.kl_coef == 0:
        raise UserError("algo.kl.control=adaptive multiplies kl_coef, and kl_coef=0 stays 0; set kl_coef=0.01 or so")
    if algo.kl.control == "adaptive" and algo.kl.place == "none":
        raise UserError("algo.kl.control=adaptive with algo.kl.place=none: there is no KL to steer; set the place")
    if algo.kl.control == "adaptive" and algo.kl.horizon <= 0.2 * cfg.samples:
        raise UserError(
            f"algo.kl.horizon={algo.kl.horizon:g} is too short for the {cfg.samples} samples of a step: the "
            f"coefficient would fall to 0 or below; give more than {0.2 * cfg.samples:g}"
        )
    if algo.extra_rollouts == "branches":
        count, delimiters = algo.branching
        if algo.needs_critic:
            raise UserError(
                f"algo={algo.name} takes its values from branches and asks for a critic too, which would replace "
                "them; drop one of the two"
            )
        if count < 1 or not delimiters or "" in delimiters:
            raise UserError(
                f"algo={algo.name} branches {count} times at {list(delimiters)}: give at least one branch and at "
                "least one delimiter, none of them empty"
            )
    if algo.refill_limit and type(algo).keep is Algorithm.keep:
        warnings.append(f"algo={algo.name} may draw prompts again, but it drops none: every step is one draw")
    if algo.kl.place == "none" and cfg.kl_coef > 0:
        warnings.append(f"kl_coef={cfg.kl_coef:g} is inert: algo.kl.place is none")
    if algo.kl.place == "loss" and algo.kl.estimator == "k1" and cfg.kl_coef > 0:
        warnings.append("algo.kl.estimator=k1 in the loss: its expected gradient is 0 on policy; k2 or k3 act")
    if updates == 1:
        if algo.kl.place == "loss" and algo.kl.to == "old" and cfg.kl_coef > 0:
            warnings.append("KL to the old policy is inert with one update per rollout (epochs=1 minibatches=1)")
        if cfg.target_kl is not None:
            warnings.append("target_kl is inert with one update per rollout (epochs=1 minibatches=1)")
        if any(math.isfinite(bound) for bound in algo.clip_range):
            warnings.append("the clip is inert with one update per rollout (epochs=1 minibatches=1): the ratio is 1")
        if getattr(algo, "value_clip", None) is not None:
            warnings.append("algo.value_clip is inert with one update per rollout (epochs=1 minibatches=1)")
    if cfg.group_size == 1 and algo.needs_group:
        warnings.append("group_size=1 with a group baseline: every advantage is 0, nothing is learned")
    if algo.needs_critic and algo.value_weight == 0:
        warnings.append("algo.vf_coef=0: the critic is never trained, its values stay what they were")
    if algo.needs_critic and cfg.model.critic == "separate" and algo.value_weight not in (0, 1):
        warnings.append(
            f"algo.vf_coef={algo.value_weight:g} with a separate critic scales its loss alone, which AdamW undoes; "
            "critic_lr is what acts"
        )
    steps = total_steps(cfg)
    if steps is not None and 0 < steps <= algo.frozen_steps:
        warnings.append(
            f"the critic's warm-up of {algo.frozen_steps} steps covers the whole run of {steps}: the policy is "
            "never trained"
        )
    return warnings + [f"algo.{knob}={value} is inert: {why}" for knob, value, why in _set_in_vain(algo, cfg)]


def _set_in_vain(algo: Algorithm, cfg: Config) -> list[tuple[str, Any, str]]:
    """Inert knobs whose value is neither the YAML's nor the dialect's: someone meant something by them."""
    from grpo_bench.algos import dialects  # here, since it reads the files that this class is checked against

    usual = dialects.as_written(type(algo), algo.name, cfg.dialect) if algo.path is None else {}
    mine = algo.model_dump(by_alias=True)
    found = []
    for knob, why in algo.inert().items():
        value, expected = (dialects.at(tree, tuple(knob.split("."))) for tree in (mine, usual))
        interpolated = isinstance(expected, str) and expected.startswith("${")
        if usual and value != expected and not interpolated:
            found.append((knob, value, why))
    return found
