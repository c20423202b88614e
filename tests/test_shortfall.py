"""Which rows did not beat the model they began from, and what their records say about it; many rows in one figure."""

from __future__ import annotations

from pathlib import Path

import pytest
from study_builder import default_curve, write_run

from grpo_bench import figures, table
from grpo_bench.records import load_study
from grpo_bench.table.compare import compare
from grpo_bench.table.shortfall import shortfall_sheet, unused

BASE = [1, 1, 0, 0, 0, 0, 0, 0, 0, 0]
BETTER = [1] * 9 + [0]


def with_figures(**figures: float) -> list[dict[str, float]]:
    return [{**line, **{key.replace("__", "/"): value for key, value in figures.items()}} for line in default_curve(0)]


def test_a_row_that_beats_the_base_is_not_in_it(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path, "grpo_g8", seed, BETTER, base=BASE)
    assert shortfall_sheet(compare(load_study(tmp_path))) is None


def test_one_that_does_not_is_there_with_what_its_records_show(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path, "grpo_g8", seed, BETTER, base=BASE)
        flat = with_figures(group__frac_zero_std=0.7, policy__clip_frac=0.6)
        # 4 steps of 128 samples are 512 of the 1,024 that were charged
        changes = {"samples_per_step": 128, "group_size": 1}
        write_run(tmp_path, "ppo_x", seed, BASE, base=BASE, curve=flat, changes=changes)
    sheet = shortfall_sheet(compare(load_study(tmp_path)))
    assert sheet is not None
    (row,) = sheet.rows
    assert row[0] == "ppo_x"
    assert row[4] == "50.0"
    assert row[5] == "–"
    # a group of one has no signal by definition, so that share says nothing
    assert row[-1] == "60 % of its tokens lie beyond the clip"


@pytest.mark.parametrize(
    ("changes", "figures", "said"),
    [
        ({"reward": {"parts": {"random": 1.0}}}, {}, "a control: its reward knows nothing of the answer"),
        ({"kl_coef": 0.5, "algo": {"name": "grpo", "kl": {"place": "loss"}}}, {}, "held by a KL of coefficient 0.5"),
        ({}, {"group__frac_zero_std": 0.65}, "65 % of its groups have one reward and no signal"),
        ({}, {}, "nothing that these figures show"),
    ],
)
def test_rules(tmp_path: Path, changes: dict, figures: dict[str, float], said: str) -> None:
    write_run(tmp_path, "grpo_g8", 0, BASE, base=BASE, curve=with_figures(**figures), changes=changes)
    sheet = shortfall_sheet(compare(load_study(tmp_path)))
    assert sheet is not None
    assert sheet.rows[0][-1] == said


def test_a_reward_that_was_pursued_instead_of_the_answer_is_named(tmp_path: Path) -> None:
    # fifths of ten steps: .1, .1 and .9, .9 of reward; .4, .4 and .2, .2 right
    values = [(0.1, 0.4)] * 2 + [(0.5, 0.3)] * 6 + [(0.9, 0.2)] * 2
    curve = [{"step": i, "reward/mean": r, "reward/correct": c} for i, (r, c) in enumerate(values)]
    changes = {"reward": {"parts": {"model": 1.0}}}
    write_run(tmp_path, "grpo_g8", 0, BASE, base=BASE, curve=curve, changes=changes)
    sheet = shortfall_sheet(compare(load_study(tmp_path)))
    assert sheet is not None
    said = "its reward rose from 0.10 to 0.90 while the share of right answers went from 40 to 20 %"
    assert sheet.rows[0][-1].startswith(said)


def test_a_row_worse_than_its_base_says_so_first(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path, "grpo_g8", seed, [0] * 10, base=BETTER)
    sheet = shortfall_sheet(compare(load_study(tmp_path)))
    assert sheet is not None
    assert sheet.rows[0][-1].startswith("worse than the model it began from")


def test_few_updates_are_named_with_the_samples_that_were_not_trained_on(tmp_path: Path) -> None:
    cost = {"samples": 1024, "steps": 2, "updates": 1, "extra_samples": 768, "seconds": {}, "parameters": {}}
    write_run(tmp_path, "grpo_g8", 0, BETTER, base=BASE)
    write_run(tmp_path, "grpo_g4", 0, BETTER, base=BASE)
    write_run(tmp_path, "ppo_vine", 0, BASE, base=BASE, result={"cost": cost}, changes={"samples_per_step": 128})
    comparison = compare(load_study(tmp_path))
    arm = next(arm for arm in comparison.arms if arm.label == "ppo_vine")
    assert unused(arm) == 0.75  # 1 − 2·128/1024
    sheet = shortfall_sheet(comparison)
    assert sheet is not None
    said = "1 updates where the median row makes 4, since 75 % of its samples are not trained on"
    assert sheet.rows[0][-1] == said


def test_many_rows_get_a_panel_each(tmp_path: Path) -> None:
    for i in range(14):
        write_run(tmp_path, f"grpo_{i}", 0, BETTER, base=BASE)
    comparison = table.build(tmp_path).comparison
    assert len(comparison.arms) == 14
    figure = figures.draw(comparison, tmp_path)
    assert (tmp_path / "curves_samples.png") in figure
    text = (tmp_path / "curves_samples.svg").read_text()
    assert all(f">grpo_{i}<" in text for i in range(14))
