"""Proximal Policy Optimization with a learned critic."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from grpo_bench import ops
from grpo_bench.algos.base import Algorithm, Card

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_bench.types import Batch


class PPO(Algorithm):
    """J(θ) = 1/|o| Σₜ min[ρₜ Aₜ, clip(ρₜ, 1−ε, 1+ε) Aₜ] − α KL,   A = GAE(r, V),   L_VF = mean (V − V_target)²
    rₜ = 1[t = last] R − β log π_old/π_ref       (second term with ``kl.place: reward``)
    Schulman et al. 2017, arXiv:1707.06347, eq. 7 and 9; with KL in the reward DeepSeekMath, arXiv:2402.03300, eq. 1-2.

    Differs: the mean is over an answer's tokens, then over answers, DeepSeekMath's eq. 1; PPO's is over time steps.
    Differs: we minimise −L_clip + α·KL + vf_coef·L_VF; the article writes L_clip − α·KL + β·L_VF.
    Differs: π_old stands for π_θ in the reward's KL, since rewards are fixed at the rollout.
    Targets are A + V_old before whitening; V after the last token is 0, of truncated answers too.
    """

    lone_winner: ClassVar[tuple[float, float] | None] = (2.6457513, -0.3779645)  # whitened: μ = 1/8, σ² = 7/64

    clip_low: float = Field(gt=0)
    clip_high: float = Field(gt=0)
    dual_clip: float | None = Field(default=None, gt=1)  # c of c·A, what a negative A can cost at most; null: no bound
    log_clamp: float | None = Field(default=None, gt=0)  # of log ρ, ±; null: none
    gamma: float = Field(gt=0, le=1)
    lam: float = Field(ge=0, le=1)
    whiten: bool
    whiten_ddof: Literal[0, 1] = 0
    vf_coef: float = Field(ge=0)
    value_clip: float | None = Field(gt=0)
    critic_warmup: int = Field(ge=0)  # steps

    def card(self) -> Card:
        return Card(
            title="PPO",
            paper="Schulman et al. 2017, arXiv:1707.06347, eq. 7 and 9",
            baseline="V of a learned critic",
            advantage=f"GAE, γ = {self.gamma:g}, λ = {self.lam:g}" + (", whitened over tokens" if self.whiten else ""),
            ratio="π/π_old of each token",
            objective=f"min[ρ A, clip(ρ, {1 - self.clip_low:g}, {1 + self.clip_high:g}) A]"
            + (f", at least {self.dual_clip:g} A where A < 0" if self.dual_clip else ""),
        )

    @property
    def needs_critic(self) -> bool:
        return True

    @property
    def value_weight(self) -> float:
        return self.vf_coef

    @property
    def frozen_steps(self) -> int:
        return self.critic_warmup

    @property
    def clip_range(self) -> tuple[float, float]:
        return self.clip_low, self.clip_high

    def inert(self) -> dict[str, str]:
        return super().inert() | ({} if self.whiten else {"whiten_ddof": "algo.whiten is false"})

    def advantages(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        assert batch.values is not None
        rewards = batch.rewards[:, None] * ops.last_token(batch.mask) - self.reward_penalty(batch)
        advantages = ops.gae(rewards, batch.values, batch.mask, self.gamma, self.lam)
        returns = advantages + batch.values * batch.mask
        return (ops.whiten(advantages, batch.mask, self.whiten_ddof) if self.whiten else advantages), returns

    def token_loss(self, logp: Tensor, batch: Batch, entropy: Tensor | None = None) -> Tensor:
        assert batch.old_logp is not None
        assert batch.advantages is not None
        surrogate = ops.clipped_surrogate(
            logp, batch.old_logp, batch.advantages, self.clip_low, self.clip_high, self.dual_clip, self.log_clamp
        )
        return -surrogate + self.penalty(logp, batch, entropy)

    def value_loss(self, values: Tensor, batch: Batch) -> Tensor:
        assert batch.values is not None
        assert batch.returns is not None
        return ops.clipped_value_loss(values, batch.values, batch.returns, self.value_clip)
