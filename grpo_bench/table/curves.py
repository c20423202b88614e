"""Numbers read off a run's learning curve: its area, its height after a share of the samples, when it meets a target.

Curves are piecewise linear between evaluations. A run that was stopped (diverged) is held at its last height to where
whole runs of its row end: its short life must not look like a short way.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from grpo_bench.records import Run, training_clock
from grpo_bench.stats.curves import Reached, area_under, on_grid, reach
from grpo_bench.table.arms import Arm, mean_of
from grpo_bench.table.pairs import budget

DEV = "eval/dev/greedy/acc"
LAST_EVALS = 3  # whose mean is where a run ends on dev
SHARE = 0.75  # of the way up that the target stands at


@dataclass(frozen=True, slots=True)
class Target:
    """A dev accuracy: three quarters of the way from where runs begin to where the best row ends."""

    accuracy: float
    start: float
    end: float
    best: str

    @property
    def words(self) -> str:
        return (
            f"target: dev accuracy {100 * self.accuracy:.1f} %, {100 * SHARE:.0f} % of the way from "
            f"{100 * self.start:.1f} % before RL to {100 * self.end:.1f} %, where {self.best} ends"
        )


def curve(
    run: Run, key: str, axis: str = "samples", least: int = 2
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """(x, y) of a metric against a counter of metrics.jsonl, or against "seconds" of training; None with fewer than
    ``least`` points. Steps that added nothing to the axis count with their last value."""
    clock = training_clock(run) if axis == "seconds" else {}
    known: dict[float, float] = {}
    for row in run.metrics:
        x = clock.get(int(row["step"])) if axis == "seconds" else row.get(axis)
        if isinstance(row.get(key), int | float) and math.isfinite(row[key]) and x is not None:
            known[float(x)] = float(row[key])
    if len(known) < least:
        return None
    places = sorted(known)
    return np.array(places), np.array([known[x] for x in places])


def whole_end(arms: Sequence[Arm], run: Run, key: str, axis: str = "samples") -> float | None:
    """Where the curve of a diverged ``run`` would have ended: the mean end of its row's complete runs, without any the
    furthest one of the same budget; None for other runs, and where there is nothing to go by."""
    if run.status != "diverged":
        return None

    def ends(runs: Iterable[Run]) -> list[float]:
        whole = [one for one in runs if one.status == "complete"]
        return [float(found[0][-1]) for one in whole if (found := curve(one, key, axis)) is not None]

    own = next((arm for arm in arms if any(one.run_id == run.run_id for one in arm.runs)), None)
    if own is not None and (found := ends(own.runs)):
        return float(np.mean(found))
    return max(ends(one for arm in arms for one in arm.runs if budget(one) == budget(run)), default=None)


def area(run: Run, key: str, until: float | None = None) -> float | None:
    """Mean height of the curve over the samples that it spans, or to ``until``, by trapezoids."""
    found = curve(run, key, least=2 if until is None else 1)
    if found is None:
        return None
    return area_under(*found, until=None if until is None else max(until, found[0][-1]))


def area_to(run: Run, key: str, axis: str, place: float) -> float | None:
    """The same up to ``place`` on any axis; a curve that ends before is held at its last height, that of a run stopped
    after its first look too."""
    found = curve(run, key, axis, least=1 if run.status == "diverged" else 2)
    return None if found is None or place < found[0][0] else area_under(*found, until=place)


def common_end(arms: Sequence[Arm], key: str, axis: str) -> float | None:
    """The furthest place that the curves of all complete runs reach; None where there is no curve."""
    whole = [run for arm in arms for run in arm.runs if run.status == "complete"]
    return min((float(found[0][-1]) for run in whole if (found := curve(run, key, axis)) is not None), default=None)


def end(run: Run) -> float | None:
    """Dev accuracy that a run ends with: the mean of its last evaluations (the first, before any step, left out)."""
    values = [row[DEV] for row in run.metrics if isinstance(row.get(DEV), int | float) and row.get("step")]
    return mean_of(values[-LAST_EVALS:], skip=True)


def start(run: Run) -> float | None:
    """Dev accuracy before the first step."""
    return next((float(row[DEV]) for row in run.metrics if row.get("step") == 0 and row.get(DEV) is not None), None)


def value_at(run: Run, key: str, share: float, until: float | None = None) -> float | None:
    """Height after ``share`` of the run's samples, or of ``until``; on dev, where it ends is the mean of its last
    evaluations."""
    found = curve(run, key)
    if found is None:
        return None
    if share >= 1 and key == DEV:
        return end(run)
    x, y = found
    place = share * (x[-1] if until is None else max(until, x[-1]))
    return float(on_grid(x, y, [max(place, x[0])])[0])


def target(arms: Sequence[Arm]) -> Target | None:
    """Three quarters of the way from the mean dev accuracy before RL to the highest mean that a row ends with; None
    where dev was not evaluated, or nothing rose."""
    starts = [value for arm in arms for run in arm.scored if (value := start(run)) is not None]
    ends = {arm.label: mean_of([end(run) for run in arm.scored], skip=True) for arm in arms}
    known = {label: value for label, value in ends.items() if value is not None}
    if not starts or not known:
        return None
    best = max(known, key=lambda label: known[label])
    low, high = float(np.mean(starts)), known[best]
    return Target(low + SHARE * (high - low), low, high, best) if high > low else None


def reached(run: Run, accuracy: float, axis: str, until: float | None = None) -> Reached | None:
    """Where the dev curve first comes to ``accuracy``, or that it never did by its end, a stopped run's by ``until``;
    None without a curve."""
    found = curve(run, DEV, axis, least=2 if until is None else 1)
    if found is None:
        return None
    met = reach(*found, accuracy)
    return met if until is None or not met.censored else Reached(None, max(until, met.until))
