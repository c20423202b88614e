"""ReMax: REINFORCE with the reward of the greedy answer as its baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from grpo_bench import ops
from grpo_bench.algos.base import Algorithm, Card

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_bench.config import Config
    from grpo_bench.types import Batch


class ReMax(Algorithm):
    """∇J(θ) = E[(r(o) − r(greedy)) Σₜ ∇log πₜ]        ReMax, arXiv:2310.10505, Algorithm 1
    It is the policy gradient arXiv:2402.03300, eq. 5 without its 1/|o|, r(o) − r(greedy) the coefficient of each token.
    With ``kl.place: reward`` a token's coefficient loses what is still to come, Σ_{t' ≥ t} β log π_old/π_ref.

    Its mean over answers of Σₜ log π is aggregation=constant_length with length 1. The greedy answers are charged.
    """

    lone_winner: ClassVar[tuple[float, float] | None] = (1.0, 0.0)  # greedy reward 0: 1 − 0;  0 − 0

    def card(self) -> Card:
        return Card(
            title="ReMax",
            paper="Li et al. 2023, arXiv:2310.10505, Algorithm 1",
            baseline="reward of the greedy answer",
            advantage="r − r(greedy)",
            ratio="none",
            objective="log π · A",
        )

    @property
    def extra_rollouts(self) -> Literal["none", "greedy", "branches"]:
        return "greedy"

    def advantages(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        assert batch.baseline_rewards is not None
        gain = batch.rewards - batch.baseline_rewards
        rewards = gain[:, None] * ops.last_token(batch.mask) - self.reward_penalty(batch)
        return ops.to_go(rewards, batch.mask, 1.0), None

    def token_loss(self, logp: Tensor, batch: Batch, entropy: Tensor | None = None) -> Tensor:
        assert batch.advantages is not None
        return -logp * batch.advantages + self.penalty(logp, batch, entropy)

    def check(self, cfg: Config) -> list[str]:
        warnings = super().check(cfg)
        if cfg.epochs * cfg.minibatches > 1:
            warnings.append(
                f"algo={self.name} has no ratio: only the first of {cfg.epochs * cfg.minibatches} updates per rollout "
                "is on policy; epochs=1 minibatches=1 is exact"
            )
        return warnings
