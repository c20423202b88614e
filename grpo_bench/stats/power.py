"""What so many seeds could have found: power of the paired t test and the minimum detectable effect."""

from __future__ import annotations

import math

from scipy import special


def power(effect: float, sd: float, n: int, alpha: float = 0.05) -> float:
    """Probability that the two-sided paired t test over n seeds at ``alpha`` rejects 0 in the direction of the truth,
    when the true mean difference is ``effect`` and the differences have standard deviation ``sd``.

    The noncentral t distribution's upper tail; rejecting in the wrong direction is no success. ``effect`` and ``sd``
    share a unit. Raises ValueError for fewer than 2 seeds or an sd that is not above 0.
    """
    if n < 2 or not sd > 0:
        raise ValueError(f"no power without spread and two seeds: sd={sd}, n={n}")
    critical = float(special.stdtrit(n - 1, 1 - alpha / 2))
    return 1 - float(special.nctdtr(n - 1, abs(effect) / sd * math.sqrt(n), critical))


def minimum_detectable_effect(sd: float, n: int, alpha: float = 0.05, target: float = 0.8) -> float:
    """The true difference that the paired t test over n seeds finds with probability ``target``; the inverse of
    ``power``.

    In the unit of ``sd``, the standard deviation of the paired differences (ddof 1). Computed from an estimated sd it
    is an estimate itself: it describes the design and is no evidence for or against a difference. Raises ValueError
    for fewer than 2 seeds.
    """
    if n < 2:
        raise ValueError("no effect is detectable with fewer than 2 seeds")
    critical = float(special.stdtrit(n - 1, 1 - alpha / 2))
    return sd * float(special.nctdtrinc(n - 1, 1 - target, critical)) / math.sqrt(n)
