"""Curves: bands over seeds and problems, areas, what it took to a target with the runs that never got there."""

from __future__ import annotations

import numpy as np
import pytest

from grpo_bench.stats import bootstrap_two_level
from grpo_bench.stats.bootstrap import curve_band
from grpo_bench.stats.curves import Reached, area_under, on_grid, reach, sooner, to_target

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


def test_who_was_first_is_decided_only_where_it_was_seen():
    fast, slow, never = Reached(100.0, 400.0), Reached(300.0, 400.0), Reached(None, 400.0)
    stopped = Reached(None, 50.0)  # looked at for too short to know
    found = sooner([fast, fast, fast, never, slow, fast], [slow, never, fast, never, fast, stopped])
    assert (found.first, found.second, found.undecided) == (2, 1, 3)
    # 5 of 5: 2 · (1/2)^5
    assert sooner([fast] * 5, [slow] * 5).p == pytest.approx(2 / 32)
    with pytest.raises(ValueError, match="argument 2"):
        sooner([fast], [])


# ---------------------------------------------------------------- bands


def scores(seeds: int = 4, points: int = 3, problems: int = 60, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rises = np.linspace(0.3, 0.7, points)[None, :, None]
    return (rng.random((seeds, points, problems)) < rises).astype(float)


def test_a_band_is_the_two_level_bootstrap_at_every_point():
    curves = scores()
    found = curve_band(curves, reps=400)
    assert found.estimate == pytest.approx(curves.mean(axis=(0, 2)))
    # one point is the same computation as the interval of a difference to nothing
    alone = curve_band(curves[:, :1], reps=400)
    interval = bootstrap_two_level(curves[:, 0], np.zeros_like(curves[:, 0]), reps=400)
    assert (alone.low[0], alone.high[0]) == pytest.approx((interval.low, interval.high))
    assert alone.area == interval
    assert (found.low < found.estimate).all()
    assert (found.estimate < found.high).all()


def test_points_of_a_band_stay_together():
    """Seeds and problems are redrawn once per curve: a curve that does not change has an area as uncertain as each of
    its points; one whose points were redrawn by themselves would have it narrower by √points."""
    flat = np.repeat(scores(points=1), 9, axis=1)
    found = curve_band(flat, reps=400)
    assert found.low == pytest.approx(np.full(9, found.low[0]))
    assert (found.area.low, found.area.high) == pytest.approx((found.low[0], found.high[0]))


def test_the_area_of_a_band_is_the_area_of_the_mean():
    curves = scores()
    found = curve_band(curves, at=np.array(AT, dtype=float), reps=50)
    assert found.area.estimate == pytest.approx(area_under(AT, curves.mean(axis=(0, 2))))
    assert found.area.n == 4


def test_a_paired_band_knows_the_pairs():
    curves = scores()
    same = curve_band(curves, curves, reps=50)
    assert (same.low == 0).all()
    assert (same.high == 0).all()
    with pytest.raises(ValueError, match="equally many"):
        curve_band(curves, curves[:2])
    with pytest.raises(ValueError, match="seeds, points, problems"):
        curve_band(curves[0])
    with pytest.raises(ValueError, match="must increase"):
        curve_band(curves, at=np.array([0.0, 2.0, 1.0]))


def test_the_bootstrap_s_variance_is_the_known_one():
    """With every pair of seeds and problems drawn, Var = (1 − 1/S)(1 − 1/N)-weighted sums of the crossed components:
    on a matrix that only seeds vary it is their ddof 0 variance over S, exactly in expectation."""
    by_seed = np.tile(np.array([0.1, 0.4, 0.2, 0.7])[:, None], (1, 30))
    found = bootstrap_two_level(by_seed, np.zeros_like(by_seed), reps=40_000)
    assert found.se == pytest.approx(np.array([0.1, 0.4, 0.2, 0.7]).std() / 2, rel=0.02)
    by_problem = np.tile(np.arange(30) / 30, (4, 1))
    found = bootstrap_two_level(by_problem, np.zeros_like(by_problem), reps=40_000)
    assert found.se == pytest.approx((np.arange(30) / 30).std() / np.sqrt(30), rel=0.02)
