"""REINFORCE: the reward times log π, with no baseline or a running mean."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from grpo_bench.algos.base import Algorithm, Card

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_bench.config import Config
    from grpo_bench.types import Batch


class Reinforce(Algorithm):
    """∇J(θ) = E[(R − b) Σₜ ∇log πₜ],   R = r − β log π_old(o)/π_ref(o) with ``kl.place: reward``
    Williams 1992; for language models arXiv:2402.14740, eq. 6-7, with the mean of earlier rewards as b in eq. 8.
    b = 0, or with ``baseline: running_mean`` the mean of the steps before: b ← decay·b + (1 − decay)·mean R, which
    begins at the first step's mean; in the first step b = 0.

    Differs: an exponential mean, where arXiv:2402.14740 weighs all earlier rewards alike; the policy moves away from
    them. Its mean over answers of Σₜ log π is aggregation=constant_length with length 1.
    """

    lone_winner: ClassVar[tuple[float, float] | None] = (1.0, 0.0)  # r itself: b is 0, also of a mean not begun

    baseline: Literal["none", "running_mean"]
    decay: float = Field(ge=0, lt=1)  # of the running mean, per step

    def card(self) -> Card:
        return Card(
            title="REINFORCE",
            paper="Williams 1992; arXiv:2402.14740, eq. 6-8",
            baseline="none" if self.baseline == "none" else f"running mean of rewards, decay {self.decay:g}",
            advantage="r" if self.baseline == "none" else "r − running mean",
            ratio="none",
            objective="log π · A",
        )

    def inert(self) -> dict[str, str]:
        return super().inert() | ({"decay": "algo.baseline is none"} if self.baseline == "none" else {})

    def penalised(self, batch: Batch) -> Tensor:
        """(B,): R, the reward with what its KL costs the whole answer."""
        return batch.rewards - (self.reward_penalty(batch) * batch.mask).sum(1)

    def advantages(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        baseline = batch.state.get("reward_mean", 0.0) if self.baseline == "running_mean" else 0.0
        return (self.penalised(batch) - baseline)[:, None] * batch.mask, None

    def token_loss(self, logp: Tensor, batch: Batch, entropy: Tensor | None = None) -> Tensor:
        assert batch.advantages is not None
        return -logp * batch.advantages + self.penalty(logp, batch, entropy)

    def next_state(self, batch: Batch) -> dict[str, float]:
        state = super().next_state(batch)
        if self.baseline == "none":
            return state
        mean = float(self.penalised(batch).mean())
        if not math.isfinite(mean):  # a reward that went wrong would stay in every later baseline
            return state
        before = batch.state.get("reward_mean", mean)
        return {**state, "reward_mean": self.decay * before + (1 - self.decay) * mean}

    def check(self, cfg: Config) -> list[str]:
        warnings = super().check(cfg)
        if cfg.epochs * cfg.minibatches > 1:
            warnings.append(
                f"algo={self.name} has no ratio: only the first of {cfg.epochs * cfg.minibatches} updates per rollout "
                "is on policy; epochs=1 minibatches=1 is exact"
            )
        return warnings
