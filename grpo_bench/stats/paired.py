"""Tests over paired seeds that the verdict is made of: exact sign flips, two one-sided t tests, Holm's correction.

And the ratio of two spreads, which no verdict rests on."""

from __future__ import annotations

import math

import numpy as np
from scipy import special

from grpo_bench.stats.intervals import Floats, Interval, mean_t_interval


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


def sd_ratio(xs: Floats, ys: Floats, level: float = 0.95) -> Interval:
    """Standard deviation of x over that of y, paired units (the same seeds), with the interval of Pitman and Morgan
    (1939): sums and differences of pairs with equal variances are uncorrelated. Exact for normal values; ``p`` is of
    "they are equal", ``se`` is not defined (NaN).

    NaN bounds for fewer than 3 pairs or where the pairs leave nothing to estimate from (perfectly correlated). Raises
    ValueError for unequally many values and where one side does not vary.
    """
    x, y = np.asarray(xs, dtype=np.float64), np.asarray(ys, dtype=np.float64)
    if x.shape != y.shape:
        raise ValueError(f"pairs need equally many values, not {x.shape} and {y.shape}")
    n = len(x)
    if n < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        raise ValueError("no ratio of spreads: one side does not vary")
    ratio = float(x.std(ddof=1) / y.std(ddof=1))
    apart = 1 - float(np.corrcoef(x, y)[0, 1]) ** 2
    if n < 3 or apart < 1e-12:
        return Interval(ratio, math.nan, math.nan, math.nan, n)
    t = float(special.stdtrit(n - 2, 0.5 + level / 2))
    k = 1 + 2 * apart * t * t / (n - 2)
    spread = math.sqrt(k + math.sqrt(k * k - 1))
    found = abs(ratio**2 - 1) * math.sqrt(n - 2) / (2 * ratio * math.sqrt(apart))
    return Interval(ratio, ratio / spread, ratio * spread, math.nan, n, float(2 * special.stdtr(n - 2, -found)))
