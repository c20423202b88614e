"""From runs to verdicts: which runs are a pair, which differences they give, and what the contrasts of a study say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from study_builder import HASHES, config, rows, write_gz, write_jobs, write_run

from grpo_bench.records import load_study
from grpo_bench.table.brief import brief
from grpo_bench.table.compare import Comparison, compare
from grpo_bench.table.contrast_sheet import contrasts_sheet
from grpo_bench.table.heading import Heading
from grpo_bench.table.hypotheses import evaluate
from grpo_bench.table.main import main_sheet
from grpo_bench.table.measures import Reading
from grpo_bench.table.pairs import refusal
from grpo_bench.table.tasks_sheet import tasks_sheet
from grpo_bench.table.values import collect

N = 200


def study(folder: Path, accuracies: dict[str, list[float]], **settings: Any) -> Comparison:
    """Runs with these accuracies on N problems, the first ones solved, and what is compared of them."""
    named = {**config("ppo", "ppo", 0)["study"], **settings}
    for arm, values in accuracies.items():
        for seed, accuracy in enumerate(values):
            solved = round(accuracy * N)
            write_run(folder, arm, seed, [1] * solved + [0] * (N - solved), changes={"study": named})
    return compare(load_study(folder))


def verdicts(c: Comparison) -> dict[tuple[str, str], str]:
    return {(one.first, one.second): one.verdict for one in c.contrasts}


BASE = [0.50, 0.52, 0.51, 0.53, 0.49]
UP = [0.60, 0.63, 0.60, 0.62, 0.60]  # + 10, 11, 9, 9, 11 points
CLOSE = [0.505, 0.515, 0.51, 0.535, 0.49]  # ± half a point
WILD = [0.70, 0.45, 0.60, 0.40, 0.65]


@pytest.fixture
def five(tmp_path: Path) -> Comparison:
    return study(tmp_path / "demo-arithmetic", {"ppo": BASE, "grpo_g8": UP, "grpo_g4": CLOSE, "grpo_g16": WILD})


def test_the_words_of_a_study(five):
    assert verdicts(five) == {
        ("grpo_g8", "ppo"): "better",
        ("grpo_g4", "ppo"): "equivalent",
        ("grpo_g16", "ppo"): "not established",
    }
    assert five.family == 3


def test_every_figure_stands_beside_the_verdict(five):
    one = next(c for c in five.contrasts if c.first == "grpo_g8")
    assert one.judged is not None
    assert (one.p, one.holm, one.sign_flip) == (one.judged.p, one.judged.p_holm, 2 / 32)
    assert one.judged.sign_flip_floor == 2 / 32
    assert one.judged.interval.estimate == pytest.approx(0.10)
    assert one.judged.simultaneous.low < one.judged.interval.low
    # the problem-level interval: 100 + 1 of 202 problems lie between 0.5 and 0.6 in at least one seed
    assert one.problems is not None
    assert one.problems.n == N
    assert one.problems.low < 0.10 < one.problems.high
    assert one.bootstrap is not None
    # seed 0: 20 problems only GRPO solved, none only PPO; 2 · (1/2)^20
    assert [d.seed for d in one.discordance] == [0, 1, 2, 3, 4]
    assert (one.discordance[0].first_only, one.discordance[0].second_only) == (20, 0)
    assert one.discordance[0].p == pytest.approx(2**-19)


def test_few_seeds_are_descriptive(tmp_path):
    found = study(tmp_path / "demo-arithmetic", {"ppo": BASE[:4], "grpo_g8": UP[:4]})
    (one,) = found.contrasts
    assert one.verdict == "descriptive"
    assert one.p is not None
    assert one.p < 0.001
    assert one.test == "t over seeds"


def test_p_values_over_problems_stay_out_of_the_family(tmp_path):
    found = study(tmp_path / "demo-arithmetic", {"ppo": BASE[:1], "grpo_g8": UP[:1]})
    (one,) = found.contrasts
    assert (one.test, one.holm, one.sign_flip, one.verdict) == ("McNemar", None, None, "descriptive")
    two = study(tmp_path / "two" / "demo-arithmetic", {"ppo": BASE[:2], "grpo_g8": UP[:2]})
    assert (two.contrasts[0].test, two.contrasts[0].holm) == ("z over problems", None)


def test_declared_contrasts_without_runs_keep_their_place_in_the_family(tmp_path):
    pairs = [["grpo_g8", "ppo"], ["grpo_g16", "ppo"], ["grpo_g16", "grpo_g8"]]
    found = study(tmp_path / "demo-arithmetic", {"ppo": BASE, "grpo_g8": UP}, contrasts=pairs)
    (one,) = found.contrasts
    assert (found.family, one.judged.family) == (3, 3)
    assert one.holm == pytest.approx(3 * one.p)
    assert any("grpo_g16 against ppo: no finished runs" in note for note in found.notes)


def test_a_row_without_runs_yet_counts_as_much_as_its_siblings(tmp_path):
    folder = tmp_path / "demo-arithmetic"
    study(folder, {"ppo": BASE, "grpo_g8": UP}, contrasts=[["grpo_g8", "ppo"]])
    jobs = [{"run_id": run.run_id, "arm": run.arm, "row": run.row, "seed": run.seed} for run in load_study(folder).runs]
    planned = [(f"grpo_g8 lr={lr}", f"grpo_g8-s0-{lr}") for lr in ("11111111", "22222222")]
    jobs += [{"run_id": run_id, "arm": "grpo_g8", "row": row, "seed": 0} for row, run_id in planned]
    (folder / "jobs.json").write_text(json.dumps({"jobs": jobs}))
    found = compare(load_study(folder))
    (one,) = found.contrasts
    assert (found.family, one.judged.family) == (3, 3)
    assert any("no finished run of grpo_g8 lr=11111111" in note for note in found.notes)


def test_a_refused_pair_keeps_its_place_and_says_why(tmp_path):
    folder = tmp_path / "demo-arithmetic"
    pairs = [["grpo_g8", "ppo"], ["grpo_g4", "grpo_g8"]]
    study(folder, {"ppo": BASE, "grpo_g8": UP, "grpo_g4": CLOSE}, contrasts=pairs)
    path = folder / f"grpo_g4-s3-{HASHES['grpo']}" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prompt_stream_hash": "another"}))
    found = compare(load_study(folder))
    assert verdicts(found) == {("grpo_g8", "ppo"): "better", ("grpo_g4", "grpo_g8"): "not comparable"}
    assert found.family == 2
    assert (
        "grpo_g4 against grpo_g8: not comparable, prompt stream differs (another and stream3) (seed 3)." in found.notes
    )


def test_a_baseline_is_a_declaration_where_the_study_named_it(tmp_path):
    folder = tmp_path / "demo-arithmetic"
    of = {"id": "x", "claim": "c", "rows": ["grpo_g8", "grpo_g4"], "expect": "greater"}
    own = study(folder, {"ppo": BASE, "grpo_g8": UP, "grpo_g4": CLOSE}, hypotheses=[of])
    assert own.declared == "baseline"
    sheet = contrasts_sheet(own)
    assert sheet.notes[0].startswith("Contrasts: declared by the study's baseline: every row against it.")
    assert sheet.notes[1].startswith("Better or worse: ")
    assert compare(load_study(folder), "ppo").declared == "baseline"  # given again, it is the same
    # chosen after the runs: + 10.0 points of the one over the other, and no word about it
    other = compare(load_study(folder), "grpo_g4")
    assert other.declared == "no"
    assert verdicts(other) == {("grpo_g8", "grpo_g4"): "descriptive", ("ppo", "grpo_g4"): "descriptive"}
    (one,) = (c for c in other.contrasts if c.first == "grpo_g8")
    assert one.judged is not None
    assert (one.judged.word, one.p, one.holm) == ("descriptive", one.judged.p, one.judged.p_holm)
    assert one.judged.interval.estimate == pytest.approx(0.099)  # 9.5, 11.5, 9, 8.5, 11 points
    sheet = contrasts_sheet(other)
    cells = {row[0]: dict(zip(sheet.header, row, strict=True)) for row in sheet.rows}["grpo_g8 - grpo_g4"]
    assert cells["verdict"] == "descriptive"
    assert cells["difference [95 %]"].startswith("+9.9 [")
    assert sheet.notes[0].startswith(
        "Contrasts: none was declared; every row against a baseline chosen after the runs."
    )
    assert "Better or worse" not in " ".join(sheet.notes)
    assert (contrasts_sheet(own).title, sheet.title) == ("Contrasts and verdicts", "Contrasts")
    assert not any(word in cell for row in main_sheet(other).rows for cell in row for word in ("better", "worse"))
    # the study's own claim about the same two rows is judged as if no contrast stood there
    assert [f.outcome for f in evaluate(own)] == [f.outcome for f in evaluate(other)] == ["supported"]
    assert evaluate(own)[0].judgement == evaluate(other)[0].judgement
    page = brief(Heading("demo", []), other)
    assert "Differences (none was declared):\n\n- grpo_g8 against grpo_g4: **descriptive**, +9.9 [" in page


def test_declared_contrasts_have_verdicts_with_any_baseline(tmp_path):
    folder = tmp_path / "demo-arithmetic"
    assert study(folder, {"ppo": BASE, "grpo_g8": UP}, contrasts=[["grpo_g8", "ppo"]]).declared == "contrasts"
    found = compare(load_study(folder), "grpo_g8")
    assert (found.declared, verdicts(found)) == ("contrasts", {("grpo_g8", "ppo"): "better"})


def test_without_a_baseline_of_its_own_a_study_declared_none(tmp_path):
    folder = tmp_path / "demo-arithmetic"
    assert study(folder, {"ppo": BASE, "grpo_g8": UP}, baseline=None).contrasts == []
    found = compare(load_study(folder), "ppo")
    assert (found.declared, verdicts(found)) == ("no", {("grpo_g8", "ppo"): "descriptive"})
    assert not any("Interim" in note for note in found.notes)


def test_a_margin_or_contrast_that_changed_between_runs_is_named(tmp_path):
    folder = tmp_path / "demo-arithmetic"
    assert not any("changed" in note for note in study(folder, {"ppo": BASE, "grpo_g8": UP}).notes)
    write_run(folder, "grpo_g4", 0, [1] * N, changes={"study": {**config("ppo", "ppo", 0)["study"], "margin": 0.1}})
    notes = compare(load_study(folder)).notes
    assert any(note.startswith("The study's margin changed between its runs") for note in notes)


def test_a_verdict_before_the_planned_seeds_is_interim(tmp_path):
    folder = tmp_path / "demo-arithmetic"
    assert not any("Interim" in note for note in study(folder, {"ppo": BASE, "grpo_g8": UP}).notes)
    write_jobs(folder, *[(arm, seed) for arm in ("ppo", "grpo_g8") for seed in range(6)])
    found = compare(load_study(folder))
    assert verdicts(found) == {("grpo_g8", "ppo"): "better"}
    (note,) = [note for note in found.notes if "Interim" in note]
    assert note.startswith("Interim, planned seeds are missing: grpo_g8 against ppo.")


# ---------------------------------------------------------------- several tasks


def test_one_task_has_no_table_over_tasks(five):
    assert tasks_sheet(five) is None


def test_two_tasks_together(tmp_path):
    """IQM over 5 runs × 2 tasks: of ten sorted scores, two are dropped at either end."""
    easy, hard = tmp_path / "demo-arithmetic", tmp_path / "demo-gsm8k"
    study(easy, {"ppo": BASE, "grpo_g8": UP, "grpo_g4": CLOSE})
    task = {"task": {**TASK, "name": "gsm8k"}}
    for arm, solved in (("ppo", [4, 5, 6, 7, 8]), ("grpo_g8", [6, 7, 8, 9, 20])):
        for seed, k in enumerate(solved):
            write_run(hard, arm, seed, [1] * k + [0] * (100 - k), changes=task)
    sheet = tasks_sheet(compare(load_study(easy)))
    assert sheet is not None
    rows = {row[0]: dict(zip(sheet.header, row, strict=True)) for row in sheet.rows}
    assert set(rows) == {"ppo", "grpo_g8"}  # grpo_g4 ran on one task alone
    # 4 5 | 6 7 8 49 50 51 | 52 53: (6 + 7 + 8 + 49 + 50 + 51)/6 = 28.5
    assert rows["ppo"]["IQM % [95 %]"].startswith("28.5 [")
    assert rows["ppo"]["mean %"] == "28.5"
    assert rows["ppo"]["P(above ppo) [95 %]"] == "baseline"
    # arithmetic: every run above every other, 1; the other task: of 25 pairs 19 won and 3 even, 0.82; mean 0.91
    assert rows["grpo_g8"]["P(above ppo) [95 %]"].startswith("0.91 [")
    assert [rows["ppo"][f"runs above {level} %"] for level in (25, 50, 75)] == ["50 %", "30 %", "0 %"]
    assert "arithmetic, gsm8k" in sheet.notes[0]


# ---------------------------------------------------------------- which runs are a pair

TASK, MODEL = config("ppo", "ppo", 0)["task"], config("ppo", "ppo", 0)["model"]
PRINTS = {"data": "d" * 16, "model": "m" * 16, "warmstart": "w" * 16}
ORDINARY = {"cpu": "a processor", "device": {"torch_threads": 1, "gpus": []}, "fingerprints": PRINTS}
SECONDS = {"budget": {"unit": "seconds", "amount": 60}}


def pair(folder: Path, **second: Any) -> str | None:
    """Why two otherwise equal runs are no pair, when the second has these changes."""
    runs = []
    for name, own in (("ppo", {}), ("grpo_g8", second)):
        both = dict(second.get("both", {}))
        run = write_run(folder, name, 0, [1, 0], changes=own.get("changes"), result=both | own.get("result", {}))
        entry = ORDINARY | own.get("provenance", {})
        (run / "provenance.json").write_text(json.dumps({"attempts": [entry]}))
        runs.append(run.name)
    found = {run.run_id: run for run in load_study(folder).runs}
    return refusal(found[runs[0]], found[runs[1]])


def test_equal_runs_are_a_pair(tmp_path):
    assert pair(tmp_path) is None


def test_runs_of_two_graders_are_no_pair_but_in_what_they_cost(tmp_path):
    study = tmp_path / "demo-arithmetic"
    for name, print_ in (("ppo", "g"), ("grpo_g8", "h")):
        run = write_run(study, name, 0, [1, 0], changes={"study": None})
        entry = ORDINARY | {"fingerprints": PRINTS | {"grader": print_ * 16}}
        (run / "provenance.json").write_text(json.dumps({"attempts": [entry]}))
    c = compare(load_study(study))
    assert refusal(*(arm.runs[0] for arm in c.arms)) == "grader differs (hhhhhhhhhhhh and gggggggggggg)"
    found = {name: collect(c, Reading(c.arms), ["ppo", "grpo_g8"], name).lacking for name in ("kl_final", "flops")}
    assert found == {"kl_final": "grader differs", "flops": ""}


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ({"result": {"prompt_stream_hash": "x"}}, "prompt stream differs (stream0 and x)"),
        ({"result": {"model": "other"}}, "model differs (tiny and other)"),
        ({"provenance": {"fingerprints": PRINTS | {"model": "n" * 16}}}, "initial weights differs (mmmmmmmmmmmm and n"),
        ({"provenance": {"fingerprints": PRINTS | {"warmstart": "v" * 16}}}, "warm start differs"),
        ({"provenance": {"fingerprints": PRINTS | {"data": "e" * 16}}}, "data differs"),
        ({"provenance": {"fingerprints": PRINTS | {"grader": "h" * 16}}}, None),  # the other does not say
        ({"changes": {"model": {**MODEL, "warmstart": {"steps": 9}}}}, "warm-start settings differs"),
        ({"changes": {"model": {**MODEL, "dtype": "bfloat16"}}}, None),  # the other does not say
        ({"changes": {"task": {**TASK, "version": 2}}}, "task version differs (arithmetic v1 and arithmetic v2)"),
        ({"changes": {"task": {**TASK, "eval_split": "train"}}}, 'eval_split of the test differs ("test" and "train")'),
        ({"changes": {"task": {**TASK, "max_new_tokens": 9}}}, "max_new_tokens of the test differs (64 and 9)"),
        ({"changes": {"task": {**TASK, "answer": "last_number"}}}, "answer of the test differs"),
        ({"result": {"budget": {"unit": "samples", "amount": 2048}}}, "budget differs (1,024 samples and 2,048 sam"),
        ({"result": {"budget": {"unit": "flops", "amount": 1024}}}, "budget differs (1,024 samples and 1,024 flops)"),
        ({"provenance": {"cpu": "another processor"}}, None),  # of no matter where samples are counted
    ],
)  # fmt: skip
def test_what_makes_a_pair_unfair(tmp_path, second, said):
    found = pair(tmp_path, **second)
    assert found is None if said is None else found is not None and found.startswith(said)
    assert found is None or "\n" not in found


def test_seconds_of_another_machine_are_another_budget(tmp_path):
    same = pair(tmp_path / "a", both=SECONDS, result=SECONDS)
    other = pair(tmp_path / "b", both=SECONDS, result=SECONDS, provenance={"cpu": "another processor"})
    assert same is None
    assert other == (
        "machine, whose seconds the budget counts, differs (a processor, 1 threads and another processor, 1 threads)"
    )


def test_other_problems_are_no_pair(tmp_path):
    write_run(tmp_path, "ppo", 0, [1, 0])
    run = write_run(tmp_path, "grpo_g8", 0, [1, 0])
    write_gz(run, rows([1, 0, 1]))
    a, b = load_study(tmp_path).runs
    assert refusal(a, b) == "test problems differ"
