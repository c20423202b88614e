"""The table of a study: what it says, what it refuses to say, and its four formats."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from study_builder import HASHES, config, means, rows, write_gz, write_jobs, write_run

from grpo_bench import records, stats, table
from grpo_bench.records import load_study
from grpo_bench.table import __main__ as command
from grpo_bench.types import UserError

# ten test problems: the model before RL solves two, PPO of either seed five or six, GRPO eight
BASE = [1, 1, 0, 0, 0, 0, 0, 0, 0, 0]
PPO = {0: [1, 1, 1, 1, 1, 0, 0, 0, 0, 0], 1: [1, 1, 1, 1, 1, 1, 0, 0, 0, 0]}
GRPO = {0: [1, 1, 1, 1, 1, 1, 1, 1, 0, 0], 1: [1, 1, 1, 1, 1, 1, 1, 1, 0, 0]}
PRETRAINED = [0] * 10


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """results/demo-arithmetic with two seeds of two arms."""
    study = tmp_path / "results" / "demo-arithmetic"
    two_arms(study)
    return study


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """The same study with its tables and figures written; not to be changed."""
    study = tmp_path_factory.mktemp("written") / "results" / "demo-arithmetic"
    two_arms(study)
    table.write(study)
    return study


def two_arms(study: Path) -> None:
    for seed in (0, 1):
        write_run(study, "ppo", seed, PPO[seed], base=BASE, pretrained=PRETRAINED)
        write_run(study, "grpo_g8", seed, GRPO[seed], base=BASE, pretrained=PRETRAINED)
    write_jobs(study, ("ppo", 0), ("ppo", 1), ("grpo_g8", 0), ("grpo_g8", 1))


def arm(built: table.Table, label: str):
    return next(a for a in built.comparison.arms if a.label == label)


def seeds_of(study: Path, accuracies: dict[str, list[float]], n: int = 100) -> None:
    """One run per accuracy, on n problems of which the first ones are solved."""
    for name, values in accuracies.items():
        for seed, accuracy in enumerate(values):
            solved = round(accuracy * n)
            write_run(study, name, seed, [1] * solved + [0] * (n - solved), base=[1] * 20 + [0] * (n - 20))


# ---------------------------------------------------------------- estimates


def test_two_seeds_give_intervals_over_problems(folder):
    built = table.build(folder)
    grpo = arm(built, "grpo_g8")
    assert grpo.accuracy["acc"].interval.estimate == pytest.approx(0.8)
    assert grpo.accuracy["acc"].kind == "problems (n = 10, conditional on 2 seeds)"
    # per problem, GRPO − PPO averaged over the seeds: 0 ×5, 0.5, 1, 1, 0, 0: mean 0.25
    # with one more won and lost: 2.5/12 = 0.208333, variance 4.25/12 − 0.208333² = 0.310764, se 0.160925
    found = grpo.to_baseline.by["acc"].interval
    assert found.estimate == 0.25
    assert (found.low, found.high) == pytest.approx((0.208333 - 1.959964 * 0.160925, 0.523741), abs=1e-5)
    # to the base: 0 ×2, 1 ×6, 0 ×2: 6/12, variance 8/12 − 0.25, se 0.186339
    found = grpo.to_base.by["acc"].interval
    assert found.estimate == pytest.approx(0.6)
    assert (found.low, found.high) == pytest.approx((0.5 - 1.959964 * 0.186339, 0.865218), abs=1e-5)
    assert arm(built, "ppo").accuracy["acc"].interval.estimate == pytest.approx(0.55)


def test_one_seed_is_wilson_and_mcnemar(tmp_path):
    study = tmp_path / "demo-arithmetic"
    write_run(study, "ppo", 0, PPO[0], base=BASE)
    write_run(study, "grpo_g8", 0, GRPO[0], base=BASE)
    built = table.build(study)
    interval = arm(built, "ppo").accuracy["acc"].interval
    assert (interval.low, interval.high) == pytest.approx(stats.wilson(5, 10))
    (contrast,) = built.comparison.contrasts
    assert (contrast.test, contrast.p) == ("McNemar", pytest.approx(2 / 8))  # 3 against 0 discordant
    assert contrast.verdict == "descriptive"


def test_three_seeds_give_t_over_seeds_and_say_descriptive(tmp_path):
    study = tmp_path / "demo-arithmetic"
    seeds_of(study, {"ppo": [0.50, 0.54, 0.52], "grpo_g8": [0.60, 0.66, 0.63]})
    grpo = arm(table.build(study), "grpo_g8")
    assert grpo.accuracy["acc"].kind == "seeds (n = 3, descriptive)"
    # sd 0.03, t(0.975, 2) = 4.302653: half width 4.302653 * 0.03 / sqrt(3) = 0.074524
    own = grpo.accuracy["acc"].interval
    assert (own.low, own.high) == pytest.approx((0.63 - 0.074524, 0.63 + 0.074524), abs=1e-6)
    # differences 0.10, 0.12, 0.11: sd 0.01, a third of that
    found = grpo.to_baseline.by["acc"].interval
    assert (found.low, found.high) == pytest.approx((0.11 - 0.024841, 0.11 + 0.024841), abs=1e-6)
    base = grpo.to_base.by["acc"]
    assert base.unit == "seeds"
    assert base.interval.estimate == pytest.approx(0.63 - 0.20)


def test_five_seeds_are_a_claim_with_sign_flip_holm_and_bootstrap(tmp_path):
    study = tmp_path / "demo-arithmetic"
    grpo = {"grpo_g8": [0.60, 0.66, 0.63, 0.62, 0.64], "grpo_g4": [0.50, 0.55, 0.51, 0.50, 0.52]}
    seeds_of(study, {"ppo": [0.50, 0.54, 0.52, 0.51, 0.53], **grpo})
    by_pair = {c.first: c for c in table.build(study).comparison.contrasts}
    high, same = by_pair["grpo_g8"], by_pair["grpo_g4"]
    assert high.verdict == "better"
    assert high.sign_flip == pytest.approx(2 / 32)
    assert high.holm == pytest.approx(min(1, 2 * high.p))  # the smaller of two p-values
    assert high.bootstrap is not None
    assert high.bootstrap.low < 0.11 < high.bootstrap.high
    # -0.00, +0.01, -0.01, -0.01, -0.01: the 90 % interval is within ±2 points
    assert same.verdict == "equivalent"


def test_seeds_that_do_not_vary_claim_no_certainty(tmp_path):
    """Three equal differences have no spread: a t interval of width zero would exclude zero for any difference."""
    study = tmp_path / "demo-arithmetic"
    for seed in range(3):
        write_run(study, "ppo", seed, [1, 0, 0, 0], base=[0] * 4)
        write_run(study, "grpo_g8", seed, [1, 1, 0, 0], base=[0] * 4)
    found = arm(table.build(study), "grpo_g8").to_baseline.by["acc"]
    assert found.unit == "problems"
    assert not found.interval.excludes_zero


def test_strict_and_flexible_stand_beside(tmp_path):
    study = tmp_path / "demo-arithmetic"
    run = write_run(study, "ppo", 0, [1, 0, 0, 0], base=[0] * 4)
    result = json.loads((run / "result.json").read_text())
    result["eval"]["final"]["greedy"]["acc_flexible"] = 0.75
    (run / "result.json").write_text(json.dumps(result))
    write_gz(run, rows([1, 0, 0, 0], flexible=[1, 1, 1, 0]))
    sheet = next(s for s in table.build(study).sheets if s.name == "main")
    row = dict(zip(sheet.header, next(r for r in sheet.rows if r[0] == "ppo"), strict=True))
    assert row["strict %"].startswith("25.0 [")
    assert row["flexible %"].startswith("75.0 [")


# ---------------------------------------------------------------- rows and fairness


def test_the_models_before_rl_come_first(folder):
    sheet = table.build(folder).sheets[0]
    assert [row[0] for row in sheet.rows] == ["pretrained", "warm-started", "ppo", "grpo_g8"]
    assert sheet.rows[1][2].startswith("20.0 [")
    assert all(len(row) == len(s.header) for s in table.build(folder).sheets for row in s.rows)


def test_without_a_warm_start_there_is_one_model_before_rl(tmp_path):
    study = tmp_path / "demo-arithmetic"
    model = {"name": "tiny", "critic": "separate", "warmstart": {"steps": 0}}
    write_run(study, "ppo", 0, PPO[0], base=BASE, pretrained=BASE, changes={"model": model})
    sheet = table.build(study).sheets[0]
    assert [row[0] for row in sheet.rows] == ["pretrained", "ppo"]
    assert "Δ before RL [95 %]" in sheet.header


@pytest.mark.parametrize(
    ("changes", "result", "said"),
    [
        ({}, {"prompt_stream_hash": "other"}, "prompt stream differs (stream0 and other)"),
        ({}, {"budget": {"unit": "samples", "amount": 2048}}, "budget differs (1,024 samples and 2,048 samples)"),
        ({}, {"budget": {"unit": "tokens", "amount": 1024}}, "budget differs (1,024 samples and 1,024 tokens)"),
        ({}, {"model": "other"}, "model differs"),
        ({"task": {**config("ppo", "ppo", 0)["task"], "version": 2}}, {}, "task version differs"),
        ({"task": {**config("ppo", "ppo", 0)["task"], "max_new_tokens": 9}}, {}, "max_new_tokens of the test differs"),
        ({"model": {**config("ppo", "ppo", 0)["model"], "warmstart": {"steps": 9}}}, {}, "warm-start settings differs"),
    ],
)
def test_unfair_pairs_are_refused(tmp_path, changes, result, said):
    study = tmp_path / "demo-arithmetic"
    write_run(study, "grpo_g8", 0, GRPO[0], base=BASE)
    write_run(study, "ppo", 0, PPO[0], base=BASE, changes=changes, result=result)
    built = table.build(study)
    label = next(a.label for a in built.comparison.arms if a.arm == "grpo_g8")
    row = next(r for r in built.sheets[0].rows if r[0] == label)
    assert "not comparable" in row
    assert any(said in note for note in built.comparison.notes)
    assert arm(built, label).to_baseline.by == {}
    assert [c.verdict for c in built.comparison.contrasts] == ["not comparable"]


def test_one_unfair_seed_refuses_the_whole_difference(folder):
    path = folder / f"grpo_g8-s1-{HASHES['grpo']}" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prompt_stream_hash": "other"}))
    built = table.build(folder)
    assert arm(built, "grpo_g8").to_baseline.refused == "prompt stream differs (other and stream1) (seed 1)"


def test_other_test_problems_are_refused(folder):
    run = folder / f"grpo_g8-s0-{HASHES['grpo']}"
    write_gz(run, [row | {"id": row["id"] + "x"} for row in rows(GRPO[0])])
    built = table.build(folder)
    assert "test problems differ" in (arm(built, "grpo_g8").to_baseline.refused or "")
    assert "other problems" in (arm(built, "grpo_g8").to_base.refused or "")


def test_math_verify_versions_must_agree(tmp_path):
    study = tmp_path / "demo-math"
    math = {"task": {**config("ppo", "ppo", 0)["task"], "name": "math", "answer": "math"}}
    for name, version in (("ppo", "0.9.0"), ("grpo_g8", "0.8.0")):
        run = write_run(study, name, 0, PPO[0], base=BASE, changes=math)
        entry = {"packages": {"math-verify": version}}
        (run / "provenance.json").write_text(json.dumps({"attempts": [entry]}))
    refused = arm(table.build(study), "grpo_g8").to_baseline.refused
    assert refused == "verifier version differs (math-verify 0.8.0 and math-verify 0.9.0) (seed 0)"


def test_graders_must_agree_and_the_table_says_what_to_do(tmp_path):
    study = tmp_path / "demo-arithmetic"
    for name, print_ in (("ppo", "a" * 16), ("grpo_g8", "b" * 16)):
        run = write_run(study, name, 0, PPO[0], base=BASE)
        (run / "provenance.json").write_text(json.dumps({"attempts": [{"fingerprints": {"grader": print_}}]}))
    built = table.build(study)
    assert arm(built, "grpo_g8").to_baseline.refused == "grader differs (bbbbbbbbbbbb and aaaaaaaaaaaa) (seed 0)"
    (said,) = [note for note in built.comparison.notes if note.startswith("Runs graded by different code")]
    assert said == (
        "Runs graded by different code (aaaaaaaaaaaa, bbbbbbbbbbbb) are not compared: `python -m grpo_bench.grade "
        "task=arithmetic file=RUN/eval.jsonl.gz out=FILE` says how many of a run's grades move under the code at hand; "
        "run those again whose do."
    )


def test_the_baseline_of_a_grid_is_the_row_of_the_same_settings(tmp_path):
    study = tmp_path / "demo-arithmetic"
    for lr, h in (("1e-5", "aaaa0001"), ("1e-6", "aaaa0002")):
        for name, solved in (("ppo", PPO[0]), ("grpo", GRPO[0])):
            made = write_run(
                study, name, 0, solved, base=BASE, result={"row": f"{name} lr={lr}", "config_hash": name[0] + h}
            )
            made.rename(study / f"{name}-s0-{h}{'01'[name == 'ppo']}")
    built = table.build(study, baseline="ppo")
    assert [a.label for a in built.comparison.arms] == ["grpo lr=1e-5", "grpo lr=1e-6", "ppo lr=1e-5", "ppo lr=1e-6"]
    pairs = {(c.first, c.second) for c in built.comparison.contrasts}
    assert pairs == {("grpo lr=1e-5", "ppo lr=1e-5"), ("grpo lr=1e-6", "ppo lr=1e-6")}


def test_same_row_with_another_configuration_is_another_row(folder):
    write_run(folder.parent / "x", "ppo", 0, PPO[0], base=BASE, result={"config_hash": "dddddddd"}).rename(
        folder / "ppo-s0-dddddddd"
    )
    labels = [a.label for a in table.build(folder, baseline="grpo_g8").comparison.arms]
    assert labels == ["ppo [aaaaaaaa]", "grpo_g8", "ppo [dddddddd]"]


def test_declared_contrasts_replace_the_default(tmp_path):
    study = tmp_path / "demo-arithmetic"
    settings = {**config("ppo", "ppo", 0)["study"], "contrasts": [["grpo_g8", "grpo_g4"], ["ppo", "ppo_none"]]}
    for name in ("ppo", "grpo_g4", "grpo_g8"):
        write_run(study, name, 0, PPO[0], base=BASE, changes={"study": settings})
    built = table.build(study)
    assert [(c.first, c.second) for c in built.comparison.contrasts] == [("grpo_g8", "grpo_g4")]
    assert any("ppo against ppo_none: no finished runs" in note for note in built.comparison.notes)


def test_no_interval_with_zero_is_bold_and_none_is_named(tmp_path):
    study = tmp_path / "demo-arithmetic"
    seeds_of(study, {"ppo": [0.50, 0.60, 0.55, 0.52, 0.58], "grpo_g8": [0.58, 0.54, 0.60, 0.50, 0.62]})
    text = table.build(study).markdown()
    for cell in re.findall(r"[+-][\d.]+ \[([+-][\d.]+), ([+-][\d.]+)\](\*\*)?", text):
        low, high, bold = float(cell[0]), float(cell[1]), bool(cell[2])
        assert bold == (low > 0 or high < 0)
    (contrast,) = table.build(study).comparison.contrasts
    assert not contrast.difference.by["acc"].interval.excludes_zero
    assert "better" not in contrast.verdict
    assert "worse" not in contrast.verdict


# ---------------------------------------------------------------- runs that did not finish


def test_missing_failed_and_running_runs_are_named_and_the_arm_marked(folder):
    write_jobs(folder, ("ppo", 0), ("ppo", 1), ("ppo", 2), ("grpo_g8", 0), ("grpo_g8", 1), ("grpo_g8", 2))
    failed = folder / f"ppo-s1-{HASHES['ppo']}"
    (failed / "result.json").unlink()
    (failed / "state.json").write_text(json.dumps({"status": "failed", "reason": "disk full", "exit_code": 2}))
    running = write_run(folder, "grpo_g8", 2, GRPO[0])
    (running / "result.json").unlink()
    (running / "state.json").write_text(json.dumps({"status": "running", "step": 3}))
    with (running / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "samples": 12')  # a line that is being written
    text = table.build(folder).markdown()
    assert "- ppo-s2-aaaaaaaa: missing (never begun)" in text
    assert "- ppo-s1-aaaaaaaa: failed (disk full (exit code 2))" in text
    assert "- grpo_g8-s2-bbbbbbbb: running or interrupted (at step 3)" in text
    assert "| ppo (incomplete) | 1 of 3 |" in text
    assert "| grpo_g8 (incomplete) | 2 of 3 |" in text


def test_a_study_that_has_only_begun_is_shown_as_such(tmp_path):
    study = tmp_path / "demo-arithmetic"
    run = write_run(study, "ppo", 0, PPO[0])
    for name in ("result.json", "eval.jsonl.gz"):
        (run / name).unlink()
    (run / "state.json").write_text(json.dumps({"status": "running", "step": 4}))
    assert "running or interrupted (at step 4)" in table.build(study).markdown()


def test_a_diverged_run_stays_in_at_its_last_accuracy(tmp_path):
    study = tmp_path / "demo-arithmetic"
    seeds_of(study, {"ppo": [0.50, 0.60, 0.55], "grpo_g8": [0.60, 0.64, 0.66]})
    # diverged before its final test: only the dev evaluation of step 2 is there, 1 of 2 right
    run = study / f"grpo_g8-s2-{HASHES['grpo']}"
    (run / "result.json").unlink()
    (run / "state.json").write_text(json.dumps({"status": "diverged", "reason": "loss is not finite", "exit_code": 3}))
    write_gz(run, rows([0, 0], split="dev", step=1) + rows([1, 0], split="dev", step=2))
    built = table.build(study)
    grpo = arm(built, "grpo_g8")
    assert grpo.accuracy["acc"].interval.estimate == pytest.approx((0.60 + 0.64 + 0.50) / 3)
    assert not grpo.incomplete
    assert grpo.stability["diverged"] == 1
    assert any("stands at its last dev accuracy" in note for note in built.comparison.notes)
    (line,) = built.comparison.left_out
    assert line == "grpo_g8-s2-bbbbbbbb: diverged (loss is not finite); kept at its last accuracy"
    assert grpo.to_baseline.by["acc"].interval.estimate == pytest.approx((0.10 + 0.04 - 0.05) / 3)


def test_a_diverged_run_without_any_evaluation_leaves_the_arm_incomplete(folder):
    run = folder / f"ppo-s1-{HASHES['ppo']}"
    for name in ("result.json", "eval.jsonl.gz"):
        (run / name).unlink()
    (run / "state.json").write_text(json.dumps({"status": "diverged", "reason": "NaN"}))
    built = table.build(folder)
    assert arm(built, "ppo").incomplete
    assert "ppo-s1-aaaaaaaa: diverged (NaN); no accuracy yet" in built.comparison.left_out


def test_a_result_that_its_rows_contradict_is_pointed_out(folder):
    path = folder / f"ppo-s0-{HASHES['ppo']}" / "result.json"
    result = json.loads(path.read_text())
    result["eval"]["final"] = means([1] * 9 + [0])
    path.write_text(json.dumps(result))
    notes = table.build(folder).comparison.notes
    assert any("result.json says 90.00 %, its evaluation rows 50.00 %" in note for note in notes)


def test_only_the_last_final_test_counts(folder):
    """An extended run has two final tests in its rows; the earlier one must not be mixed in."""
    run = folder / f"ppo-s0-{HASHES['ppo']}"
    write_gz(run, rows([0] * 10, step=2) + rows(PPO[0], step=4))
    built = table.build(folder)
    assert built.comparison.notes == []
    assert arm(built, "ppo").accuracy["acc"].interval.estimate == pytest.approx(0.55)


# ---------------------------------------------------------------- cost and the PPO-GRPO table


def test_seconds_per_update_by_phase(folder):
    cost = arm(table.build(folder), "ppo").cost
    # 4 s of rollout, 0.5 reward, 1.5 score, 6 update over 4 updates; 1,024 samples in 12 s without evaluation
    assert [cost[f"seconds_per_update_{p}"] for p in ("rollout", "reward", "score", "update")] == [1, 0.125, 0.375, 1.5]
    assert cost["seconds_per_update"] == 3
    assert cost["samples_per_second"] == pytest.approx(1024 / 12)
    assert cost["overshoot"] == 0
    sheet = next(s for s in table.build(folder).sheets if s.name == "cost")
    row = dict(zip(sheet.header, sheet.rows[0], strict=True))
    nets = (row["parameters: policy"], row["parameters: critic"])
    assert (*nets, row["peak memory"], row["tokens generated"]) == (
        "0.60 M", "0.60 M", "500 MB", "20,000",
    )  # fmt: skip


def test_a_reward_model_stands_apart_in_the_cost(folder):
    sheet = next(s for s in table.build(folder).sheets if s.name == "cost")
    assert "reward model" not in sheet.header
    # 2e6 bytes of weights and 3e6 while scoring; 0.4 s over 4 updates
    scorer = {"parameters": 500_000, "weight_bytes": 2e6, "peak_memory_bytes": 3e6, "seconds": 0.4, "flops": 1e9}
    for seed in (0, 1):
        path = folder / f"ppo-s{seed}-{HASHES['ppo']}" / "result.json"
        result = json.loads(path.read_text())
        result["cost"]["reward_model"] = scorer
        path.write_text(json.dumps(result))
    sheet = next(s for s in table.build(folder).sheets if s.name == "cost")
    cells = [dict(zip(sheet.header, row, strict=True)) for row in sheet.rows]
    found = [[row[key] for key in ("reward model", "its memory", "its s/update")] for row in cells]
    assert found == [["0.50 M", "5 MB", "0.100"], ["–", "–", "–"]]


def test_overshoot_is_reported(folder):
    path = folder / f"ppo-s0-{HASHES['ppo']}" / "result.json"
    result = json.loads(path.read_text())
    result["cost"]["samples"] = 1280
    path.write_text(json.dumps(result))
    assert dict(table.build(folder).heading.lines)["Budget"] == "1,024 samples a run; overshot by at most 25.0 %"
    # in seconds: 4 + 0.5 + 1.5 + 6 of training, evaluation not counted
    result["budget"] = {"unit": "seconds", "amount": 10}
    path.write_text(json.dumps(result))
    assert arm(table.build(folder), "ppo").cost["overshoot"] == pytest.approx(0.2)


def test_the_articles_claims_with_figures(folder):
    sheet = table.build(folder).sheet("article")
    assert sheet is not None
    assert sheet.header == ["", "the article says", "GRPO: grpo_g8", "PPO: ppo"]
    cells = {row[0]: row[2:] for row in sheet.rows}
    names = ["value network", "advantage", "accuracy", "stability", "convergence", "training time", "parameters"]
    names += ["compute", "memory", "variance of updates", "diversity", "long sequences", "control through δ"]
    names += ["larger groups", "limit: poor groups", "limit: sensitivity", "limit: task dependence", "where it fits"]
    assert list(cells) == [*names, "code generation, billions of parameters"]
    assert cells["value network"] == ["none", "a network of its own: 0.60 M parameters, 100 % of the policy's"]
    assert "GAE (γ = 1.0, λ = 0.95)" in cells["advantage"][1]
    assert "group of 8" in cells["advantage"][0]
    assert "sd 0.500, variance 0.250" in cells["advantage"][0]
    # two seeds describe; the t interval of 0.3 and 0.2 is 0.25 ± 12.706·0.05
    assert cells["accuracy"] == [
        "80.0 % (accuracy)",
        "55.0 % (accuracy); GRPO +25.0 [-38.5, +88.5] points: DESCRIPTIVE",
    ]
    said = "sd over seeds 7.1 points; no evaluations on dev to see a collapse by; 0 of 2 seeds non-finite"
    assert said in cells["stability"][1]
    # 4 + 0.5 + 1.5 + 2 s against 12 s, in every seed
    assert cells["training time"][1].endswith("GRPO 0.67 × [0.67, 0.67]: DESCRIPTIVE")
    assert cells["parameters"][1].endswith("GRPO 0.50 × [0.50, 0.50]: DESCRIPTIVE")
    assert cells["variance of updates"][0].startswith("not tested here")
    assert cells["long sequences"][0] == "not tested here; sweeps/length.yaml does"
    assert cells["code generation, billions of parameters"][0] == "not tested here"


HELD = {"policy": 40e6, "critic": 0, "reference": 40e6, "gradients": 40e6, "optimizer": 80e6, "sampler": 0}


def count_states(folder: Path, *, last: bool = True) -> None:
    """Adds to each record what its model states take: PPO's critic doubles all but the reference. ``last``: also to the
    last run of the folder."""
    runs = sorted(folder.glob("*-s*"))
    for run in runs if last else runs[:-1]:
        result = json.loads((run / "result.json").read_text())
        twice = {"critic": 40e6, "gradients": 80e6, "optimizer": 160e6} if result["algo"] == "ppo" else {}
        result["cost"]["memory"] = HELD | twice
        (run / "result.json").write_text(json.dumps(result))


def test_memory_is_judged_on_model_states_where_all_counted_them(folder):
    def family() -> str:
        return next(note for note in table.build(folder).sheet("article").notes if note.startswith("Outcomes"))

    def memory() -> list[str]:
        return next(row for row in table.build(folder).sheet("article").rows if row[0] == "memory")

    # 16 bytes for each of 600,000 weights, and for as many of a critic, by theory
    said = "500 MB (peak memory); of the whole process, libraries included; model states by theory"
    before = family()
    peaks = [f"{said} 10 MB", f"{said} 19 MB; GRPO 1.00 × [1.00, 1.00]: DESCRIPTIVE"]
    assert memory() == ["memory", "less memory", *peaks]
    notes = table.build(folder).sheet("article").notes
    assert any("did not count: its outcome is about the peak memory of the whole process" in note for note in notes)
    count_states(folder, last=False)
    assert memory() == ["memory", "less memory", *peaks]  # one run did not count its own
    count_states(folder)
    # 40 + 40 + 40 + 80 against 40 + 40 + 40 + 80 + 160
    grpo, ppo = memory()[2:]
    kinds = "policy 40 MB + reference 40 MB + gradients 40 MB + optimizer 80 MB"
    assert grpo == f"200 MB (model states); {kinds}; 500 MB (peak memory)"
    assert ppo.startswith("360 MB (model states); policy 40 MB + critic 40 MB + ")
    assert ppo.endswith("GRPO 0.56 × [0.56, 0.56]: DESCRIPTIVE; peak memory 1.00 × [1.00, 1.00]")
    assert family() == before  # memory is one claim of the table, whatever it is judged on


def test_model_states_stand_in_the_cost_by_kind(folder):
    names = [f"model states: {kind}" for kind in ("policy", "critic", "reference", "gradients", "optimizer", "sum")]
    assert not set(names) & set(table.build(folder).sheet("cost").header)
    count_states(folder)
    sheet = table.build(folder).sheet("cost")
    rows = [dict(zip(sheet.header, row, strict=True)) for row in sheet.rows]
    assert [rows[0][name] for name in names] == ["40 MB", "40 MB", "40 MB", "80 MB", "160 MB", "360 MB"]
    assert [rows[1][name] for name in names] == ["40 MB", "–", "40 MB", "40 MB", "80 MB", "200 MB"]
    assert "model states: sampler" not in sheet.header  # nobody kept a copy


def test_heading_names_what_a_reader_needs(folder):
    about = dict(table.build(folder).heading.lines)
    assert about["Task"] == "arithmetic v1, trained on split train"
    assert about["Budget"] == "1,024 samples a run"
    assert about["Revision"] == "0123456789ab"
    assert about["Runs made by"] == "`python -m grpo_bench -m arm=ppo,grpo_g8 seed=0,1`"
    assert about["Table made by"] == "`python -m grpo_bench.table results/demo-arithmetic`"
    assert about["Test"].startswith("10 problems of split test, greedy and 2 sampled at temperature 1.0")


# ---------------------------------------------------------------- formats and the command


def test_all_formats_say_the_same(written):
    text = (written / "table.md").read_text()
    content = json.loads((written / "table.json").read_text())
    by_row = {row["row"]: row for row in csv.DictReader(io.StringIO((written / "table.csv").read_text()))}
    assert list(by_row) == ["pretrained", "warm-started", "ppo", "grpo_g8"]
    for entry in content["arms"]:
        row = by_row[entry["label"]]
        assert float(row["acc"]) == entry["accuracy"]["acc"]["estimate"]
        assert float(row["acc_to_base_low"]) == entry["to_base"]["by"]["acc"]["low"]
    assert by_row["grpo_g8"]["acc_to_baseline_interval"] == "problems (n = 10, conditional on 2 seeds)"
    assert "| grpo_g8 | 2 | 80.0 [" in text
    for image in re.findall(r"\]\((.+?)\)", text):
        assert (written / image).read_bytes().startswith(b"\x89PNG")


def test_latex_is_well_formed(written):
    source = (written / "table.tex").read_text()
    lines = [line for line in source.splitlines() if not line.startswith("%")]
    body = "\n".join(lines)
    for begun in set(re.findall(r"\\begin\{(\w+)\}", body)):
        assert body.count(f"\\begin{{{begun}}}") == body.count(f"\\end{{{begun}}}")
    assert body.count("\\toprule") == body.count("\\midrule") == body.count("\\bottomrule") == body.count("tabular}{l")
    depth = 0
    for found in re.findall(r"(?<!\\)[{}]", body):
        depth += 1 if found == "{" else -1
        assert depth >= 0
    assert depth == 0
    assert not re.search(r"(?<!\\)[_#]", re.sub(r"\\label\{[^}]*\}", "", body))
    assert body.isascii(), set(re.findall(r"[^\x00-\x7f]", body))
    columns = re.search(r"\\begin\{tabular\}\{(l+r+)\}", body)
    assert columns is not None
    header = body[columns.end() :].split("\\midrule")[0]
    assert header.count(" & ") == len(columns[1]) - 1


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
def test_latex_compiles(written, tmp_path):
    shutil.copy(written / "table.tex", tmp_path)
    packages = "\\usepackage{booktabs}\\usepackage{graphicx}"
    document = f"\\documentclass{{article}}{packages}\\begin{{document}}\\input{{table}}\\end{{document}}"
    (tmp_path / "paper.tex").write_text(document)
    subprocess.run(["pdflatex", "-interaction=batchmode", "-halt-on-error", "paper.tex"], cwd=tmp_path, check=True)


def test_the_command_prints_the_table_alone(folder, capsys, monkeypatch):
    monkeypatch.setattr("grpo_bench.figures.draw", lambda comparison, where: [where / "curves.png"])
    assert command.main([str(folder), "baseline=grpo_g8"]) == 0
    out, err = capsys.readouterr()
    assert out == (folder / "table.md").read_text()
    assert all(line.startswith("wrote ") for line in err.splitlines())
    assert "Δ grpo_g8 [95 %]" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no study folder given"),
        (["nowhere"], "no study at nowhere: give a folder such as results/ppo_vs_grpo-gsm8k"),
        (["{empty}"], "no runs in"),
        (["{folder}", "baseline=dpo"], "baseline=dpo: no such row in demo-arithmetic; it has grpo_g8, ppo"),
        (["{folder}", "basline=ppo"], "unknown argument basline=ppo"),
        (["{folder}", "--plot"], "unknown argument --plot"),
        (["{folder}", "{empty}"], "more than one study folder"),
    ],
)
def test_bad_arguments_get_one_line(folder, tmp_path, capsys, words, said):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert command.main([word.format(folder=folder, empty=empty) for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert said in err


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("result.json", "{", "cannot read"),
        ("result.json", "[]", "malformed"),
        ("result.json", '{"seed": 0}', "it lacks cost, stability, model, eval.final.greedy"),
        ("state.json", "nonsense", "cannot read"),
        ("config.yaml", "a: [", "cannot read"),
        ("config.yaml", "- a", "must hold the run's config"),
        ("metrics.jsonl", "{}\nbroken\n{}\n", "metrics.jsonl:2"),
        ("eval.jsonl.gz", "not gzip", "damaged record"),
        ("../jobs.json", '{"jobs": 3}', "malformed"),
    ],
)
def test_damaged_records_get_one_line(folder, name, content, said):
    (folder / f"ppo-s0-{HASHES['ppo']}" / name).write_text(content)
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        table.build(folder)
    assert "\n" not in str(caught.value)


def test_truncated_gzip_is_damage(folder):
    path = folder / f"ppo-s0-{HASHES['ppo']}" / "eval.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="damaged record"):
        table.build(folder)


def test_folders_that_are_no_runs_are_passed_over(folder):
    (folder / "notes").mkdir()
    (folder / "notes" / "a.txt").write_text("x")
    assert len(load_study(folder).runs) == 4


def test_runs_that_differ_in_their_seed_alone_are_parsed_once(tmp_path, monkeypatch):
    for seed in (0, 1, 12):
        write_run(tmp_path, "ppo", seed, [1, 0], changes={"task": {"seed": 7, "name": "arithmetic"}})
    write_run(tmp_path, "grpo_g8", 1, [1, 0])
    parses, plain = [], yaml.load
    monkeypatch.setattr(records.yaml, "load", lambda *args: parses.append(1) or plain(*args))
    records._parsed_once.cache_clear()
    runs = {run.run_id: run for run in load_study(tmp_path).runs}
    assert len(parses) == 2  # one per row
    for run_id, run in runs.items():
        assert run.config == plain((tmp_path / run_id / "config.yaml").read_text(), yaml.SafeLoader)
    assert sorted(run.config["seed"] for run in runs.values() if run.arm == "ppo") == [0, 1, 12]
    first, second = (run.config for run in runs.values() if run.arm == "ppo" and run.seed in (0, 1))
    first["model"]["name"] = "another"
    assert second["model"]["name"] == "tiny"


def test_no_torch_and_no_trainer_is_imported(folder):
    code = (
        "import sys, grpo_bench.figures; from grpo_bench.table import build; from pathlib import Path;"
        "build(Path(sys.argv[1])).markdown();"
        "print([m for m in ('torch', 'transformers', 'hydra', 'pandas', 'wandb', 'matplotlib.pyplot')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_writing_again_changes_no_byte(written):
    """Nothing depends on time, the order of folders or a random state, so committed tables have quiet diffs."""
    before = {path.name: path.read_bytes() for path in written.iterdir() if path.is_file()}
    assert {"table.md", "table.csv", "table.tex", "table.json", "curves_samples.png", "accuracy.svg"} <= before.keys()
    table.write(written)
    assert before == {path.name: path.read_bytes() for path in written.iterdir() if path.is_file()}
