"""Checks at the edges: groups without a signal, everything right, wrong or truncated, NaN rewards, extreme ratios."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from grpo_bench.algos import Algorithm
from grpo_bench.selfcheck.data import LENGTHS, Networks, batch_for, credited, kept, loss_and_gradients, mixed
from grpo_bench.selfcheck.verdict import NotApplicable, Subject, require
from grpo_bench.update import take

Case = tuple[list[int], list[float], int, int]  # lengths, rewards, group size, width

RIGHT: dict[str, Case] = {"all right": (LENGTHS, [1.0] * 8, 4, 7)}
WRONG: dict[str, Case] = {"all wrong": (LENGTHS, [0.0] * 8, 4, 7)}
TRUNCATED: dict[str, Case] = {
    "all truncated": ([7] * 8, [0.0] * 8, 4, 7),
    "all truncated, format rewards": ([7] * 8, [0.1, 0, 0, 0, 0.1, 0, 0, 0], 8, 7),
}
SINGLE: dict[str, Case] = {
    "groups of one": (LENGTHS, [1.0, 0, 0, 1, 0, 1, 1, 0], 1, 7),
    "one row in all": ([4], [1.0], 1, 6),
}
SHORT: dict[str, Case] = {
    "one token each": ([1] * 8, [1.0, 0, 0, 0, 0, 0, 0, 0], 8, 1),
    "a group without tokens": ([0, 0, 3, 2], [0.0, 0, 1, 0], 2, 3),
    "no tokens at all": ([0, 0], [1.0, 0], 2, 3),
}
FLAT: dict[str, Case] = {"all alike, at no binary fraction": (LENGTHS, [0.7] * 8, 8, 7)}
NOISE = 0.01  # an advantage that rounding of equal rewards may make; a signal is about 1
LOG_RATIOS = (30.0, -30.0, 100.0, -100.0)


def finite(algo: Algorithm, cases: dict[str, Case]) -> None:
    """Advantages, loss and gradients, in both precisions, whether ``keep`` drops the rows or not."""
    for what, (lengths, rewards, group_size, width) in cases.items():
        for dtype in (torch.float32, torch.float64):
            batch = batch_for(algo, lengths, group_size, rewards, width=width, dtype=dtype)
            for some in [batch] if algo.keep(batch).all() else [batch, kept(algo, batch)]:
                loss, gradients = loss_and_gradients(algo, some, Networks(some))
                seen = {"advantages": algo.advantages(some)[0], "loss": loss}
                seen |= {f"gradient by {name}": g for name, g in zip(Networks.LEAVES, gradients, strict=True)}
                for name, x in seen.items():
                    all_finite(f"{name}, {what}, {dtype}", x)


def all_finite(what: str, x: Tensor) -> None:
    bad = x[~x.isfinite()].flatten().tolist()
    require(not bad, what, "finite numbers", bad[:1])


def right(subject: Subject) -> None:
    finite(subject.algo, RIGHT)


def wrong(subject: Subject) -> None:
    finite(subject.algo, WRONG)


def truncated(subject: Subject) -> None:
    finite(subject.algo, TRUNCATED)


def single(subject: Subject) -> None:
    finite(subject.algo, SINGLE)


def short(subject: Subject) -> None:
    finite(subject.algo, SHORT)


def flat(subject: Subject) -> None:
    """Where a baseline takes out what a group shares, 0.7 for all is worth what 0 for all is, in single precision."""
    algo = subject.algo
    finite(algo, FLAT)
    if "shift" not in algo.invariant_to:
        return
    none = batch_for(algo, [3] * 16, 8, [0.0] * 8 + [1.0, 0, 0, 1, 0, 0, 0, 0], width=4, dtype=torch.float32)
    alike = replace(none, rewards=none.rewards + torch.tensor([0.7] * 8 + [0.0] * 8))
    apart = (algo.advantages(alike)[0] - algo.advantages(none)[0]).abs().max()
    what = "advantages of eight rewards of 0.7 against eight of 0, float32"
    require(apart <= NOISE, what, f"no more than {NOISE:g} apart", f"{float(apart):.4g}")


def nan_reward(subject: Subject) -> None:
    """A reward that is not a number raises or makes the loss no number either, and the run then skips the update and
    counts it; it never becomes a finite loss."""
    algo, batch = subject.algo, mixed(subject.algo)

    def loss_of(value: float) -> Tensor:
        """Of one update in which row 1 has this reward; rows without tokens are not computed, as in a run."""
        rewards = batch.rewards.clone()
        rewards[1] = value
        full = credited(algo, kept(algo, replace(batch, rewards=rewards)))
        rows = full.mask.any(1).nonzero().flatten()
        weights = algo.token_weights(full.mask)[rows]
        return Networks(batch).loss(algo, take(full, rows), weights, rows).detach()

    if all(torch.equal(loss_of(value), loss_of(0.0)) for value in (1.0, 2.0, -1.0)):
        raise NotApplicable("it does not read this reward")
    try:
        loss = loss_of(float("nan"))
    except Exception:  # whatever it raises stops the run, loudly: that is one of the two answers
        return
    require(not loss.isfinite(), "loss with a reward of NaN", "NaN or an error", f"{float(loss):.6g}")


def ratios(subject: Subject) -> str | None:
    """Of answers whose every log-ratio is ±30 or ±100, without KL, row by row.

    float64: loss and gradient are finite. float32: a loss that is unbounded may be infinite (the update is then
    skipped and counted), but never NaN, and a finite one has a finite gradient. A row without advantage adds nothing.
    """
    algo, unbounded = subject.algo, []
    rows = [(advantage, log_ratio) for advantage in (1.0, 0.0, -1.0) for log_ratio in LOG_RATIOS]
    for dtype in (torch.float32, torch.float64):
        for (advantage, log_ratio), loss, gradient in zip(rows, *_by_row(algo, rows, dtype), strict=True):
            where = f"log-ratio {log_ratio:+g}, advantage {advantage:g}, {dtype}"
            require(not loss.isnan(), f"loss, {where}", "a number", "NaN")
            if loss.isfinite():
                all_finite(f"gradient of a finite loss, {where}", gradient)
            else:
                require(dtype == torch.float32, f"loss, {where}", "a finite number", float(loss))
                unbounded.append((advantage, log_ratio))
            if advantage == 0 and not algo.acts_without_advantage:
                require(loss == 0 and not gradient.any(), f"loss and gradient, {where}", "0", float(loss))
    if not unbounded:
        return None
    signs = sorted({"A > 0" if advantage > 0 else "A < 0" for advantage, _ in unbounded})
    where = f"infinite in float32 from log-ratio {min(log_ratio for _, log_ratio in unbounded):+g}"
    return f"unbounded for {' and '.join(signs)}: {where}, where the update is skipped"


def _by_row(algo: Algorithm, rows: list[tuple[float, float]], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(R,) loss and (R,T) gradient by log-probs of answers of three tokens, each with its advantage and log-ratio."""
    advantages, log_ratios = torch.tensor(rows, dtype=dtype)[:, :, None].unbind(1)
    batch = batch_for(algo, [3] * len(rows), 1, [float(advantage > 0) for advantage, _ in rows], width=4, dtype=dtype)
    old = batch.old_logp
    assert old is not None
    batch = replace(batch, kl_coef=0.0, advantages=advantages * batch.mask, returns=torch.zeros_like(batch.mask))
    logp = (old + log_ratios * batch.mask).requires_grad_()
    entropy = torch.zeros_like(batch.mask) if algo.needs_entropy else None
    loss = (algo.token_weights(batch.mask) * algo.token_loss(logp, batch, entropy)).sum(1)
    if loss.requires_grad:
        loss.sum().backward()
    return loss.detach(), torch.zeros_like(logp) if logp.grad is None else logp.grad
