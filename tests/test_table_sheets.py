"""Hypotheses, blocks of one knob, the tuning ledger, the card, the front page: what they say and refuse to say."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from study_builder import config, write_curves, write_run, write_study

from grpo_bench import stats, table
from grpo_bench.records import load_study, read_evaluations
from grpo_bench.stats.curves import Reached
from grpo_bench.table import __main__ as command
from grpo_bench.table.arms import group_arms
from grpo_bench.table.article import article_sheet
from grpo_bench.table.brief import brief, insert
from grpo_bench.table.collapse import collapsed
from grpo_bench.table.compare import compare
from grpo_bench.table.curves import area, end, reached, target
from grpo_bench.table.hypotheses import criterion, evaluate
from grpo_bench.table.judge import Claim, judge
from grpo_bench.table.ledger import choices, trials, write_tuned
from grpo_bench.table.measures import MEASURES, Reading
from grpo_bench.table.render import as_json
from grpo_bench.table.values import collect
from grpo_bench.types import UserError

ARMS = {"ppo": 0.5, "grpo_g4": 0.6, "grpo_g8": 0.8, "grpo_g16": 0.7}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Four arms of five seeds with everything declared; not to be changed."""
    folder = tmp_path_factory.mktemp("whole") / "results" / "demo-arithmetic"
    write_study(folder, ARMS, range(5), problems=200)
    return folder


@pytest.fixture(scope="module")
def built(whole) -> table.Table:
    return table.build(whole)


def cells(sheet: Any, row: str, column: int = 0) -> dict[str, str]:
    return dict(zip(sheet.header, next(r for r in sheet.rows if r[column] == row), strict=True))


# ---------------------------------------------------------------- measures


def test_every_measure_reads_from_a_run_or_says_nothing(whole):
    arms = group_arms(load_study(whole).runs)
    reading = Reading(arms)
    run = next(arm for arm in arms if arm.label == "grpo_g8").runs[0]
    found = {name: reading.value(name, run) for name in MEASURES}
    assert all(value is None or math.isfinite(value) for value in found.values())
    assert found["parameters"] == 600_000
    assert found["seconds_per_update"] == 2.0  # 8 s of training over 4 updates
    assert found["gain"] == pytest.approx((found["accuracy"] or 0) - 0.4)
    assert found["gain_format"] == 0.0
    assert found["zero_signal"] == pytest.approx(0.1)
    assert found["explained_variance"] is None
    ppo = next(arm for arm in arms if arm.label == "ppo").runs[0]
    assert reading.value("zero_signal", ppo) is None  # a group of one
    assert reading.before("accuracy", "base", run) == 0.4
    assert reading.before("gain", "base", run) == 0.0
    assert reading.before("kl_final", "base", run) is None
    with pytest.raises(KeyError):
        reading.value("acuracy", run)


def test_the_learning_curve_by_hand(tmp_path):
    run = write_run(tmp_path / "demo-arithmetic", "grpo_g8", 0, [1, 0], base=[0, 0])
    dev = {0: 0.2, 2: 0.4, 4: 0.8}
    lines = [{"step": s, "samples": 100 * s} | ({"eval/dev/greedy/acc": dev[s]} if s in dev else {}) for s in range(5)]
    write_curves(run, lines)
    (one,) = load_study(tmp_path / "demo-arithmetic").runs
    # trapezoids: 200·0.3 + 200·0.6 over 400
    assert area(one, "eval/dev/greedy/acc") == pytest.approx(0.45)
    assert end(one) == pytest.approx(0.6)  # of the evaluations after the first step
    assert reached(one, 0.5, "samples").at == pytest.approx(250)
    assert reached(one, 0.9, "samples") == Reached(None, 400)
    aim = target(group_arms([one]))
    assert aim is not None
    assert aim.accuracy == pytest.approx(0.2 + 0.75 * 0.4)


def test_areas_by_tokens_end_where_the_shortest_run_does(tmp_path):
    study = tmp_path / "demo-arithmetic"
    for name, each in (("grpo_g4", 10), ("grpo_g8", 30)):
        heights = {0: 0.2, 2: 0.4, 4: 0.8}
        lines = [
            {"step": s, "samples": s, "generated_tokens": each * s, "eval/dev/greedy/acc": heights[s]} for s in heights
        ]
        run = write_run(study, name, 0, [1, 0], base=[0, 0], curve=lines, result={"row": name, "config_hash": name})
        run.rename(study / f"{name}-s0-{ord(name[-1]):08x}")
    arms = group_arms(load_study(study).runs)
    reading = Reading(arms)
    # all have 40 tokens: 20·0.3 + 20·0.6 of the one; of the other 40·(0.2 + 0.4/3·0.5), it stands at 0.2 + 0.2·40/60
    found = {arm.label: reading.value("learning_curve_area_tokens", arm.runs[0]) for arm in arms}
    assert found == pytest.approx({"grpo_g4": 0.45, "grpo_g8": 0.2 + 0.1 * 40 / 60})


def test_areas_by_tokens_are_over_what_the_rows_of_a_claim_have(tmp_path):
    study = tmp_path / "demo-arithmetic"

    def add(name: str, each: int, heights: dict[int, float], status: str = "complete") -> None:
        lines = [
            {"step": s, "samples": s, "generated_tokens": each * s, "eval/dev/greedy/acc": h}
            for s, h in heights.items()
        ]
        changed = {"row": name, "config_hash": name, "status": status}
        run = write_run(study, name, 0, [1, 0], base=[0, 0], curve=lines, status=status, result=changed)
        run.rename(study / f"{name}-s0-{zlib.crc32(name.encode()):08x}")

    rising = {0: 0.2, 2: 0.4, 4: 0.8}
    add("grpo_g2", 1, rising)  # of no claim below: it has 4 tokens and cuts none of theirs
    add("grpo_g4", 10, rising)
    add("grpo_g8", 30, rising)
    add("grpo_g16", 10, {0: 0.2}, "diverged")  # stopped after its first look
    c = compare(load_study(study))
    reading = Reading(c.arms)
    found = collect(c, reading, ["grpo_g4", "grpo_g8"], "learning_curve_area_tokens")
    assert found.rows == [[pytest.approx(0.45)], [pytest.approx(0.2 + 0.1 * 40 / 60)]]  # both over 40, as above
    # the stopped one stands at 0.2 for the other's 120 tokens, whose curve is 60·0.3 + 60·0.6
    found = collect(c, reading, ["grpo_g8", "grpo_g16"], "learning_curve_area_tokens")
    assert found.rows == [[pytest.approx(0.45)], [pytest.approx(0.2)]]
    # outside a claim over what all have, 4 tokens: 0.2 + 0.2·4/20/2
    four = next(arm for arm in c.arms if arm.label == "grpo_g4").runs[0]
    assert reading.value("learning_curve_area_tokens", four) == pytest.approx(0.22)


# ---------------------------------------------------------------- hypotheses


def test_declared_hypotheses_are_judged(built):
    by_id = {finding.id: finding for finding in built.findings}
    assert {name: f.outcome for name, f in by_id.items()} == {
        "grpo_better": "supported", "beats_base": "supported", "half": "supported", "area": "contradicted",
    }  # fmt: skip
    assert by_id["area"].why == "it turns on the way"  # sixteen end below eight
    assert by_id["half"].judgement.interval.estimate == pytest.approx(0.5)
    assert by_id["beats_base"].values.labels == ["grpo_g8", "warm-started"]
    sheet = built.sheet("hypotheses")
    assert cells(sheet, "half")["criterion"] == "less, ratio 0.45 × to 0.55 ×"
    assert cells(sheet, "area")["outcome"] == "contradicted (it turns on the way)"
    assert "98.75 % interval" in sheet.notes[1]  # 1 − 0.05/4


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        (Claim("greater", at_least=-0.02), "not lower by more than 2.0 points"),
        (Claim("less", at_least=-0.02), "not higher by more than 2.0 points"),
        (Claim("increasing", at_least=-0.005), "not falling by more than 0.5 points"),
        (Claim("decreasing", at_least=-0.005), "not rising by more than 0.5 points"),
        (Claim("greater", at_least=0.0), "greater by at least 0.0 points"),
        (Claim("greater", at_least=-0.02, at_most=0.02), "greater by -2.0 points to 2.0 points"),
        (Claim("greater", "ratio", at_least=0.9), "greater, ratio at least 0.9 ×"),
    ],
)
def test_a_claim_of_no_worse_says_by_how_much(claim, said):
    assert criterion(claim, MEASURES["accuracy"]) == said


@pytest.mark.parametrize(
    ("hypothesis", "outcome", "why"),
    [
        ({"rows": ["dapo", "ppo"]}, "not tested here", "no run of dapo"),
        ({"measure": "cleverness"}, "not tested here", "no measure cleverness"),
        ({"measure": "explained_variance"}, "not tested here", "not recorded for grpo_g8, ppo"),
        ({"measure": "kl_final", "rows": ["grpo_g8", "warm-started"]}, "not tested here", "not recorded for warm"),
        ({"expect": "equal"}, "contradicted", "more than the margin"),  # the study's ±2 points
        ({"expect": "less"}, "contradicted", ""),
        ({"measure": "kl_final", "expect": "equal"}, "not established", "no margin"),
    ],
)
def test_what_cannot_be_tested_says_why(whole, hypothesis, outcome, why):
    whole_one = {"id": "x", "claim": "c", "rows": ["grpo_g8", "ppo"], "expect": "greater"} | hypothesis
    (finding,) = evaluate(compare(load_study(whole)), [whole_one])
    assert finding.outcome == outcome
    assert why in finding.why


COSTS = ["accuracy", "flops", "seconds_training", "peak_memory", "model_states", "parameters"]


def refusals(study: Path) -> dict[str, str]:
    one = {"id": "x", "claim": "c", "rows": ["grpo_g8", "ppo"], "expect": "greater"}
    found = evaluate(compare(load_study(study)), [one | {"measure": name} for name in COSTS])
    return {f.measure: f.why if f.outcome == "not comparable" else f.outcome for f in found}


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ({"result": {"prompt_stream_hash": "other"}}, "prompt stream differs"),
        ({"result": {"budget": {"unit": "samples", "amount": 2048}}}, "budget differs"),
        ({"result": {"model": "large"}}, "model differs"),
    ],
)
def test_a_cost_needs_the_same_budget_model_and_prompts(tmp_path, second, said):
    study = tmp_path / "demo-arithmetic"
    write_run(study, "ppo", 0, [1, 0, 0, 0], base=[0] * 4)
    write_run(study, "grpo_g8", 0, [1, 1, 0, 0], base=[0] * 4, **second)
    found = refusals(study)
    if said == "model differs":  # a row's label then names its model, and the claim's row is found by its name
        found["accuracy"] = said
    assert found.pop("parameters") == "descriptive"
    assert all(said in why for why in found.values()), found


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ({"cpu": "another processor"}, "processor differs"),
        ({"device": {"torch_threads": 4, "gpus": []}}, "number of threads differs"),
        ({"device": {"torch_threads": 1, "gpus": ["a GPU"]}}, "accelerators differs"),
        ({"parallel": 2}, "number of jobs at once differs"),
    ],
)
def test_seconds_and_bytes_need_the_same_machine(tmp_path, where, said):
    study = tmp_path / "demo-arithmetic"
    here = {"cpu": "a processor", "device": {"torch_threads": 1, "gpus": []}, "parallel": 1}
    for name, place in (("ppo", here), ("grpo_g8", here | where)):
        run = write_run(study, name, 0, [1, 0, 0, 0], base=[0] * 4, changes={"parallel": place["parallel"]})
        attempt = {"cpu": place["cpu"], "device": place["device"], "packages": {}}
        (run / "provenance.json").write_text(json.dumps({"attempts": [attempt]}))
        result = json.loads((run / "result.json").read_text())
        result["cost"]["memory"] = {"policy": 100}
        (run / "result.json").write_text(json.dumps(result))
    found = refusals(study)
    assert found["model_states"] == "descriptive"  # tensors are as large everywhere
    assert {name for name, why in found.items() if said in why} == {"seconds_training", "peak_memory"}
    assert {found["accuracy"], found["flops"], found["parameters"]} == {"descriptive"}


# ---------------------------------------------------------------- runs that were stopped, and those that fell


def stopped(study: Path, arm: str, seed: int, curve: list[dict[str, Any]]) -> None:
    run = write_run(study, arm, seed, [1, 0], base=[0, 0], curve=curve, status="diverged")
    assert (run / "result.json").is_file()


def test_a_stopped_run_is_held_and_costs_nothing_whole(tmp_path):
    study = tmp_path / "demo-arithmetic"

    def dev(*heights: float) -> list[dict[str, Any]]:
        return [{"step": i, "samples": 100 * i, "eval/dev/greedy/acc": h} for i, h in enumerate(heights)]

    write_run(study, "grpo_g8", 0, [1, 0], base=[0, 0], curve=dev(0.2, 0.4, 0.6, 0.6, 0.6))
    stopped(study, "grpo_g8", 1, dev(0.2, 0.4))
    whole, short = load_study(study).runs
    reading = Reading(group_arms([whole, short]))
    # 0.3 over the first hundred, then 0.4 over the three that it did not live to see
    assert reading.value("learning_curve_area", short) == pytest.approx((0.3 + 3 * 0.4) / 4)
    assert reading.value("learning_curve_area", whole) == pytest.approx((0.3 + 0.5 + 2 * 0.6) / 4)
    assert reading.reached(short, "samples") == Reached(None, 400)
    for name in ("seconds_training", "flops", "samples", "peak_memory", "updates"):
        assert reading.value(name, short) is None
        assert reading.value(name, whole) is not None
    assert reading.value("parameters", short) == 600_000
    assert reading.value("seconds_per_step", short) == 2.0


def test_collapse_is_counted_by_the_rule_of_the_diagnosis(tmp_path):
    study = tmp_path / "demo-arithmetic"
    for seed, last in ((0, 0.1), (1, 0.78)):
        curve = [
            {"step": s, "samples": s, "reward/mean": 0.5, "eval/dev/greedy/acc": h, "eval/dev/greedy/stderr": 0.02}
            for s, h in ((1, 0.4), (2, 0.8), (3, last))
        ]
        write_run(study, "ppo", seed, [1, 0], base=[0, 0], curve=curve)
    write_run(study, "ppo", 2, [1, 0], base=[0, 0], curve=[{"step": 1, "samples": 1}])
    assert [collapsed(run) for run in load_study(study).runs] == [True, False, None]
    row = cells(table.build(study).sheet("stability"), "ppo")
    assert (row["collapsed"], row["non-finite"]) == ("1 of 2", "0 of 3")


# ---------------------------------------------------------------- one rule


def test_a_claim_about_a_contrast_has_the_contrast_s_verdict(whole):
    c = compare(load_study(whole))
    one = {"id": "x", "claim": "c", "rows": ["ppo", "grpo_g8"], "expect": "less"}
    many = evaluate(c, [one | {"id": str(i)} for i in range(40)])
    contrast = next(x for x in c.contrasts if x.first == "grpo_g8")
    # not the level of forty hypotheses, but of the contrasts
    assert many[0].judgement.simultaneous.low == pytest.approx(-contrast.judged.simultaneous.high)
    assert {f.outcome for f in many} == {"supported"}
    assert contrast.judged.word == "better"


def test_differences_that_are_all_zero_are_equivalent_by_both_rules():
    same = [[0.5] * 5, [0.5] * 5]
    assert judge(same, Claim("equal", at_most=0.02), counted=True).outcome == "supported"
    assert stats.verdicts({"x": [0.0] * 5}, 0.02)["x"].word == "equivalent"
    assert judge(same, Claim("greater"), counted=True).outcome == "not established"
    shifted = [[0.6] * 5, [0.5] * 5]
    assert judge(shifted, Claim("greater"), counted=True).outcome == "not established"
    assert stats.verdicts({"x": [0.1] * 5}, 0.02)["x"].word == "not established"


def test_the_article_says_what_the_study_s_own_hypothesis_found(whole, built):
    sheet = built.sheet("article")
    # twenty more hypotheses would make the article's own level another: the outcome stays the declared one
    ratio = {"id": "own", "claim": "c", "rows": ["ppo", "grpo_g8"], "measure": "parameters", "expect": "greater"}
    found = evaluate(built.comparison, [ratio | {"scale": "ratio", "at_least": 3.0}])
    cell = cells(article_sheet(built.comparison, found), "parameters")["PPO: ppo"]
    assert cell.endswith(
        "GRPO 0.50 × [0.50, 0.50]; the study's own own (ppo against grpo_g8: greater, ratio at least 3 ×): "
        "CONTRADICTED (in the direction claimed, but of another size)"
    )
    assert cells(sheet, "parameters")["PPO: ppo"].endswith("GRPO 0.50 × [0.50, 0.50]: SUPPORTED")
    assert "in sd over seeds: " in cells(sheet, "stability")["PPO: ppo"]


def test_a_small_difference_says_so_in_the_article(tmp_path):
    study = tmp_path / "demo-arithmetic"
    for seed in range(5):
        for name, right in (("ppo", 500), ("grpo_g8", 506 + seed % 2)):
            write_run(study, name, seed, [int(i < right) for i in range(1000)], base=[0] * 1000)
    cell = cells(table.build(study).sheet("article"), "accuracy")["PPO: ppo"]
    assert cell.endswith(": BETTER, BY LESS THAN THE MARGIN")


def test_hypotheses_say_in_how_many_runs_they_were_declared(tmp_path):
    study = tmp_path / "demo-arithmetic"
    claim = {"id": "x", "claim": "c", "rows": ["grpo_g8", "ppo"], "expect": "greater"}
    for seed in (0, 1):
        settings = config("ppo", "ppo", seed)["study"] | {"hypotheses": [claim] if seed else []}
        for name in ("ppo", "grpo_g8"):
            write_run(study, name, seed, [1, 0], base=[0, 0], changes={"study": settings})
    built = table.build(study)
    assert "Declared in the configuration of 2 of 4 runs." in built.sheet("hypotheses").notes[0]
    assert any(n.startswith("The study's hypotheses changed between its runs") for n in built.comparison.notes)


def begun(run: Path, day: int) -> None:
    path = run / "provenance.json"
    content = json.loads(path.read_text())
    content["attempts"][0]["started"] = f"2026-01-{day:02d}T00:00:00Z"
    path.write_text(json.dumps(content))


def test_what_the_run_begun_first_declared_counts_and_later_claims_describe(tmp_path):
    study = tmp_path / "demo-arithmetic"
    first = {"id": "kl", "claim": "c", "rows": ["grpo_g8", "ppo"], "measure": "kl_final", "expect": "greater"}
    # grpo_g8's folders come first by name and ppo's began first; one bound was changed, one sentence, one claim added
    bound = first | {"at_least": 0.05}
    worded = {"id": "ends", "claim": "before", "rows": ["grpo_g8", "ppo"], "expect": "greater"}
    added = {"id": "calm", "claim": "c", "rows": ["grpo_g8", "ppo"], "measure": "entropy_final", "expect": "less"}
    declared = {"ppo": [first, worded], "grpo_g8": [bound, worded | {"claim": "after"}, added]}
    # KL 0.10, 0.12, 0.11, 0.09, 0.13 above the other's: the interval is 0.0904 to 0.1296
    for seed, kl in enumerate([0.30, 0.32, 0.31, 0.29, 0.33]):
        for name, value, day in (("ppo", 0.2, 1), ("grpo_g8", kl, 2)):
            settings = config(name, "ppo", seed)["study"] | {"hypotheses": declared[name]}
            settings |= {"baseline": name}
            result = {"stability": {"kl_final": value, "entropy_final": value}}
            begun(write_run(study, name, seed, [1, 0], base=[0, 0], changes={"study": settings}, result=result), day)
    built = table.build(study)
    shown = [(f.id, f.claim, f.outcome, f.later) for f in built.findings]
    assert shown == [
        ("kl", "c", "supported", False), ("ends", "before", "not established", False),  # no accuracy differs
        ("kl", "c", "descriptive", True), ("calm", "c", "descriptive", True),
    ]  # fmt: skip
    sheet = built.sheet("hypotheses")
    assert [row[sheet.header.index("outcome")] for row in sheet.rows][2:] == ["declared later: descriptive"] * 2
    assert sheet.rows[2][sheet.header.index("found [95 %]")] == "+0.11 [+0.0904, +0.13]"
    assert "97.5 % interval" in sheet.notes[1]  # of the two declared first
    assert sheet.notes[2].startswith("Declared later: the last 2 stand in runs begun after the first one")
    assert built.comparison.baseline == "ppo"
    notes = built.comparison.notes
    assert any(
        "baseline changed between its runs: ppo-s0-aaaaaaaa's, begun first, are used, 5 runs" in n for n in notes
    )
    found = json.loads(as_json(built.heading, built.sheets, built.comparison, built.findings))["hypotheses"]
    assert [one["declared_later"] for one in found] == [False, False, True, True]


def test_the_time_to_a_target_is_a_median_with_its_seeds(tmp_path):
    study = tmp_path / "demo-arithmetic"
    for name in ("ppo", "grpo_g8"):
        for seed, top in enumerate((0.9, 0.9, 0.5)):
            curve = [
                {"step": s, "samples": 100 * s, "eval/dev/greedy/acc": h}
                for s, h in enumerate((0.1, 0.1 + (top - 0.1) / 2, top, top, top))
            ]
            write_run(study, name, seed, [1, 0], base=[0, 0], curve=curve)
    # from 10 % to the mean end of 0.9, 0.9, 0.5 (less the first halves): below 0.9, above 0.5
    cell = cells(table.build(study).sheet("article"), "convergence")["GRPO: grpo_g8"]
    assert re.search(r"; median 1\d\d samples to \d\d % on dev \(2 of 3 seeds; 1 not reached by 400\)", cell)
    row = cells(table.build(study).sheet("efficiency"), "ppo")
    assert row["to the target: reached"] == "2 of 3"


def settings_study(study: Path, rows: list[tuple[str, str]], baseline: str | None = None) -> Path:
    """A seed of each (arm, what its row's name says beyond it), the settings as those of the experiment."""
    for arm, settings in rows:
        row = f"{arm} {settings}".strip()
        named = config(arm, arm.split("_")[0], 0)["study"] | {"baseline": baseline}
        own = f"{zlib.crc32(settings.encode()):08x}"
        run = write_run(
            study, arm, 0, [1, 0], base=[0, 0], changes={"row": row, "experiment": settings, "study": named},
            result={"row": row, "config_hash": own},
        )  # fmt: skip
        run.rename(study / f"{arm}-s0-{own}")
    return study


BOTH = [(arm, settings) for settings in ("budget=a", "budget=b") for arm in ("ppo", "ppo_tuned", "grpo_g8")]


@pytest.mark.parametrize(
    ("baseline", "rows", "at"),
    [
        (None, BOTH, "budget=a"),  # the first that there is
        ("ppo_tuned", BOTH, "budget=a"),  # an arm is named at each of them
        ("ppo_tuned budget=b", BOTH, "budget=b"),
        ("ppo budget=b", [*BOTH[:5], ("grpo_g16", "budget=c")], "budget=a"),  # GRPO has no row at the baseline's
        (None, [("grpo_g8", "budget=c"), *BOTH], "budget=a"),  # nor PPO one at GRPO's first
    ],
)
def test_the_article_pairs_rows_of_one_setting(tmp_path, baseline, rows, at):
    sheet = table.build(settings_study(tmp_path / "demo-arithmetic", rows, baseline)).sheet("article")
    assert sheet.header[2:] == [f"GRPO: grpo_g8 {at}", f"PPO: ppo {at}", f"PPO: ppo_tuned {at}"]
    assert f"Compared at one of the study's settings alone: {at}." in sheet.notes
    left = {f"{arm} {settings}" for arm, settings in rows if settings != at}
    said = next(note for note in sheet.notes if note.startswith("Not shown here: "))
    assert set(said.removeprefix("Not shown here: ").removesuffix(".").split(", ")) == left


def test_no_two_rows_of_one_setting_and_a_tuning_sweep_are_no_article(tmp_path, sweep):
    other = settings_study(tmp_path / "demo-arithmetic", [("ppo", "kl_coef=0.1"), ("grpo_g8", "kl_coef=0")])
    assert all(sheet.name != "article" for sheet in table.build(other).sheets)
    names = {sheet.name for sheet in table.build(sweep).sheets}
    assert "ledger" in names
    assert "article" not in names


def test_a_model_is_a_setting_and_its_own_rates_are_no_sweep(tmp_path):
    study = tmp_path / "demo-arithmetic"
    for model, lr in (("tiny", 1e-4), ("tiny_large", 3e-5)):
        for arm in ("ppo", "grpo_g8"):
            run = write_run(
                study, arm, 0, [1, 0], base=[0, 0], changes={"lr": lr, "model": {"name": model}},
                result={"model": model, "config_hash": f"{model}{arm}"},
            )  # fmt: skip
            run.rename(study / f"{arm}-s0-{len(model):08x}")  # records are read by name: tiny first
    built = table.build(study)
    assert trials(built.comparison) == []
    sheet = built.sheet("article")
    assert sheet.header[2:] == ["GRPO: grpo_g8 (tiny)", "PPO: ppo (tiny)"]
    assert "Compared at one of the study's settings alone: (tiny)." in sheet.notes


# ---------------------------------------------------------------- one knob at a time


def test_a_block_is_rows_that_differ_in_one_setting(tmp_path):
    study = tmp_path / "demo-arithmetic"
    names = {"grpo_a": {}, "grpo_b": {"kl_coef": 0.1}, "grpo_c": {"kl_coef": 0.01}, "grpo_d": {"epochs": 4}}
    names |= {"grpo_e": {"epochs": 2, "kl_coef": 0.5}}  # two at once: in no block
    for name, settings in names.items():
        changes = {"kl_coef": 0.0, "epochs": 1, "lr": 1e-4, "measure_kl": name == "grpo_a"} | settings  # no setting
        write_run(study, name, 0, [1, 0], base=[0, 0], changes=changes, result={"config_hash": name})
    sheet = table.build(study).sheet("ablation")
    blocks = [(row[0], row[1], row[2]) for row in sheet.rows]
    assert blocks == [
        ("epochs", "1", "grpo_a"), ("epochs", "4", "grpo_d"),
        ("kl_coef", "0.0", "grpo_a"), ("kl_coef", "0.01", "grpo_c"), ("kl_coef", "0.1", "grpo_b"),
    ]  # fmt: skip


def test_tuned_rates_may_differ_within_a_block_and_are_named(tmp_path):
    study = tmp_path / "demo-arithmetic"
    for name, settings in {"grpo_g4": {"group_size": 4, "lr": 1e-4}, "grpo_g8": {"group_size": 8, "lr": 3e-5}}.items():
        write_run(study, name, 0, [1, 0], base=[0, 0], changes=settings, result={"config_hash": name})
    sheet = table.build(study).sheet("ablation")
    assert [row[:3] for row in sheet.rows] == [["group_size", "4", "grpo_g4"], ["group_size", "8", "grpo_g8"]]
    assert "Within group_size the tuned lr differs: grpo_g4 0.0001, grpo_g8 3e-05." in sheet.notes


def rate_blocks(study: Path, rows: dict[str, dict[str, Any]]) -> tuple[list[tuple[str, str, str]], list[str]]:
    for name, settings in rows.items():
        changes = {"lr": 1e-4, "critic_lr": 1e-3} | settings
        write_run(study, name, 0, [1, 0], base=[0, 0], changes=changes, result={"config_hash": name})
    sheet = table.build(study).sheet("ablation")
    return [tuple(row[:3]) for row in sheet.rows], sheet.notes


def test_rows_that_vary_a_rate_stand_in_its_block_alone(tmp_path):
    rows = {
        "ppo_cold": {"warmup": 0},
        "ppo_tuned": {"warmup": 2},
        "ppo_slow": {"warmup": 2, "critic_lr": 1e-4},
        "ppo_fast": {"warmup": 2, "critic_lr": 3e-3},
        "ppo_warm": {"warmup": 4, "critic_lr": 5e-3},  # tuned: the only one of its value
    }
    found, notes = rate_blocks(tmp_path / "demo-arithmetic", rows)
    assert found == [
        ("critic_lr", "0.0001", "ppo_slow"), ("critic_lr", "0.001", "ppo_tuned"), ("critic_lr", "0.003", "ppo_fast"),
        ("warmup", "0", "ppo_cold"), ("warmup", "2", "ppo_tuned"), ("warmup", "4", "ppo_warm"),
    ]  # fmt: skip
    assert [note for note in notes if note.startswith("Within")] == [
        "Within warmup the tuned critic_lr differs: ppo_cold 0.001, ppo_tuned 0.001, ppo_warm 0.005."
    ]


def test_a_grid_of_rates_is_a_block_for_each(tmp_path):
    rows = {f"ppo_{g}_{lr:g}": {"group_size": g, "lr": lr} for g in (1, 8) for lr in (1e-4, 3e-4)}
    found, notes = rate_blocks(tmp_path / "demo-arithmetic", rows)
    assert found == [
        ("group_size (lr=0.0001)", "1", "ppo_1_0.0001"), ("group_size (lr=0.0001)", "8", "ppo_8_0.0001"),
        ("group_size (lr=0.0003)", "1", "ppo_1_0.0003"), ("group_size (lr=0.0003)", "8", "ppo_8_0.0003"),
        ("lr (group_size=1)", "0.0001", "ppo_1_0.0001"), ("lr (group_size=1)", "0.0003", "ppo_1_0.0003"),
        ("lr (group_size=8)", "0.0001", "ppo_8_0.0001"), ("lr (group_size=8)", "0.0003", "ppo_8_0.0003"),
    ]  # fmt: skip
    assert not [note for note in notes if note.startswith("Within")]


# ---------------------------------------------------------------- the tuning ledger

GRID = {1e-5: 0.3, 1e-4: 0.6, 1e-3: 0.5}


@pytest.fixture
def sweep(tmp_path) -> Path:
    """ppo is best at the middle of its grid, grpo_g8 at its upper edge; test results would say otherwise."""
    study = tmp_path / "results" / "learning_rate-arithmetic"
    for arm in ("ppo", "grpo_g8"):
        for lr, height in GRID.items():
            for seed in (100, 101):
                dev = 0.9 if arm == "grpo_g8" and lr == 1e-3 else height
                curve = [{"step": s, "samples": s, "eval/dev/greedy/acc": dev + 0.01 * (seed - 100)} for s in range(5)]
                own, row = f"{int(1 / lr):08x}", f"{arm} lr={lr:g}"
                critic = {"critic_lr": 1e-3} if arm == "ppo" else {}
                run = write_run(
                    study, arm, seed, [int(lr == 1e-5)] * 4, base=[0] * 4, curve=curve,
                    changes={"lr": lr, "row": row, **critic}, result={"row": row, "config_hash": own},
                )  # fmt: skip
                run.rename(study / f"{arm}-s{seed}-{own}")
    return study


def test_the_ledger_chooses_on_dev_and_names_edges(sweep):
    c = compare(load_study(sweep))
    chosen = choices(trials(c))
    assert {arm: choice.best.rates for arm, choice in chosen.items()} == {"ppo": (1e-4, 1e-3), "grpo_g8": (1e-3, None)}
    assert {arm: choice.edges for arm, choice in chosen.items()} == {"ppo": [], "grpo_g8": ["lr highest"]}
    sheet = table.build(sweep).sheet("ledger")
    row = next(row for row in sheet.rows if row[0] == "ppo" and row[-1])
    assert row == ["ppo", "0.0001", "0.001", "60.0", "61.0", "60.5", "0", "chosen"]
    assert "The same grid for every row." in sheet.notes[0]
    assert "grpo_g8 (lr highest)" in sheet.notes[1]


def test_the_choice_is_written_where_runs_read_it(sweep, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("grpo_bench.figures.draw", lambda comparison, where: [])
    file = tmp_path / "arithmetic-tiny.yaml"
    file.write_text("# old\ndefault: {lr: 1.0e-6, critic_lr: 1.0e-5}\nppo: {lr: 5.0e-1}\n")
    assert command.main([str(sweep), f"tuned={file}"]) == 0
    capsys.readouterr()
    assert yaml.safe_load(file.read_text()) == {
        "default": {"lr": 1e-6, "critic_lr": 1e-5},
        "ppo": {"lr": 1e-4, "critic_lr": 1e-3},
        "grpo": {"lr": 1e-3},
        "grpo_g8": {"lr": 1e-3},
    }
    text = file.read_text()
    assert "# out of lr 1e-05, 0.0001, 0.001, seeds 100, 101" in text
    assert "# At the edge of the grid: grpo_g8 (lr highest)." in text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"- 1\n- 2\n", r"should hold lines such as grpo: \{lr: 1.0e-4\}"),
        (b"ppo: 0.1\n", "should hold lines such as"),
        (b"ppo: {lr: 1e-4}\n", "should hold lines such as"),  # text to YAML, which wants 1.0e-4
        (b"# \xff\n", "cannot be read"),
    ],
)
def test_a_file_that_holds_no_rates_is_one_line_and_stays(sweep, tmp_path, content, said):
    file = tmp_path / "arithmetic-tiny.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"arithmetic-tiny.yaml {said}"):
        write_tuned(compare(load_study(sweep)), file, "")
    assert file.read_bytes() == content


def test_a_rate_that_lacks_a_seed_is_not_chosen(sweep):
    (sweep / f"ppo-s101-{10_000:08x}" / "result.json").unlink()
    c = compare(load_study(sweep))
    best = choices(trials(c))["ppo"].best
    assert best.rates[0] == 1e-3  # 0.5 of two seeds, where 0.6 has one
    for lr in (1e-5, 1e-3):
        (sweep / f"ppo-s100-{int(1 / lr):08x}" / "result.json").unlink()
    with pytest.raises(UserError, match="no rate of ppo has all of its seeds yet"):
        write_tuned(compare(load_study(sweep)), Path("arithmetic-tiny.yaml"), "")


def test_a_wrong_file_or_study_is_refused(sweep, whole, tmp_path):
    with pytest.raises(UserError, match=r"read from arithmetic-tiny.yaml; name the file so"):
        write_tuned(compare(load_study(sweep)), tmp_path / "gsm8k-tiny.yaml", "")
    with pytest.raises(UserError, match="no arm with more than one learning rate"):
        write_tuned(compare(load_study(whole)), tmp_path / "arithmetic-tiny.yaml", "")


def test_the_card_knows_the_search_beside_it_and_seeds_that_are_in_both(sweep):
    study = sweep.parent / "ppo_vs_grpo-arithmetic"
    for seed in (0, 100):
        write_run(study, "ppo", seed, [1, 0], base=[0, 0], changes={"lr": 1e-4})
    said = cells(table.build(study).sheet("card"), "hyper-parameter search")["of this study"]
    assert said.startswith("lr of 1e-05, 0.0001, 0.001 for grpo_g8, ppo, seeds 100, 101, chosen on dev")
    assert said.endswith("seeds [100] are in both, so these runs helped to choose")


# ---------------------------------------------------------------- article, groups, siblings


def test_the_article_takes_from_the_study_beside_it_what_this_one_does_not_ask(tmp_path):
    study = tmp_path / "results" / "ppo_vs_grpo-arithmetic"
    write_study(study, ARMS, range(5), problems=200)
    claim = {"id": "delta", "claim": "c", "rows": ["grpo_a", "grpo_b"], "measure": "gradient_norm_max"}
    declared = [claim | {"expect": "greater", "source": "the article's claim"}]
    for seed in range(5):
        for name, norm in (("grpo_a", 2.0), ("grpo_b", 1.0)):
            settings = config(name, "grpo", seed)["study"] | {"hypotheses": declared}
            stability = {"grad_norm_max": norm + 0.01 * seed * (name == "grpo_a"), "reward_std_last": 0.1}
            write_run(
                study.parent / "kl_target-arithmetic", name, seed, [1, 0], base=[0, 0],
                changes={"study": settings}, result={"stability": stability, "config_hash": name},
            ).rename(study.parent / "kl_target-arithmetic" / f"{name}-s{seed}-{ord(name[-1]):08x}")  # fmt: skip
    sheet = table.build(study).sheet("article")
    said = cells(sheet, "control through δ")["GRPO: grpo_g8"]
    assert said.startswith("largest gradient norm, grpo_a − grpo_b: +1.02 [+1, +1.04], SUPPORTED")
    assert said.endswith("(from kl_target-arithmetic)")
    assert "BETTER" in cells(sheet, "accuracy")["PPO: ppo"]
    assert "SUPPORTED" in cells(sheet, "parameters")["PPO: ppo"]
    poor = cells(sheet, "limit: poor groups")["GRPO: grpo_g8"]
    assert "G = 4: 10.0 [10.0, 10.0] %, G = 8: 10.0" in poor


def test_groups_show_measured_and_expected_shares(tmp_path):
    study = tmp_path / "group_size-arithmetic"
    write_study(study, {"grpo_g4": 0.6, "grpo_g8": 0.8}, range(2))
    error = {"rmse": 0.61, "rmse_interval": [0.6, 0.62], "correlation": 0.8, "correlation_interval": None}
    expected = {"formula": 0.3, "unbiased": 0.28, "at_mean": 0.2}
    entry = {"group_size": 4, "groups": 9, "zero_signal": 0.29, "zero_signal_interval": [0.25, 0.33]}
    entry |= {"zero_signal_expected": expected, "zscore": error, "center": error}
    found = {"problems": 64, "reference_group": 64, "policy": "warm-started", "groups": [entry]}
    (study / "advantage_error.json").write_text(json.dumps(found))
    sheet = table.build(study).sheet("groups")
    (row,) = sheet.rows
    assert row[:6] == ["4", "29.0 [25.0, 33.0]", "30.0", "28.0", "20.0", "grpo_g4 10.0"]
    assert row[6:8] == ["0.610 [0.600, 0.620]", "0.800"]
    (study / "advantage_error.json").write_text("{}")
    with pytest.raises(UserError, match="lacks its groups"):
        table.build(study)


# ---------------------------------------------------------------- stability


def test_first_signs_of_collapse(tmp_path):
    study = tmp_path / "demo-arithmetic"
    for seed, fall in ((0, 2), (1, 3), (2, 9)):
        curve = [
            {"step": s, "samples": s, "rollout/entropy": 0.01 if s >= fall else 0.5, "completions/truncated_frac": 0.1}
            for s in range(1, 6)
        ]
        write_run(study, "ppo", seed, [1, 0], base=[0, 0], curve=curve)
    row = cells(table.build(study).sheet("stability"), "ppo")
    assert row["first step with: entropy < 0.05"] == "2.5 (2 of 3)"
    assert row["first step with: truncated > 15 %"] == "never"
    assert row["sd over seeds"] == "0.0"


# ---------------------------------------------------------------- formats, the front page, the records


def test_every_table_is_in_every_format(whole, tmp_path, monkeypatch):
    monkeypatch.setattr("grpo_bench.figures.draw", lambda comparison, where: [])
    folder = tmp_path / "demo-arithmetic"
    shutil.copytree(whole, folder)
    (folder / "tables").mkdir()
    (folder / "tables" / "gone.csv").write_text("x")
    text, paths = table.write(folder)
    content = json.loads((folder / "table.json").read_text())
    latex = (folder / "table.tex").read_text()
    names = ["main", "contrasts", "hypotheses", "article", "ablation", "answers", "efficiency", "cost", "compute"]
    assert list(content["tables"]) == [*names, "stability", "card"]
    for name, one in content["tables"].items():
        assert f"## {one['title']}" in text
        assert f"\\label{{tab:{name}}}" in latex
        rows = list(csv.reader(io.StringIO((folder / "tables" / f"{name}.csv").read_text())))
        assert rows == [one["header"], *one["rows"]]
        assert folder / "tables" / f"{name}.csv" in paths
    assert not (folder / "tables" / "gone.csv").exists()
    assert content["hypotheses"][0]["outcome"] == "supported"
    assert len(content["hypotheses"][0]["rows"][0]["values"]) == 5
    words = {contrast["first"]: contrast["judged"]["word"] for contrast in content["contrasts"]}
    assert words["grpo_g8"] == "better"
    # columns that belong together stand under one rule
    assert "\\multicolumn{5}{c}{s/update}" in latex
    assert re.search(r"\\cmidrule\(lr\)\{\d+-\d+\}", latex)
    assert len(load_study(folder).runs) == 20  # the folder of tables is no run


def test_the_front_page_is_short_and_has_verdicts_and_a_figure(built, whole, tmp_path):
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- table:demo-arithmetic -->\nold\n<!-- /table -->\nafter\n")
    text = brief(built.heading, built.comparison)
    assert "strict %" not in text
    assert "- grpo_g8 against ppo: **better**, +" in text
    with pytest.raises(UserError, match="figure=accuracy: demo-arithmetic has none of that name; it has no figures"):
        insert(page, whole, text, "accuracy")
    study = tmp_path / "results" / "demo-arithmetic"
    study.mkdir(parents=True)
    (study / "accuracy.svg").write_text("<svg/>")
    insert(page, study, text, "accuracy")
    written = page.read_text()
    assert written.startswith("before\n<!-- table:demo-arithmetic -->\n\n- Task: ")
    assert "![accuracy of demo-arithmetic](results/demo-arithmetic/accuracy.svg)\n\n<!-- /table -->\nafter" in written
    with pytest.raises(UserError, match="no <!-- table:other-arithmetic -->"):
        insert(page, Path("other-arithmetic"), text)


def test_quick_reading_and_parsing_agree(whole):
    """Rows as the writer has them are matched, others parsed: both must give the same scores."""
    run = load_study(whole).runs[0]
    packed = run.directory / "eval.jsonl.gz"
    quick = {split: read_evaluations(run.directory, split) for split in ("dev", "test")}
    assert sorted(quick["dev"]) == [0, 2, 4, 6]
    from grpo_bench.record_rows import _parsed

    for split, evaluations in quick.items():
        slow = _parsed(run.directory, split)
        assert evaluations.keys() == slow.keys()
        for step, scores in evaluations.items():
            assert scores.ids == slow[step].ids
            assert all((scores.by[m] == slow[step].by[m]).all() for m in ("acc", "acc_strict", "acc_flexible"))
    assert packed.is_file()


def test_answers_that_look_like_a_record_do_not_mislead(tmp_path):
    from study_builder import rows, write_gz

    (row,) = rows([0])
    trap = '"strict": true, "flexible": true, "correct": true, "split": "test", "mode": "greedy"'
    write_gz(tmp_path, [row | {"response": trap, "id": 'a "quoted" id'}, row | {"response": trap}])
    scores = read_evaluations(tmp_path, "test")[4]
    assert scores.by["acc"].tolist() == [0.0, 0.0]
    assert scores.ids == ('a "quoted" id', "arithmetic/test/0")


def test_no_torch_for_the_whole_table(whole):
    code = (
        "import sys; from pathlib import Path; from grpo_bench.table import build, brief;"
        "from grpo_bench.table.__main__ import main; build(Path(sys.argv[1])).markdown();"
        "print([m for m in ('torch', 'transformers', 'hydra', 'scipy.stats', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(whole)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
