"""REINFORCE Leave-One-Out with PPO's token ratios: the form that the large frameworks train under this name."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from grpo_bench import ops
from grpo_bench.algos.base import Algorithm, Card

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_bench.types import Batch


class RLOO(Algorithm):
    """Aᵢ = Rᵢ − 1/(G−1) Σ_{j≠i} Rⱼ,   R = r − β log π_old(o)/π_ref(o)        RLOO, arXiv:2402.14740, §2.3, eq. 3
    J(θ) = Σᵢₜ min[ρᵢₜ Aᵢ, clip(ρᵢₜ, 1−ε, 1+ε) Aᵢ] / Σ|oᵢ|                    PPO's clip, arXiv:1707.06347, eq. 7

    Differs: the paper's form is REINFORCE, A Σₜ log π of the whole answer without ratio or clip. With one update per
    rollout the ratio is 1 and this has its gradient up to the aggregation (constant_length, length 1, gives it
    exactly). ``rloo_sequence`` is the form with one ratio per answer.
    With ``kl.place: advantage`` the penalty still to come is taken from each token after the baseline.
    """

    kl_places: ClassVar[frozenset[str]] = frozenset({"none", "loss", "reward", "advantage"})
    invariant_to: ClassVar[frozenset[str]] = frozenset({"shift"})
    lone_winner: ClassVar[tuple[float, float] | None] = (1.0, -1 / 7)  # 1 − 0/7;  0 − 1/7

    clip_low: float = Field(gt=0)
    clip_high: float = Field(gt=0)
    dual_clip: float | None = Field(gt=1)  # c of c·A, what a negative A can cost at most; null: no bound
    log_clamp: float | None = Field(gt=0)  # of log ρ, ±; null: none

    def card(self) -> Card:
        return Card(
            title="RLOO",
            paper="Ahmadian et al. 2024, arXiv:2402.14740, §2.3",
            baseline="mean of the group's others",
            advantage="r − mean of the others",
            ratio="π/π_old of each token",
            objective=f"min[ρ A, clip(ρ, {1 - self.clip_low:g}, {1 + self.clip_high:g}) A]"
            + (f", at least {self.dual_clip:g} A where A < 0" if self.dual_clip else ""),
        )

    @property
    def clip_range(self) -> tuple[float, float]:
        return self.clip_low, self.clip_high

    def advantages(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        rewards = batch.rewards - (self.reward_penalty(batch) * batch.mask).sum(1)
        left_out = ops.leave_one_out(rewards, batch.group_size)
        return left_out[:, None] * batch.mask - self.advantage_penalty(batch), None

    def token_loss(self, logp: Tensor, batch: Batch, entropy: Tensor | None = None) -> Tensor:
        assert batch.old_logp is not None
        assert batch.advantages is not None
        surrogate = ops.clipped_surrogate(
            logp, batch.old_logp, batch.advantages, self.clip_low, self.clip_high, self.dual_clip, self.log_clamp
        )
        return -surrogate + self.penalty(logp, batch, entropy)
