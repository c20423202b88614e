"""Where two trained models disagree on the same problems, seed by seed: McNemar's exact test.

One seed's test holds for its two trained models only. Seeds are never pooled into one table: the problems of ten seeds
are the same problems ten times, and pooling them makes p-values orders of magnitude too small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special


@dataclass(frozen=True, slots=True)
class Discordance:
    """One seed's 2 × 2 table of problems and the exact p-value of "each wins as often as the other"."""

    seed: int
    both: int
    first_only: int
    second_only: int
    neither: int
    p: float

    @property
    def problems(self) -> int:
        return self.both + self.first_only + self.second_only + self.neither


def mcnemar(b: int, c: int) -> float:
    """Exact two-sided McNemar p-value; b problems only the first solved, c only the second. 1.0 without discordance."""
    return min(1.0, 2 * float(special.bdtr(min(b, c), b + c, 0.5)))


def by_seed(a: NDArray[np.float64], b: NDArray[np.float64], seeds: Sequence[int]) -> list[Discordance]:
    """One table per seed from right and wrong answers ``a``, ``b`` (seeds, problems) of 0 and 1.

    Raises ValueError where the shapes differ, or a score is neither 0 nor 1: an average over samples is no answer.
    """
    first, second = np.atleast_2d(a), np.atleast_2d(b)
    if first.shape != second.shape or len(first) != len(seeds):
        raise ValueError(f"pairs need equally many seeds and problems, not {first.shape} and {second.shape}")
    if not (np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all()):
        raise ValueError("McNemar's test needs answers that are right or wrong, not averages")
    found = []
    for seed, x, y in zip(seeds, first.astype(bool), second.astype(bool), strict=True):
        one, other = int((x & ~y).sum()), int((~x & y).sum())
        found.append(Discordance(seed, int((x & y).sum()), one, other, int((~x & ~y).sum()), mcnemar(one, other)))
    return found
