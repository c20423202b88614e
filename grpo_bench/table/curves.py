"""Numbers read off a run's learning curve: its area, its height after a share of the samples, when it meets a target.

Curves are piecewise linear between evaluations. A target is reached at the first crossing, which noise on a small dev
set can only bring forward, for every row alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from grpo_bench.records import Run
from grpo_bench.table.arms import Arm, mean_of
from grpo_bench.table.pairs import TRAINING

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


def curve(run: Run, key: str, axis: str = "samples") -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """(x, y) of a metric against a counter of metrics.jsonl, or against "seconds" of training; None without two."""
    clock = _clock(run) if axis == "seconds" else {}
    points = [
        (clock.get(int(row["step"])) if axis == "seconds" else row.get(axis), row[key])
        for row in run.metrics
        if isinstance(row.get(key), int | float)
    ]
    known = [(float(x), float(y)) for x, y in points if x is not None]
    if len(known) < 2:
        return None
    x, y = np.array(known).T
    return x, y


def area(run: Run, key: str) -> float | None:
    """Mean height of the curve over the samples that it spans, by trapezoids."""
    found = curve(run, key)
    if found is None or found[0][-1] <= found[0][0]:
        return None
    x, y = found
    return float(np.trapezoid(y, x) / (x[-1] - x[0]))


def end(run: Run) -> float | None:
    """Dev accuracy that a run ends with: the mean of its last evaluations (the first, before any step, left out)."""
    values = [row[DEV] for row in run.metrics if isinstance(row.get(DEV), int | float) and row.get("step")]
    return mean_of(values[-LAST_EVALS:], skip=True)


def start(run: Run) -> float | None:
    """Dev accuracy before the first step."""
    return next((float(row[DEV]) for row in run.metrics if row.get("step") == 0 and row.get(DEV) is not None), None)


def value_at(run: Run, key: str, share: float) -> float | None:
    """Height after ``share`` of the run's samples; on dev, where it ends is the mean of its last evaluations."""
    found = curve(run, key)
    if found is None:
        return None
    if share >= 1 and key == DEV:
        return end(run)
    x, y = found
    return float(np.interp(share * x[-1], x, y))


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


def crossing(run: Run, accuracy: float, axis: str) -> float | None:
    """Where the dev curve first reaches ``accuracy``, between evaluations by interpolation.

    A run that never does stands at its whole length: a lower bound, which makes the difference between rows smaller.
    """
    found = curve(run, DEV, axis)
    if found is None:
        return None
    x, y = found
    reached = np.flatnonzero(y >= accuracy)
    if not len(reached):
        return float(x[-1])
    i = int(reached[0])
    if i == 0:
        return float(x[0])
    return float(x[i - 1] + (accuracy - y[i - 1]) / (y[i] - y[i - 1]) * (x[i] - x[i - 1]))


def reaches(run: Run, accuracy: float) -> bool | None:
    """Whether the dev curve comes to ``accuracy``; None without a curve."""
    found = curve(run, DEV)
    return None if found is None else bool((found[1] >= accuracy).any())


def _clock(run: Run) -> dict[int, float]:
    """Seconds of training by step, cumulative; evaluation and checkpoints left out."""
    total, seconds = 0.0, {}
    for row in run.timing:
        phases = row.get("seconds") or {}
        total += sum(float(phases.get(phase) or 0.0) for phase in TRAINING)
        seconds[row["step"]] = total
    return seconds
