"""Value-Calibrated PPO: the critic's targets and the policy's advantages each have their own λ."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from grpo_bench import ops
from grpo_bench.algos.base import Algorithm, Card

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_bench.types import Batch


class VCPPO(Algorithm):
    """A = GAE(r, V; λ_policy),   V_target = GAE(r, V; λ_critic) + V   with λ_critic = 1: the Monte Carlo return
    J(θ) = Σₜ min[ρₜ Aₜ, clip(ρₜ, 1−ε, 1+ε) Aₜ] / Σ|o|,   L_VF = mean (V − V_target)²
    VC-PPO, arXiv:2503.01491: decoupled GAE and value pretraining; GAE itself is arXiv:1506.02438, eq. 16, the clip
    arXiv:1707.06347, eq. 7. At the first ``critic_warmup`` steps only the critic learns, from returns of the policy as
    it was: the value pretraining. With λ_policy = λ_critic it is PPO.

    Differs: the pretraining lasts a fixed number of steps, charged to the run; the paper's comes before it and goes on
    until value loss and explained variance settle.
    """

    lone_winner: ClassVar[tuple[float, float] | None] = (2.6457513, -0.3779645)  # A = R; whitened: μ = 1/8, σ² = 7/64

    clip_low: float = Field(gt=0)
    clip_high: float = Field(gt=0)
    gamma: float = Field(gt=0, le=1)
    lam_policy: float = Field(ge=0, le=1)
    lam_critic: float = Field(ge=0, le=1)
    whiten: bool
    whiten_ddof: Literal[0, 1]
    vf_coef: float = Field(ge=0)
    value_clip: float | None = Field(gt=0)
    critic_warmup: int = Field(ge=0)  # steps

    def card(self) -> Card:
        return Card(
            title="VC-PPO",
            paper="Yuan et al. 2025, arXiv:2503.01491",
            baseline=f"V of a learned critic, pretrained, targets with λ = {self.lam_critic:g}",
            advantage=f"GAE, γ = {self.gamma:g}, λ = {self.lam_policy:g}"
            + (", whitened over tokens" if self.whiten else ""),
            ratio="π/π_old of each token",
            objective=f"min[ρ A, clip(ρ, {1 - self.clip_low:g}, {1 + self.clip_high:g}) A]",
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
        advantages = ops.gae(rewards, batch.values, batch.mask, self.gamma, self.lam_policy)
        returns = ops.gae(rewards, batch.values, batch.mask, self.gamma, self.lam_critic) + batch.values * batch.mask
        return (ops.whiten(advantages, batch.mask, self.whiten_ddof) if self.whiten else advantages), returns

    def token_loss(self, logp: Tensor, batch: Batch, entropy: Tensor | None = None) -> Tensor:
        assert batch.old_logp is not None
        assert batch.advantages is not None
        surrogate = ops.clipped_surrogate(logp, batch.old_logp, batch.advantages, self.clip_low, self.clip_high)
        return -surrogate + self.penalty(logp, batch, entropy)

    def value_loss(self, values: Tensor, batch: Batch) -> Tensor:
        assert batch.values is not None
        assert batch.returns is not None
        return ops.clipped_value_loss(values, batch.values, batch.returns, self.value_clip)
