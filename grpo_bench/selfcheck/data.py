"""What the checks feed an algorithm: batches with edge cases, and networks that have moved a little since the rollout.

A batch goes the way of a run: ``keep``, mask 0 for what is dropped, advantages, weights, loss, gradients.
"""

from __future__ import annotations

import typing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from grpo_bench.collect import drop
from grpo_bench.types import Batch
from grpo_bench.update import PER_TOKEN

if TYPE_CHECKING:
    from grpo_bench.algos import Algorithm

LENGTHS = [5, 3, 1, 7, 2, 7, 4, 6]  # of the completions: one of a single token, two that fill the width
REWARDS = [1.0, 0, 0, 0.5, 0, 1, 1, 0.25]  # differ within each group of four
SCORED = ("old_logp", "ref_logp", "values", "step_ids")  # what a run fills after rows were dropped


def make_batch(
    lengths: list[int] | None = None,
    group_size: int = 4,
    rewards: list[float] | None = None,
    seed: int = 0,
    width: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> Batch:
    """A batch with all fields filled that an algorithm may read; rewards 0 or 1 unless given, T = ``width``.

    Rows that fill the width are truncated. log-probs of old and reference lie a little apart from each other. Steps
    are two tokens long; values differ from token to token, as a critic's do (``stepwise`` for those of branches).
    """
    lengths = LENGTHS if lengths is None else lengths
    generator = torch.Generator().manual_seed(seed)
    rows, columns = len(lengths), width or max(lengths)
    mask = (torch.arange(columns) < torch.tensor(lengths)[:, None]).to(dtype)

    def noise(scale: float, *shape: int) -> Tensor:
        return scale * torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    old_logp = -noise(1.0, rows, columns).abs() * mask
    worth = torch.tensor(rewards, dtype=dtype) if rewards is not None else (noise(1.0, rows) > 0).to(dtype)
    group_ids = torch.arange(rows) // group_size
    return Batch(
        tokens=torch.zeros(rows, 3 + columns, dtype=torch.long),
        mask=mask,
        group_ids=group_ids,
        rewards=worth,
        correct=worth > 0.5,
        finished=torch.tensor(lengths) < columns,
        prompt_lengths=torch.full((rows,), 3),
        old_logp=old_logp,
        ref_logp=old_logp + noise(0.2, rows, columns) * mask,
        values=noise(0.3, rows, columns) * mask,
        baseline_rewards=(noise(1.0, rows) > 0).to(dtype)[group_ids * group_size],
        step_ids=torch.arange(columns) // 2 * mask.long(),
        kl_coef=0.04,
        state={"kl": 0.02, "samples": float(rows)},
    )


def stepwise(batch: Batch) -> Batch:
    """The batch with values as branches give them: one of each step, that of the first shared by the group."""
    assert batch.values is not None
    assert batch.step_ids is not None
    starts = torch.arange(batch.mask.shape[1]) // 2 * 2
    values = batch.values[:, starts].abs()
    firsts = values[:, :1][batch.group_ids * batch.group_size]
    return replace(batch, values=torch.where(batch.step_ids == 0, firsts, values) * batch.mask)


def batch_for(algo: Algorithm, *args: Any, **kwargs: Any) -> Batch:
    """``make_batch`` with values of the kind that this algorithm gets."""
    batch = make_batch(*args, **kwargs)
    return stepwise(batch) if algo.extra_rollouts == "branches" else batch


def mixed(algo: Algorithm) -> Batch:
    """Two groups of four with rewards that differ within each, truncated rows and a row of one token; float64."""
    return batch_for(algo, rewards=REWARDS)


def kept(algo: Algorithm, batch: Batch) -> Batch:
    """What ``keep`` leaves: the other rows have mask 0, and were never scored."""
    left = drop(batch, algo.keep(batch))
    scored: dict[str, Any] = {
        name: (value * left.mask).to(value.dtype) for name in SCORED if (value := getattr(left, name)) is not None
    }
    return replace(left, **scored)


def credited(algo: Algorithm, batch: Batch) -> Batch:
    """The batch with ``advantages`` and ``returns`` filled."""
    return algo.credited(batch)


class Networks:
    """What the networks give for a batch after some updates, as leaves: log-probs, values, entropy; (B,T) each."""

    LEAVES = ("logp", "values", "entropy")

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

    def like(self, change: typing.Callable[[Tensor], Tensor], trained: bool = True) -> Networks:
        """The same networks with each output changed, as new leaves: rows in another order, more columns."""
        other = Networks.__new__(Networks)
        for name in self.LEAVES:
            setattr(other, name, change(getattr(self, name).detach()).clone().requires_grad_(trained))
        return other


def loss_and_gradients(algo: Algorithm, batch: Batch, networks: Networks) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Of one update on the whole batch, from its rewards on."""
    loss = networks.loss(algo, credited(algo, batch), algo.token_weights(batch.mask))
    if loss.requires_grad:  # a batch without a kept row may give a constant
        loss.backward()
    return loss.detach(), networks.gradients()


def padded(batch: Batch, networks: Networks, columns: int) -> tuple[Batch, Networks]:
    """The same answers with so many more columns outside the mask."""

    def wider(x: Tensor) -> Tensor:
        return torch.nn.functional.pad(x, (0, columns))

    names = [name for name in ("tokens", "mask", *PER_TOKEN) if getattr(batch, name) is not None]
    changes: dict[str, Any] = {name: wider(getattr(batch, name)) for name in names}
    return replace(batch, **changes), networks.like(wider)
