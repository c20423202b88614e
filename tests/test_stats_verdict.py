"""The rule of the verdicts: by hand, against SciPy, and against what statsmodels 0.15.0 returned for the call named."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats as sps

from grpo_bench import stats

SPREAD = [0.012, -0.004, 0.007, 0.001, 0.009, -0.002]


def shifted(mean: float, se: float, n: int = 5) -> list[float]:
    """n differences with exactly this mean and standard error."""
    pattern = np.arange(n) - (n - 1) / 2
    return list(mean + pattern * se * math.sqrt(n) / pattern.std(ddof=1))


# ---------------------------------------------------------------- tests and power


@pytest.mark.parametrize(("margin", "p"), [(0.02, 0.0008220386706169391), (0.01, 0.03283895914649551)])
def test_tost_agrees_with_statsmodels_and_scipy(margin, p):
    # statsmodels.stats.weightstats.ttost_paired(SPREAD, zeros(6), -margin, margin)[0]
    assert stats.tost(SPREAD, margin) == pytest.approx(p, rel=1e-12)
    below = sps.ttest_1samp(SPREAD, margin, alternative="less").pvalue
    above = sps.ttest_1samp(SPREAD, -margin, alternative="greater").pvalue
    assert stats.tost(SPREAD, margin) == pytest.approx(max(below, above), rel=1e-9)


def test_tost_is_the_interval_within_the_margin():
    # the 90 % interval just touches the margin where p = 0.05
    half = stats.mean_t_interval(SPREAD, 0.90).high
    assert stats.tost(SPREAD, half) == pytest.approx(0.05, rel=1e-9)
    assert stats.tost([-x for x in SPREAD], half) == pytest.approx(0.05, rel=1e-9)


def test_tost_without_spread_and_its_refusals():
    assert stats.tost([0.01, 0.01], 0.02) == 0
    assert stats.tost([0.02, 0.02], 0.02) == 1
    with pytest.raises(ValueError, match="margin is above 0"):
        stats.tost(SPREAD, 0.0)
    with pytest.raises(ValueError, match="at least 2"):
        stats.tost([0.1], 0.02)


def test_holm_agrees_with_statsmodels():
    # statsmodels.stats.multitest.multipletests([0.04, 0.001, 0.03, 0.2, 0.012], method="holm")[1]
    assert stats.holm([0.04, 0.001, 0.03, 0.2, 0.012]) == pytest.approx([0.09, 0.005, 0.09, 0.2, 0.048])


@pytest.mark.parametrize(
    ("table", "p"), [((610, 37, 19, 334), 0.022241389472860106), ((10, 3, 1, 6), 0.625), ((5, 0, 0, 5), 1.0)]
)
def test_mcnemar_by_seed_agrees_with_statsmodels(table, p):
    # statsmodels.stats.contingency_tables.mcnemar([[both, first], [second, neither]], exact=True).pvalue
    both, first, second, neither = table
    a = np.array([1] * (both + first) + [0] * (second + neither))
    b = np.array([1] * both + [0] * first + [1] * second + [0] * neither)
    one, other = stats.by_seed(np.stack([a, b]), np.stack([b, a]), [7, 8])
    assert (one.seed, one.both, one.first_only, one.second_only, one.neither) == (7, *table)
    assert (other.first_only, other.second_only) == (second, first)
    assert one.p == other.p == pytest.approx(p, rel=1e-9)
    assert one.problems == sum(table)


def test_mcnemar_takes_answers_and_no_averages():
    with pytest.raises(ValueError, match="right or wrong"):
        stats.by_seed(np.array([0.5, 1.0]), np.array([1.0, 1.0]), [0])
    with pytest.raises(ValueError, match="equally many"):
        stats.by_seed(np.ones((2, 3)), np.ones((2, 4)), [0, 1])


@pytest.mark.parametrize(
    # statsmodels.stats.power.TTestPower().solve_power(nobs=n, alpha=alpha, power=0.8)
    ("n", "alpha", "effect"), [(5, 0.05, 1.6819970833232674), (10, 0.0125, 1.2842966050271774)]
)  # fmt: skip
def test_the_minimum_detectable_effect_is_found_with_80_percent(n, alpha, effect):
    assert stats.minimum_detectable_effect(1.0, n, alpha) == pytest.approx(effect, abs=1e-5)
    found = stats.minimum_detectable_effect(0.013, n, alpha)
    assert found == pytest.approx(0.013 * effect, abs=1e-6)


def test_sign_flips_cannot_go_below_their_floor():
    assert [stats.sign_flip_floor(n) for n in (1, 3, 5, 10)] == [1.0, 0.25, 0.0625, 1 / 512]
    for n in (3, 5, 10):
        assert stats.sign_flip(shifted(0.5, 0.001, n)) == stats.sign_flip_floor(n)


# ---------------------------------------------------------------- the rule


def test_better_and_worse_by_hand():
    # t = 0.03 / 0.005 = 6 with 4 degrees of freedom; t(0.975, 4) = 2.776445; half width 0.013882
    up = stats.verdicts({"a": shifted(0.03, 0.005)}, 0.02)["a"]
    assert up.word == up.words == "better"
    assert (up.interval.low, up.interval.high) == pytest.approx((0.016118, 0.043882), abs=1e-6)
    assert up.p == up.p_holm == pytest.approx(2 * sps.t.sf(6, 4))
    assert up.simultaneous == up.interval  # a family of one
    assert (up.sign_flip_p, up.sign_flip_floor, up.n, up.family) == (0.0625, 0.0625, 5, 1)
    down = stats.verdicts({"a": shifted(-0.03, 0.005)}, 0.02)["a"]
    assert down.word == "worse"
    assert down.p == pytest.approx(up.p)


def test_a_family_asks_for_more():
    """p = 0.0039 alone is enough in a family of four (0.0039 · 4 < 0.05), not in one of twenty."""
    one = shifted(0.03, 0.005)
    assert stats.verdicts({"a": one}, 0.02, family=4)["a"].word == "better"
    crowded = stats.verdicts({"a": one}, 0.02, family=20)["a"]
    assert crowded.word == "not established"
    assert crowded.p_holm == pytest.approx(20 * crowded.p)
    # level 1 − 0.05/20 = 0.9975: t(0.99875, 4) = 6.7583, above 6: holds zero
    assert crowded.simultaneous.low == pytest.approx(0.03 - 0.005 * sps.t.ppf(0.99875, 4))
    assert not crowded.simultaneous.excludes_zero
    assert crowded.interval.excludes_zero


def test_holm_alone_does_not_make_a_verdict():
    """The second of two: Holm asks p < 0.05, but the simultaneous interval is still at 97.5 %."""
    found = stats.verdicts({"a": shifted(0.1, 0.005), "b": shifted(0.03, 0.0095)}, 0.02)
    b = found["b"]
    assert b.p_holm == b.p < 0.05
    assert not b.simultaneous.excludes_zero
    assert (found["a"].word, b.word) == ("better", "not established")


def test_equivalent_and_its_own_family():
    # (0.02 − 0.002)/0.004 = 4.5: one-sided p 0.0054 with 4 degrees of freedom
    close = shifted(0.002, 0.004)
    found = stats.verdicts({"a": close, "b": shifted(0.1, 0.005)}, 0.02)
    assert found["a"].word == "equivalent"
    assert found["a"].tost_p == pytest.approx(sps.t.sf(4.5, 4))
    assert found["a"].tost_p_holm == pytest.approx(2 * found["a"].tost_p)
    assert found["b"].tost_p_holm == pytest.approx(1, abs=1e-3)
    assert stats.verdicts({"a": close}, 0.02, family=10)["a"].word == "not established"
    assert stats.verdicts({"a": close}, 0.01)["a"].word == "not established"


def test_a_real_difference_below_the_margin_says_both():
    found = stats.verdicts({"a": shifted(0.005, 0.0005)}, 0.02)["a"]
    assert (found.word, found.within_margin) == ("better", True)
    assert found.words == "better, by less than the margin"


def test_fewer_than_five_seeds_are_descriptive_whatever_they_show():
    found = stats.verdicts({"a": shifted(0.3, 0.0001, 4), "b": [0.1], "c": [], "d": shifted(0.0, 0.0001, 3)}, 0.02)
    assert {v.word for v in found.values()} == {"descriptive"}
    assert not any(v.within_margin for v in found.values())
    assert found["a"].p < 1e-6
    assert found["a"].interval.known
    assert (found["b"].interval.estimate, found["b"].p, found["b"].sign_flip_p) == (0.1, None, 1.0)
    assert not found["b"].interval.known
    assert math.isnan(found["c"].interval.estimate)
    assert (found["c"].n, found["c"].mde, found["c"].sign_flip_p) == (0, None, None)


def test_what_is_declared_counts_before_its_runs_are_there():
    """A verdict must not get easier because another contrast's runs are missing."""
    one = shifted(0.03, 0.0085)
    alone, declared = stats.verdicts({"a": one}, 0.02)["a"], stats.verdicts({"a": one, "b": [], "c": []}, 0.02)["a"]
    assert alone.word == "better"
    assert (declared.word, declared.family) == ("not established", 3)
    assert declared.p_holm == pytest.approx(3 * alone.p)
    assert declared == stats.verdicts({"a": one}, 0.02, family=3)["a"]


def test_the_order_and_the_names_of_contrasts_do_not_matter():
    ds = {"a": shifted(0.03, 0.005), "b": shifted(0.001, 0.004), "c": shifted(-0.02, 0.01)}
    assert stats.verdicts(ds, 0.02) == stats.verdicts(dict(reversed(ds.items())), 0.02)
    flipped = stats.verdicts({key: [-x for x in d] for key, d in ds.items()}, 0.02)
    assert [flipped[key].word for key in ds] == ["worse", "equivalent", "not established"]


def test_differences_without_spread():
    found = stats.verdicts({"same": [0.0] * 5, "equal": [0.01] * 5, "noise": [0.1 + 0.2 - 0.3] * 5}, 0.02)
    assert found["same"].word == found["noise"].word == "equivalent"
    # 0.01 five times has no spread to judge by; a zero-width interval would claim certainty
    assert found["equal"].word == "not established"
    assert not found["equal"].interval.known
    assert (found["equal"].p, found["equal"].mde) == (None, None)


def test_the_detectable_effect_is_that_of_the_rule():
    d = shifted(0.0, 0.005)
    found = stats.verdicts({"a": d}, 0.02, family=4)["a"]
    assert found.mde == pytest.approx(stats.minimum_detectable_effect(float(np.std(d, ddof=1)), 5, 0.0125))


def test_nonsense_is_refused():
    for bad in ({"margin": 0.0}, {"margin": 0.02, "alpha": 1.0}):
        with pytest.raises(ValueError, match="no verdicts"):
            stats.verdicts({"a": SPREAD}, **bad)
    with pytest.raises(ValueError, match="finite"):
        stats.verdicts({"a": [0.1, math.nan]}, 0.02)
    with pytest.raises(ValueError, match="cannot hold"):
        stats.verdicts({"a": SPREAD, "b": SPREAD}, 0.02, family=1)
    assert stats.verdicts({}, 0.02) == {}


def test_the_rule_in_words_names_its_figures():
    said = stats.rule(4, 0.02)
    assert "98.75 % interval" in said
    assert "±2 points" in said
    assert "family of 4 contrasts" in said
    assert "fixed test set" in stats.ESTIMAND
    assert "over RL seeds" in stats.ESTIMAND


def test_loading_costs_neither_torch_nor_scipy_stats():
    unwanted = ("torch", "scipy.stats", "scipy.optimize")
    code = f"import sys, grpo_bench.stats; print([m for m in {unwanted} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_ratio_of_spreads_is_pitman_s_and_morgan_s():
    x, y = np.array([1.0, 4.0, 2.0, 8.0, 5.0, 7.0]), np.array([2.0, 3.0, 2.5, 4.0, 3.0, 4.5])
    found = stats.sd_ratio(x, y)
    assert found.estimate == pytest.approx(x.std(ddof=1) / y.std(ddof=1))
    # equal variances: sum and difference are uncorrelated, so its p is the correlation's
    assert found.p == pytest.approx(sps.pearsonr(x + y, x - y).pvalue)
    # the bounds are the scales of y at which that p is the level's
    for bound in (found.low, found.high):
        assert sps.pearsonr(x + bound * y, x - bound * y).pvalue == pytest.approx(0.05)
    turned = stats.sd_ratio(y, x)
    assert (turned.low, turned.high) == pytest.approx((1 / found.high, 1 / found.low))
    with pytest.raises(ValueError, match="does not vary"):
        stats.sd_ratio([1, 1, 1], [1, 2, 3])
    assert not stats.sd_ratio([1, 2], [2, 1]).known
