"""GRPO done right: neither the length of an answer nor the deviation of its group weighs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from grpo_bench import ops
from grpo_bench.algos.base import Algorithm, Card

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_bench.config import Config
    from grpo_bench.types import Batch


class DrGRPO(Algorithm):
    """J(θ) = 1/G Σᵢ 1/L Σₜ min[ρᵢₜ Ãᵢ, clip(ρᵢₜ, 1−ε, 1+ε) Ãᵢ],   Ãᵢ = rᵢ − mean r
    Liu et al. 2025, arXiv:2503.20783, eq. 3 (GRPO's) without its 1/|oᵢ| and its std (§3.2).

    L is the generation budget, a constant: the task's ``max_new_tokens``, as in the paper's code; the paper writes the
    bare sum over tokens, and a constant scales the loss alone.
    ``scale: std`` keeps GRPO's deviation: half of Dr. GRPO, what a loss named so computes elsewhere.
    """

    kl_places: ClassVar[frozenset[str]] = frozenset({"none", "loss", "reward", "advantage"})
    invariant_to: ClassVar[frozenset[str]] = frozenset({"shift"})
    lone_winner: ClassVar[tuple[float, float] | None] = (0.875, -0.125)  # 1 − 1/8, 0 − 1/8

    clip_low: float = Field(gt=0)
    clip_high: float = Field(gt=0)
    dual_clip: float | None = Field(gt=1)  # c of c·Ã, what a negative Ã can cost at most; null: no bound
    log_clamp: float | None = Field(gt=0)  # of log ρ, ±; null: none
    scale: Literal["none", "std"]
    ddof: Literal[0, 1]  # this and the next two with scale=std only
    eps: float = Field(ge=0)
    guard: Literal["range", "eps"]  # what makes a group of equal rewards 0: max − min ≤ 1e-6, or ε alone

    def card(self) -> Card:
        deviation = f" / (std + {self.eps:g}) of the group, ddof {self.ddof}" if self.scale == "std" else ""
        return Card(
            title="Dr. GRPO",
            paper="Liu et al. 2025, arXiv:2503.20783, eq. 3, §3.2",
            baseline="mean of the group",
            advantage=f"(r − mean){deviation}" if deviation else "r − mean",
            ratio="π/π_old of each token",
            objective=f"min[ρ Ã, clip(ρ, {1 - self.clip_low:g}, {1 + self.clip_high:g}) Ã]",
        )

    @property
    def clip_range(self) -> tuple[float, float]:
        return self.clip_low, self.clip_high

    def inert(self) -> dict[str, str]:
        idle = {} if self.scale == "std" else dict.fromkeys(("ddof", "eps", "guard"), "algo.scale is none")
        return super().inert() | idle

    def advantages(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        rewards = batch.rewards - (self.reward_penalty(batch) * batch.mask).sum(1)
        if self.scale == "std":
            scores = ops.group_zscore(rewards, batch.group_size, self.ddof, self.eps, self.guard == "range")
        else:
            scores = ops.group_center(rewards, batch.group_size)
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
        if self.scale == "std":
            warnings.append("algo.scale=std: Dr. GRPO with std is half of it, the constant length without the centring")
        if self.aggregation != "constant_length":
            warnings.append(
                f"algo.aggregation={self.aggregation}: Dr. GRPO is half of it without the constant length; "
                "set algo.aggregation=constant_length"
            )
        return warnings
