"""OPO: exact on-policy REINFORCE with the baseline of least variance."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from grpo_bench import ops
from grpo_bench.algos.base import Algorithm, Card

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_bench.config import Config
    from grpo_bench.types import Batch


class OPO(Algorithm):
    """∇J(θ) = E[(rᵢ − b) Σₜ ∇log πᵢₜ],   b = Σⱼ lⱼ rⱼ / Σⱼ lⱼ over the prompt's answers, l = |o|
    OPO, arXiv:2505.23585: b minimises the gradient's variance where ‖∇log π(o)‖² grows as l. It is the policy gradient
    arXiv:2402.03300, eq. 5 without its 1/|o|, rᵢ − b the coefficient of each token. No KL, no entropy, one update per
    rollout.

    Differs: a group of equal rewards has advantage 0, decided by max − min ≤ 1e-6; answers out of the loss have l = 0.
    Its mean over answers of Σₜ log π is aggregation=constant_length with length 1.
    """

    invariant_to: ClassVar[frozenset[str]] = frozenset({"shift"})
    lone_winner: ClassVar[tuple[float, float] | None] = (0.875, -0.125)  # all l alike: b = 1/8;  1 − 1/8, 0 − 1/8

    def card(self) -> Card:
        return Card(
            title="OPO",
            paper="Hao et al. 2025, arXiv:2505.23585",
            baseline="length-weighted mean of the group",
            advantage="r − Σ l r / Σ l of the group, l = length",
            ratio="none",
            objective="log π · A",
        )

    def advantages(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        rewards = batch.rewards - (self.reward_penalty(batch) * batch.mask).sum(1)
        scores = ops.length_weighted_center(rewards, batch.mask.sum(1), batch.group_size)
        return scores[:, None] * batch.mask, None

    def token_loss(self, logp: Tensor, batch: Batch, entropy: Tensor | None = None) -> Tensor:
        assert batch.advantages is not None
        return -logp * batch.advantages + self.penalty(logp, batch, entropy)

    def check(self, cfg: Config) -> list[str]:
        warnings = super().check(cfg)
        if cfg.epochs * cfg.minibatches > 1:
            warnings.append(
                f"algo={self.name} is exact on-policy training: {cfg.epochs * cfg.minibatches} updates per rollout are "
                "not it, and it has no ratio to correct them; set epochs=1 minibatches=1"
            )
        return warnings
