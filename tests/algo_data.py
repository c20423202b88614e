"""Batches and algorithms for tests of the mathematics: random rows with edge cases, every setting of every knob."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
import yaml
from pydantic import BaseModel
from torch import Tensor

from grpo_bench.algos import ALGORITHMS, Algorithm, algorithm_class, load
from grpo_bench.paths import conf_dir
from grpo_bench.types import Batch
from grpo_bench.update import PER_TOKEN

LENGTHS = [5, 3, 1, 7, 2, 7, 4, 6]  # of the completions: one of a single token, two that fill the width
EXAMPLES = {"entropy_coef": [0.01]}  # settings of numbers that act beyond their bounds


def node(name: str, **knobs: Any) -> dict[str, Any]:
    """``algo:`` of conf/algo/<name>.yaml with some knobs changed; ``kl__place="reward"`` changes ``kl.place``."""
    tree = yaml.safe_load((conf_dir() / "algo" / f"{name}.yaml").read_text())["algo"]
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


def _settings(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every choice, both values of a flag, each bound that a number may take, a number in place of null."""
    for name, field in model.model_fields.items():
        key, kind = prefix + name, field.annotation
        options = typing.get_args(kind)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _settings(kind, f"{key}__")
        elif typing.get_origin(kind) is Literal:
            yield from ((key, value) for value in options)
        elif kind is bool:
            yield from ((key, value) for value in (True, False))
        elif kind in (int, float):
            bounds = [getattr(limit, side) for limit in field.metadata for side in ("ge", "le") if hasattr(limit, side)]
            yield from ((key, value) for value in [*bounds, *EXAMPLES.get(name, [])])
        elif typing.get_origin(kind) is types.UnionType and float in options:
            above = max([0.0, *(limit.gt for limit in field.metadata if hasattr(limit, "gt"))])
            yield from ((key, value) for value in (None, above + 0.2))


def refused(algo: Algorithm) -> bool:
    """What ``check`` refuses whatever the rest of the configuration is."""
    return (algo.whole_answer and algo.aggregation != "sequence_mean") or (
        algo.kl.place not in algo.kl_places or (algo.kl.place in ("reward", "advantage") and algo.kl.to == "old")
    )


def variants() -> dict[str, Algorithm]:
    """Every algorithm as its YAML has it, and with each knob changed in turn; new ones join by themselves."""
    found = {}
    for name in ALGORITHMS:
        base = node(name)
        found[name] = load(base)
        for key, value in _settings(algorithm_class(base)):
            algo = make(name, **{key: value})
            if algo != found[name] and not refused(algo):
                found[f"{name}-{key.replace('__', '.')}={value}"] = algo
        for place, estimator in (("reward", "k1"), ("reward", "k2"), ("none", "k3")):
            for aggregation in ("sequence_mean", "token_mean"):
                algo = make(name, kl__place=place, kl__estimator=estimator, aggregation=aggregation, entropy_coef=0.01)
                if not refused(algo):
                    found[f"{name}-{place}-{estimator}-{aggregation}-entropy"] = algo
    return found


def make_batch(
    lengths: list[int] | None = None,
    group_size: int = 4,
    rewards: list[float] | None = None,
    seed: int = 0,
    width: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> Batch:
    """A batch with all fields filled that an algorithm may read; rewards 0 or 1 unless given, T = ``width``.

    Rows that fill the width are truncated. log-probs of old and reference lie a little apart from each other.
    """
    lengths = LENGTHS if lengths is None else lengths
    generator = torch.Generator().manual_seed(seed)
    rows, columns = len(lengths), width or max(lengths)
    mask = (torch.arange(columns) < torch.tensor(lengths)[:, None]).to(dtype)

    def noise(scale: float, *shape: int) -> Tensor:
        return scale * torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    old_logp = -noise(1.0, rows, columns).abs() * mask
    worth = torch.tensor(rewards, dtype=dtype) if rewards is not None else (noise(1.0, rows) > 0).to(dtype)
    return Batch(
        tokens=torch.zeros(rows, 3 + columns, dtype=torch.long),
        mask=mask,
        group_ids=torch.arange(rows) // group_size,
        rewards=worth,
        correct=worth > 0.5,
        finished=torch.tensor(lengths) < columns,
        prompt_lengths=torch.full((rows,), 3),
        old_logp=old_logp,
        ref_logp=old_logp + noise(0.2, rows, columns) * mask,
        values=noise(0.3, rows, columns) * mask,
        baseline_rewards=(noise(1.0, rows) > 0).to(dtype),
        kl_coef=0.04,
        state={"kl": 0.02, "samples": float(rows)},
    )


def log_probs(batch: Batch, *rows: list[float]) -> Batch:
    """The batch with log π_old = −1 and log π_ref = −1 − rows, so that log π_old/π_ref is ``rows``."""
    old = -torch.ones_like(batch.mask) * batch.mask
    return replace(batch, old_logp=old, ref_logp=old - torch.tensor(rows, dtype=torch.float64) * batch.mask)


def credited(algo: Algorithm, batch: Batch) -> Batch:
    """The batch with ``advantages`` and ``returns`` filled."""
    advantages, returns = algo.advantages(batch)
    return replace(batch, advantages=advantages, returns=returns)


class Networks:
    """What the networks give for a batch after some updates, as leaves: log-probs, values, entropy; (B,T) each."""

    def __init__(self, batch: Batch, drift: float = 0.3, seed: int = 1) -> None:
        assert batch.old_logp is not None
        assert batch.values is not None
        generator = torch.Generator().manual_seed(seed)
        shape, dtype, mask = batch.mask.shape, batch.mask.dtype, batch.mask

        def noise() -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) * mask

        self.logp = (batch.old_logp + drift * noise()).requires_grad_()
        self.values = (batch.values + drift * noise()).requires_grad_()
        self.entropy = noise().abs().requires_grad_()

    def loss(self, algo: Algorithm, batch: Batch, weights: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """Σ weights · (token_loss + vf_coef · value_loss) of ``batch``, which holds these ``rows`` of the networks'."""
        per_token = algo.token_loss(self.logp[rows], batch, self.entropy[rows] if algo.needs_entropy else None)
        if algo.needs_critic:
            per_token = per_token + algo.value_weight * algo.value_loss(self.values[rows], batch)
        return (weights * per_token).sum()

    def gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        """By log-prob, value and entropy, zero where there is none; clears them."""
        leaves = (self.logp, self.values, self.entropy)
        found = tuple(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves)
        for leaf in leaves:
            leaf.grad = None
        return typing.cast("tuple[Tensor, Tensor, Tensor]", found)


def loss_and_gradients(algo: Algorithm, batch: Batch, networks: Networks) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Of one update on the whole batch, from its rewards on."""
    loss = networks.loss(algo, credited(algo, batch), algo.token_weights(batch.mask))
    loss.backward()
    return loss.detach(), networks.gradients()


def padded(batch: Batch, networks: Networks, columns: int) -> tuple[Batch, Networks]:
    """The same answers with so many more columns outside the mask."""

    def wider(x: Tensor | None) -> Tensor | None:
        return None if x is None else torch.nn.functional.pad(x, (0, columns))

    changes: dict[str, Any] = {name: wider(getattr(batch, name)) for name in ("tokens", "mask", *PER_TOKEN)}
    wide = replace(batch, **changes)
    more = Networks(wide)
    for name in ("logp", "values", "entropy"):
        leaf = wider(getattr(networks, name).detach())
        assert leaf is not None
        setattr(more, name, leaf.requires_grad_())
    return wide, more
