"""VAPO: PPO with a λ that grows with the answer, clip-higher, and likelihood of the correct answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from grpo_bench import ops
from grpo_bench.algos.base import Algorithm, Card

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_bench.config import Config
    from grpo_bench.types import Batch


class VAPO(Algorithm):
    """A = GAE(r, V; λ_policy),  λ_policy = 1 − 1/(α l), l = |o|,   V_target = GAE(r, V; 1) + V: the return
    J(θ) = Σₜ min[ρₜ Aₜ, clip(ρₜ, 1−ε_low, 1+ε_high) Aₜ] / Σ|o| + μ Σₜ log πₜ / Σ|o| over the correct o
    VAPO, arXiv:2504.05118, §4.1 (decoupled GAE, value pretraining), §4.2 (length-adaptive λ, eq. 5; token mean, eq. 7),
    §4.3 (clip-higher, eq. 8; positive examples, eq. 9-10; G answers to a prompt); GAE is arXiv:1506.02438, eq. 16.

    Differs: λ_policy is 0 for answers of l < 1/α tokens, where the formula is negative; the paper's are far longer.
    Differs: the positive examples are averaged over their tokens of the step, as the paper does over those of a batch.
    """

    lone_winner: ClassVar[tuple[float, float] | None] = (2.6457513, -0.3779645)  # A = R; whitened: μ = 1/8, σ² = 7/64

    clip_low: float = Field(gt=0)
    clip_high: float = Field(gt=0)
    gamma: float = Field(gt=0, le=1)
    alpha: float = Field(gt=0)  # λ_policy = 1 − 1/(α l)
    lam_critic: float = Field(ge=0, le=1)
    mu: float = Field(ge=0)  # weight of −log π on correct answers
    whiten: bool
    whiten_ddof: Literal[0, 1]
    vf_coef: float = Field(ge=0)
    value_clip: float | None = Field(gt=0)
    critic_warmup: int = Field(ge=0)  # steps

    def card(self) -> Card:
        return Card(
            title="VAPO",
            paper="Yue et al. 2025, arXiv:2504.05118, eq. 5-10",
            baseline=f"V of a learned critic, pretrained, targets with λ = {self.lam_critic:g}",
            advantage=f"GAE, γ = {self.gamma:g}, λ = 1 − 1/({self.alpha:g} l), l = length"
            + (", whitened over tokens" if self.whiten else ""),
            ratio="π/π_old of each token",
            objective=f"min[ρ A, clip(ρ, {1 - self.clip_low:g}, {1 + self.clip_high:g}) A]"
            f" + {self.mu:g} log π of correct answers",
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

    def lam_policy(self, mask: Tensor) -> Tensor:
        """(B,T) -> (B,1): λ of each answer's length; 0 where 1 − 1/(α l) is negative, or the answer has no tokens."""
        return (1 - 1 / (self.alpha * mask.sum(1, keepdim=True).clamp(min=1))).clamp(min=0)

    def advantages(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        assert batch.values is not None
        rewards = batch.rewards[:, None] * ops.last_token(batch.mask) - self.reward_penalty(batch)
        advantages = ops.gae(rewards, batch.values, batch.mask, self.gamma, self.lam_policy(batch.mask))
        returns = ops.gae(rewards, batch.values, batch.mask, self.gamma, self.lam_critic) + batch.values * batch.mask
        return (ops.whiten(advantages, batch.mask, self.whiten_ddof) if self.whiten else advantages), returns

    def statistics(self, batch: Batch) -> dict[str, float]:
        return {"correct_share": float(ops.masked_mean(batch.correct[:, None] * batch.mask, batch.mask))}

    def token_loss(self, logp: Tensor, batch: Batch, entropy: Tensor | None = None) -> Tensor:
        assert batch.old_logp is not None
        assert batch.advantages is not None
        surrogate = ops.clipped_surrogate(logp, batch.old_logp, batch.advantages, self.clip_low, self.clip_high)
        positive = self.mu * logp * batch.correct[:, None] / max(batch.state.get("correct_share", 1.0), 1e-8)
        return -surrogate - positive + self.penalty(logp, batch, entropy)

    def value_loss(self, values: Tensor, batch: Batch) -> Tensor:
        assert batch.values is not None
        assert batch.returns is not None
        return ops.clipped_value_loss(values, batch.values, batch.returns, self.value_clip)

    def check(self, cfg: Config) -> list[str]:
        warnings = super().check(cfg)
        if self.alpha * cfg.task.max_new_tokens <= 1:
            warnings.append(
                f"algo.alpha={self.alpha:g} gives λ = 0 to every answer of up to {1 / self.alpha:g} tokens, and "
                f"task.max_new_tokens={cfg.task.max_new_tokens} allows no longer ones; raise algo.alpha"
            )
        return warnings
