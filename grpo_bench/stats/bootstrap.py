"""Bootstrap over seeds and problems at once, which are crossed: every seed meets the same problems.

Each repetition draws seeds and problems independently, with replacement (the pigeonhole bootstrap of Owen 2007). Its
variance counts the part that seeds and problems share up to three times, so its intervals err on the wide side, except
that the percentile interval of fewer than about ten seeds is too narrow where seeds are what varies.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from grpo_bench.stats.intervals import Interval

Array = NDArray[np.float64]
_CHUNK = 4_000_000  # numbers held at once: the counts of all repetitions of a large test set would not fit


@dataclass(frozen=True, slots=True)
class Band:
    """A curve with pointwise intervals, (points,) each; ``area`` is its mean height with an interval of its own,
    from the same repetitions (points of one curve move together, so it is narrower than the band)."""

    estimate: Array
    low: Array
    high: Array
    area: Interval


def bootstrap_two_level(a: Array, b: Array, *, reps: int = 2000, seed: int = 0, level: float = 0.95) -> Interval:
    """Percentile interval of the mean of a − b, ``a`` and ``b`` (seeds, problems), both levels redrawn.

    Deterministic given ``seed``. Raises ValueError where the shapes differ or nothing is there.
    """
    difference = _same(a, b)
    draws = _draws(difference[:, None, :], reps, seed)[:, 0]
    low, high = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(float(difference.mean()), float(low), float(high), float(draws.std(ddof=1)), len(difference))


def curve_band(
    scores: Array, other: Array | None = None, *, at: Array | None = None, reps: int = 2000, seed: int = 0,
    level: float = 0.95,
) -> Band:  # fmt: skip
    """Learning curve with a two-level band: ``scores`` (seeds, points, problems), or its paired difference to
    ``other``.

    A repetition redraws seeds and problems once for the whole curve, so that its points stay together. ``at`` (points,)
    are the positions on the axis that ``area`` is taken over by trapezoids; without it the points count alike.
    Deterministic given ``seed``. Raises ValueError where the shapes differ or nothing is there.
    """
    values = np.asarray(scores, dtype=np.float64) if other is None else _same(scores, other)
    if values.ndim != 3 or not values.size:
        raise ValueError(f"a curve's scores are (seeds, points, problems), not {values.shape}")
    draws, means = _draws(values, reps, seed), values.mean(axis=(0, 2))
    weights = _trapezoids(np.asarray(range(values.shape[1]) if at is None else at, dtype=np.float64))
    edges = [0.5 - level / 2, 0.5 + level / 2]
    low, high = np.quantile(draws, edges, axis=0)
    areas = draws @ weights
    ends = np.quantile(areas, edges)
    area = Interval(float(means @ weights), float(ends[0]), float(ends[1]), float(areas.std(ddof=1)), len(values))
    return Band(means, low, high, area)


def _draws(values: Array, reps: int, seed: int) -> Array:
    """(reps, points) means of ``values`` (seeds, points, problems) over redrawn seeds and problems."""
    seeds, points, problems = values.shape
    rng = np.random.default_rng(seed)
    draws = np.empty((reps, points))
    step = min(500, max(1, _CHUNK // (problems * (points + 1))))
    for start in range(0, reps, step):
        size = min(step, reps - start)
        weighted = np.tensordot(_redrawn(rng, size, seeds), values, axes=1)
        draws[start : start + size] = np.einsum("rtn,rn->rt", weighted, _redrawn(rng, size, problems))
    return draws / (seeds * problems)


def _redrawn(rng: np.random.Generator, reps: int, n: int) -> Array:
    """(reps, n) how often each of n units is drawn in n draws with replacement (multinomial is five times as slow)."""
    drawn = rng.integers(n, size=(reps, n)) + n * np.arange(reps)[:, None]
    return np.bincount(drawn.ravel(), minlength=reps * n).reshape(reps, n).astype(np.float64)


def _trapezoids(at: Array) -> Array:
    """Weights (points,) that turn heights into the mean height over the axis; they sum to 1."""
    if len(at) == 1:
        return np.ones(1)
    gaps = np.diff(at)
    if not (gaps > 0).all():
        raise ValueError("the positions of a curve's points must increase")
    weights = np.zeros(len(at))
    weights[:-1] += gaps / 2
    weights[1:] += gaps / 2
    return np.asarray(weights / gaps.sum())


def _same(a: Array, b: Array) -> Array:
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape or not first.size:
        raise ValueError(f"pairs need equally many seeds and problems, not {first.shape} and {second.shape}")
    return np.asarray(first - second)
