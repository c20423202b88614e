"""Maximum Likelihood Reinforcement Learning: the rarer a right answer, the more it weighs."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from grpo_bench import ops
from grpo_bench.algos.base import Algorithm, Card
from grpo_bench.types import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_bench.config import Config
    from grpo_bench.types import Batch


class MaxRL(Algorithm):
    """∇J(θ) = 1/G Σᵢ Ãᵢ ∇log π_θ(oᵢ),   Ãᵢ = (rᵢ − mean r) / mean r, and 0 where no answer is right
    Tajwar et al. 2026, arXiv:2602.02710, eq. 5 (the gradient of log p, p = chance of a right answer), algorithm 1.

    With K of G right the advantage is (G − K)/K of a right and −1 of a wrong answer: in expectation the gradient of
    Σ_{k<G} pass@k / k, which tends to that of log p as G grows.
    Differs: log π is divided by a constant, the task's ``max_new_tokens``, which scales the loss alone.
    Differs: PPO's clip, since a step has several updates; with one update the gradient is the paper's.
    """

    kl_places: ClassVar[frozenset[str]] = frozenset({"none", "loss", "advantage"})  # in the reward: not of its mean
    invariant_to: ClassVar[frozenset[str]] = frozenset({"scale"})
    lone_winner: ClassVar[tuple[float, float] | None] = (7.0, -1.0)  # (7/8)/(1/8), −(1/8)/(1/8)

    clip_low: float = Field(gt=0)
    clip_high: float = Field(gt=0)

    def card(self) -> Card:
        return Card(
            title="MaxRL",
            paper="Tajwar et al. 2026, arXiv:2602.02710, eq. 5, algorithm 1",
            baseline="mean of the group",
            advantage="(r − mean) / mean of the group, 0 where no answer is right",
            ratio="π/π_old of each token",
            objective=f"min[ρ Ã, clip(ρ, {1 - self.clip_low:g}, {1 + self.clip_high:g}) Ã]",
        )

    @property
    def needs_group(self) -> bool:
        return True

    @property
    def clip_range(self) -> tuple[float, float]:
        return self.clip_low, self.clip_high

    def advantages(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        scores = ops.group_over_mean(batch.rewards, batch.group_size)
        return scores[:, None] * batch.mask - self.advantage_penalty(batch), None

    def token_loss(self, logp: Tensor, batch: Batch, entropy: Tensor | None = None) -> Tensor:
        assert batch.old_logp is not None
        assert batch.advantages is not None
        surrogate = ops.clipped_surrogate(logp, batch.old_logp, batch.advantages, self.clip_low, self.clip_high)
        return -surrogate + self.penalty(logp, batch, entropy)

    def check(self, cfg: Config) -> list[str]:
        warnings = super().check(cfg)
        if cfg.reward.normalise != "none":
            raise UserError(
                f"algo=maxrl divides by the group's mean reward, which reward.normalise={cfg.reward.normalise} makes "
                "0: nothing would be learned; give reward.normalise=none"
            )
        if set(cfg.reward.parts) != {"correct"}:
            warnings.append(
                "algo=maxrl is for rewards of 0 and 1: groups whose mean is not above 0 give no signal, and with other "
                "rewards the mean is no share of right answers"
            )
        return warnings
