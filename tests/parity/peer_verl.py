"""verl's functions, called on a batch of ours: its estimators of advantages, its policy, value and KL losses."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import absent
import numpy as np
import torch
from algo_data import Networks
from peers import FOLDER, Answer, Missing, gradient, leaf, on_kept

from grpo_bench import ops
from grpo_bench.algos import Algorithm
from grpo_bench.types import Batch

NAME = "verl"
DIALECT = "verl"
# imported by verl where it trains on clusters; its mathematics needs none of them
ELSEWHERE = ("ray", "tensordict", "codetiming", "torchdata", "orjson", "peft", "flash_attn", "vllm", "sglang")
ESTIMATORS = {
    "grpo": "grpo", "dr_grpo": "grpo", "dapo": "grpo", "gspo": "grpo", "cispo": "grpo", "gmpo": "grpo", "sapo": "grpo",
    "ppo": "gae", "rloo": "rloo", "reinforce_pp": "reinforce_plus_plus", "remax": "remax", "opo": "opo",
    "reinforce_pp_baseline": "reinforce_plus_plus_baseline",
}  # fmt: skip
# what differs by more than numbers: compared where the policy is the one that sampled, and not by the loss's value
ON_POLICY = dict.fromkeys(
    ("remax", "opo"), "its loss is PPO's, −ρA, ours log π·A: one gradient as long as the policy is the one that sampled"
)
LOSSES = {"gspo": "gspo", "cispo": "cispo", "gmpo": "geo_mean", "sapo": "sapo"}  # the others: vanilla
AGGREGATION = dict.fromkeys(("gspo", "sapo", "gmpo"), "seq-mean-token-mean") | {"dr_grpo": "seq-mean-token-sum-norm"}


def version() -> str:
    found = absent.version("verl", FOLDER)
    if found is None:
        raise Missing("verl is not installed; make parity installs it")
    return found


@functools.cache
def core() -> Any:
    """Its module of algorithms."""
    version()
    with absent.without(ELSEWHERE, FOLDER):
        try:
            importlib.import_module("verl.workers.config")
            return importlib.import_module("verl.trainer.ppo.core_algos")
        except ImportError as e:
            raise Missing(f"verl cannot be imported: {e}") from None


def settings(algo: Algorithm) -> str:
    """Its estimator of an algorithm's advantages; Missing for what it does not have."""
    if algo.name not in ESTIMATORS:
        raise Missing("it has no such method")
    return ESTIMATORS[algo.name]


def actor(algo: Algorithm, batch: Batch) -> Any:
    """Its settings of the policy: what is not an algorithm's own number is its default, or its recipe's."""
    knobs = algo.model_dump()
    clip = {f"clip_ratio_{side}": knobs.get(f"clip_{side}") or 0.2 for side in ("low", "high")}
    core()
    from verl.workers.config import ActorConfig

    options: dict[str, Any] = {"loss_agg_mode": AGGREGATION.get(algo.name, "token-mean")}
    if algo.name == "dr_grpo":
        options["loss_scale_factor"] = int(algo.length)
    if algo.name == "dapo":
        options["clip_ratio_c"] = 10.0  # its recipe of DAPO
    if algo.name == "sapo":
        options |= {"tau_pos": knobs["tau_pos"], "tau_neg": knobs["tau_neg"]}
    config = ActorConfig(
        strategy="fsdp", rollout_n=batch.group_size, ppo_micro_batch_size_per_gpu=len(batch.rewards), **clip, **options
    )
    config.global_batch_info["loss_scale_factor"] = config.loss_scale_factor
    return config


@on_kept
def update(algo: Algorithm, batch: Batch, networks: Networks) -> Answer:
    settings(algo)
    verl, config = core(), actor(algo, batch)
    assert batch.old_logp is not None
    mask = batch.mask
    logp, values = leaf(networks.logp), leaf(networks.values)
    advantages, returns = credit(algo, batch)
    loss_of = verl.get_policy_loss_fn(LOSSES.get(algo.name, "vanilla"))
    loss, _ = loss_of(
        old_log_prob=batch.old_logp, log_prob=logp, advantages=advantages, response_mask=mask,
        loss_agg_mode=config.loss_agg_mode, config=config,
    )  # fmt: skip
    if algo.kl.place == "loss":
        kind = "mse" if algo.name == "reinforce_pp_baseline" else config.kl_loss_type  # mse: its recipe
        kl = verl.kl_penalty(logp, batch.ref_logp, kind)
        loss = loss + batch.kl_coef * verl.agg_loss(kl, mask, config.loss_agg_mode, **config.global_batch_info)
    if algo.needs_critic:
        loss = loss + verl.compute_value_loss(values, returns, batch.values, mask, cliprange_value=0.5)[0]
    loss.backward()
    return Answer(
        advantages * mask, float(loss.detach()), gradient(logp), gradient(values) if algo.needs_critic else None
    )


def credit(algo: Algorithm, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages and returns by its estimator; as in its trainer, a KL in the reward is taken from each token first."""
    verl = core()
    rewards = batch.rewards[:, None] * ops.last_token(batch.mask)
    if algo.kl.place == "reward":
        rewards = rewards - batch.kl_coef * verl.kl_penalty(batch.old_logp, batch.ref_logp, "kl") * batch.mask
    estimator = verl.get_adv_estimator_fn(settings(algo))
    knobs = algo.model_dump()
    given: dict[str, Any] = {"token_level_rewards": rewards, "response_mask": batch.mask}
    if algo.name == "ppo":
        given |= {"values": batch.values, "gamma": knobs["gamma"], "lam": knobs["lam"]}
    else:
        from verl.trainer.config import AlgoConfig

        given |= {"config": AlgoConfig(gamma=knobs.get("gamma", 1.0))}
    if algo.name == "remax":
        given["reward_baselines"] = batch.baseline_rewards
    elif algo.name not in ("ppo", "reinforce_pp"):
        given["index"] = np.array(batch.group_ids.tolist())
    if algo.name == "dr_grpo":
        given["norm_adv_by_std_in_grpo"] = False
    advantages, returns = estimator(**given)
    return advantages, returns
