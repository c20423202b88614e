"""Decoupled clip and dynamic sampling: GRPO's advantage, a wider upper clip, all tokens alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from grpo_bench import ops
from grpo_bench.algos.base import Algorithm, Card

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_bench.config import Config
    from grpo_bench.types import Batch


class DAPO(Algorithm):
    """J(θ) = 1/Σᵢ|oᵢ| Σᵢ Σₜ min[ρᵢₜ Ãᵢ, clip(ρᵢₜ, 1−ε_low, 1+ε_high) Ãᵢ]   subject to 0 < #correct in the group < G
    Ãᵢ = (rᵢ − mean r) / std r       Yu et al. 2025, arXiv:2503.14476, eq. 8-9; dynamic sampling eq. 11; no KL.

    Its soft overlong punishment (eq. 13) is a part of the reward: ``reward=dapo``.
    Differs: std with ddof 0, and equal rewards have Ã = 0 by max − min ≤ 1e-6, as in grpo.
    Differs: the mean over tokens is over all groups of an update, as in the authors' code, not over one group's.
    """

    kl_places: ClassVar[frozenset[str]] = frozenset({"none", "loss", "reward", "advantage"})
    invariant_to: ClassVar[frozenset[str]] = frozenset({"shift", "scale"})
    lone_winner: ClassVar[tuple[float, float] | None] = (2.6457513, -0.3779645)  # (7/8)/√(7/64) = √7, −(1/8)/√(7/64)

    clip_low: float = Field(gt=0)
    clip_high: float = Field(gt=0)
    dual_clip: float | None = Field(gt=1)  # c of c·Ã, what a negative Ã can cost at most; null: no bound
    log_clamp: float | None = Field(gt=0)  # of log ρ, ±; null: none
    ddof: Literal[0, 1]
    eps: float = Field(ge=0)
    guard: Literal["range", "eps"]  # what makes a group of equal rewards 0: max − min ≤ 1e-6, or ε alone
    dynamic_sampling: bool  # drop groups that are all right or all wrong,
    max_refills: int = Field(ge=0)  # and draw further prompts in their place, at most so many times; 0: only drop

    def card(self) -> Card:
        return Card(
            title="DAPO",
            paper="Yu et al. 2025, arXiv:2503.14476, eq. 8-13",
            baseline="mean of the group" + ("; groups all right or all wrong dropped" if self.dynamic_sampling else ""),
            advantage=f"(r − mean) / (std + {self.eps:g}) of the group, ddof {self.ddof}",
            ratio="π/π_old of each token",
            objective=f"min[ρ Ã, clip(ρ, {1 - self.clip_low:g}, {1 + self.clip_high:g}) Ã]"
            + (f", at least {self.dual_clip:g} Ã where Ã < 0" if self.dual_clip else ""),
        )

    @property
    def clip_range(self) -> tuple[float, float]:
        return self.clip_low, self.clip_high

    @property
    def refill_limit(self) -> int:
        return self.max_refills if self.dynamic_sampling else 0

    def inert(self) -> dict[str, str]:
        idle = {} if self.dynamic_sampling else {"max_refills": "algo.dynamic_sampling is false"}
        return super().inert() | idle

    def keep(self, batch: Batch) -> Tensor:
        return ops.mixed_groups(batch.correct, batch.group_size) if self.dynamic_sampling else super().keep(batch)

    def advantages(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        rewards = batch.rewards - (self.reward_penalty(batch) * batch.mask).sum(1)
        scores = ops.group_zscore(rewards, batch.group_size, self.ddof, self.eps, self.guard == "range")
        return scores[:, None] * batch.mask - self.advantage_penalty(batch), None

    def token_loss(self, logp: Tensor, batch: Batch, entropy: Tensor | None = None) -> Tensor:
        assert batch.old_logp is not None
        assert batch.advantages is not None
        surrogate = ops.clipped_surrogate(
            logp, batch.old_logp, batch.advantages, self.clip_low, self.clip_high, self.dual_clip, self.log_clamp
        )
        return -surrogate + self.penalty(logp, batch, entropy)

    def check(self, cfg: Config) -> list[str]:
        warnings = super().check(cfg)
        if "overlong" not in cfg.reward.parts:
            warnings.append("algo=dapo without its soft overlong punishment (eq. 13): give reward=dapo")
        return warnings
