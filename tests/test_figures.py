"""The figures show what was recorded: the right places, bands over seeds and problems, nothing invented."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from study_builder import HASHES, default_curve, rows, write_curves, write_gz, write_jobs, write_run

from grpo_bench import figures
from grpo_bench.figures.accuracy import accuracies, differences
from grpo_bench.figures.costs import accuracy_against_cost, pass_at_k, phases
from grpo_bench.figures.curves import _name_ends, curves
from grpo_bench.figures.knobs import group_size, kl
from grpo_bench.figures.small_multiples import small_multiples
from grpo_bench.figures.style import line_style
from grpo_bench.records import load_study
from grpo_bench.series.curves import PANELS, POINTS, learning_curves
from grpo_bench.series.knobs import group_sizes, kl_frontier
from grpo_bench.series.pass_at_k import pass_curves
from grpo_bench.series.spending import phase_seconds, spent
from grpo_bench.table.compare import compare

REWARD = "Reward, mean of a step's samples"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = tmp_path / "demo-arithmetic"
    for seed in (0, 1):
        write_run(folder, "ppo", seed, [1, 0, 0, 0], base=[0] * 4)
        write_run(folder, "grpo_g8", seed, [1, 1, 0, 0], base=[0] * 4)
    write_jobs(folder, ("ppo", 0), ("ppo", 1), ("grpo_g8", 0), ("grpo_g8", 1))  # the order of rows and colours
    return folder


def panels(folder: Path, axis: str) -> dict[str, object]:
    figure = curves(learning_curves(compare(load_study(folder)).arms), axis, "title")
    assert figure is not None
    return {axes.get_title(loc="left"): axes for axes in figure.axes if axes.get_title(loc="left")}


def thick(axes) -> dict[str, np.ndarray]:
    """The mean curves by colour."""
    return {line.get_color(): np.array(line.get_xydata()) for line in axes.lines if line.get_linewidth() > 1.5}


def test_curves_against_samples_tokens_and_seconds(study):
    for run in study.glob("*-s*"):
        write_curves(
            run, [{**line, "generated_tokens": 30 * line["samples"]} for line in default_curve(int(run.name[-10]))]
        )
    found = {axis: panels(study, axis) for axis in ("samples", "tokens", "seconds")}
    assert list(found["samples"]) == [panel.title for panel in PANELS]
    # reward of seed s at step t: 0.1 t + 0.01 s; the mean of two seeds 0.1 t + 0.005, at 256 t samples
    ppo = {axis: thick(found[axis][REWARD])[figures.COLOURS[0]] for axis in found}
    np.testing.assert_allclose(ppo["samples"], [[256 * t, 0.1 * t + 0.005] for t in range(1, 5)])
    np.testing.assert_allclose(ppo["tokens"][:, 0], [7680 * t for t in range(1, 5)])
    np.testing.assert_allclose(ppo["seconds"][:, 0], [1.5, 3.0, 4.5, 6.0])
    accuracy = thick(found["samples"]["Accuracy on dev, greedy"])[figures.COLOURS[0]]
    np.testing.assert_allclose(accuracy, [[512, 40], [1024, 80]])  # in percent, at evaluations only


def test_an_axis_that_was_not_recorded_has_no_figure(study):
    assert curves(learning_curves(compare(load_study(study)).arms), "tokens", "title") is None


def test_the_band_reaches_from_the_lowest_to_the_highest_seed(study):
    band = panels(study, "samples")[REWARD].collections[0]
    heights = band.get_paths()[0].vertices
    at_512 = heights[np.isclose(heights[:, 0], 512)][:, 1]
    assert (at_512.min(), at_512.max()) == pytest.approx((0.20, 0.21))


def test_the_band_of_accuracy_is_a_bootstrap_over_seeds_and_problems(study):
    """With all dev answers alike within a seed only seeds vary: of two seeds at 0 and 1 the bootstrap mean is 0, ½ or 1
    with probability ¼, ½ and ¼, so the 95 % band is the whole range; with equal seeds it has no width."""
    for seed, right in ((0, 0), (1, 1)):
        run = study / f"ppo-s{seed}-{HASHES['ppo']}"
        dev = [row for step in (2, 4) for row in rows([right] * 8, split="dev", step=step)]
        write_gz(run, dev + rows([1, 0, 0, 0]))
        run = study / f"grpo_g8-s{seed}-{HASHES['grpo']}"
        write_gz(run, [row for step in (2, 4) for row in rows([1] * 8, split="dev", step=step)] + rows([1, 1, 0, 0]))
    found = learning_curves(compare(load_study(study)).arms)[PANELS[0]]
    assert found["ppo"].band == found["grpo_g8"].band == "bootstrap"
    np.testing.assert_array_equal(found["ppo"].low, [0, 0])
    np.testing.assert_array_equal(found["ppo"].high, [1, 1])
    np.testing.assert_array_equal(found["grpo_g8"].low, found["grpo_g8"].high)


def test_a_run_that_ended_earlier_is_held_at_its_last_height(study):
    run = study / f"ppo-s1-{HASHES['ppo']}"
    write_curves(run, default_curve(1)[:2])
    ppo = thick(panels(study, "samples")[REWARD])[figures.COLOURS[0]]
    # seed 0 goes on to 0.3 and 0.4, seed 1 stays at 0.21
    np.testing.assert_allclose(ppo[-2:], [[768, 0.255], [1024, 0.305]])
    assert thick(panels(study, "seconds")[REWARD])[figures.COLOURS[0]][-1, 0] == 6.0
    (run / "result.json").unlink()  # not done yet: nobody knows how it goes on
    (run / "state.json").write_text(json.dumps({"status": "running", "step": 2}))
    assert thick(panels(study, "samples")[REWARD])[figures.COLOURS[0]][-1, 0] == 512


def test_what_was_not_recorded_is_not_drawn(study):
    for run in study.glob("*-s*"):
        lines = [{k: v for k, v in line.items() if not k.startswith("kl/")} for line in default_curve(0)]
        write_curves(run, [*lines, {"step": 5, "samples": 1280, "reward/mean": None}])
    shown = panels(study, "samples")
    assert not any("KL" in title for title in shown)
    assert thick(shown[REWARD])[figures.COLOURS[0]][-1, 0] == 1024
    for run in study.glob("*-s*"):
        (run / "metrics.jsonl").unlink()
    assert learning_curves(compare(load_study(study)).arms) == {}


def test_a_long_run_is_averaged_to_few_points(study):
    lines = [{"step": t, "samples": t, "reward/mean": t % 2} for t in range(1, 1001)]
    for run in study.glob("*-s*"):
        write_curves(run, lines)
    ppo = thick(panels(study, "samples")[REWARD])[figures.COLOURS[0]]
    assert len(ppo) <= POINTS
    assert ppo[:, 1].mean() == pytest.approx(0.5, abs=0.02)


def test_a_diverged_run_is_marked_where_it_ends(study):
    run = study / f"ppo-s1-{HASHES['ppo']}"
    (run / "result.json").unlink()
    (run / "state.json").write_text(json.dumps({"status": "diverged", "reason": "NaN"}))
    write_gz(run, rows([1, 0], split="dev"))
    write_curves(run, default_curve(1)[:3])
    axes = panels(study, "samples")[REWARD]
    crosses = [line for line in axes.lines if line.get_marker() == "x"]
    assert [list(line.get_xydata()[0]) for line in crosses] == [pytest.approx([768, 0.31])]


def test_every_seed_is_a_ring_beside_its_interval(study):
    figure = accuracies(compare(load_study(study)))
    assert figure is not None
    (axes,) = figure.axes
    labels = [text.get_text().split("\n")[0] for text in axes.get_yticklabels()]
    assert labels == ["before RL", "ppo", "grpo_g8"]
    dots = [collection.get_offsets() for collection in axes.collections]
    assert sorted(len(d) for d in dots) == [2, 2]
    assert {float(x) for d in dots for x in d[:, 0]} == {25.0, 50.0}


def test_differences_with_their_verdicts_and_margin(study):
    comparison = compare(load_study(study))
    figure = differences(comparison)
    assert figure is not None
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["grpo_g8 − ppo"]
    rings = [offsets for c in axes.collections if len(offsets := c.get_offsets())]
    assert [list(offsets[:, 0]) for offsets in rings] == [[25.0, 25.0]]  # 50 % less 25 % in both seeds
    assert comparison.contrasts[0].verdict in {text.get_text() for text in axes.texts}


def test_accuracy_against_cost_and_seconds_by_phase(study):
    arms = compare(load_study(study)).arms
    figure = accuracy_against_cost(spent(arms), "title")
    assert figure is not None
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "seconds, evaluations left out", "tokens generated", "FLOPs, by theory"
    ]  # fmt: skip
    filled = [line.get_xydata()[0] for line in figure.axes[0].lines if line.get_marker() != "None"]
    # rollout 4, reward 0.5, score 1.5, update 6 of PPO and 2 of GRPO; evaluation is no training
    np.testing.assert_allclose(filled, [[12.0, 25.0], [8.0, 50.0]])
    bars = phases(phase_seconds(arms), "title")
    assert bars is not None
    ends = [patch.get_x() + patch.get_width() for patch in bars.axes[0].patches][-2:]
    np.testing.assert_allclose(ends, [12 / 1.024, 8 / 1.024])  # per 1,000 of 1,024 samples


def test_pass_at_k(study):
    comparison = compare(load_study(study))
    found = pass_curves(comparison.arms, comparison.references)
    by_label = {one.label: one for one in found}
    assert by_label["ppo"].ks == [1, 2]
    assert by_label["ppo"].mean == pytest.approx([0.125, 0.25])
    assert pass_at_k(found, "title") is not None
    assert pass_at_k([], "title") is None


def grouped(tmp_path: Path, knob: str, values: tuple[float, ...], curve) -> Path:
    folder = tmp_path / "knob-arithmetic"
    for value in values:
        for seed in (0, 1):
            arm = f"grpo_{value:g}"
            run = write_run(
                folder, arm, seed, [1, 0, 1, 0], base=[0] * 4, curve=curve(value),
                changes={knob: value, "samples_per_step": 64, "prompts_per_step": None, "measure_kl": value == 0},
            )  # fmt: skip
            content = json.loads((run / "result.json").read_text()) | {"config_hash": f"{arm}hash"}
            (run / "result.json").write_text(json.dumps(content))
    return folder


def test_group_sizes_measured_beside_what_success_rates_imply(tmp_path):
    folder = grouped(
        tmp_path, "group_size", (2, 4, 8),
        lambda size: [{"step": t, "samples": t, "group/frac_zero_std": 1 / size + 0.1 * t} for t in range(5)],
    )  # fmt: skip
    assert group_sizes(compare(load_study(folder)).arms).predicted == {}
    expected = {2: 0.7, 4: 0.5, 8: 0.4, 16: 0.3}
    entries = [{"group_size": g, "zero_signal_expected": {"formula": share}} for g, share in expected.items()]
    (folder / "advantage_error.json").write_text(json.dumps({"problems": 256, "groups": entries}))
    found = group_sizes(compare(load_study(folder)).arms)
    assert found is not None
    (family,) = found.families
    assert [point.value for point in family.points] == [2, 4, 8]
    assert family.points[0].mean("first") == pytest.approx(0.5)
    assert family.points[0].mean("last") == pytest.approx(0.9)
    assert found.predicted == {"before RL": {2: 0.7, 4: 0.5, 8: 0.4}}  # no row has groups of 16
    figure = group_size(found, "title")
    assert figure is not None
    assert "p^G" in figure.axes[0].get_legend().get_texts()[-1].get_text()


def test_a_row_stands_at_equal_samples_and_at_equal_prompts(tmp_path):
    folder = tmp_path / "group_size-arithmetic"
    for prompts, size in ((64, 2), (32, 4), (16, 8), (16, 2), (16, 4)):
        arm = f"g{size}_{prompts}"
        held = (128, None) if prompts * size == 128 else (None, prompts)  # as the arms of the study are written
        changes = {"group_size": size, "samples_per_step": held[0], "prompts_per_step": held[1]}
        write_run(folder, arm, 0, [1, 0], base=[0, 0], changes=changes, result={"config_hash": arm}, algo="grpo")
    found = group_sizes(compare(load_study(folder)).arms)
    assert found is not None
    assert {family.name.partition(", ")[2]: [point.label for point in family.points] for family in found.families} == {
        "128 samples a step": ["g2_64", "g4_32", "g8_16"],
        "16 prompts a step": ["g2_16", "g4_16", "g8_16"],
    }


def test_a_kl_study_has_its_frontier(tmp_path):
    folder = grouped(
        tmp_path, "kl_coef", (0.0, 0.01, 0.1),
        lambda coef: [{"step": t, "samples": t, "kl/ref_k3_token": 0.2 - coef, "rollout/entropy": 0.5} for t in (1, 2)],
    )  # fmt: skip
    arms = compare(load_study(folder)).arms
    (family,) = kl_frontier(arms)
    assert [point.mean("kl") for point in family.points] == pytest.approx([0.2, 0.19, 0.1])
    assert [arm.config["measure_kl"] for arm in arms] == [True, False, False]  # how it was measured is no other family
    figure = kl([family], "title")
    assert figure is not None
    assert len(figure.axes) == 3


def test_no_knob_no_picture(study):
    arms = compare(load_study(study)).arms
    assert group_sizes(arms) is None
    assert kl_frontier(arms) == []


def test_many_rows_get_a_panel_each(study):
    figure = small_multiples(learning_curves(compare(load_study(study)).arms), "samples", "title")
    assert figure is not None
    assert [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")] == ["ppo", "grpo_g8"]


def test_drawing_writes_png_and_svg_of_what_there_is(study, tmp_path):
    written = figures.draw(compare(load_study(study)), tmp_path)
    stems = {path.stem for path in written}
    assert stems == {"curves_samples", "curves_seconds", "accuracy", "differences", "cost", "phases", "pass_at_k"}
    assert all(path.stat().st_size > 1000 for path in written)
    assert {path.suffix for path in written} == {".png", ".svg"}


def test_names_at_curve_ends_do_not_overlap():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    axes.set_ylim(0, 1)
    labels = ["a", "b", "c"]
    _name_ends(axes, [(0.99, "a"), (1.0, "b"), (0.98, "c")], {k: {"color": "k"} for k in labels})
    heights = {text.get_text(): text.xy[1] for text in axes.texts}
    assert heights["b"] - heights["a"] == pytest.approx(0.085)
    assert heights["a"] - heights["c"] == pytest.approx(0.085)
    assert max(heights.values()) <= 1.0


def test_colours_are_distinct_and_then_dashed():
    styles = [tuple(map(str, line_style(i).values())) for i in range(20)]
    assert len(set(styles)) == 20


FORKED = """
import os, sys
from pathlib import Path
from grpo_bench import figures
from grpo_bench.records import load_study
from grpo_bench.table.compare import compare

def save(figure, stem, plain=figures.save):
    stem.with_suffix(".pid").write_text(str(os.getpid()))
    return plain(figure, stem)

figures.save, figures.cores = save, lambda: 3
written = figures.draw(compare(load_study(Path(sys.argv[1]))), Path(sys.argv[2]))
print(os.getpid(), *(path.name for path in written))
"""


def test_figures_of_forked_processes_are_the_same_files(study, tmp_path, monkeypatch):
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("nothing is forked here")
    serial, forked = tmp_path / "serial", tmp_path / "forked"
    serial.mkdir()
    forked.mkdir()
    monkeypatch.setattr(figures, "cores", lambda: 1)
    written = figures.draw(compare(load_study(study)), serial)
    # in a process of its own: this one may have threads by now
    command = [sys.executable, "-c", FORKED, str(study), str(forked)]
    own, *names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    drawn_by = {path.read_text() for path in forked.glob("*.pid")}
    assert drawn_by
    assert own not in drawn_by
    assert names == [path.name for path in written]
    for path in written:
        assert (forked / path.name).read_bytes() == path.read_bytes(), path.name
