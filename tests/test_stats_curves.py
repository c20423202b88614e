"""Curves: the bootstrap over seeds and problems, areas, what it took to a target with the runs that never got there."""

from __future__ import annotations

import numpy as np
import pytest

from grpo_bench.stats import bootstrap_two_level
from grpo_bench.stats.curves import Reached, area_under, on_grid, reach, to_target

AT, HEIGHTS = [0, 100, 300], [0.2, 0.4, 0.6]


def test_area_by_hand():
    # (0.2 + 0.4)/2 · 100 + (0.4 + 0.6)/2 · 200 = 30 + 100, over 300
    assert area_under(AT, HEIGHTS) == pytest.approx(130 / 300)
    # to 200: 30 + (0.4 + 0.5)/2 · 100 = 75, over 200
    assert area_under(AT, HEIGHTS, until=200) == pytest.approx(75 / 200)
    # held at 0.6 to 400: 130 + 60, over 400
    assert area_under(AT, HEIGHTS, until=400) == pytest.approx(190 / 400)
    assert area_under([5], [0.3]) == 0.3


def test_area_does_not_depend_on_the_unit_of_the_axis_or_on_points_between():
    assert area_under([0, 1, 3], HEIGHTS) == pytest.approx(area_under(AT, HEIGHTS))
    assert area_under([0, 50, 100, 300], [0.2, 0.3, 0.4, 0.6]) == pytest.approx(area_under(AT, HEIGHTS))


def test_curves_refuse_what_is_none():
    for at, heights in (([0, 0], [1, 2]), ([0, 1], [1]), ([], []), ([0, 1], [1, float("nan")])):
        with pytest.raises(ValueError, match="curve"):
            area_under(at, heights)
    with pytest.raises(ValueError, match="begins at"):
        area_under([5, 6], [0, 1], until=4)


def test_on_a_common_grid():
    found = on_grid([1, 3], [0.2, 0.6], [0, 1, 2, 3, 9])
    assert np.isnan(found[0])
    assert found[1:] == pytest.approx([0.2, 0.4, 0.6, 0.6])


def test_reaching_a_target():
    assert reach(AT, HEIGHTS, 0.5) == Reached(pytest.approx(200), 300)  # half way from 0.4 to 0.6
    assert reach(AT, HEIGHTS, 0.4).at == 100
    assert reach(AT, HEIGHTS, 0.1).at == 0  # from the start
    # the first crossing counts, also where the curve falls again
    assert reach([0, 1, 2, 3], [0, 0.8, 0.1, 0.9], 0.4).at == 0.5
    never = reach(AT, HEIGHTS, 0.7)
    assert never == Reached(None, 300)
    assert never.censored


def test_the_median_over_seeds_counts_those_that_never_got_there():
    got, never = [Reached(x, 400.0) for x in (100.0, 200.0, 300.0)], Reached(None, 400.0)
    assert to_target(got).median == 200
    assert to_target(got).words == "3 of 3 seeds"
    four = to_target([*got, never])
    assert (four.median, four.reached, four.n, four.until) == (250, 3, 4, 400)
    assert four.words == "3 of 4 seeds; 1 not reached by 400"
    assert to_target([got[0], never, never]).median is None  # beyond what was looked at
    assert to_target([got[0], never]).median is None
    with pytest.raises(ValueError, match="no runs"):
        to_target([])


def test_the_bootstrap_s_variance_is_the_known_one():
    """With every pair of seeds and problems drawn, Var = (1 − 1/S)(1 − 1/N)-weighted sums of the crossed components:
    on a matrix that only seeds vary it is their ddof 0 variance over S, exactly in expectation."""
    by_seed = np.tile(np.array([0.1, 0.4, 0.2, 0.7])[:, None], (1, 30))
    found = bootstrap_two_level(by_seed, np.zeros_like(by_seed), reps=40_000)
    assert found.se == pytest.approx(np.array([0.1, 0.4, 0.2, 0.7]).std() / 2, rel=0.02)
    by_problem = np.tile(np.arange(30) / 30, (4, 1))
    found = bootstrap_two_level(by_problem, np.zeros_like(by_problem), reps=40_000)
    assert found.se == pytest.approx((np.arange(30) / 30).std() / np.sqrt(30), rel=0.02)
