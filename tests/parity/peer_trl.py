"""TRL's trainers, called on a batch of ours: its own code from rewards to loss, our log-probs in place of a model's.

A trainer is built as a user would, on a tiny model; what is replaced is where completions come from (``_generate``) and
the forward that scores them (``_get_per_token_logps_and_entropies``). No training loop runs.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from algo_data import Networks
from model_data import make as make_config
from peers import Answer, Missing, gradient, leaf, on_kept
from torch import Tensor

from grpo_bench.algos import Algorithm
from grpo_bench.tiny import tiny_model, tiny_tokenizer
from grpo_bench.types import Batch

NAME = "TRL"
DIALECT = "trl"


def version() -> str:
    try:
        return importlib.metadata.version("trl")
    except importlib.metadata.PackageNotFoundError:
        raise Missing("trl is not installed") from None


def settings(algo: Algorithm) -> tuple[str, dict[str, Any]]:
    """(its trainer, the arguments by which it computes an algorithm of ours); what is not named is its default.

    An algorithm's own numbers (clip, temperatures, length) are given, as a user would; ddof, ε, aggregation and the
    like are TRL's. Raises Missing for what TRL does not have.
    """
    knobs = algo.model_dump()
    clip = {"epsilon": knobs.get("clip_low"), "epsilon_high": knobs.get("clip_high")}
    if algo.name in ("grpo", "dapo"):
        return "grpo", clip
    if algo.name == "dr_grpo":
        return "grpo", clip | {"loss_type": "dr_grpo", "max_completion_length": int(algo.length)}
    if algo.name == "gspo":
        return "grpo", clip | {"importance_sampling_level": "sequence", "loss_type": "grpo"}
    if algo.name == "cispo":
        return "grpo", {"loss_type": "cispo", "epsilon_high": knobs["clip_high"]}
    if algo.name == "sapo":
        temperatures = {"sapo_temperature_pos": knobs["tau_pos"], "sapo_temperature_neg": knobs["tau_neg"]}
        return "grpo", temperatures | {"loss_type": "sapo"}
    if algo.name == "lite_ppo":
        return "grpo", clip | {"scale_rewards": "batch"}
    if algo.name == "gmpo":
        return "gmpo", clip
    if algo.name == "rloo_sequence":
        return "rloo", clip
    if algo.name == "ppo":
        raise Missing("its PPO trainer was removed before this release")
    raise Missing("it has no such method")


@on_kept
def update(algo: Algorithm, batch: Batch, networks: Networks) -> Answer:
    kind, options = settings(algo)
    return compute(kind, options, batch, networks, 0.0 if algo.kl.place == "none" else batch.kl_coef)


def compute(kind: str, options: dict[str, Any], batch: Batch, networks: Networks, beta: float) -> Answer:
    """One update of a TRL trainer (``grpo``, ``gmpo`` or ``rloo``) on a batch of ours, KL coefficient ``beta``."""
    assert batch.old_logp is not None
    assert batch.ref_logp is not None
    logp = leaf(networks.logp)
    with double_precision():
        trainer = build(kind, batch, options)
        trainer.beta, trainer.ref_model = beta, object()
        current: list[Tensor] = [batch.old_logp]

        def score(model: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, None]:
            found = batch.ref_logp if model is trainer.ref_model else current[0]
            return found, networks.entropy.detach(), None

        trainer._get_per_token_logps_and_entropies = score
        inputs = trainer._generate_and_score_completions([{"prompt": "1+1="}] * len(batch.rewards))
        current[0] = logp
        loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    advantages = inputs["advantages"].view(len(batch.rewards), -1) * batch.mask
    return Answer(advantages, float(loss.detach()), gradient(logp))


def build(kind: str, batch: Batch, options: dict[str, Any], model: Any = None) -> Any:
    """A trainer whose completions and rewards are the batch's; it does one update of the whole batch at a time."""
    from datasets import Dataset

    trainer_class, config_class = trainers()[kind]
    rewards = batch.rewards.tolist()
    config = make_config("algo=grpo").model.tiny
    assert config is not None
    with tempfile.TemporaryDirectory() as folder:
        args = config_class(
            output_dir=folder, use_cpu=True, bf16=False, report_to=[], disable_tqdm=True, beta=0.0,
            per_device_train_batch_size=len(rewards), num_generations=batch.group_size,
            num_iterations=2, **options,  # two updates of a rollout, so that the ratio is not 1 by construction
        )  # fmt: skip
        trainer = trainer_class(
            model=tiny_model(config) if model is None else model,
            reward_funcs=lambda prompts, completions, **_: rewards,
            args=args,
            train_dataset=Dataset.from_dict({"prompt": ["1+1="] * len(rewards)}),
            processing_class=tiny_tokenizer(config),
        )
    width = batch.tokens.shape[1] - batch.mask.shape[1]
    prompts = batch.tokens[:, :width].tolist()
    completions = [
        row[width : width + int(n)] for row, n in zip(batch.tokens.tolist(), batch.mask.sum(1).tolist(), strict=True)
    ]
    texts = [""] * len(completions)
    generated = (prompts, completions, texts)
    if kind != "rloo":  # tools, sampled log-probs, further fields and two kinds of images: none
        generated = (prompts, completions, None, texts, None, {}, None, None)  # type: ignore[assignment]
    trainer._generate = lambda _: generated
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


@functools.cache
def trainers() -> dict[str, tuple[Any, Any]]:
    """Kind -> (trainer, arguments); imported when first asked for, which takes seconds."""
    version()
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # its GMPO warns that it may change; the release is pinned
    from trl.experimental.gmpo import GMPOConfig, GMPOTrainer
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer
    from trl.trainer.rloo_config import RLOOConfig
    from trl.trainer.rloo_trainer import RLOOTrainer

    return {"grpo": (GRPOTrainer, GRPOConfig), "gmpo": (GMPOTrainer, GMPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}


@contextmanager
def double_precision() -> Iterator[None]:
    """Tensors made without a dtype are float64, so that what is left between two systems is a formula."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
