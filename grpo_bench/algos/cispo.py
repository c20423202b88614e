"""CISPO: the weight of importance sampling is clipped, the update of a token is not."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from grpo_bench import ops
from grpo_bench.algos.base import Algorithm, Card

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_bench.types import Batch


class CISPO(Algorithm):
    """J(θ) = 1/Σᵢ|oᵢ| Σᵢ Σₜ sg(ρ̂ᵢₜ) Ãᵢ log π_θ(oᵢₜ),   ρ̂ᵢₜ = clip(ρᵢₜ, 1−ε_low, 1+ε_high)
    Ãᵢ = (rᵢ − mean r) / std r       MiniMax-M1, arXiv:2506.13585, eq. 4-5; Ã eq. 2.

    No token loses its gradient, since sg stops the one of the weight alone. The paper has no lower bound
    (``clip_low: null``) and tunes ε_high without giving it.
    Differs: std with ddof 0, and equal rewards have Ã = 0 by max − min ≤ 1e-6, as in grpo.
    Differs: the mean over tokens is over all groups of an update, not over one group's.
    Differs: without DAPO's dynamic sampling and length penalty, which the paper uses beside it (§3.1).
    """

    kl_places: ClassVar[frozenset[str]] = frozenset({"none", "loss", "reward", "advantage"})
    invariant_to: ClassVar[frozenset[str]] = frozenset({"shift", "scale"})
    lone_winner: ClassVar[tuple[float, float] | None] = (2.6457513, -0.3779645)  # (7/8)/√(7/64) = √7, −(1/8)/√(7/64)

    clip_low: float | None = Field(gt=0)  # null: no lower bound
    clip_high: float = Field(gt=0)
    cap: Literal["relative", "absolute"]  # the upper bound is 1 + clip_high, or clip_high itself
    log_clamp: float | None = Field(gt=0)  # of log ρ, ±; null: none
    ddof: Literal[0, 1]
    eps: float = Field(ge=0)
    guard: Literal["range", "eps"]  # what makes a group of equal rewards 0: max − min ≤ 1e-6, or ε alone

    def card(self) -> Card:
        low, high = self.clip_range
        return Card(
            title="CISPO",
            paper="MiniMax-M1, arXiv:2506.13585, eq. 4-5",
            baseline="mean of the group",
            advantage=f"(r − mean) / (std + {self.eps:g}) of the group, ddof {self.ddof}",
            ratio="π/π_old of each token, without a gradient",
            objective=f"sg(clip(ρ, {max(1 - low, 0):g}, {1 + high:g})) Ã log π",
        )

    @property
    def clip_range(self) -> tuple[float, float]:
        low = float("inf") if self.clip_low is None else self.clip_low
        return low, self.clip_high - (self.cap == "absolute")

    def advantages(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        rewards = batch.rewards - (self.reward_penalty(batch) * batch.mask).sum(1)
        scores = ops.group_zscore(rewards, batch.group_size, self.ddof, self.eps, self.guard == "range")
        return scores[:, None] * batch.mask - self.advantage_penalty(batch), None

    def token_loss(self, logp: Tensor, batch: Batch, entropy: Tensor | None = None) -> Tensor:
        assert batch.old_logp is not None
        assert batch.advantages is not None
        low, high = self.clip_range
        weight = ops.ratio(logp.detach(), batch.old_logp, self.log_clamp).clamp(1 - low, 1 + high)
        return -weight * batch.advantages * logp + self.penalty(logp, batch, entropy)
