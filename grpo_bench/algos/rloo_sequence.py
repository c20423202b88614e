"""REINFORCE Leave-One-Out with one ratio for the whole answer: the form of TRL's RLOOTrainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from grpo_bench import ops
from grpo_bench.algos.base import Algorithm, Card

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_bench.types import Batch


class RLOOSequence(Algorithm):
    """Aᵢ = Rᵢ − 1/(G−1) Σ_{j≠i} Rⱼ,   R = r − β log π_old(o)/π_ref(o)        RLOO, arXiv:2402.14740, §2.3, eq. 3
    J(θ) = 1/G Σᵢ min[ρᵢ Aᵢ, clip(ρᵢ, 1−ε, 1+ε) Aᵢ],   ρᵢ = exp Σₜ (log πᵢₜ − log π_oldᵢₜ)
    The clip is PPO's, arXiv:1707.06347, eq. 7, on the answer as one action.

    Of the two forms this one follows the paper: an answer is one action, and with one update per rollout the gradient
    is the paper's A Σₜ ∇log π. ``rloo`` is the form with token ratios.
    Differs: ratio and clip are not the paper's, whose REINFORCE has neither; they act from the second update on.
    """

    invariant_to: ClassVar[frozenset[str]] = frozenset({"shift"})
    lone_winner: ClassVar[tuple[float, float] | None] = (1.0, -1 / 7)  # 1 − 0/7;  0 − 1/7

    clip_low: float = Field(gt=0)
    clip_high: float = Field(gt=0)

    def card(self) -> Card:
        return Card(
            title="RLOO (whole answer)",
            paper="Ahmadian et al. 2024, arXiv:2402.14740, §2.3",
            baseline="mean of the group's others",
            advantage="r − mean of the others",
            ratio="π/π_old of the whole answer",
            objective=f"min[ρ A, clip(ρ, {1 - self.clip_low:g}, {1 + self.clip_high:g}) A]",
        )

    @property
    def whole_answer(self) -> bool:
        return True

    @property
    def clip_range(self) -> tuple[float, float]:
        return self.clip_low, self.clip_high

    def log_ratio(self, logp: Tensor, batch: Batch) -> Tensor:
        return ops.sequence_logp(super().log_ratio(logp, batch), batch.mask)

    def advantages(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        rewards = batch.rewards - (self.reward_penalty(batch) * batch.mask).sum(1)
        return ops.leave_one_out(rewards, batch.group_size)[:, None] * batch.mask, None

    def token_loss(self, logp: Tensor, batch: Batch, entropy: Tensor | None = None) -> Tensor:
        assert batch.old_logp is not None
        assert batch.advantages is not None
        new, old = ops.sequence_logp(logp, batch.mask), ops.sequence_logp(batch.old_logp, batch.mask)
        surrogate = ops.clipped_surrogate(new, old, batch.advantages, self.clip_low, self.clip_high)
        return -surrogate + self.penalty(logp, batch, entropy)
