"""VinePPO: the value of each reasoning step from completions sampled there, in place of a critic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from grpo_bench import ops
from grpo_bench.algos.base import Algorithm, Card

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_bench.types import Batch


class VinePPO(Algorithm):
    """V(s) = 1/K Σₖ R(completion k sampled from s),   A = V(next step's start) − V(this step's start) on every token
    of a step, with the reward in place of the next V after the last step.
    J(θ) = Σₜ min[ρₜ Aₜ, clip(ρₜ, 1−ε, 1+ε) Aₜ] / Σ|o| − β KL(π‖π_ref)
    VinePPO, arXiv:2410.01679, §4; the clip is PPO's, arXiv:1707.06347, eq. 7; k3 in the loss.

    ``batch.values`` holds V at the start of a token's step, ``batch.step_ids`` which step that is. The K completions
    from each step serve V alone, and are charged. With ``kl.place: reward`` a step pays the KL of its tokens.
    Differs: steps end at the strings of ``delimiters``; the paper has lines for GSM8K, a parser of its own for MATH.
    """

    lone_winner: ClassVar[tuple[float, float] | None] = (2.6457513, -0.3779645)  # A = R; whitened: μ = 1/8, σ² = 7/64

    clip_low: float = Field(gt=0)
    clip_high: float = Field(gt=0)
    whiten: bool
    whiten_ddof: Literal[0, 1]
    branches: int = Field(ge=1)  # K
    delimiters: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=1)  # each ends a step

    def card(self) -> Card:
        return Card(
            title="VinePPO",
            paper="Kazemnejad et al. 2024, arXiv:2410.01679, §4",
            baseline=f"mean reward of {self.branches} completions from the step's start",
            advantage="V(next step) − V(step), r after the last" + (", whitened over tokens" if self.whiten else ""),
            ratio="π/π_old of each token",
            objective=f"min[ρ A, clip(ρ, {1 - self.clip_low:g}, {1 + self.clip_high:g}) A]",
        )

    @property
    def extra_rollouts(self) -> Literal["none", "greedy", "branches"]:
        return "branches"

    @property
    def branching(self) -> tuple[int, tuple[str, ...]]:
        return self.branches, self.delimiters

    @property
    def clip_range(self) -> tuple[float, float]:
        return self.clip_low, self.clip_high

    def inert(self) -> dict[str, str]:
        return super().inert() | ({} if self.whiten else {"whiten_ddof": "algo.whiten is false"})

    def advantages(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        assert batch.values is not None
        assert batch.step_ids is not None
        rewards = batch.rewards[:, None] * ops.last_token(batch.mask) - self.reward_penalty(batch)
        changes = ops.gae(rewards, batch.values, batch.mask, 1.0, 0.0)  # r + V_{t+1} − V_t: 0 within a step but for r
        advantages = ops.step_sums(changes, batch.step_ids, batch.mask)
        return (ops.whiten(advantages, batch.mask, self.whiten_ddof) if self.whiten else advantages), None

    def token_loss(self, logp: Tensor, batch: Batch, entropy: Tensor | None = None) -> Tensor:
        assert batch.old_logp is not None
        assert batch.advantages is not None
        surrogate = ops.clipped_surrogate(logp, batch.old_logp, batch.advantages, self.clip_low, self.clip_high)
        return -surrogate + self.penalty(logp, batch, entropy)
