"""Checks of what must make no difference: padding, splits, order, and of rewards what the class declares."""

from __future__ import annotations

from dataclasses import replace

import torch

from grpo_bench.algos import Algorithm
from grpo_bench.selfcheck.data import Networks, credited, kept, loss_and_gradients, mixed, padded
from grpo_bench.selfcheck.variants import changed, settings
from grpo_bench.selfcheck.verdict import NotApplicable, Subject, close, require
from grpo_bench.types import Batch
from grpo_bench.update import take

UNIT = 1e-5  # what the 1e-8 under the root of a whitening may make of another unit of the reward


def padding(subject: Subject) -> None:
    algo = subject.algo
    batch = mixed(algo)
    networks = Networks(batch)
    loss, gradients = loss_and_gradients(algo, kept(algo, batch), networks)
    wide, wider = padded(batch, networks, 5)
    wide_loss, wide_gradients = loss_and_gradients(algo, kept(algo, wide), wider)
    close("loss with 5 more columns of padding", wide_loss, loss)
    columns = batch.mask.shape[1]
    for seen, expected in zip(wide_gradients, gradients, strict=True):
        close("gradient with 5 more columns of padding", seen[:, :columns], expected)
        require(not seen[:, columns:].any(), "gradient of padding", "0", float(seen[:, columns:].abs().max()))


def micro_batches(subject: Subject) -> None:
    """Weights are fixed for the update, then rows go through in any order and in any portions."""
    algo = subject.algo
    batch = kept(algo, mixed(algo))
    networks = Networks(batch)
    whole, gradients = loss_and_gradients(algo, batch, networks)
    full, weights = credited(algo, batch), algo.token_weights(batch.mask)
    order = torch.tensor([3, 0, 6, 1, 7, 5, 2, 4])
    for portions in ([1] * 8, [2, 6], [3, 3, 2], [7, 1]):
        total = torch.zeros_like(whole)
        for rows in order.split(portions):
            loss = networks.loss(algo, take(full, rows), weights[rows], rows)
            loss.backward()
            total += loss.detach()
        split = "+".join(map(str, portions))
        close(f"loss in micro-batches of {split} rows", total, whole)
        for seen, expected in zip(networks.gradients(), gradients, strict=True):
            close(f"gradient in micro-batches of {split} rows", seen, expected)


def order(subject: Subject) -> None:
    algo = subject.algo
    batch = mixed(algo)
    networks = Networks(batch)
    some = kept(algo, batch)
    loss, gradients = loss_and_gradients(algo, some, networks)
    advantages, returns = algo.advantages(some)
    for what, rows in {
        "groups in another order": torch.tensor([4, 5, 6, 7, 0, 1, 2, 3]),
        "members of groups in another order": torch.tensor([1, 3, 2, 0, 6, 4, 7, 5]),
        "groups and members in another order": torch.tensor([6, 4, 7, 5, 1, 0, 3, 2]),
    }.items():
        moved = kept(algo, take(batch, rows))
        moved_advantages, moved_returns = algo.advantages(moved)
        close(f"advantages with {what}", moved_advantages, advantages[rows])
        if returns is not None and moved_returns is not None:
            close(f"value targets with {what}", moved_returns, returns[rows])
        there = networks.like(lambda x, rows=rows: x[rows])  # type: ignore[misc]
        moved_loss, moved_gradients = loss_and_gradients(algo, moved, there)
        close(f"loss with {what}", moved_loss, loss)
        for seen, expected in zip(moved_gradients, gradients, strict=True):
            close(f"gradient with {what}", seen, expected[rows])


def shift(subject: Subject) -> None:
    algo, batch = subject.algo, mixed(subject.algo)
    if "shift" not in algo.invariant_to:
        raise NotApplicable("not declared in invariant_to")
    for groups in ([3.0] * 8, [3.0] * 4 + [-2.0] * 4):
        shifted = replace(batch, rewards=batch.rewards + torch.tensor(groups, dtype=torch.float64))
        what = f"advantages with {groups[0]:g} and {groups[-1]:g} more reward for the two groups"
        close(what, _advantages(algo, shifted), _advantages(algo, batch))


def scale(subject: Subject) -> None:
    """Up to ε, which is in the reward's unit; so is a KL in the reward, which scales along."""
    algo, batch = subject.algo, mixed(subject.algo)
    near = UNIT + 100 * getattr(algo, "eps", 0.0)  # ε against a tenth of a deviation
    if "scale" not in algo.invariant_to:
        raise NotApplicable("not declared in invariant_to")
    for factor in (0.1, 10.0):
        unit = factor if algo.kl.place == "reward" else 1.0
        scaled = replace(batch, rewards=batch.rewards * factor, kl_coef=batch.kl_coef * unit)
        close(f"advantages with rewards times {factor:g}", _advantages(algo, scaled), _advantages(algo, batch), near)


def more_reward(subject: Subject) -> None:
    """The sign of it all: with more reward a row gains, and no other row gains more."""
    algo, batch = subject.algo, mixed(subject.algo)
    felt, before = False, _advantages(algo, batch)
    for row in range(8):
        richer = batch.rewards.clone()
        richer[row] += 0.5
        gain = (_advantages(algo, replace(batch, rewards=richer)) - before).sum(1)
        what = f"change of the advantages of row {row} with 0.5 more reward"
        require(gain[row] >= 0, what, "no loss", f"{float(gain[row]):.6g}")
        require(gain[row] >= gain.max(), what, "the largest", f"{float(gain.max()):.6g} for row {int(gain.argmax())}")
        felt = felt or bool(gain[row] > 0)
    if not felt:
        raise NotApplicable("its advantages do not grow with the reward")


def inert(subject: Subject) -> None:
    """At every other setting of such a knob: advantages, loss, gradients."""
    algo = subject.algo
    others = [(key, changed(algo, **{key: value})) for key, value in settings(type(algo)) if key in algo.inert()]
    others = [(key, other) for key, other in others if other != algo]
    if not others:
        raise NotApplicable("no knob is inert")
    batch = mixed(algo)
    loss, gradients = loss_and_gradients(algo, kept(algo, batch), Networks(batch))
    for key, other in others:
        what = f"with another algo.{key}, which inert() names"
        close(f"advantages {what}", _advantages(other, batch), _advantages(algo, batch), 0.0)
        other_loss, other_gradients = loss_and_gradients(other, kept(other, batch), Networks(batch))
        close(f"loss {what}", other_loss, loss, 0.0)
        for seen, expected in zip(other_gradients, gradients, strict=True):
            close(f"gradient {what}", seen, expected, 0.0)


def _advantages(algo: Algorithm, batch: Batch) -> torch.Tensor:
    return algo.advantages(kept(algo, batch))[0]
