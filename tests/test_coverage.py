"""Intervals cover and tests keep their size, on simulated studies whose problems are drawn once and held as the truth.

Bounds leave room for the simulation's own noise: of 4,000 studies, three standard errors of 95 % or 5 % are 1 point.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import integrate
from scipy import stats as sps

from grpo_bench.stats import coverage
from grpo_bench.stats.coverage import MARGIN, WORLDS
from grpo_bench.stats.simulation import World, draw

STUDIES = 4000
NOISE = 3 * math.sqrt(0.05 * 0.95 / STUDIES)
MAIN = [world for world in WORLDS if world.name != "collapse"]
COLLAPSE = next(world for world in WORLDS if world.name == "collapse")


def by_name(world: World) -> str:
    return world.name


# ---------------------------------------------------------------- the simulation itself


def test_expected_scores_are_the_integral():
    world = MAIN[-1]
    sd = math.hypot(world.runs, world.skills)
    for logit in (-3.0, 0.0, 1.24):
        exact, _ = integrate.quad(lambda x, at=logit: sps.norm.pdf(x) / (1 + math.exp(-at - sd * x)), -9, 9)
        at = round((logit + 40) / 0.01)
        assert world.baseline[at] == pytest.approx(exact, abs=1e-7)


def test_the_truth_is_what_many_runs_average_to():
    """On one set of problems: the mean of 20,000 runs of each arm against the truth that the study states."""
    world = replace(MAIN[1], problems=40)
    study = draw(world, 20_000, np.random.default_rng(3), [0.5])
    runs = study.scores.mean(axis=2)
    error = runs.std(axis=1) / math.sqrt(runs.shape[1])
    assert (np.abs(runs.mean(axis=1) - study.truth) < 4 * error).all()
    assert set(np.unique(study.scores)) == {0.0, 1.0}


def test_exact_gaps_are_exact():
    for world in WORLDS:
        study = draw(world, 2, np.random.default_rng(0), [0.0, MARGIN, -MARGIN], exact=True)
        assert study.truth[1:] - study.truth[0] == pytest.approx([0, MARGIN, -MARGIN], abs=1e-6)


def test_a_collapse_costs_the_arm_and_not_the_baseline():
    world = replace(COLLAPSE, collapse=1.0, fall=40.0)
    assert draw(world, 3, np.random.default_rng(0), [0.0]).truth[1] == pytest.approx(0, abs=1e-6)
    assert draw(world, 3, np.random.default_rng(0), [0.0]).truth[0] > 0.7


def test_seeds_and_problems_are_the_main_source_where_they_are_said_to_be():
    """The variance of a mean of 5 seeds against that of its truth from one set of problems to another."""
    found = {world.name: coverage.coverage(world, 5, 60) for world in MAIN}
    assert found["problems"]["sd_problems"] > 1.5 * found["problems"]["sd_seeds"] / math.sqrt(5)
    assert found["seeds"]["sd_seeds"] / math.sqrt(5) > 5 * found["seeds"]["sd_problems"]


def test_the_command_writes_a_page_and_its_numbers(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(coverage, "WORLDS", (replace(MAIN[1], problems=50),))
    assert coverage.main([f"into={tmp_path}", "studies=4"]) == 0
    page, found = (tmp_path / "coverage.md").read_text(), json.loads((tmp_path / "coverage.json").read_text())
    assert capsys.readouterr().out == page
    assert [(one["seeds"], one["studies"]) for one in found["coverage"]] == [(5, 4), (10, 4)]
    assert len(found["families"]) == 8
    assert page.count("| both |") == 10
    before = page
    assert coverage.main([f"into={tmp_path}", "studies=4"]) == 0
    assert (tmp_path / "coverage.md").read_text() == before
    assert coverage.main(["studies=none"]) == 2
    assert "usage:" in capsys.readouterr().err


# ---------------------------------------------------------------- coverage and size


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [5, 10])
@pytest.mark.parametrize("world", MAIN, ids=by_name)
def test_the_verdict_s_intervals_cover(world, seeds):
    found = coverage.coverage(world, seeds, STUDIES)
    assert 0.93 <= found["interval"] <= 0.97
    assert abs(found["simultaneous"] - 0.9875) < 3 * math.sqrt(0.0125 * 0.9875 / STUDIES) + 0.002
    assert 0.93 <= found["accuracy"] <= 0.97
    # other problems, these very runs: the seeds average out, so its own target is met wherever the variance is
    assert 0.93 <= found["problems"] <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [5, 10])
@pytest.mark.parametrize("world", MAIN, ids=by_name)
def test_a_family_without_differences_gets_no_false_one(world, seeds):
    found = coverage.family(world, seeds, STUDIES // 2, "no difference")
    assert found["t"] == pytest.approx(0.05, abs=NOISE + 0.004)
    assert found["sign_flip"] <= 0.05 + NOISE
    assert found["false_difference"] <= 0.05 + 1.5 * NOISE
    if seeds == 5:  # 2^(1 − 5) = 0.0625: nothing can come under
        assert found["sign_flip"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [5, 10])
@pytest.mark.parametrize("world", MAIN, ids=by_name)
def test_a_difference_of_the_margin_is_not_called_equivalent(world, seeds):
    found = coverage.family(world, seeds, STUDIES // 2, "all at the margin")
    assert found["tost"] <= 0.05 + NOISE
    assert found["false_equivalence"] <= 0.05 + 1.5 * NOISE
    assert found["false_difference"] <= 0.01  # better where it is worse
    if world.name == "problems":  # the spread is small against the margin: TOST spends all of its 5 %
        assert found["tost"] >= 0.05 - NOISE - 0.004


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [5, 10])
def test_mixed_families_keep_both_errors(seeds):
    found = coverage.family(MAIN[1], seeds, STUDIES // 2, "two and two")
    assert found["false_difference"] <= 0.05 + 1.5 * NOISE
    assert found["false_equivalence"] <= 0.05 + 1.5 * NOISE


@pytest.mark.slow
def test_ten_seeds_find_five_points():
    found = coverage.family(MAIN[1], 10, 500, "3 and 5 points")
    assert found["words"]["better"] + found["words"]["worse"] > 0.9


@pytest.mark.slow
def test_rare_collapses_are_beyond_few_seeds():
    """One run in ten falls far: with five seeds most samples hold no such run, and the interval does not cover. Said in
    the page; no interval over five seeds could know."""
    found = coverage.coverage(COLLAPSE, 5, STUDIES // 4)
    assert found["interval"] < 0.9
