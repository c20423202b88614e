"""Whether paired seeds support a claim: direction and size, by intervals that hold for all claims of a table at once.

The rule, the same for every claim: *supported* when the interval lies wholly where the claim says, *contradicted* when
it lies wholly elsewhere, else *not established*; fewer than five seeds are *descriptive*. The intervals are Student's t
over seeds at level 1 − 0.05/family (Bonferroni over the claims of the table); for "equal" and "flat" those of two
one-sided tests, level 1 − 0.10/family, within the margin.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from grpo_bench.stats import SEEDS_FOR_VERDICT, Interval, mean_t_interval
from grpo_bench.stats.verdict import ROUNDING

Outcome = Literal["supported", "contradicted", "not established", "descriptive", "not comparable", "not tested here"]
Expect = Literal["greater", "less", "equal", "increasing", "decreasing", "flat"]
ALPHA = 0.05


@dataclass(frozen=True, slots=True)
class Claim:
    """``expect`` of the first row against the second, or along the rows. ``at_least`` and ``at_most`` bound the size of
    the difference in the claimed direction (second − first of "less"), or the ratio itself (first over second); of a
    list, of its last against its first. Of "equal" and "flat" ``at_most`` is the margin: a difference, or a ratio
    above 1. ``interaction``: of four rows, what is claimed is of (first − second) against (third − fourth), of ratios
    (first / second) against (third / fourth)."""

    expect: Expect
    scale: Literal["difference", "ratio"] = "difference"
    at_least: float | None = None
    at_most: float | None = None
    interaction: bool = False


@dataclass(frozen=True, slots=True)
class Judgement:
    """``interval`` is the plain 95 % one of what the table prints: first − second, last − first of a list, or between
    two differences; of a ratio it is the ratio itself, NaN where there is none. ``simultaneous`` is the one that
    decides. ``why``: "" where nothing is to be added."""

    outcome: Outcome
    interval: Interval
    simultaneous: Interval
    n: int
    why: str = ""


def judge(rows: Sequence[Sequence[float]], claim: Claim, *, family: int = 1, counted: bool = False) -> Judgement:
    """Judge ``claim`` on ``rows``: (rows, seeds) values, paired by seed, at least two rows (four of an interaction) and
    one seed.

    ``counted``: shares of counted problems, where a difference other than 0 that is equal in every seed is chance and
    leaves no spread to judge by, while 0 in every seed is a setting without effect, as in ``stats.verdicts``; other
    measures that do not vary (parameters, a clip that never acts) are exact.
    """
    values = np.asarray(rows, dtype=np.float64)
    level = 1 - ALPHA / family
    positive = bool((values > 0).all())
    if claim.scale == "ratio" and positive:
        values = np.log(values)
    if claim.interaction:
        values = values[[0, 2]] - values[[1, 3]]
    ends = (0, 1) if len(values) == 2 else (len(values) - 1, 0)
    few = values.shape[1] < SEEDS_FOR_VERDICT
    if claim.scale == "ratio" and not positive:
        none = Interval(math.nan, math.nan, math.nan, math.nan, values.shape[1])  # a difference would read as a ratio
        outcome = "descriptive" if few else "not established"
        return Judgement(outcome, none, none, values.shape[1], "a value is not above 0: no ratio")  # type: ignore[arg-type]
    difference = values[ends[0]] - values[ends[1]]
    plain, strict = (_interval(difference, at, counted) for at in (0.95, level))
    if few:
        outcome, why = "descriptive", ""
    elif not strict.known:
        outcome, why = "not established", "equal in every seed, so there is no spread to judge by"
    elif claim.expect in ("equal", "flat"):
        outcome, why = _same(values, claim, family, counted)
    else:
        outcome, why = _directed(strict, claim)
        if len(values) > 2:
            outcome, why = _trend(values, claim, family, counted, (outcome, why))
    if claim.scale == "ratio":
        plain, strict = (_exp(interval) for interval in (plain, strict))
    return Judgement(outcome, plain, strict, values.shape[1], why)  # type: ignore[arg-type]


def _directed(interval: Interval, claim: Claim) -> tuple[str, str]:
    """The interval of a difference (of logarithms, for a ratio) against the claimed direction and size."""
    low, high = interval.low, interval.high
    downwards = claim.expect in ("less", "decreasing")
    if claim.scale == "ratio":
        least = -math.inf if claim.at_least is None else math.log(claim.at_least)
        most = math.inf if claim.at_most is None else math.log(claim.at_most)
        toward = high < 0 if downwards else low > 0
        away = low > 0 if downwards else high < 0
    else:
        if downwards:
            low, high = -high, -low
        least = -math.inf if claim.at_least is None else claim.at_least
        most = math.inf if claim.at_most is None else claim.at_most
        toward = low > 0 or (claim.at_least is not None and claim.at_least <= 0)
        away = high < 0 and (claim.at_least is None or claim.at_least >= 0)
    if toward and low >= least and high <= most:
        return "supported", ""
    if away:
        return "contradicted", ""
    if high < least or low > most:
        return "contradicted", "in the direction claimed, but of another size" if toward else ""
    return "not established", "in the direction claimed, its size open" if toward else ""


def _same(values: NDArray[np.float64], claim: Claim, family: int, counted: bool) -> tuple[str, str]:
    """Every pair of rows within the margin; all must hold, so their number needs no correction of its own."""
    if claim.at_most is None:
        return "not established", "no margin was declared"
    margin = math.log(claim.at_most) if claim.scale == "ratio" else claim.at_most
    pairs = list(itertools.combinations(values, 2))
    inside = [_interval(a - b, 1 - 2 * ALPHA / family, counted) for a, b in pairs]
    if all(i.known and -margin < i.low and i.high < margin for i in inside):
        return "supported", ""
    outside = [_interval(a - b, 1 - ALPHA / family / len(pairs), counted) for a, b in pairs]
    if any(i.known and (i.low > margin or i.high < -margin) for i in outside):
        return "contradicted", "they differ by more than the margin"
    apart = any(i.excludes_zero for i in outside)
    return "not established", "they differ, perhaps by less than the margin" if apart else ""


def _trend(
    values: NDArray[np.float64], claim: Claim, family: int, counted: bool, ends: tuple[str, str]
) -> tuple[str, str]:
    """The linear trend over the rows decides with the ends; means that turn on the way leave it open, a step that turns
    beyond chance contradicts it."""
    sign = -1 if claim.expect == "decreasing" else 1
    weights = np.arange(len(values)) - (len(values) - 1) / 2
    slope = _interval(sign * weights @ values, 1 - ALPHA / family, counted)
    steps = sign * np.diff(values, axis=0)
    level = 1 - ALPHA / family / len(steps)
    if any((i := _interval(step, level, counted)).known and i.high < 0 for step in steps):
        return "contradicted", "it turns on the way"
    if slope.known and slope.high < 0:
        return "contradicted", ""
    if ends[0] != "supported":
        return ends
    if not (slope.known and slope.low > 0):
        return "not established", ""
    if (steps.mean(axis=1) < 0).any():
        return "not established", "the ends differ as claimed, but the means turn on the way"
    return "supported", ""


def _interval(differences: NDArray[np.float64], level: float, counted: bool) -> Interval:
    # 0.1 + 0.2 − 0.3 is no difference, and its rounding noise no spread
    rounded = np.where(np.abs(differences) < ROUNDING, 0.0, differences) if counted else differences
    found = mean_t_interval(rounded, level)
    if counted and found.estimate != 0 and np.ptp(differences) <= ROUNDING:
        return Interval(found.estimate, math.nan, math.nan, math.nan, found.n)
    return found


def _exp(interval: Interval) -> Interval:
    """A ratio's interval from its logarithm's: the ratio of geometric means over seeds."""
    bounds = [math.exp(x) if math.isfinite(x) else x for x in (interval.estimate, interval.low, interval.high)]
    return replace(interval, estimate=bounds[0], low=bounds[1], high=bounds[2])
