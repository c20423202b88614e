"""Group Sequence Policy Optimization: one ratio per answer, normalised by its length."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from grpo_bench import ops
from grpo_bench.algos.base import Algorithm, Card

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_bench.config import Config
    from grpo_bench.types import Batch


class GSPO(Algorithm):
    """J(θ) = 1/G Σᵢ min[sᵢ Ãᵢ, clip(sᵢ, 1−ε_low, 1+ε_high) Ãᵢ],   sᵢ = (π_θ(oᵢ)/π_old(oᵢ))^(1/|oᵢ|)
    Ãᵢ = (rᵢ − mean r) / std r       Zheng et al. 2025, arXiv:2507.18071, eq. 5-7.

    sᵢ is the geometric mean of the token ratios, so it lies far nearer to 1 than they do: ε is 3e-4, not 0.2.
    Differs: std with ddof 0, and equal rewards have Ã = 0 by max − min ≤ 1e-6, as in grpo.
    """

    kl_places: ClassVar[frozenset[str]] = frozenset({"none", "loss", "reward", "advantage"})
    invariant_to: ClassVar[frozenset[str]] = frozenset({"shift", "scale"})
    lone_winner: ClassVar[tuple[float, float] | None] = (2.6457513, -0.3779645)  # (7/8)/√(7/64) = √7, −(1/8)/√(7/64)

    clip_low: float = Field(gt=0)
    clip_high: float = Field(gt=0)
    log_clamp: float | None = Field(gt=0)  # of log s, ±; null: none
    ddof: Literal[0, 1]
    eps: float = Field(ge=0)
    guard: Literal["range", "eps"]  # what makes a group of equal rewards 0: max − min ≤ 1e-6, or ε alone

    def card(self) -> Card:
        return Card(
            title="GSPO",
            paper="Zheng et al. 2025, arXiv:2507.18071, eq. 5-7",
            baseline="mean of the group",
            advantage=f"(r − mean) / (std + {self.eps:g}) of the group, ddof {self.ddof}",
            ratio="π/π_old of the whole answer, its |o|-th root",
            objective=f"min[s Ã, clip(s, {1 - self.clip_low:g}, {1 + self.clip_high:g}) Ã]",
        )

    @property
    def whole_answer(self) -> bool:
        return True

    @property
    def clip_range(self) -> tuple[float, float]:
        return self.clip_low, self.clip_high

    def log_ratio(self, logp: Tensor, batch: Batch) -> Tensor:
        return ops.answer_mean(super().log_ratio(logp, batch), batch.mask)

    def advantages(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        rewards = batch.rewards - (self.reward_penalty(batch) * batch.mask).sum(1)
        scores = ops.group_zscore(rewards, batch.group_size, self.ddof, self.eps, self.guard == "range")
        return scores[:, None] * batch.mask - self.advantage_penalty(batch), None

    def token_loss(self, logp: Tensor, batch: Batch, entropy: Tensor | None = None) -> Tensor:
        assert batch.old_logp is not None
        assert batch.advantages is not None
        new, old = ops.answer_mean(logp, batch.mask), ops.answer_mean(batch.old_logp, batch.mask)
        surrogate = ops.clipped_surrogate(
            new, old, batch.advantages, self.clip_low, self.clip_high, log_clamp=self.log_clamp
        )
        return -surrogate + self.penalty(logp, batch, entropy)

    def check(self, cfg: Config) -> list[str]:
        warnings = super().check(cfg)
        for name, value in (("clip_low", self.clip_low), ("clip_high", self.clip_high)):
            if value >= 0.1:
                warnings.append(
                    f"algo.{name}={value:g}: GSPO with ε = {value:g} never clips; its ratio of a whole answer moves by "
                    "thousandths (the paper has 3e-4 and 4e-4)"
                )
        return warnings
