"""Intervals over seeds and over problems: plain arrays in, one small record out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special  # not scipy.stats, which takes a second to load

Floats = Sequence[float] | NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its confidence interval; ``n`` counts the units it varies over.

    ``se`` is the standard error, ``p`` the two-sided p-value of "the estimate is 0" (None where that is no question).
    Where the units do not determine an interval (n < 2), ``low`` and ``high`` are NaN.
    """

    estimate: float
    low: float
    high: float
    se: float
    n: int
    p: float | None = None

    @property
    def known(self) -> bool:
        return not math.isnan(self.low)

    @property
    def excludes_zero(self) -> bool:
        return self.known and (self.low > 0 or self.high < 0)


def wilson(k: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Score interval of a proportion k/n (Wilson 1927); inside [0, 1] and sane at k = 0 and k = n.

    ``k`` and ``n`` may be fractional: an effective sample size takes the place of the count where items are averages
    (Dean & Pagano 2015 do so for clustered samples). Raises ValueError unless 0 <= k <= n and n > 0.
    """
    if not (n > 0 and -1e-9 <= k <= n + 1e-9):
        raise ValueError(f"no proportion: k={k}, n={n}")
    z = float(special.ndtri(0.5 + level / 2))
    p = min(max(k / n, 0.0), 1.0)
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # at p = 0 and 1 centre and half are equal but for rounding: the bound is then exactly 0 or 1
    low = 0.0 if p == 0 else max(0.0, (centre - half) / scale)
    high = 1.0 if p == 1 else min(1.0, (centre + half) / scale)
    return low, high


def mean_t_interval(xs: Floats, level: float = 0.95) -> Interval:
    """Mean of independent units (seeds) with Student's t interval: mean ± t · sd/√n, sd with ddof 1, n − 1 df."""
    x = np.asarray(xs, dtype=np.float64)
    n = len(x)
    if n == 0:
        raise ValueError("the mean of no values")
    mean = float(x.mean())
    if n < 2:
        return Interval(mean, math.nan, math.nan, math.nan, n)
    # equal values leave rounding noise in the sd, which would turn into an absurdly small p
    se = 0.0 if np.ptp(x) == 0 else float(x.std(ddof=1) / math.sqrt(n))
    half = float(special.stdtrit(n - 1, 0.5 + level / 2)) * se
    p = float(2 * special.stdtr(n - 1, -abs(mean) / se)) if se > 0 else float(mean == 0)
    return Interval(mean, mean - half, mean + half, se, n, p)


def paired_t(xs: Floats, ys: Floats, level: float = 0.95) -> Interval:
    """Mean of x − y over paired units (the same seeds) with the paired t interval and p-value."""
    x, y = np.asarray(xs, dtype=np.float64), np.asarray(ys, dtype=np.float64)
    if x.shape != y.shape:
        raise ValueError(f"pairs need equally many values, not {x.shape} and {y.shape}")
    return mean_t_interval(x - y, level)


def proportion(scores: NDArray[np.float64], level: float = 0.95) -> Interval:
    """Accuracy over problems: ``scores`` (problems,) in [0, 1], each a 0/1 or a mean over seeds or samples.

    The Wilson interval with the effective sample size p(1 − p)/se², se² = var(scores)/n: exactly Wilson's for 0/1
    scores, narrower for averages, and never narrower than the number of problems allows at p = 0 or 1.
    """
    n = len(scores)
    if n == 0:
        raise ValueError("the accuracy of no problems")
    p = float(scores.mean())
    variance = float(scores.var()) / n  # ddof 0: then 0/1 scores give p(1 − p)/n, and so Wilson's own interval
    effective = n if p in (0.0, 1.0) or variance == 0 else p * (1 - p) / variance
    low, high = wilson(p * effective, effective, level)
    return Interval(p, low, high, math.sqrt(variance), n)


def paired_problems(a: NDArray[np.float64], b: NDArray[np.float64], level: float = 0.95) -> Interval:
    """Mean of a − b over the same problems; ``a``, ``b`` (problems,) or (seeds, problems), averaged over seeds first.

    Averaging first keeps the problem the unit: seeds of one problem are not independent problems. The estimate is the
    plain mean; interval and p are the adjusted Wald ones of Bonett & Price 2012, which count one more problem won and
    one more lost: two models that answer all n problems alike still differ by up to about 2.8/n, not by exactly 0.
    """
    first, second = (np.atleast_2d(np.asarray(x, dtype=np.float64)).mean(axis=0) for x in (a, b))
    if first.shape != second.shape or not len(first):
        raise ValueError(f"pairs need equally many problems, not {first.shape} and {second.shape}")
    padded = np.concatenate([first - second, [1.0, -1.0]])
    centre, se = float(padded.mean()), float(padded.std() / math.sqrt(len(padded)))
    half = float(special.ndtri(0.5 + level / 2)) * se
    p = float(2 * special.ndtr(-abs(centre) / se))
    return Interval(
        float((first - second).mean()), max(centre - half, -1.0), min(centre + half, 1.0), se, len(first), p
    )
