"""Bootstrap over seeds and problems at once, which are crossed: every seed meets the same problems.

Each repetition draws seeds and problems independently, with replacement (the pigeonhole bootstrap of Owen 2007). Its
variance counts the part that seeds and problems share up to three times, so its intervals err on the wide side, except
that the percentile interval of fewer than about ten seeds is too narrow where seeds are what varies.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from grpo_bench.stats.intervals import Interval

Array = NDArray[np.float64]
_CHUNK = 4_000_000  # numbers held at once: the counts of all repetitions of a large test set would not fit


def bootstrap_two_level(a: Array, b: Array, *, reps: int = 2000, seed: int = 0, level: float = 0.95) -> Interval:
    """Percentile interval of the mean of a − b, ``a`` and ``b`` (seeds, problems), both levels redrawn.

    Deterministic given ``seed``. Raises ValueError where the shapes differ or nothing is there.
    """
    difference = _same(a, b)
    draws = _draws(difference[:, None, :], reps, seed)[:, 0]
    low, high = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(float(difference.mean()), float(low), float(high), float(draws.std(ddof=1)), len(difference))


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


def _same(a: Array, b: Array) -> Array:
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape or not first.size:
        raise ValueError(f"pairs need equally many seeds and problems, not {first.shape} and {second.shape}")
    return np.asarray(first - second)
