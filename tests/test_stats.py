"""Intervals and tests against arithmetic done by hand and against scipy."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats as sps

from grpo_bench import stats


def test_wilson_by_hand():
    # k = 8, n = 10, z = 1.95996: p = 0.8, z²/n = 0.384146, scale 1.384146
    # centre 0.8 + 0.192073 = 0.992073; half 1.95996 * sqrt(0.016 + 0.00960365) = 0.313617
    low, high = stats.wilson(8, 10)
    assert low == pytest.approx((0.992073 - 0.313617) / 1.384146, abs=1e-5)
    assert high == pytest.approx((0.992073 + 0.313617) / 1.384146, abs=1e-5)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (1, 7), (500, 1000), (660, 1319), (1319, 1319)])
def test_wilson_agrees_with_scipy(k, n):
    expected = sps.binomtest(k, n).proportion_ci(method="wilson")
    assert stats.wilson(k, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_at_the_ends_is_exact_and_refuses_nonsense():
    assert stats.wilson(0, 5)[0] == 0.0
    assert stats.wilson(5, 5)[1] == 1.0
    with pytest.raises(ValueError, match="no proportion"):
        stats.wilson(6, 5)
    with pytest.raises(ValueError, match="no proportion"):
        stats.wilson(0, 0)


def test_mean_t_interval_by_hand():
    # 1, 2, 3, 4, 5: mean 3, sd sqrt(10/4) = 1.58114, se 1.58114/sqrt(5) = 0.707107, t(0.975, 4) = 2.776445
    found = stats.mean_t_interval([1, 2, 3, 4, 5])
    assert found.estimate == 3
    assert found.se == pytest.approx(0.707107, abs=1e-6)
    assert found.high - 3 == pytest.approx(2.776445 * 0.707107, abs=1e-5)
    assert found.p == pytest.approx(sps.ttest_1samp([1, 2, 3, 4, 5], 0).pvalue, abs=1e-12)
    assert (found.low, found.high) == pytest.approx(tuple(sps.t.interval(0.95, 4, 3, 0.5**0.5)), abs=1e-12)


def test_one_seed_has_no_interval():
    found = stats.mean_t_interval([0.4])
    assert found.estimate == 0.4
    assert not found.known
    assert not found.excludes_zero


def test_paired_t_agrees_with_scipy_and_differs_from_unpaired():
    x, y = [0.61, 0.58, 0.65, 0.60], [0.59, 0.55, 0.64, 0.57]
    found, expected = stats.paired_t(x, y), sps.ttest_rel(x, y)
    interval = expected.confidence_interval()
    assert (found.low, found.high, found.p) == pytest.approx((interval.low, interval.high, expected.pvalue), abs=1e-12)
    assert found.excludes_zero
    assert sps.ttest_ind(x, y).pvalue > 0.2  # what throwing the pairs away would say
    with pytest.raises(ValueError, match="equally many"):
        stats.paired_t([1, 2], [1])


def test_equal_differences_are_exact():
    same = stats.paired_t([0.1, 0.2, 0.3], [0.1, 0.2, 0.3])
    assert (same.estimate, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_proportion_is_wilson_for_right_and_wrong():
    scores = np.array([1.0] * 7 + [0.0] * 3)
    found = stats.proportion(scores)
    assert (found.low, found.high) == pytest.approx(stats.wilson(7, 10), abs=1e-12)
    assert found.se == pytest.approx(math.sqrt(0.7 * 0.3 / 10), abs=1e-12)
    assert stats.proportion(np.zeros(10)).high == pytest.approx(stats.wilson(0, 10)[1])


def test_proportion_of_averages_is_narrower():
    # two seeds, scores 0.5 everywhere but two problems: var = 2 * 0.25 / 10 = 0.05, p = 0.5,
    # effective n = 0.25 / (0.05 / 10) = 50
    scores = np.array([0.5] * 8 + [1.0, 0.0])
    found = stats.proportion(scores)
    assert (found.low, found.high) == pytest.approx(stats.wilson(25, 50), abs=1e-12)


def test_paired_problems_by_hand():
    # 3 problems only a solves, 1 only b does, n = 10; with one more of each n = 12: (4 − 2)/12 = 0.166667,
    # variance 6/12 − 0.166667² = 0.472222, se sqrt(0.472222/12) = 0.198373, half width 1.959964 · se = 0.388804
    a = np.array([1, 1, 1, 0, 1, 1, 0, 0, 0, 0])
    b = np.array([0, 0, 0, 1, 1, 1, 0, 0, 0, 0])
    found = stats.paired_problems(a, b)
    assert found.estimate == pytest.approx(0.2)
    assert found.se == pytest.approx(0.198373, abs=1e-6)
    assert (found.low, found.high) == pytest.approx((0.166667 - 0.388804, 0.166667 + 0.388804), abs=1e-5)
    assert found.p == pytest.approx(2 * sps.norm.sf(0.166667 / 0.198373), abs=1e-5)


def test_agreement_everywhere_is_no_certainty():
    # no discordant problem: half width 1.959964 · sqrt(2/102/102) = 0.02718
    found = stats.paired_problems(np.ones(100), np.ones(100))
    assert (found.estimate, found.p) == (0, 1)
    assert (found.low, found.high) == pytest.approx((-0.02718, 0.02718), abs=1e-5)
    won = stats.paired_problems(np.ones(2), np.zeros(2))
    assert won.estimate == 1
    assert not won.excludes_zero


def test_paired_problems_is_the_plain_interval_on_many():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 5000)) < 0.6, rng.random((2, 5000)) < 0.5
    plain = sps.ttest_rel(a.mean(axis=0), b.mean(axis=0)).confidence_interval()
    found = stats.paired_problems(a.astype(float), b.astype(float))
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=2e-4)


def test_repeating_a_seed_adds_no_evidence():
    """Problems are the unit: the same seed twice must give the interval of once, not one that is √2 narrower."""
    a, b = np.array([1.0, 0, 1, 1, 0]), np.array([0.0, 0, 1, 0, 1])
    once, twice = stats.paired_problems(a, b), stats.paired_problems(np.stack([a, a]), np.stack([b, b]))
    assert twice == once


def test_bootstrap_is_seeded_and_matches_its_known_variance():
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 2, (4, 200)).astype(float), rng.integers(0, 2, (4, 200)).astype(float)
    found = stats.bootstrap_two_level(a, b)
    assert found == stats.bootstrap_two_level(a, b)
    assert found.estimate == pytest.approx((a - b).mean())
    # crossed resampling: Var ≈ σ²_seeds/S + σ²_problems/n + the residual's, here almost all residual
    difference = a - b
    assert found.low < found.estimate < found.high
    means_S, means_N = difference.mean(axis=1), difference.mean(axis=0)
    lower = math.sqrt(means_S.var() / 4 + means_N.var() / 200)
    assert lower * 0.9 < found.se < lower * 1.5
    constant = stats.bootstrap_two_level(np.ones((3, 5)), np.zeros((3, 5)))
    assert (constant.low, constant.high) == (1, 1)


@pytest.mark.parametrize(("b", "c", "p"), [(0, 0, 1.0), (5, 0, 2 / 32), (3, 1, 10 / 16)])
def test_mcnemar_by_hand(b, c, p):
    # 5 of 5: 2 * (1/2)^5; 3 of 4: (1 + 4 + 4 + 1)/16 are at least as far from half
    assert stats.mcnemar(b, c) == pytest.approx(p)
    assert stats.mcnemar(c, b) == pytest.approx(p)


@pytest.mark.parametrize(("n", "floor"), [(3, 0.25), (5, 0.0625), (6, 0.03125)])
def test_sign_flip_floor(n, floor):
    assert stats.sign_flip([0.01 * (i + 1) for i in range(n)]) == pytest.approx(floor)


def test_sign_flip_against_enumeration_and_scipy():
    d = [0.3, -0.1, 0.2, 0.05, -0.02]
    total = abs(sum(d))
    counted = [abs(sum(s * x for s, x in zip(signs, d, strict=True))) for signs in product((1, -1), repeat=5)]
    assert stats.sign_flip(d) == pytest.approx(sum(c >= total - 1e-12 for c in counted) / 32)
    test = sps.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert stats.sign_flip(d) == pytest.approx(test.pvalue)
    with pytest.raises(ValueError, match="1 to 20"):
        stats.sign_flip([1.0] * 21)


def test_holm_by_hand():
    # sorted 0.01, 0.02, 0.04: times 3, 2, 1 = 0.03, 0.04, 0.04; back in the order given
    assert stats.holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    # 0.5 * 2 = 1; the larger one may not fall below it
    assert stats.holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])
    assert stats.holm([]) == []
