"""A penalty on repeated n-grams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from grpo_bench.rewards.scored import Scored

if TYPE_CHECKING:
    from grpo_bench.config import Config


def repetition(ids: Sequence[int], n: int = 4) -> float:
    """1 − distinct/all n-grams of a completion's tokens; 0 for one shorter than n."""
    grams = list(zip(*(ids[i:] for i in range(n)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def part(rows: Scored, cfg: Config) -> list[float]:
    """penalty · (1 − distinct/all n-grams) of the sampled tokens: in [penalty, 0] for a penalty below 0.

    The n-gram penalty of Yeo et al. 2025 (arXiv:2502.03373, appendix C.2) as open-r1 and TRL have it, one number per
    completion. Differs: the paper takes it from each repeated token (n = 40, −0.05); n-grams are of tokens, as there
    and in TRL, where open-r1 splits at spaces.
    """
    knobs = cfg.reward.repetition
    shares = [repetition(ids, knobs.n) for ids in rows.token_ids]
    return [knobs.penalty * share if share else 0.0 for share in shares]  # not -0.0, which a record would show
