"""Rejection sampling: supervised fine-tuning on the policy's own good answers. The control of all the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from grpo_bench import ops
from grpo_bench.algos.base import Algorithm, Card

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_bench.config import Config
    from grpo_bench.types import Batch


class RAFT(Algorithm):
    """J(θ) = Σ_{o selected} Σₜ log πₜ / Σ_{o selected} |o|
    RAFT, arXiv:2304.06767, Algorithm 1 (``select: best`` of the group) and RFT, arXiv:2308.01825 (``select: correct``),
    repeated every step; it is the policy gradient arXiv:2402.03300, eq. 5 with coefficient 1[o selected], its mean over
    all selected tokens.
    The answers that are not selected are dropped, and charged.

    Differs: of equally good best answers all are selected; a best answer must have a reward above 0.
    Differs: RFT samples once from the first policy and keeps distinct equations; this samples from the policy as it is.
    """

    kl_places: ClassVar[frozenset[str]] = frozenset({"none", "loss"})
    lone_winner: ClassVar[tuple[float, float] | None] = (1.0, 0.0)  # selected or not, whatever the reward

    select: Literal["correct", "best"]

    def card(self) -> Card:
        return Card(
            title="RAFT",
            paper="Dong et al. 2023, arXiv:2304.06767, Algorithm 1",
            baseline="none",
            advantage="1 if correct" if self.select == "correct" else "1 if best of the group",
            ratio="none",
            objective="log π of the selected",
        )

    def keep(self, batch: Batch) -> Tensor:
        if self.select == "correct":
            return batch.correct.bool()
        best_PG = batch.rewards.view(-1, batch.group_size)
        worse = best_PG < best_PG.amax(1, keepdim=True) - ops.FLAT
        return ~worse.view(-1) & ~(batch.rewards <= 0)  # so that a NaN is kept, and seen in the loss

    def advantages(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        selected = self.keep(batch)[:, None] * batch.mask
        return (selected if self.select == "correct" else selected + 0 * batch.rewards[:, None]), None

    def token_loss(self, logp: Tensor, batch: Batch, entropy: Tensor | None = None) -> Tensor:
        assert batch.advantages is not None
        return -logp * batch.advantages + self.penalty(logp, batch, entropy)

    def check(self, cfg: Config) -> list[str]:
        warnings = super().check(cfg)
        if self.select == "correct" and set(cfg.reward.parts) != {"correct"}:
            warnings.append(f"reward={cfg.reward.name} is inert: algo.select=correct selects by correctness alone")
        return warnings
