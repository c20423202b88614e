"""Several tasks: against the numbers in rliable's own tests, its functions' values, SciPy, and full enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats as sps

from grpo_bench.stats.aggregate import (
    iqm,
    iqm_interval,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
    probability_of_improvement_interval,
)

X = np.array([[0.61, 0.32, 0.80], [0.58, 0.35, 0.77], [0.65, 0.30, 0.81], [0.60, 0.41, 0.79], [0.63, 0.33, 0.74]])
Y = np.array([[0.60, 0.30, 0.78], [0.55, 0.36, 0.80], [0.59, 0.28, 0.75], [0.62, 0.34, 0.74]])


def test_rliable_s_published_example():
    """rliable, tests/rliable/metrics_test.py: IQM 1.5 and 2, probability of improvement 1/3."""
    x, y = np.array([[1, 2], [2, 2], [1, 1], [2, 1]]), np.array([[1, 1], [2, 2], [3, 3]])
    assert iqm(x) == 1.5
    assert iqm(y) == 2
    assert probability_of_improvement(x, y) == pytest.approx(1 / 3)


def test_rliable_1_2_on_accuracies():
    # rliable.metrics: aggregate_iqm(X), (Y), aggregate_optimality_gap(X), probability_of_improvement(X, Y)
    assert iqm(X) == pytest.approx(0.5933333333333333)
    assert iqm(Y) == pytest.approx(0.5766666666666667)
    assert optimality_gap(X) == pytest.approx(0.42066666666666674)
    assert probability_of_improvement(X, Y) == pytest.approx(0.6666666666666666)


def test_iqm_and_improvement_agree_with_scipy():
    rng = np.random.default_rng(0)
    for runs, tasks in ((3, 1), (5, 2), (10, 3), (7, 5)):
        x, y = rng.integers(0, 9, (runs, tasks)) / 8, rng.integers(0, 9, (runs + 1, tasks)) / 8
        assert iqm(x) == pytest.approx(sps.trim_mean(x, 0.25, axis=None))
        by_task = [sps.mannwhitneyu(x[:, t], y[:, t]).statistic / (runs * (runs + 1)) for t in range(tasks)]
        assert probability_of_improvement(x, y) == pytest.approx(np.mean(by_task))
        assert probability_of_improvement(y, x) == pytest.approx(1 - np.mean(by_task))


def test_iqm_ignores_a_run_that_collapsed():
    fell = X.copy()
    fell[0, 1] = 0.0
    assert iqm(fell) == pytest.approx(iqm(X))
    assert fell.mean() < X.mean() - 0.02


def test_performance_profile_by_hand():
    # of 15 scores, above 0.30: all but one that equals it; above 0.34: 12 of them (0.35 and 0.41 count); …
    assert performance_profile(X, [0.30, 0.34, 0.60, 0.78]) == pytest.approx([14 / 15, 12 / 15, 8 / 15, 3 / 15])
    assert performance_profile(X, [0.0, 1.0]) == pytest.approx([1, 0])


def test_intervals_are_those_of_all_redraws():
    """Two runs of two tasks have 2² · 2² equally likely redraws, whose spread and ends are known."""
    x = np.array([[0.2, 0.5], [0.4, 0.9]])
    redraws = [[x[i, 0], x[j, 0], x[k, 1], x[m, 1]] for i, j, k, m in itertools.product((0, 1), repeat=4)]
    means = np.sort(redraws, axis=1)[:, 1:3].mean(axis=1)  # the middle half of four
    found = iqm_interval(x)
    assert found.se == pytest.approx(means.std(), rel=0.02)
    # each of the 16 has 6 %: the outermost 2.5 % are the ends
    assert (found.low, found.high) == pytest.approx((means.min(), means.max()))
    assert found.n == 2


def test_runs_are_redrawn_within_their_task():
    """Tasks differ far more than runs: mixing them up would make the interval many times as wide."""
    x = np.array([[0.10, 0.90], [0.12, 0.92], [0.11, 0.91], [0.09, 0.89]])
    found = iqm_interval(x, reps=2000)
    assert found.high - found.low < 0.05
    assert found.low <= iqm(x) <= found.high


def test_the_interval_of_an_improvement():
    found = probability_of_improvement_interval(X, Y)
    assert found == probability_of_improvement_interval(X, Y)
    assert 0 <= found.low < found.estimate < found.high <= 1
    certain = probability_of_improvement_interval(X + 1, Y)
    assert (certain.low, certain.estimate, certain.high) == (1, 1, 1)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="runs, tasks"):
        iqm(np.array([0.1, 0.2]))
    with pytest.raises(ValueError, match="same tasks"):
        probability_of_improvement(X, Y[:, :2])
