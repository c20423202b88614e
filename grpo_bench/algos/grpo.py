"""Group Relative Policy Optimization: the group's rewards are the baseline, there is no critic."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from grpo_bench import ops
from grpo_bench.algos.base import Algorithm, Card

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_bench.config import Config
    from grpo_bench.types import Batch


class GRPO(Algorithm):
    """J(θ) = 1/G Σᵢ 1/|oᵢ| Σₜ { min[ρᵢₜ Ãᵢ, clip(ρᵢₜ, 1−ε, 1+ε) Ãᵢ] − β (π_ref/π_θ − log π_ref/π_θ − 1) }
    Ãᵢ = (rᵢ − mean r) / (std r + 1e-8)          DeepSeekMath, arXiv:2402.03300, eq. 3-4, outcome supervision.

    Differs: std with ddof 0, so that the scale of Ã does not change with G (the paper gives neither ddof nor ε).
    Differs: a group of equal rewards has Ã = 0, decided by max − min ≤ 1e-6 and not by the 1e-8.
    ``ratio: sequence`` is the whole-answer ratio π(o)/π_old(o); ``surrogate: logprob`` the form log π·Ã, without ratio.
    With ``kl.place: reward`` the answer's summed penalty is taken from its reward before the group is normalised.
    """

    kl_places: ClassVar[frozenset[str]] = frozenset({"none", "loss", "reward", "advantage"})
    invariant_to: ClassVar[frozenset[str]] = frozenset({"shift", "scale"})
    lone_winner: ClassVar[tuple[float, float] | None] = (2.6457513, -0.3779645)  # (7/8)/√(7/64) = √7, −(1/8)/√(7/64)

    clip_low: float = Field(gt=0)
    clip_high: float = Field(gt=0)
    dual_clip: float | None = Field(default=None, gt=1)  # c of c·Ã, what a negative Ã can cost at most; null: no bound
    log_clamp: float | None = Field(default=None, gt=0)  # of log ρ, ±; null: none
    ratio: Literal["token", "sequence"]
    surrogate: Literal["clip", "logprob"]
    ddof: Literal[0, 1]
    eps: float = Field(ge=0)
    guard: Literal["range", "eps"] = "range"  # what makes a group of equal rewards 0: max − min ≤ 1e-6, or ε alone

    def card(self) -> Card:
        ratio = "π/π_old of the whole answer" if self.whole_answer else "π/π_old of each token"
        objective = f"min[ρ Ã, clip(ρ, {1 - self.clip_low:g}, {1 + self.clip_high:g}) Ã]"
        if self.surrogate == "logprob":
            ratio, objective = "none", "log π · Ã"
        return Card(
            title="GRPO",
            paper="DeepSeekMath, arXiv:2402.03300, eq. 3-4",
            baseline="mean of the group",
            advantage=f"(r − mean) / (std + {self.eps:g}) of the group, ddof {self.ddof}",
            ratio=ratio,
            objective=objective,
        )

    @property
    def whole_answer(self) -> bool:
        return self.surrogate == "clip" and self.ratio == "sequence"

    @property
    def clip_range(self) -> tuple[float, float]:
        none = float("inf")
        return (self.clip_low, self.clip_high) if self.surrogate == "clip" else (none, none)

    def inert(self) -> dict[str, str]:
        idle = ("ratio", "clip_low", "clip_high", "dual_clip", "log_clamp") if self.surrogate == "logprob" else ()
        return super().inert() | dict.fromkeys(idle, "algo.surrogate is logprob")

    def log_ratio(self, logp: Tensor, batch: Batch) -> Tensor:
        token = super().log_ratio(logp, batch)
        return ops.sequence_logp(token, batch.mask) if self.whole_answer else token

    def advantages(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        penalty = self.reward_penalty(batch) * batch.mask
        rewards = batch.rewards - penalty.sum(1)
        scores = ops.group_zscore(rewards, batch.group_size, self.ddof, self.eps, self.guard == "range")
        return scores[:, None] * batch.mask - self.advantage_penalty(batch), None

    def token_loss(self, logp: Tensor, batch: Batch, entropy: Tensor | None = None) -> Tensor:
        assert batch.old_logp is not None
        assert batch.advantages is not None
        if self.surrogate == "logprob":
            return -logp * batch.advantages + self.penalty(logp, batch, entropy)
        new, old = logp, batch.old_logp
        if self.ratio == "sequence":
            new, old = ops.sequence_logp(new, batch.mask), ops.sequence_logp(old, batch.mask)
        surrogate = ops.clipped_surrogate(
            new, old, batch.advantages, self.clip_low, self.clip_high, self.dual_clip, self.log_clamp
        )
        return -surrogate + self.penalty(logp, batch, entropy)

    def check(self, cfg: Config) -> list[str]:
        warnings = super().check(cfg)
        if self.surrogate == "logprob":
            warnings.append("algo.surrogate=logprob has no ratio: algo.ratio, clip_low and clip_high are inert")
        return warnings
