"""Lite PPO: the mean of the group, the deviation of the batch, all tokens alike; no critic."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from grpo_bench import ops
from grpo_bench.algos.base import Algorithm, Card

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_bench.types import Batch


class LitePPO(Algorithm):
    """J(θ) = 1/Σᵢ|oᵢ| Σᵢ Σₜ min[ρᵢₜ Ãᵢ, clip(ρᵢₜ, 1−ε, 1+ε) Ãᵢ]
    Ãᵢ = (rᵢ − mean of its group) / std of the batch
    Liu et al. 2025, arXiv:2508.08221, §5: PPO's loss without a critic, and two of the tricks that the paper compares.

    The mean is that of its eq. 5, the deviation that of eq. 6: of all rewards of a step, so a group that is nearly all
    right or all wrong is not enlarged.
    Differs: std with ddof 0, and equal rewards have Ã = 0 by max − min ≤ 1e-6, as in grpo.
    """

    kl_places: ClassVar[frozenset[str]] = frozenset({"none", "loss", "reward", "advantage"})
    invariant_to: ClassVar[frozenset[str]] = frozenset({"scale"})  # a shift of one group moves the batch's deviation
    lone_winner: ClassVar[tuple[float, float] | None] = (2.6457513, -0.3779645)  # its group is the batch: √7, −1/√7

    clip_low: float = Field(gt=0)
    clip_high: float = Field(gt=0)
    ddof: Literal[0, 1]
    eps: float = Field(ge=0)
    guard: Literal["range", "eps"]  # what makes a group of equal rewards 0: max − min ≤ 1e-6, or ε alone

    def card(self) -> Card:
        return Card(
            title="Lite PPO",
            paper="Liu et al. 2025, arXiv:2508.08221, §5",
            baseline="mean of the group",
            advantage=f"(r − mean of the group) / (std of the batch + {self.eps:g}), ddof {self.ddof}",
            ratio="π/π_old of each token",
            objective=f"min[ρ Ã, clip(ρ, {1 - self.clip_low:g}, {1 + self.clip_high:g}) Ã]",
        )

    @property
    def needs_group(self) -> bool:
        return True

    @property
    def clip_range(self) -> tuple[float, float]:
        return self.clip_low, self.clip_high

    def advantages(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        rewards = batch.rewards - (self.reward_penalty(batch) * batch.mask).sum(1)
        scores = ops.batch_zscore(rewards, batch.group_size, self.ddof, self.eps, self.guard == "range")
        return scores[:, None] * batch.mask - self.advantage_penalty(batch), None

    def token_loss(self, logp: Tensor, batch: Batch, entropy: Tensor | None = None) -> Tensor:
        assert batch.old_logp is not None
        assert batch.advantages is not None
        surrogate = ops.clipped_surrogate(logp, batch.old_logp, batch.advantages, self.clip_low, self.clip_high)
        return -surrogate + self.penalty(logp, batch, entropy)
