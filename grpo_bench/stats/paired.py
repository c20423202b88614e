"""Tests over paired seeds that the verdict is made of: exact sign flips, two one-sided t tests, Holm's correction."""

from __future__ import annotations

import numpy as np
from scipy import special

from grpo_bench.stats.intervals import Floats, mean_t_interval


def sign_flip(differences: Floats) -> float:
    """Exact two-sided sign-flip p-value of the mean of paired differences: the share of the 2^n sign patterns whose
    |mean| is at least the observed one. It cannot go below 2^(1 − n): 0.25 for 3 seeds, 0.0625 for 5.

    Raises ValueError above 20 differences (a million patterns).
    """
    d = np.asarray(differences, dtype=np.float64)
    if not 1 <= len(d) <= 20:
        raise ValueError(f"the exact sign-flip test takes 1 to 20 differences, not {len(d)}")
    sums = np.zeros(1)
    for x in d:
        sums = np.concatenate([sums + x, sums - x])
    return float((np.abs(sums) >= abs(d.sum()) - 1e-12).mean())


def holm(ps: Floats) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given (family-wise error, no assumption on dependence)."""
    p = np.asarray(ps, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return [float(x) for x in adjusted]


def sign_flip_floor(n: int) -> float:
    """The smallest p-value that the exact two-sided sign-flip test can give with n differences: 2^(1 − n)."""
    if n < 1:
        raise ValueError("the sign-flip test of no differences")
    return float(2.0 ** (1 - n))


def tost(differences: Floats, margin: float) -> float:
    """p-value of "the mean difference is at least ``margin`` away from 0", by two one-sided t tests (Schuirmann 1987).

    The larger of the two one-sided p-values; below α exactly where the 1 − 2α t interval lies inside ±margin. Equal
    differences have no spread: 0 or 1 by whether they lie inside. Raises ValueError for fewer than 2 differences or a
    margin that is not above 0.
    """
    if not margin > 0:
        raise ValueError(f"an equivalence margin is above 0, not {margin}")
    found = mean_t_interval(differences)
    if found.n < 2:
        raise ValueError("two one-sided tests need at least 2 differences")
    if found.se == 0:
        return float(abs(found.estimate) >= margin)
    return float(special.stdtr(found.n - 1, (abs(found.estimate) - margin) / found.se))
