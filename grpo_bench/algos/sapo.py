"""Soft Adaptive Policy Optimization: a smooth gate on the ratio in place of the clip."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from grpo_bench import ops
from grpo_bench.algos.base import Algorithm, Card

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_bench.config import Config
    from grpo_bench.types import Batch


class SAPO(Algorithm):
    """J(θ) = 1/G Σᵢ 1/|oᵢ| Σₜ f(ρᵢₜ) Ãᵢ,   f(ρ) = σ(τ (ρ − 1)) · 4/τ,   τ = τ_pos where Ãᵢ > 0, else τ_neg
    Ãᵢ = (rᵢ − mean r) / std r       Gao et al. 2025, arXiv:2511.20347, eq. 5-6.

    f′(1) = 1, so on policy its gradient is GRPO's; it falls to 0 smoothly on both sides of 1, whatever the sign of Ã.
    Differs: std with ddof 0, and equal rewards have Ã = 0 by max − min ≤ 1e-6, as in grpo.
    """

    kl_places: ClassVar[frozenset[str]] = frozenset({"none", "loss", "reward", "advantage"})
    invariant_to: ClassVar[frozenset[str]] = frozenset({"shift", "scale"})
    lone_winner: ClassVar[tuple[float, float] | None] = (2.6457513, -0.3779645)  # (7/8)/√(7/64) = √7, −(1/8)/√(7/64)

    tau_pos: float = Field(gt=0)
    tau_neg: float = Field(gt=0)
    log_clamp: float | None = Field(gt=0)  # of log ρ, ±; null: none
    ddof: Literal[0, 1]
    eps: float = Field(ge=0)
    guard: Literal["range", "eps"]  # what makes a group of equal rewards 0: max − min ≤ 1e-6, or ε alone

    def card(self) -> Card:
        return Card(
            title="SAPO",
            paper="Gao et al. 2025, arXiv:2511.20347, eq. 5-6",
            baseline="mean of the group",
            advantage=f"(r − mean) / (std + {self.eps:g}) of the group, ddof {self.ddof}",
            ratio="π/π_old of each token",
            objective=f"σ(τ(ρ − 1)) · 4/τ · Ã, τ = {self.tau_pos:g} where Ã > 0, else {self.tau_neg:g}",
        )

    def advantages(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        rewards = batch.rewards - (self.reward_penalty(batch) * batch.mask).sum(1)
        scores = ops.group_zscore(rewards, batch.group_size, self.ddof, self.eps, self.guard == "range")
        return scores[:, None] * batch.mask - self.advantage_penalty(batch), None

    def token_loss(self, logp: Tensor, batch: Batch, entropy: Tensor | None = None) -> Tensor:
        assert batch.old_logp is not None
        assert batch.advantages is not None
        ratio = ops.ratio(logp, batch.old_logp, self.log_clamp or ops.LOG_LARGE)  # the gate is 1 long before
        tau = logp.new_full((), self.tau_pos).where(batch.advantages > 0, self.tau_neg)
        gate = (tau * (ratio - 1)).sigmoid() * 4 / tau
        return -gate * batch.advantages + self.penalty(logp, batch, entropy)

    def check(self, cfg: Config) -> list[str]:
        warnings = super().check(cfg)
        if cfg.epochs * cfg.minibatches == 1:
            warnings.append("the gate is inert with one update per rollout (epochs=1 minibatches=1): the ratio is 1")
        return warnings
