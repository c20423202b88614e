"""REINFORCE++: returns with a KL on every token, whitened over the whole batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from grpo_bench import ops
from grpo_bench.algos.base import Algorithm, Card

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_bench.types import Batch


class ReinforcePP(Algorithm):
    """Aₜ = Σ_{t' ≥ t} γ^(t'−t) rₜ',   rₜ = 1[t = last] r − β log π_old/π_ref,   Ãₜ = (Aₜ − mean) / std of all tokens
    J(θ) = 1/|o| Σₜ min[ρₜ Ãₜ, clip(ρₜ, 1−ε, 1+ε) Ãₜ]
    REINFORCE++, arXiv:2501.03262, eq. 4-5 of v9 (8-10 of v2), γ = 1, in PPO's objective, its eq. 1.

    Differs: std with ddof 0 and 1e-8 under the root; the paper adds an ε to std and gives neither it nor ddof.
    Longer answers weigh more in mean and std, which run over tokens.
    """

    invariant_to: ClassVar[frozenset[str]] = frozenset({"scale"})
    lone_winner: ClassVar[tuple[float, float] | None] = (2.6457513, -0.3779645)  # (7/8)/√(7/64) = √7, −(1/8)/√(7/64)

    clip_low: float = Field(gt=0)
    clip_high: float = Field(gt=0)
    dual_clip: float | None = Field(gt=1)  # c of c·A, what a negative A can cost at most; null: no bound
    log_clamp: float | None = Field(gt=0)  # of log ρ, ±; null: none
    gamma: float = Field(gt=0, le=1)
    whiten_ddof: Literal[0, 1]

    def card(self) -> Card:
        return Card(
            title="REINFORCE++",
            paper="Hu et al. 2025, arXiv:2501.03262, eq. 4-5 (v9)",
            baseline="mean of the batch's tokens",
            advantage=f"return to go, γ = {self.gamma:g}, whitened over tokens, ddof {self.whiten_ddof}",
            ratio="π/π_old of each token",
            objective=f"min[ρ A, clip(ρ, {1 - self.clip_low:g}, {1 + self.clip_high:g}) A]"
            + (f", at least {self.dual_clip:g} A where A < 0" if self.dual_clip else ""),
        )

    @property
    def clip_range(self) -> tuple[float, float]:
        return self.clip_low, self.clip_high

    def advantages(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        rewards = batch.rewards[:, None] * ops.last_token(batch.mask) - self.reward_penalty(batch)
        return ops.whiten(ops.to_go(rewards, batch.mask, self.gamma), batch.mask, self.whiten_ddof), None

    def token_loss(self, logp: Tensor, batch: Batch, entropy: Tensor | None = None) -> Tensor:
        assert batch.old_logp is not None
        assert batch.advantages is not None
        surrogate = ops.clipped_surrogate(
            logp, batch.old_logp, batch.advantages, self.clip_low, self.clip_high, self.dual_clip, self.log_clamp
        )
        return -surrogate + self.penalty(logp, batch, entropy)
