"""One update as this project computes it, in the form in which that of another system is compared with it."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from algo_data import Networks, credited, make_batch, node
from torch import Tensor

from grpo_bench.algos import Algorithm, load
from grpo_bench.types import Batch
from grpo_bench.update import take

FOLDER = Path(sys.prefix) / "peers"  # systems installed without what they depend on, by `make parity`


class Missing(Exception):
    """Why an algorithm cannot be compared with a system: it does not have it, or is not installed."""


@dataclass(frozen=True)
class Answer:
    """Of one update on the whole batch: advantages (B,T), the loss, its gradients by log-prob and by value (B,T)."""

    advantages: Tensor
    loss: float
    gradient: Tensor
    value_gradient: Tensor | None = None


@dataclass(frozen=True)
class Difference:
    """Largest absolute differences, each divided by the largest magnitude compared where that exceeds 1."""

    advantages: float
    loss: float
    gradient: float

    @property
    def worst(self) -> float:
        return max(self.advantages, self.loss, self.gradient)


Update = Callable[[Algorithm, Batch, Networks], Answer]


def on_kept(update: Update) -> Update:
    """For a system that removes rows before it computes: it sees those that the algorithm keeps, the others are 0."""

    @functools.wraps(update)
    def inner(algo: Algorithm, batch: Batch, networks: Networks) -> Answer:
        rows = algo.keep(batch).nonzero()[:, 0]
        some = Networks(take(batch, rows))
        for name in ("logp", "values", "entropy"):
            setattr(some, name, leaf(getattr(networks, name)[rows]))
        found = update(algo, take(batch, rows), some)

        def spread(x: Tensor) -> Tensor:
            return torch.zeros_like(batch.mask).index_copy(0, rows, x.to(batch.mask.dtype))

        by_value = None if found.value_gradient is None else spread(found.value_gradient)
        return Answer(spread(found.advantages), found.loss, spread(found.gradient), by_value)

    return inner


def leaf(x: Tensor) -> Tensor:
    """The same numbers without a history, to differentiate by."""
    return x.detach().clone().requires_grad_()


def gradient(x: Tensor) -> Tensor:
    return torch.zeros_like(x) if x.grad is None else x.grad


def make(name: str, dialect: str = "paper", **knobs: Any) -> Algorithm:
    """As the YAML has it, with ``knobs`` changed, in a dialect."""
    return load(node(name, **knobs), dialect)


def ours(algo: Algorithm, batch: Batch, networks: Networks) -> Answer:
    """As a run has it: rows that the algorithm does not keep get mask 0, their rewards stay in their group."""
    kept = replace(batch, mask=batch.mask * algo.keep(batch)[:, None])
    filled = credited(algo, kept)
    assert filled.advantages is not None
    logp, values, entropy = leaf(networks.logp), leaf(networks.values), leaf(networks.entropy)
    per_token = algo.token_loss(logp, filled, entropy if algo.needs_entropy else None)
    if algo.needs_critic:
        per_token = per_token + algo.value_weight * algo.value_loss(values, filled)
    loss = (algo.token_weights(kept.mask) * per_token).sum()
    loss.backward()
    return Answer(filled.advantages, float(loss.detach()), gradient(logp), values.grad)


def relative(apart: float, *magnitudes: float) -> float:
    """A difference divided by the largest magnitude where that exceeds 1; what is not a number differs infinitely."""
    found = apart / max(1.0, *magnitudes)
    return found if math.isfinite(found) else math.inf


def difference(one: Answer, other: Answer, mask: Tensor) -> Difference:
    """Between two answers; what stands outside the mask is nobody's."""

    def apart(x: Tensor | None, y: Tensor | None) -> float:
        if x is None and y is None:
            return 0.0
        x = torch.zeros_like(mask) if x is None else x * mask
        y = torch.zeros_like(mask) if y is None else y * mask
        return relative(float((x.double() - y.double()).abs().max()), float(x.abs().max()), float(y.abs().max()))

    return Difference(
        apart(one.advantages, other.advantages),
        relative(abs(one.loss - other.loss), abs(one.loss), abs(other.loss)),
        max(apart(one.gradient, other.gradient), apart(one.value_gradient, other.value_gradient)),
    )


# Rewards are multiples of 1/8: a system that holds them in single precision has the same numbers.
BATCHES: dict[str, Callable[[], tuple[Batch, Networks]]] = {}


def batch_of(function: Callable[[], tuple[Batch, float]]) -> Callable[[], tuple[Batch, Networks]]:
    def build() -> tuple[Batch, Networks]:
        batch, drift = function()
        return batch, Networks(batch, drift=drift)

    BATCHES[function.__name__] = build
    return build


@batch_of
def right_or_wrong() -> tuple[Batch, float]:
    """Rewards 0 and 1 of two groups of four, answers of 1 to 7 tokens, ratios of some tenths from 1."""
    return make_batch(rewards=[1, 0, 0, 0, 1, 1, 0, 1]), 0.3


@batch_of
def graded() -> tuple[Batch, float]:
    """Rewards that are neither, some below 0."""
    return make_batch(rewards=[0.125, 1.5, -0.25, 0.5, 2.0, -1.0, 0.75, 0.0], seed=1), 0.3


@batch_of
def lone_winner_far_off() -> tuple[Batch, float]:
    """One right answer in eight, ratios from about e⁻⁴ to e⁴: every clip and both sides of each bind."""
    return make_batch([5, 3, 1, 7, 2, 7, 4, 6], 8, [0, 0, 1, 0, 0, 0, 0, 0], seed=2), 1.5


@batch_of
def flat_and_on_policy() -> tuple[Batch, float]:
    """A group of equal rewards beside a mixed one; the policy is the one that sampled."""
    return make_batch(rewards=[1, 1, 1, 1, 0, 1, 0.5, 0.5], seed=3), 0.0


@batch_of
def off_the_scale() -> tuple[Batch, float]:
    """Log-ratios to the old policy and to the reference of some tens: every clamp of them binds."""
    batch = make_batch(rewards=[1, 0, 0, 1, 0, 1, 0, 0], seed=4)
    assert batch.old_logp is not None
    assert batch.ref_logp is not None
    return replace(batch, ref_logp=batch.old_logp + 60 * (batch.ref_logp - batch.old_logp)), 12.0
