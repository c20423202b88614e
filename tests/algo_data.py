"""Algorithms by their YAML with some knobs changed, and the batches of the checks, for tests of the mathematics."""

from __future__ import annotations

import typing
from dataclasses import replace
from typing import Any

import torch
import yaml
from omegaconf import OmegaConf

from grpo_bench.algos import Algorithm, load
from grpo_bench.paths import conf_dir
from grpo_bench.selfcheck.data import LENGTHS, Networks, credited, loss_and_gradients, make_batch
from grpo_bench.types import Batch

__all__ = [
    "LENGTHS",
    "Networks",
    "credited",
    "log_probs",
    "loss_and_gradients",
    "make",
    "make_batch",
    "node",
    "refused",
]


def node(name: str, **knobs: Any) -> dict[str, Any]:
    """``algo:`` of conf/algo/<name>.yaml with some knobs changed; ``kl__place="reward"`` changes ``kl.place``.

    What it takes from the task is that of a task whose answers have at most 7 tokens.
    """
    text = yaml.safe_load((conf_dir() / "algo" / f"{name}.yaml").read_text())
    whole = OmegaConf.create({**text, "task": {"max_new_tokens": max(LENGTHS)}})
    tree = typing.cast("dict[str, Any]", OmegaConf.to_container(whole, resolve=True))["algo"]
    for key, value in knobs.items():
        *parents, last = key.split("__")
        place = tree
        for parent in parents:
            place = place[parent]
        assert last in place, key
        place[last] = value
    return typing.cast("dict[str, Any]", tree)


def make(name: str, **knobs: Any) -> Algorithm:
    return load(node(name, **knobs))


def refused(algo: Algorithm) -> bool:
    """What ``check`` refuses whatever the rest of the configuration is."""
    return (algo.whole_answer and algo.aggregation != "sequence_mean") or (
        algo.kl.place not in algo.kl_places or (algo.kl.place in ("reward", "advantage") and algo.kl.to == "old")
    )


def log_probs(batch: Batch, *rows: list[float]) -> Batch:
    """The batch with log π_old = −1 and log π_ref = −1 − rows, so that log π_old/π_ref is ``rows``."""
    old = -torch.ones_like(batch.mask) * batch.mask
    return replace(batch, old_logp=old, ref_logp=old - torch.tensor(rows, dtype=torch.float64) * batch.mask)
