"""Claims against paired seeds: the direction, the size, the margin, and what five seeds may say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from grpo_bench.table.judge import Claim, judge
from grpo_bench.table.measures import MEASURES
from grpo_bench.table.units import interval_text

# differences 0.10, 0.12, 0.11, 0.09, 0.13: mean 0.11, sd 0.0158114, t(0.975, 4) = 2.776445
FIRST, SECOND = [0.60, 0.62, 0.61, 0.59, 0.63], [0.50] * 5
HALF = 2.776445 * 0.0158114 / math.sqrt(5)


def test_the_interval_is_students_over_paired_differences():
    found = judge([FIRST, SECOND], Claim("greater"))
    assert (found.interval.low, found.interval.high) == pytest.approx((0.11 - HALF, 0.11 + HALF), abs=1e-6)
    assert found.outcome == "supported"
    assert found.simultaneous == found.interval  # one claim: nothing to correct for


@pytest.mark.parametrize(
    ("claim", "outcome"),
    [
        (Claim("less"), "contradicted"),
        (Claim("greater", at_least=0.09), "supported"),  # 0.0904 to 0.1296
        (Claim("greater", at_least=0.10), "not established"),
        (Claim("greater", at_least=0.14), "contradicted"),
        (Claim("greater", at_most=0.13), "supported"),
        (Claim("greater", at_least=0.02, at_most=0.08), "contradicted"),
        (Claim("equal", at_most=0.02), "contradicted"),
        (Claim("equal", at_most=0.14), "supported"),
        (Claim("equal", at_most=0.11), "not established"),
        (Claim("equal"), "not established"),  # without a margin
        (Claim("greater", "ratio", 1.1, 1.4), "supported"),  # 0.61/0.5 = 1.22
        (Claim("greater", "ratio", 1.4, 1.6), "contradicted"),
        (Claim("less", "ratio"), "contradicted"),
    ],
)
def test_direction_and_size(claim, outcome):
    assert judge([FIRST, SECOND], claim).outcome == outcome


def test_a_smaller_row_is_less_by_a_size_and_by_a_ratio():
    assert judge([SECOND, FIRST], Claim("less", at_least=0.05)).outcome == "supported"
    # bounds of a ratio are on first over second, whichever way is expected
    assert judge([SECOND, FIRST], Claim("less", "ratio", at_most=0.9)).outcome == "supported"
    assert judge([SECOND, FIRST], Claim("less", "ratio", 0.45, 0.55)).outcome == "contradicted"


def test_more_claims_ask_for_more():
    rows = [[0.51, 0.53, 0.50, 0.52, 0.54], SECOND]  # mean 0.02 ± 0.0196
    assert judge(rows, Claim("greater")).outcome == "supported"
    assert judge(rows, Claim("greater"), family=10).outcome == "not established"


def test_fewer_than_five_seeds_describe():
    found = judge([FIRST[:4], SECOND[:4]], Claim("greater"))
    assert found.outcome == "descriptive"
    assert found.interval.low > 0


def test_counts_that_never_vary_are_no_certainty_and_exact_figures_are():
    rows = [[0.6] * 5, [0.5] * 5]
    assert judge(rows, Claim("greater"), counted=True).outcome == "not established"
    assert judge(rows, Claim("greater")).outcome == "supported"
    assert judge([[668544.0] * 5, [1337217.0] * 5], Claim("less", "ratio", 0.45, 0.55)).outcome == "supported"


def test_a_ratio_needs_values_above_zero():
    zero = [0.5, 0.5, 0.0, 0.5, 0.5]
    found = judge([FIRST, zero], Claim("greater", "ratio"))
    assert (found.outcome, found.why) == ("not established", "a value is not above 0: no ratio")
    # the differences have a mean of 0.21, which is no ratio
    assert all(math.isnan(x) for i in (found.interval, found.simultaneous) for x in (i.estimate, i.low, i.high))
    assert interval_text(found.interval, MEASURES["kl_final"], "ratio") == "–"
    few = judge([FIRST[:4], zero[:4]], Claim("greater", "ratio"))
    assert (few.outcome, few.why, few.n) == ("descriptive", "a value is not above 0: no ratio", 4)


def test_trends():
    rng = np.random.default_rng(0)
    noise = 0.002 * rng.standard_normal((4, 5))
    rising = np.array([0.1, 0.2, 0.3, 0.4])[:, None] + noise
    assert judge(rising, Claim("increasing")).outcome == "supported"
    assert judge(rising, Claim("decreasing")).outcome == "contradicted"
    assert judge(rising, Claim("increasing", at_least=0.4)).outcome == "contradicted"  # the ends are 0.3 apart
    turning = np.array([0.1, 0.3, 0.2, 0.4])[:, None] + noise
    found = judge(turning, Claim("increasing"))
    assert (found.outcome, found.why) == ("contradicted", "it turns on the way")
    # the last minus the first, as printed
    assert judge(rising, Claim("increasing")).interval.estimate == pytest.approx(float((rising[3] - rising[0]).mean()))


def test_flat_is_every_pair_within_the_margin():
    rng = np.random.default_rng(1)
    rows = 0.5 + 0.001 * rng.standard_normal((3, 5))
    assert judge(rows, Claim("flat", at_most=0.02)).outcome == "supported"
    rows[2] += 0.1
    assert judge(rows, Claim("flat", at_most=0.02)).outcome == "contradicted"


def test_the_rule_errs_as_rarely_as_it_says():
    """Without a difference, and at a difference that is exactly the bound: at most 5 % claim one (2.5 % each way)."""
    rng = np.random.default_rng(2)
    said = {"none": 0, "bound": 0, "equal": 0}
    for _ in range(2000):
        first, second = rng.normal(0.6, 0.02, 5), rng.normal(0.6, 0.02, 5)
        said["none"] += judge([first, second], Claim("greater")).outcome != "not established"
        said["bound"] += judge([first + 0.05, second], Claim("greater", at_least=0.05)).outcome == "supported"
        said["equal"] += judge([first + 0.05, second], Claim("equal", at_most=0.05)).outcome == "supported"
    # 2,000 draws: 5 % ± 1.5, 2.5 % ± 1
    assert said["none"] / 2000 == pytest.approx(0.05, abs=0.015)
    assert said["bound"] / 2000 == pytest.approx(0.025, abs=0.012)
    assert said["equal"] / 2000 < 0.065
