"""OpenRLHF's classes, called on a batch of ours: its experience maker from rewards to advantages, and its losses."""

from __future__ import annotations

import functools
import importlib
from types import SimpleNamespace

import absent
import torch
from algo_data import Networks
from peers import FOLDER, Answer, Missing, gradient, leaf, on_kept

from grpo_bench.algos import Algorithm
from grpo_bench.types import Batch

NAME = "OpenRLHF"
DIALECT = "openrlhf"
# imported by OpenRLHF where it generates and trains on clusters; its mathematics needs none of them
ELSEWHERE = ("ray", "deepspeed", "flash_attn", "pylatexenc", "peft", "aiohttp", "vllm", "torchdata", "optree")
ESTIMATORS = {
    "grpo": "group_norm", "dapo": "group_norm", "gspo": "group_norm", "dr_grpo": "dr_grpo", "ppo": "gae",
    "rloo": "rloo", "reinforce_pp": "reinforce", "reinforce_pp_baseline": "reinforce_baseline",
}  # fmt: skip


def version() -> str:
    found = absent.version("openrlhf", FOLDER)
    if found is None:
        raise Missing("openrlhf is not installed; make parity installs it")
    return found


@functools.cache
def modules() -> SimpleNamespace:
    version()
    with absent.without(ELSEWHERE, FOLDER):
        try:
            return SimpleNamespace(
                loss=importlib.import_module("openrlhf.models.loss"),
                utils=importlib.import_module("openrlhf.models.utils"),
                maker=importlib.import_module("openrlhf.trainer.ppo_utils.experience_maker"),
                experience=importlib.import_module("openrlhf.trainer.ppo_utils.experience"),
                control=importlib.import_module("openrlhf.trainer.ppo_utils.kl_controller"),
            )
        except ImportError as e:
            raise Missing(f"openrlhf cannot be imported: {e}") from None


def settings(algo: Algorithm) -> str:
    """Its estimator of an algorithm's advantages; Missing for what it does not have."""
    if algo.name not in ESTIMATORS:
        raise Missing("it has no such method")
    return ESTIMATORS[algo.name]


@on_kept
def update(algo: Algorithm, batch: Batch, networks: Networks) -> Answer:
    its = modules()
    knobs, mask = algo.model_dump(), batch.mask
    logp, values = leaf(networks.logp), leaf(networks.values)
    advantages, returns = credit(algo, batch)
    policy_loss = its.loss.PolicyLoss(
        clip_eps_low=knobs["clip_low"], clip_eps_high=knobs["clip_high"],
        policy_loss_type="gspo" if algo.name == "gspo" else "ppo",
    )  # fmt: skip
    loss = policy_loss(logp, batch.old_logp, advantages, action_mask=mask)[0]
    if algo.kl.place == "loss":  # its use_loss
        kl = its.utils.compute_approx_kl(logp, batch.ref_logp, kl_estimator=algo.kl.estimator)
        loss = loss + batch.kl_coef * its.loss.aggregate_loss(kl, mask)
    if algo.needs_critic:
        loss = loss + its.loss.ValueLoss(clip_eps=0.5)(values, batch.values, returns, action_mask=mask)
    loss.backward()
    return Answer(
        advantages * mask, float(loss.detach()), gradient(logp), gradient(values) if algo.needs_critic else None
    )


def credit(algo: Algorithm, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages and returns by its experience maker, with the defaults of its command line."""
    its = modules()
    knobs = algo.model_dump()
    assert batch.old_logp is not None
    assert batch.ref_logp is not None
    args = SimpleNamespace(
        algo=SimpleNamespace(
            advantage=SimpleNamespace(
                estimator=settings(algo),
                gamma=knobs.get("gamma", 1.0),
                lambd=knobs.get("lam", 1.0),
                no_std_norm=False,
            )
        ),
        reward=SimpleNamespace(clip_range=(-10, 10), overlong_buffer_len=None, stop_properly_penalty_coef=None),
        rollout=SimpleNamespace(n_samples_per_prompt=batch.group_size),
    )
    in_reward = algo.kl.place in ("reward", "advantage")
    kl = its.utils.compute_approx_kl(batch.old_logp, batch.ref_logp, kl_estimator="k1")  # its default
    maker = its.maker.RemoteExperienceMaker(
        None, None, None, None, its.control.FixedKLController(batch.kl_coef), SimpleNamespace(args=args), None
    )
    experience = its.experience.Experience(
        index=list(range(len(batch.rewards))),
        action_mask=batch.mask.bool(),
        rewards=batch.rewards.clone(),
        values=batch.values,
        kl=kl.to(batch.mask.dtype) if in_reward else torch.zeros_like(batch.mask),
        info={},
    )
    found = maker.compute_advantages_and_returns([experience])[0]
    return found.advantages, found.returns
