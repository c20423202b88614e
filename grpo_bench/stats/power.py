"""What so many seeds could have found: the minimum detectable effect of the paired t test."""

from __future__ import annotations

import math

from scipy import special


def minimum_detectable_effect(sd: float, n: int, alpha: float = 0.05, target: float = 0.8) -> float:
    """The true difference that the paired t test over n seeds finds with probability ``target``, by the
    noncentral t distribution's upper tail (rejecting in the wrong direction is no success).

    In the unit of ``sd``, the standard deviation of the paired differences (ddof 1). Computed from an estimated sd it
    is an estimate itself: it describes the design and is no evidence for or against a difference. Raises ValueError
    for fewer than 2 seeds.
    """
    if n < 2:
        raise ValueError("no effect is detectable with fewer than 2 seeds")
    critical = float(special.stdtrit(n - 1, 1 - alpha / 2))
    return sd * float(special.nctdtrinc(n - 1, 1 - target, critical)) / math.sqrt(n)
