"""Several tasks at once: interquartile mean, probability of improvement, performance profile.

After Agarwal et al. 2021 (arXiv:2108.13264). Scores are (runs, tasks), accuracies as fractions here; intervals come
from the stratified bootstrap, which redraws the runs of every task by themselves. With one or two tasks these add
little to the mean with every seed shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from grpo_bench.stats.intervals import Floats, Interval

Array = NDArray[np.float64]


def iqm(scores: Array) -> float:
    """Mean of the middle half of all runs and tasks: ⌊n/4⌋ values are dropped at either end of the n sorted ones."""
    return float(_iqm(_matrix(scores)[None])[0])


def iqm_interval(scores: Array, *, reps: int = 50_000, seed: int = 0, level: float = 0.95) -> Interval:
    """The interquartile mean with its percentile interval; ``n`` counts runs per task."""
    return _stratified((_matrix(scores),), _iqm, reps, seed, level)


def optimality_gap(scores: Array, optimum: float = 1.0) -> float:
    """By how much the mean falls short of ``optimum``, scores above it counting as it."""
    return float(optimum - np.minimum(_matrix(scores), optimum).mean())


def probability_of_improvement(x: Array, y: Array) -> float:
    """P(X > Y) + P(X = Y)/2 of a run of x against a run of y on one task, averaged over tasks; runs may differ in
    number, tasks may not."""
    return float(_improvement(_matrix(x)[None], _matrix(y)[None])[0])


def probability_of_improvement_interval(
    x: Array, y: Array, *, reps: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval:
    """The same with its percentile interval: x's and y's runs are redrawn by themselves. 0.5 is no improvement."""
    return _stratified((_matrix(x), _matrix(y)), _improvement, reps, seed, level)


def performance_profile(scores: Array, thresholds: Floats) -> Array:
    """(thresholds,) share of runs above each threshold, averaged over tasks: the tail distribution of the scores."""
    found = _profile(_matrix(scores)[None], np.asarray(thresholds, dtype=np.float64))[0]
    return np.asarray(found)


def _iqm(scores: Array) -> Array:
    """(reps,) from (reps, runs, tasks)."""
    flat = np.sort(scores.reshape(len(scores), -1), axis=1)
    cut = flat.shape[1] // 4
    return np.asarray(flat[:, cut : flat.shape[1] - cut].mean(axis=1))


def _improvement(x: Array, y: Array) -> Array:
    """(reps,) from (reps, runs, tasks) twice."""
    if x.shape[2] != y.shape[2]:
        raise ValueError(f"both sides need the same tasks, not {x.shape[2]} and {y.shape[2]}")
    ahead = x[:, :, None, :] - y[:, None, :, :]
    return np.asarray(((ahead > 0) + 0.5 * (ahead == 0)).mean(axis=(1, 2, 3)))


def _profile(scores: Array, thresholds: Array) -> Array:
    """(reps, thresholds) from (reps, runs, tasks)."""
    return np.stack([(scores > tau).mean(axis=(1, 2)) for tau in thresholds], axis=1)


def _stratified(
    matrices: tuple[Array, ...], statistic: Callable[..., Array], reps: int, seed: int, level: float
) -> Interval:
    draws = np.concatenate([statistic(*some) for some in _redrawn(matrices, reps, seed)])
    low, high = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2])
    estimate = float(statistic(*(matrix[None] for matrix in matrices))[0])
    return Interval(estimate, float(low), float(high), float(draws.std(ddof=1)), len(matrices[0]))


def _redrawn(matrices: tuple[Array, ...], reps: int, seed: int) -> Iterator[tuple[Array, ...]]:
    """Chunks of (reps, runs, tasks) for every matrix, runs drawn with replacement within each task."""
    rng = np.random.default_rng(seed)
    largest = max(matrix.size for matrix in matrices) * max(len(matrix) for matrix in matrices)
    step = max(1, 2_000_000 // largest)
    for start in range(0, reps, step):
        size = min(step, reps - start)
        drawn = []
        for matrix in matrices:
            runs, tasks = matrix.shape
            chosen = rng.integers(runs, size=(size, runs, tasks))
            drawn.append(np.take_along_axis(matrix[None], chosen, axis=1))
        yield tuple(drawn)


def _matrix(scores: Array) -> Array:
    found = np.asarray(scores, dtype=np.float64)
    if found.ndim != 2 or not found.size:
        raise ValueError(f"scores are (runs, tasks), not {found.shape}")
    return found
