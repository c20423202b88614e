"""REINFORCE++ with the group's mean as its baseline, normalised over the whole batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from grpo_bench import ops
from grpo_bench.algos.base import Algorithm, Card

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_bench.types import Batch


class ReinforcePPBaseline(Algorithm):
    """Aᵢ = rᵢ − mean of its group,   Ãᵢₜ = (Aᵢ − mean) / std of all tokens of the batch
    J(θ) = 1/|oᵢ| Σₜ { min[ρᵢₜ Ãᵢₜ, clip(ρᵢₜ, 1−ε, 1+ε) Ãᵢₜ] − β ½ (log π/π_ref)² }
    REINFORCE++ with baseline, arXiv:2501.03262, eq. 6-8 of v9, in PPO's objective, its eq. 1.

    Differs: std with ddof 0 and 1e-8 under the root; the paper adds an ε to std and gives neither it nor ddof.
    With ``kl.place: reward`` the answer's summed penalty is taken from its reward before the group's mean.
    """

    invariant_to: ClassVar[frozenset[str]] = frozenset({"shift", "scale"})
    # 1 − 1/8 = 7/8 and −1/8, mean 0, σ² = (49 + 7)/(64·8) = 7/64:  √7, −1/√7
    lone_winner: ClassVar[tuple[float, float] | None] = (2.6457513, -0.3779645)

    clip_low: float = Field(gt=0)
    clip_high: float = Field(gt=0)
    dual_clip: float | None = Field(gt=1)  # c of c·A, what a negative A can cost at most; null: no bound
    log_clamp: float | None = Field(gt=0)  # of log ρ, ±; null: none
    whiten_ddof: Literal[0, 1]

    def card(self) -> Card:
        return Card(
            title="REINFORCE++-baseline",
            paper="Hu et al. 2025, arXiv:2501.03262, eq. 6-8 (v9)",
            baseline="mean of the group",
            advantage=f"r − mean of the group, whitened over the batch's tokens, ddof {self.whiten_ddof}",
            ratio="π/π_old of each token",
            objective=f"min[ρ A, clip(ρ, {1 - self.clip_low:g}, {1 + self.clip_high:g}) A]"
            + (f", at least {self.dual_clip:g} A where A < 0" if self.dual_clip else ""),
        )

    @property
    def clip_range(self) -> tuple[float, float]:
        return self.clip_low, self.clip_high

    def advantages(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        rewards = batch.rewards - (self.reward_penalty(batch) * batch.mask).sum(1)
        centred = ops.group_center(rewards, batch.group_size)[:, None] * batch.mask
        return ops.whiten(centred, batch.mask, self.whiten_ddof), None

    def token_loss(self, logp: Tensor, batch: Batch, entropy: Tensor | None = None) -> Tensor:
        assert batch.old_logp is not None
        assert batch.advantages is not None
        surrogate = ops.clipped_surrogate(
            logp, batch.old_logp, batch.advantages, self.clip_low, self.clip_high, self.dual_clip, self.log_clamp
        )
        return -surrogate + self.penalty(logp, batch, entropy)
