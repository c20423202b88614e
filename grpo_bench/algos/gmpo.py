"""Geometric-Mean Policy Optimization: an answer's clipped token ratios, multiplied."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from grpo_bench import ops
from grpo_bench.algos.base import Algorithm, Card

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_bench.types import Batch


class GMPO(Algorithm):
    """J(θ) = 1/G Σᵢ { Πₜ (min[ρᵢₜ^sgn(Ãᵢ), clip(ρᵢₜ, e^−ε_low, e^ε_high)^sgn(Ãᵢ)])^sgn(Ãᵢ) }^(1/|oᵢ|) Ãᵢ
    Ãᵢ = (rᵢ − mean r) / std r       Zhao et al. 2025, arXiv:2507.20673, eq. 4, as its Algorithm 1 has it.

    The clip is of log ρ, token by token and before the mean; as in PPO it holds only what has gone in the direction of
    Ã: above where Ã > 0, below where Ã < 0.
    Differs: std with ddof 0, and equal rewards have Ã = 0 by max − min ≤ 1e-6, as in grpo.
    """

    invariant_to: ClassVar[frozenset[str]] = frozenset({"shift", "scale"})
    lone_winner: ClassVar[tuple[float, float] | None] = (2.6457513, -0.3779645)  # (7/8)/√(7/64) = √7, −(1/8)/√(7/64)

    clip_low: float = Field(gt=0)  # of log ρ
    clip_high: float = Field(gt=0)
    ddof: Literal[0, 1]
    eps: float = Field(ge=0)
    guard: Literal["range", "eps"]  # what makes a group of equal rewards 0: max − min ≤ 1e-6, or ε alone

    def card(self) -> Card:
        return Card(
            title="GMPO",
            paper="Zhao et al. 2025, arXiv:2507.20673, eq. 4",
            baseline="mean of the group",
            advantage=f"(r − mean) / (std + {self.eps:g}) of the group, ddof {self.ddof}",
            ratio="geometric mean of an answer's clipped token ratios",
            objective=f"exp(mean log ρ̂) Ã, log ρ̂ clipped to −{self.clip_low:g}, {self.clip_high:g} towards Ã",
        )

    @property
    def whole_answer(self) -> bool:
        return True

    @property
    def clip_range(self) -> tuple[float, float]:
        return -math.expm1(-self.clip_low), math.expm1(self.clip_high)

    def advantages(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        rewards = batch.rewards - (self.reward_penalty(batch) * batch.mask).sum(1)
        scores = ops.group_zscore(rewards, batch.group_size, self.ddof, self.eps, self.guard == "range")
        return scores[:, None] * batch.mask, None

    def token_loss(self, logp: Tensor, batch: Batch, entropy: Tensor | None = None) -> Tensor:
        assert batch.old_logp is not None
        assert batch.advantages is not None
        sign = batch.advantages.sign()
        log_ratio = logp - batch.old_logp
        clipped = log_ratio.clamp(-self.clip_low, self.clip_high)
        towards = (sign * log_ratio).minimum(sign * clipped) * sign
        ratio = ops.answer_mean(towards, batch.mask).exp()
        return -ratio * batch.advantages + self.penalty(logp, batch, entropy)
