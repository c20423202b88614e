"""Learning curves: each run's metrics against samples, tokens and seconds, and their mean and band over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from grpo_bench.records import Run, training_clock
from grpo_bench.series.answers import dev_scores
from grpo_bench.stats import bootstrap_two_level
from grpo_bench.stats.curves import on_grid
from grpo_bench.table.arms import Arm

POINTS = 120  # a curve shows no more; longer runs are averaged over equally many steps each
REPS = 500  # bootstrap repetitions a point: a band's edge is then good to about a fifth of its standard error

AXES = {
    "samples": "training samples",
    "tokens": "tokens generated",
    "seconds": "seconds of training, evaluations left out",
}
_COUNTED = {"samples": "samples", "tokens": "generated_tokens"}  # keys of metrics.jsonl; seconds are in timing.jsonl

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Panel:
    """One curve: ``key`` of metrics.jsonl; ``rare`` ones are there at evaluations only and get markers."""

    key: str
    title: str
    percent: bool = False
    rare: bool = False


ACCURACY = Panel("eval/dev/greedy/acc", "Accuracy on dev, greedy", percent=True, rare=True)
PANELS = (
    ACCURACY,
    Panel("reward/mean", "Reward, mean of a step's samples"),
    Panel("kl/ref_k3_token", "KL to the reference (k3), nats per token"),
    Panel("rollout/entropy", "Entropy, nats per token"),
    Panel("completions/len_mean", "Length, tokens"),
)
MORE = (
    Panel("group/frac_zero_std", "Groups without signal", percent=True),
    Panel("policy/clip_frac", "Tokens beyond the clip", percent=True),
    Panel("policy/grad_norm", "Gradient norm, mean over a step's updates"),
    Panel("value/explained_var", "Variance of returns that the critic explains", percent=True),
    Panel("completions/truncated_frac", "Truncated completions", percent=True),
)


@dataclass(frozen=True)
class SeedCurve:
    """One run: ``x[axis]`` and ``y`` (points,); NaN in ``x`` where that axis was not recorded."""

    seed: int
    steps: NDArray[np.int64]
    x: dict[str, Vector]
    y: Vector
    diverged: bool
    ended: bool


@dataclass(frozen=True)
class Curve:
    """A row's curve (points,): a seed that ended before others (stopped, or its budget spent in fewer steps) is held at
    its last height, since the mean over the rest would jump; one that is not done yet ends the curve.

    ``x`` is the mean over seeds at that step; of a seed that ended it goes on at the pace of the others. The band is
    ``bootstrap``: 95 %, over seeds and dev problems at once (over problems alone with one seed); or ``range``: from the
    lowest to the highest seed.
    """

    x: dict[str, Vector]
    mean: Vector
    low: Vector
    high: Vector
    band: Literal["bootstrap", "range"]
    seeds: list[SeedCurve]


def learning_curves(arms: Sequence[Arm], panels: Sequence[Panel] = PANELS) -> dict[Panel, dict[str, Curve]]:
    """Curves by panel and row label; panels and rows without a single recorded value are left out."""
    found: dict[Panel, dict[str, Curve]] = {}
    clocks = {run.run_id: training_clock(run) for arm in arms for run in arm.runs}
    for panel in panels:
        for arm in arms:
            runs = [run for run in arm.runs if run.metrics]
            seeds = [(run, one) for run in runs if (one := _seed_curve(run, panel, clocks[run.run_id])) is not None]
            if seeds:
                scores = dev_scores([run for run, _ in seeds]) if panel is ACCURACY else {}
                found.setdefault(panel, {})[arm.label] = _over_seeds([one for _, one in seeds], scores)
    return found


def on(curves: dict[str, Curve], axis: str) -> dict[str, Curve]:
    """The rows whose places on ``axis`` were recorded."""
    return {label: curve for label, curve in curves.items() if np.isfinite(curve.x[axis]).all()}


def _seed_curve(run: Run, panel: Panel, clock: dict[int, float]) -> SeedCurve | None:
    rows = [row for row in run.metrics if _number(row.get(panel.key)) and row.get("step") is not None]
    if not rows:
        return None
    steps = np.array([int(row["step"]) for row in rows])
    y = np.array([float(row[panel.key]) for row in rows])
    x = {axis: np.array([_place(row, key) for row in rows]) for axis, key in _COUNTED.items()}
    x["seconds"] = np.array([clock.get(int(step), np.nan) for step in steps])
    return SeedCurve(run.seed, steps, x, y, run.status == "diverged", run.status in ("complete", "diverged"))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and bool(np.isfinite(value))


def _place(row: dict[str, Any], key: str) -> float:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) else float("nan")


def _over_seeds(seeds: list[SeedCurve], scores: dict[int, NDArray[np.float64]]) -> Curve:
    begin = max(int(one.steps[0]) for one in seeds)
    end = min((int(one.steps[-1]) for one in seeds if not one.ended), default=max(int(one.steps[-1]) for one in seeds))
    common = sorted(step for step in set[int]().union(*(one.steps.tolist() for one in seeds)) if begin <= step <= end)
    y = np.stack([on_grid(one.steps.astype(np.float64), one.y, common) for one in seeds])
    x = {axis: _places([(one.steps, one.x[axis]) for one in seeds], common) for axis in AXES}
    if common and all(step in scores for step in common):
        bounds = np.array([_bootstrap(scores[step]) for step in common]).T
        band: Literal["bootstrap", "range"] = "bootstrap"
    else:
        bounds, band = np.stack([y.min(axis=0), y.max(axis=0)]), "range"
    means, (mean, low, high) = _thin(x, (y.mean(axis=0), bounds[0], bounds[1]))
    return Curve(means, mean, low, high, band, [_thin_seed(one) for one in seeds])


def _places(seeds: Sequence[tuple[NDArray[np.int64], Vector]], grid: Sequence[int]) -> Vector:
    """(grid,) mean places on an axis, NaN where a seed has none; beyond a seed's end it moves as the others do."""
    if not grid or any(np.isnan(places).any() for _, places in seeds):
        return np.full(len(grid), np.nan)
    at = np.stack(
        [np.where(np.array(grid) > steps[-1], np.nan, np.interp(grid, steps, places)) for steps, places in seeds]
    )
    return np.asarray(at[:, 0].mean() + np.concatenate([[0.0], np.nanmean(np.diff(at, axis=1), axis=0).cumsum()]))


def _bootstrap(scores: NDArray[np.float64]) -> tuple[float, float]:
    interval = bootstrap_two_level(scores, np.zeros_like(scores), reps=REPS)
    return interval.low, interval.high


def _thin_seed(one: SeedCurve) -> SeedCurve:
    x, (y,) = _thin(one.x, (one.y,))
    return SeedCurve(one.seed, one.steps, x, y, one.diverged, one.ended)


def _thin(x: dict[str, Vector], several: tuple[Vector, ...]) -> tuple[dict[str, Vector], tuple[Vector, ...]]:
    if len(several[0]) <= POINTS:
        return x, several
    parts = np.array_split(np.arange(len(several[0])), POINTS)
    mean = lambda values: np.array([values[part].mean() for part in parts])  # noqa: E731
    return {axis: mean(places) for axis, places in x.items()}, tuple(mean(values) for values in several)
