"""What a learning curve says in one number: the area under it, and how much it took to reach a target.

A curve is two arrays: positions (samples, tokens or seconds; increasing) and heights (accuracy as a fraction).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from grpo_bench.stats.intervals import Floats


@dataclass(frozen=True, slots=True)
class Reached:
    """Where one run first met the target, ``at``; where it never did, None: censored at ``until``, its last look."""

    at: float | None
    until: float

    @property
    def censored(self) -> bool:
        return self.at is None


@dataclass(frozen=True, slots=True)
class ToTarget:
    """What the seeds of an arm took to a target: ``reached`` of ``n``; ``median`` is None where fewer than half got
    there, since it lies beyond what was looked at; ``until`` is where the earliest censored run was last looked at."""

    median: float | None
    reached: int
    n: int
    until: float | None

    @property
    def words(self) -> str:
        """How many got there, which no number may be shown without: "9 of 10 seeds; 1 not reached by 4,096"."""
        said = f"{self.reached} of {self.n} seed{'s' * (self.n != 1)}"
        missed = self.n - self.reached
        return said if self.until is None else f"{said}; {missed} not reached by {self.until:,.0f}"


def area_under(at: Floats, heights: Floats, until: float | None = None) -> float:
    """Mean height of the curve from its first position to ``until`` (its last one) by trapezoids, in the heights' unit.

    A curve that ends earlier (a diverged run) is held at its last height; one that goes on is cut, so that curves can
    be compared over one range. One point has its own height. Raises ValueError for positions that do not increase,
    heights that are not finite, or an ``until`` before the first position.
    """
    x, y = _curve(at, heights)
    end = float(x[-1]) if until is None else float(until)
    if end < x[0]:
        raise ValueError(f"the curve begins at {x[0]:g}, after {end:g}")
    if end == x[0]:
        return float(y[0])
    inside = x < end
    # np.interp holds the last height beyond the last position
    xs, ys = np.append(x[inside], end), np.append(y[inside], np.interp(end, x, y))
    return float(np.trapezoid(ys, xs) / (end - x[0]))


def on_grid(at: Floats, heights: Floats, grid: Floats) -> np.ndarray:
    """(len(grid),) heights at the grid's positions: straight lines between points, the last height held after the end,
    NaN before the first position (seconds begin at another place for every run). Raises ValueError as ``area_under``.
    """
    x, y = _curve(at, heights)
    where = np.asarray(grid, dtype=np.float64)
    return np.where(where < x[0], np.nan, np.interp(where, x, y))


def reach(at: Floats, heights: Floats, target: float) -> Reached:
    """The first position at which the curve, straight between its points, is at least as high as ``target``.

    Noise can only bring a first crossing forward, more so where evaluations are many: compare curves that were looked
    at alike. Raises ValueError as ``area_under``.
    """
    x, y = _curve(at, heights)
    met = np.flatnonzero(y >= target)
    if not len(met):
        return Reached(None, float(x[-1]))
    i = int(met[0])
    part = (target - y[i - 1]) / (y[i] - y[i - 1]) if i else 1.0
    before = x[i - 1] if i else x[0]
    return Reached(float(before + part * (x[i] - before)), float(x[-1]))


def to_target(runs: Sequence[Reached]) -> ToTarget:
    """The median over seeds, a run that did not get there counting as later than all that did: no mean exists under
    censoring. ValueError without runs."""
    if not runs:
        raise ValueError("the time to a target of no runs")
    times = sorted(math.inf if run.at is None else run.at for run in runs)
    middle = (times[(len(times) - 1) // 2] + times[len(times) // 2]) / 2
    censored = [run.until for run in runs if run.censored]
    return ToTarget(
        middle if math.isfinite(middle) else None, len(runs) - len(censored), len(runs), min(censored, default=None)
    )


def _curve(at: Floats, heights: Floats) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(at, dtype=np.float64), np.asarray(heights, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1 or not len(x):
        raise ValueError(f"a curve has as many heights as positions, and one at least, not {y.shape} and {x.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all() and (np.diff(x) > 0).all()):
        raise ValueError("a curve's positions increase, and its heights are finite")
    return x, y
