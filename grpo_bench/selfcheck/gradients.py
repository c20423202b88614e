"""Checks of gradients: against finite differences, as functions of the advantages, and of the KL's sign."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from grpo_bench.algos import Algorithm
from grpo_bench.selfcheck.data import Networks, batch_for, credited, kept, mixed
from grpo_bench.selfcheck.verdict import NotApplicable, Subject, close, require
from grpo_bench.types import Batch

STEP = 1e-6  # of a central difference
KINK = 1e-3  # left and right slopes that differ by more than this have a corner between them
SLOPE = 1e-6  # error of a central difference, relative where the slope is above 1
STOPS = (Tensor.detach, torch.detach, Tensor.data.__get__)  # type: ignore[attr-defined]


class _HeldStops(TorchFunctionMode):
    """Holds what an algorithm stops gradients of (``detach``, ``no_grad``) at its value, so that finite differences
    take it for the constant that autograd takes it for: on the first pass it is written down, later passes read it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.values: list[Tensor] = []
        self.next: int | None = None  # None: the first pass

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if not isinstance(found, Tensor) or (func not in STOPS and torch.is_grad_enabled()):
            return found
        if self.next is None:
            self.values.append(found.clone())
            return found
        self.next += 1
        return self.values[self.next - 1]

    def again(self) -> None:
        self.next = 0


class _Surface:
    """The loss of an update as a function of one output of the networks; stopped gradients are held."""

    def __init__(self, algo: Algorithm, batch: Batch, drift: float) -> None:
        self.algo, self.batch, self.weights = algo, batch, algo.token_weights(batch.mask)
        self.networks, self.stops = Networks(batch, drift), _HeldStops()

    def start(self) -> tuple[float, dict[str, Tensor]]:
        """The loss where the networks are, and its gradients by the name of the output."""
        with self.stops:
            loss = self.networks.loss(self.algo, self.batch, self.weights)
        if loss.requires_grad:
            loss.backward()
        return float(loss.detach()), dict(zip(Networks.LEAVES, self.networks.gradients(), strict=True))

    def at(self, name: str, row: int, token: int, offset: float) -> float:
        moved = self.networks.like(lambda x: x, trained=False)
        getattr(moved, name)[row, token] += offset
        self.stops.again()
        with self.stops:
            loss = moved.loss(self.algo, self.batch, self.weights)
        return float(loss.detach())


def finite_differences(subject: Subject) -> None:
    """By each log-prob, value and entropy, at three distances from the policy that sampled."""
    algo = subject.algo
    batch = credited(algo, kept(algo, batch_for(algo, [3, 1, 2, 2], 2, [1.0, 0, 1, 0.25], width=4)))
    leaves = ["logp"] + ["values"] * algo.needs_critic + ["entropy"] * algo.needs_entropy
    for drift in (1e-4, 0.1, 1.0):
        surface = _Surface(algo, batch, drift)
        here, gradients = surface.start()
        for name in leaves:
            for row, token in batch.mask.nonzero().tolist():
                left, right = (surface.at(name, row, token, offset) for offset in (-STEP, STEP))
                before, after, slope = (here - left) / STEP, (right - here) / STEP, (right - left) / (2 * STEP)
                size = max(1.0, abs(before), abs(after))
                if abs(after - before) > KINK * size:  # no gradient is right at a corner
                    continue
                seen = float(gradients[name][row, token])
                what = f"gradient by {name}, row {row} token {token}, drift {drift:g}"
                require(abs(seen - slope) <= SLOPE * size, what, f"{slope:.9g} by finite differences", f"{seen:.9g}")


def _quiet(algo: Algorithm, batch: Batch) -> tuple[Algorithm, Batch]:
    """Without what acts beside the advantages: KL in the loss, entropy, terms on right answers."""
    place = "none" if algo.kl.place == "loss" else algo.kl.place
    still = algo.model_copy(update={"entropy_coef": 0.0, "kl": algo.kl.model_copy(update={"place": place})})
    return still, replace(batch, correct=torch.zeros_like(batch.correct))


def _by_logp(algo: Algorithm, batch: Batch, advantages: Tensor) -> Tensor:
    """On-policy gradient by the log-probs for given advantages."""
    networks = Networks(batch, drift=0.0)
    full = replace(batch, advantages=advantages, returns=torch.zeros_like(batch.mask))
    (algo.token_weights(batch.mask) * algo.token_loss(networks.logp, full)).sum().backward()
    return networks.gradients()[0]


def constants(subject: Subject) -> None:
    """Advantages are numbers fixed before the update; a baseline computed in ``token_loss`` from log-probs is not.

    On policy the gradient is then linear in them, 0 where they are 0, against their sign, and the same wherever the
    policy is.
    """
    algo, batch = _quiet(subject.algo, mixed(subject.algo))
    full = credited(algo, batch)
    for what, x in {"advantages": full.advantages, "value targets": full.returns}.items():
        require(x is None or not x.requires_grad, what, "constants", "tensors that require a gradient")
    if algo.acts_without_advantage and not algo.needs_critic:
        raise NotApplicable("acts without an advantage")
    rows = torch.tensor([1.0, -0.5, 2, -1, 0, 0.25, -2, 1.5], dtype=torch.float64)
    advantages = rows[:, None] * batch.mask
    gradient = _by_logp(algo, batch, advantages)
    zero = torch.zeros_like(gradient)
    close("on-policy gradient where all advantages are 0", _by_logp(algo, batch, zero), zero)
    require((gradient * advantages <= 0).all(), "sign of the on-policy gradient", "against the advantage", "along it")
    for factor in (-1.0, 2.0):
        what = f"on-policy gradient with advantages times {factor:g}"
        close(what, _by_logp(algo, batch, factor * advantages), factor * gradient)
    elsewhere = Networks(batch).logp.detach() * batch.mask
    there = replace(batch, old_logp=elsewhere)
    close("on-policy gradient of another policy", _by_logp(algo, there, advantages), gradient)


def acting(subject: Subject) -> None:
    """``acts_without_advantage`` is false only where a row without an advantage may be left out of an update."""
    algo = subject.algo
    if algo.acts_without_advantage:
        raise NotApplicable("it says that it acts without one")
    batch = mixed(algo)
    networks = Networks(batch)
    silent = replace(batch, advantages=torch.zeros_like(batch.mask), returns=torch.zeros_like(batch.mask))
    loss = networks.loss(algo, silent, algo.token_weights(batch.mask))
    if loss.requires_grad:
        loss.backward()
    for name, gradient in zip(Networks.LEAVES, networks.gradients(), strict=True):
        require(not gradient.any(), f"gradient by {name} without advantages", "0", float(gradient.abs().max()))


def kl_sign(subject: Subject) -> None:
    """A small step on the penalty alone brings the policy nearer to the model that ``kl.to`` names."""
    algo = subject.algo
    if algo.kl.place == "none":
        raise NotApplicable("no KL")
    if algo.kl.place == "loss":
        if algo.kl.estimator == "k1":
            raise NotApplicable("k1 in the loss: its gradient does not depend on the policy")
        _kl_in_loss(algo)
    else:
        _kl_in_credit(algo)


def _kl_in_loss(algo: Algorithm) -> None:
    batch = replace(mixed(algo), kl_coef=1e4)  # whatever else acts is small beside it
    batch = replace(
        batch,
        correct=torch.zeros_like(batch.correct),
        advantages=torch.zeros_like(batch.mask),
        returns=torch.zeros_like(batch.mask),
    )
    other = batch.ref_logp if algo.kl.to == "reference" else batch.old_logp
    assert other is not None
    networks = Networks(batch)
    entropy = networks.entropy if algo.needs_entropy else None
    (algo.token_weights(batch.mask) * algo.token_loss(networks.logp, batch, entropy)).sum().backward()
    gradient, start = networks.gradients()[0], networks.logp.detach()
    require(gradient.any(), f"gradient of the KL to the {algo.kl.to} model", "not 0", 0.0)

    def distance(logp: Tensor) -> float:
        log_ratio = (other - logp) * batch.mask
        return float((log_ratio.expm1() - log_ratio).sum())

    before, after = distance(start), distance(start - 1e-3 * gradient / gradient.norm())
    what = f"KL (k3) to the {algo.kl.to} model after a step on the penalty"
    require(after < before, what, f"below {before:.9g}", f"{after:.9g}")


def _kl_in_credit(algo: Algorithm) -> None:
    """In the reward or the advantage: a row that went away from the reference is worth less."""
    batch = replace(mixed(algo), kl_coef=0.1)
    old, away = batch.old_logp, torch.zeros_like(batch.mask)
    assert old is not None
    away[4] = 0.5  # a row of two tokens, without a reward
    near, far = (algo.advantages(replace(batch, ref_logp=ref))[0].sum(1) for ref in (old, old - away * batch.mask))
    change = float((far - near)[4])
    require(change < 0, f"change of the advantages of a row with KL ({algo.kl.place})", "below 0", f"{change:.9g}")
