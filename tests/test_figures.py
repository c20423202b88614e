"""The figures show what was recorded: the right places, bands between seeds, nothing invented."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from study_builder import HASHES, default_curve, rows, write_curves, write_gz, write_jobs, write_run

from grpo_bench import figures
from grpo_bench.records import load_study
from grpo_bench.table.compare import compare


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = tmp_path / "demo-arithmetic"
    for seed in (0, 1):
        write_run(folder, "ppo", seed, [1, 0, 0, 0], base=[0] * 4)
        write_run(folder, "grpo_g8", seed, [1, 1, 0, 0], base=[0] * 4)
    write_jobs(folder, ("ppo", 0), ("ppo", 1), ("grpo_g8", 0), ("grpo_g8", 1))  # the order of rows and colours
    return folder


def panels(folder: Path, axis: str) -> dict[str, object]:
    figure = figures.curves(compare(load_study(folder)).arms, axis, "title")
    assert figure is not None
    return {axes.get_title(loc="left"): axes for axes in figure.axes if axes.get_title(loc="left")}


def thick(axes) -> dict[str, np.ndarray]:
    """The mean curves by colour."""
    return {line.get_color(): np.array(line.get_xydata()) for line in axes.lines if line.get_linewidth() > 1.5}


def test_curves_against_samples_and_seconds(study):
    by_samples, by_seconds = panels(study, "samples"), panels(study, "seconds")
    assert list(by_samples) == [panel.title for panel in figures.PANELS]
    reward = "Reward, mean of a step's samples"
    ppo = thick(by_samples[reward])[figures.COLOURS[0]]
    # reward of seed s at step t: 0.1 t + 0.01 s; the mean of two seeds 0.1 t + 0.005, at 256 t samples
    np.testing.assert_allclose(ppo, [[256 * t, 0.1 * t + 0.005] for t in range(1, 5)])
    np.testing.assert_allclose(thick(by_seconds[reward])[figures.COLOURS[0]][:, 0], [1.5, 3.0, 4.5, 6.0])
    accuracy = thick(by_samples["Accuracy on dev, greedy"])[figures.COLOURS[0]]
    np.testing.assert_allclose(accuracy, [[512, 40], [1024, 80]])  # in percent, at evaluations only


def test_the_band_reaches_from_the_lowest_to_the_highest_seed(study):
    band = panels(study, "samples")["Reward, mean of a step's samples"].collections[0]
    heights = band.get_paths()[0].vertices
    at_512 = heights[np.isclose(heights[:, 0], 512)][:, 1]
    assert (at_512.min(), at_512.max()) == pytest.approx((0.20, 0.21))


def test_runs_of_unequal_length_are_averaged_only_where_all_are(study):
    write_curves(study / f"ppo-s1-{HASHES['ppo']}", default_curve(1)[:2])
    ppo = thick(panels(study, "samples")["Reward, mean of a step's samples"])[figures.COLOURS[0]]
    assert ppo[-1, 0] == 512


def test_what_was_not_recorded_is_not_drawn(study):
    for run in study.glob("*-s*"):
        lines = [{k: v for k, v in line.items() if not k.startswith("kl/")} for line in default_curve(0)]
        write_curves(run, [*lines, {"step": 5, "samples": 1280, "reward/mean": None}])
    shown = panels(study, "samples")
    assert not any("KL" in title for title in shown)
    assert thick(shown["Reward, mean of a step's samples"])[figures.COLOURS[0]][-1, 0] == 1024
    for run in study.glob("*-s*"):
        (run / "metrics.jsonl").unlink()
    assert figures.curves(compare(load_study(study)).arms, "samples", "title") is None


def test_a_long_run_is_averaged_to_few_points(study):
    lines = [{"step": t, "samples": t, "reward/mean": t % 2} for t in range(1, 1001)]
    for run in study.glob("*-s*"):
        write_curves(run, lines)
    ppo = thick(panels(study, "samples")["Reward, mean of a step's samples"])[figures.COLOURS[0]]
    assert len(ppo) <= figures.POINTS
    assert ppo[:, 1].mean() == pytest.approx(0.5, abs=0.02)


def test_a_diverged_run_is_marked_where_it_ends(study):
    run = study / f"ppo-s1-{HASHES['ppo']}"
    (run / "result.json").unlink()
    (run / "state.json").write_text(json.dumps({"status": "diverged", "reason": "NaN"}))
    write_gz(run, rows([1, 0], split="dev"))
    write_curves(run, default_curve(1)[:3])
    axes = panels(study, "samples")["Reward, mean of a step's samples"]
    crosses = [line for line in axes.lines if line.get_marker() == "x"]
    assert [list(line.get_xydata()[0]) for line in crosses] == [pytest.approx([768, 0.31])]


def test_every_seed_is_a_dot_beside_its_interval(study):
    figure = figures.accuracies(compare(load_study(study)))
    assert figure is not None
    (axes,) = figure.axes
    labels = [text.get_text().split("\n")[0] for text in axes.get_yticklabels()]
    assert labels == ["before RL", "ppo", "grpo_g8"]
    dots = [collection.get_offsets() for collection in axes.collections]
    assert sorted(len(d) for d in dots) == [2, 2]
    assert {float(x) for d in dots for x in d[:, 0]} == {25.0, 50.0}


def test_names_at_curve_ends_do_not_overlap():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    axes.set_ylim(0, 1)
    labels = ["a", "b", "c"]
    figures._name_ends(axes, [(0.99, "a"), (1.0, "b"), (0.98, "c")], {k: {"color": "k"} for k in labels})
    heights = {text.get_text(): text.xy[1] for text in axes.texts}
    assert heights["b"] - heights["a"] == pytest.approx(0.085)
    assert heights["a"] - heights["c"] == pytest.approx(0.085)
    assert max(heights.values()) <= 1.0


def test_colours_are_distinct_and_then_dashed():
    styles = [tuple(map(str, figures._style(i).values())) for i in range(20)]
    assert len(set(styles)) == 20
