"""A record against the same run made again: what differs around it, and a verdict per cell and per row."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import study_builder

from grpo_bench.files import write_json
from grpo_bench.records import Run, load_run, load_study
from grpo_bench.reproduce import __main__ as command
from grpo_bench.reproduce import report
from grpo_bench.reproduce.check import prints, surroundings
from grpo_bench.reproduce.compare import ACCURACY, Cell, compare, contradiction, figures_of, row_mean, rows_digest
from grpo_bench.reproduce.rerun import config_of
from grpo_bench.types import UserError

HERE: dict[str, Any] = {
    "cpu": "A", "cpu_count": 2, "python": "3.11.7", "platform": "Linux",
    "git": {"sha": "0123456789abcdef", "dirty": False},
    "device": {"torch_threads": 2, "gpus": []}, "packages": {"torch": "2.13", "wandb": "1.0", "sympy": "1.14"},
}  # fmt: skip


def answers(right: int, of: int = 100) -> list[int]:
    return [1] * right + [0] * (of - right)


def study(folder: Path, rights: Sequence[int] = (80, 82, 84)) -> list[Run]:
    """A row of grpo_g8 with one seed for each entry; of 100 test problems so many are right."""
    for seed, right in enumerate(rights):
        run = study_builder.write_run(folder, "grpo_g8", seed, answers(right), base=answers(50) if seed == 0 else None)
        provenance = {**HERE, "device": {**HERE["device"], "torch_threads": 1}}
        provenance |= {
            "fingerprints": {"data": "d", "model": "m", "warmstart": "w"},
            "prompt_stream_hash": f"stream{seed}",
        }
        write_json(run / "provenance.json", {"attempts": [provenance]})
    return load_study(folder).runs


def made_again(folder: Path, run: Run, right: int | None = None, **cost: float) -> Run:
    """``run`` in another folder, with the same answers or with others."""
    copy = folder / "again" / run.run_id
    shutil.copytree(run.directory, copy)
    result = json.loads((copy / "result.json").read_text())
    if right is not None:
        study_builder.write_gz(
            copy, study_builder.rows([1, 0], split="dev", step=2) + study_builder.rows(answers(right))
        )
        result["eval"]["final"] = study_builder.means(answers(right))
    result["cost"] |= cost
    (copy / "result.json").write_text(json.dumps(result))
    return load_run(copy)


def words(cell: Cell) -> dict[str, str]:
    return {figure.name: figure.word for figure in cell.figures}


# ------------------------------------------------------------------ verdicts


def test_the_same_rows_and_figures_are_identical(tmp_path):
    row = study(tmp_path)
    cell = compare(row[0], made_again(tmp_path, row[0]), row, exact=True)
    assert cell.word == "identical"
    assert cell.accuracy is not None
    assert (cell.accuracy.recorded, cell.accuracy.new) == (0.8, 0.8)
    judged = {name: word for name, word in words(cell).items() if word != "not judged"}
    assert set(judged.values()) == {"identical"}
    assert "cost.samples" in judged
    assert "stability.entropy_final" in judged
    assert set(words(cell)) - set(judged) == {"cost.seconds.total", "cost.peak_memory_bytes"}  # a clock is no verdict


def test_within_is_the_prediction_interval_of_the_row(tmp_path):
    # 80, 82, 84 %: mean 82, sd 2, t(0.975, 2) = 4.3027; one more run: 82 ± 4.3027 * 2 * sqrt(1 + 1/3) = 82 ± 9.936
    row = study(tmp_path)
    cell = compare(row[1], made_again(tmp_path / "a", row[1], right=90), row, exact=False)
    assert cell.word == "within"
    assert cell.accuracy is not None
    assert cell.accuracy.low == pytest.approx(0.82 - 0.09936, abs=1e-5)
    assert cell.accuracy.high == pytest.approx(0.82 + 0.09936, abs=1e-5)
    # 72 is beyond 72.06; ten answers of 100 flipped alone reach 1.96 * sqrt((0.1 - 0.01) * 100/99) / 10 = 5.9 points
    off = compare(row[1], made_again(tmp_path / "b", row[1], right=72), row, exact=False)
    assert off.word == "off"
    assert ACCURACY in off.reason


def test_where_nothing_differs_other_answers_are_off(tmp_path):
    row = study(tmp_path)
    cell = compare(row[1], made_again(tmp_path, row[1], right=83), row, exact=True)
    assert cell.word == "off"
    assert cell.reason == "other evaluation rows, though nothing differs that can change them"


def test_one_seed_is_judged_by_its_problems(tmp_path):
    (run,) = study(tmp_path, rights=(80,))
    # 4 answers flipped, all one way: 1.96 * sqrt(0.04 * 0.96 * 100/99) / 10 = 3.86 points are less than 4
    assert compare(run, made_again(tmp_path / "a", run, right=76), [run], exact=False).word == "off"
    # 3 of them: 1.96 * sqrt(0.03 * 0.97 * 100/99) / 10 = 3.36 points are more than 3
    near = compare(run, made_again(tmp_path / "b", run, right=77), [run], exact=False)
    assert near.word == "within"
    assert words(near)["eval.final.greedy.len_mean"] == "identical"


def test_an_accuracy_without_an_interval_is_not_judged(tmp_path):
    (run,) = study(tmp_path, rights=(80,))
    new = made_again(tmp_path / "a", run, right=77)
    (new.directory / "eval.jsonl.gz").unlink()  # one seed, and no rows to count flipped answers in
    assert compare(run, new, [run], exact=False).word == "not judged"


def test_counts_that_every_seed_shares_have_no_width(tmp_path):
    row = study(tmp_path)
    cell = compare(row[0], made_again(tmp_path, row[0], samples=1025), row, exact=False)
    assert cell.word == "off"
    assert cell.reason == "cost.samples"


def test_figures_beside_accuracy_share_one_error(tmp_path):
    row = study(tmp_path)
    for seed, run in enumerate(row):
        result = json.loads((run.directory / "result.json").read_text())
        result["stability"]["entropy_final"] = 0.3 + 0.01 * seed
        (run.directory / "result.json").write_text(json.dumps(result))
    row = load_study(tmp_path).runs
    new = made_again(tmp_path, row[0])
    new.result["stability"]["entropy_final"] = 0.36  # beyond 0.31 ± 4.3027 * 0.01 * sqrt(4/3) = 0.31 ± 0.0497
    cell = compare(row[0], new, row, exact=False)
    figure = next(f for f in cell.figures if f.name == "stability.entropy_final")
    assert figure.word == "within"
    assert figure.low is not None
    assert figure.low < 0.31 - 0.0497


def test_models_before_rl_are_judged_by_their_problems(tmp_path):
    row = study(tmp_path)
    new = made_again(tmp_path, row[0])
    study_builder.write_gz(tmp_path / "again" / "baselines" / "base-cccccccc", study_builder.rows(answers(49), step=0))
    new.result["eval"]["base"] = study_builder.means(answers(49))
    cell = compare(row[0], new, row, exact=False)
    judged = words(cell)
    assert judged["eval.base.greedy.acc"] == "within"  # one answer flipped; all seeds share the recorded 50 %
    assert judged["eval.base.sampled.acc"] == "not judged"


def test_a_record_altered_by_hand_is_off(tmp_path):
    row = study(tmp_path)
    new = made_again(tmp_path, row[0])
    result = json.loads((row[0].directory / "result.json").read_text())
    result["eval"]["final"]["greedy"]["acc"] = 0.9
    (row[0].directory / "result.json").write_text(json.dumps(result))
    altered = load_run(row[0].directory)
    assert contradiction(altered) == "the record contradicts itself: result.json says acc 0.9, its rows 0.8"
    assert compare(altered, new, row, exact=False).word == "off"
    # its rows altered with it: the run made again has others
    study_builder.write_gz(row[0].directory, study_builder.rows(answers(90)))
    result["eval"]["final"] = study_builder.means(answers(90))
    (row[0].directory / "result.json").write_text(json.dumps(result))
    altered = load_run(row[0].directory)
    assert contradiction(altered) == ""
    assert compare(altered, new, row, exact=True).word == "off"


def test_a_figure_that_is_gone_is_off(tmp_path):
    row = study(tmp_path)
    new = made_again(tmp_path, row[0])
    del new.result["stability"]["kl_final"]
    cell = compare(row[0], new, row, exact=False)
    assert (cell.word, cell.reason) == ("off", "the new record lacks stability.kl_final")


def test_rows_are_compared_as_text_packed_or_not(tmp_path):
    (run,) = study(tmp_path, rights=(80,))
    packed = rows_digest(run.directory)
    content = gzip.decompress((run.directory / "eval.jsonl.gz").read_bytes())
    (run.directory / "eval.jsonl.gz").unlink()
    (run.directory / "eval.jsonl").write_bytes(content)
    assert rows_digest(run.directory) == packed
    (run.directory / "eval.jsonl").write_bytes(content.replace(b"#### 1", b"#### 2", 1))
    assert rows_digest(run.directory) != packed


def test_mean_of_a_row(tmp_path):
    row = study(tmp_path)
    cells = [compare(run, made_again(tmp_path / str(run.seed), run, right=86), row, exact=False) for run in row[:2]]
    mean = row_mean("grpo_g8", row, cells)
    assert mean is not None
    assert (mean.seeds, mean.recorded_seeds) == (2, 3)
    assert (mean.mean.recorded, mean.mean.new) == (pytest.approx(0.81), pytest.approx(0.86))
    # the mean of two more runs: 82 ± 4.3027 * 2 * sqrt(1/2 + 1/3) = 82 ± 7.855
    assert mean.mean.high == pytest.approx(0.82 + 0.07855, abs=1e-5)
    assert mean.mean.word == "within"
    same = [compare(run, made_again(tmp_path / f"same{run.seed}", run), row, exact=True) for run in row]
    whole = row_mean("grpo_g8", row, same)
    assert whole is not None
    assert whole.mean.word == "identical"


def test_figures_are_the_numbers_that_can_come_out_again(tmp_path):
    (run,) = study(tmp_path, rights=(80,))
    names = figures_of(run.result or {})
    assert names["eval.final.sampled.pass@2"] == 0.8
    assert not any("seconds" in name or name.endswith((".n", ".stderr")) for name in names)


# ------------------------------------------------------------------ what differs around it


def test_surroundings_say_what_can_change_a_result(tmp_path):
    run = study(tmp_path)[0]
    assert surroundings(run, HERE, 1, []) == []
    here = HERE | {"cpu": "B", "cpu_count": 64, "python": "3.11.9", "packages": {"torch": "2.14", "sympy": "1.15"}}
    found = {one.what: one for one in surroundings(run, here, 4, [])}
    assert {what: one.changes for what, one in found.items()} == {
        "processor": True, "threads": True, "CPU count": False, "Python": False, "torch": True, "wandb": False,
        "sympy": False,
    }  # fmt: skip
    assert str(found["threads"]).startswith("threads: recorded 1, here 4; can change results: sums are rounded")
    assert str(found["wandb"]) == ("wandb: recorded 1.0, here absent; changes no result: it takes no part in a result")
    other = {one.what: one.changes for one in surroundings(run, HERE | {"python": "3.12.1"}, 1, [])}
    assert other == {"Python": True}


def test_symbolic_packages_count_where_answers_are_expressions(tmp_path):
    study_builder.write_run(tmp_path, "ppo", 0, answers(5), changes={"task": {"name": "math", "answer": "math"}})
    run = load_study(tmp_path).runs[0]
    write_json(run.directory / "provenance.json", {"attempts": [HERE]})
    (found,) = surroundings(load_run(run.directory), HERE | {"packages": HERE["packages"] | {"sympy": "2"}}, 2, [])
    assert found.changes


@pytest.mark.parametrize(
    ("here", "changed", "expected"),
    [
        ({"sha": "ffff", "dirty": False}, [], (False, "no file of grpo_bench/ or conf/ differs")),
        ({"sha": "ffff", "dirty": True}, ["grpo_bench/ops.py"],
         (True, "1 files of grpo_bench/ and conf/ differ, such as grpo_bench/ops.py")),
        ({"sha": "ffff", "dirty": False}, None,
         (True, "git does not know the recorded commit, so what changed since is not known")),
        ({"sha": "0123456789abcdef", "dirty": True}, [], (False, "no file of grpo_bench/ or conf/ differs")),
    ],
)  # fmt: skip
def test_commits_differ_by_their_code(tmp_path, here, changed, expected):
    (found,) = surroundings(study(tmp_path)[0], HERE | {"git": here}, 1, changed)
    assert (found.changes, found.why) == expected


def test_uncommitted_code_is_the_same_only_with_the_same_diff(tmp_path):
    run = study(tmp_path)[0]
    dirty = {"sha": "0123456789abcdef", "dirty": True, "diff_sha256": "aa"}
    write_json(run.directory / "provenance.json", {"attempts": [HERE | {"git": dirty}]})
    run = load_run(run.directory)
    assert surroundings(run, HERE | {"git": dirty}, 2, ["x"]) == []
    assert [one.what for one in surroundings(run, HERE | {"git": dirty | {"diff_sha256": "bb"}}, 2, [])] == ["code"]
    assert [one.what for one in surroundings(run, HERE, 2, [])] == ["code"]


def test_data_model_and_configuration(tmp_path):
    run = study(tmp_path)[0]
    same = {"data": "d", "model": "m", "prompt_stream_hash": "stream0"}
    assert prints(run, same, run.config_hash) == []
    found = prints(run, {"data": "e", "model": "n", "prompt_stream_hash": "stream9"}, "12345678")
    assert [one.what for one in found] == ["data", "model", "prompt stream", "configuration"]
    assert all(one.changes for one in found)
    (found,) = prints(run, {"error": "no train.jsonl in /data"}, run.config_hash)
    assert found.why == "no train.jsonl in /data"


# ------------------------------------------------------------------ the command


@pytest.fixture
def quiet(monkeypatch):
    """Nothing is asked of this machine and nothing is run: a run made again is as ``again`` says."""
    monkeypatch.setattr(command, "config_of", lambda run, into, given: FakeConfig(run, into))
    monkeypatch.setattr(command, "config_hash", lambda cfg: cfg.run.config_hash)
    monkeypatch.setattr(command, "run_dir", lambda cfg: cfg.into / "again" / cfg.run.run_id)
    monkeypatch.setattr(command, "changed_since", lambda sha: [])
    prints = {"data": "d", "model": "m"}
    monkeypatch.setattr(
        command,
        "probe",
        lambda asked: {"here": HERE, "prints": [prints | {"prompt_stream_hash": f"stream{a['seed']}"} for a in asked]},
    )


class FakeConfig:
    """As much of a configuration as the command reads."""

    threads, device, task, model = 1, "cpu", "task", "model"

    class budget:
        unit = "samples"

    def __init__(self, run: Run, into: Path) -> None:
        self.run, self.into, self.seed = run, into, run.seed

    def model_dump(self, **_: Any) -> dict[str, Any]:
        return {"seed": self.seed}


def test_check_is_the_default_and_runs_nothing(tmp_path, quiet, monkeypatch, capsys):
    study(tmp_path / "demo")
    monkeypatch.setattr(command, "again", lambda *_: pytest.fail("nothing was asked to run"))
    assert command.main([str(tmp_path / "demo")]) == 0
    out = capsys.readouterr().out
    assert "nothing differs from what was recorded" in out
    assert "checked 3 runs, which took 33s when recorded; name a row or a run" in out  # 4 + 0.5 + 1.5 + 2 + 3 each
    assert command.main([str(tmp_path / "demo"), "grpo_g8", "check"]) == 0


@pytest.mark.parametrize(
    ("right", "code", "verdict"),
    [(None, 0, "3 cells: 3 identical"), (83, 1, "3 cells: 3 off")],
)  # fmt: skip
def test_exit_code_and_verdict(tmp_path, quiet, monkeypatch, capsys, right, code, verdict):
    study(tmp_path / "demo")
    monkeypatch.setattr(command, "again", lambda run, cfg, label: made_again(cfg.into, run, right) and None)
    into = tmp_path / "new"
    assert command.main([str(tmp_path / "demo"), "all", f"into={into}"]) == code
    out = capsys.readouterr().out
    assert verdict in out
    assert "| grpo_g8 | mean of 3 |" in out
    data = json.loads((into / "reproduction.json").read_text())
    assert len(data["cells"]) == 3
    assert {cell["verdict"] for cell in data["cells"]} == {"identical" if right is None else "off"}


def test_a_run_that_fails_is_exit_code_1(tmp_path, quiet, monkeypatch, capsys):
    study(tmp_path / "demo")
    monkeypatch.setattr(command, "again", lambda run, cfg, label: "no space left on the disk")
    assert command.main([str(tmp_path / "demo"), "grpo_g8", "seed=1", f"into={tmp_path / 'new'}"]) == 1
    out = capsys.readouterr().out
    assert "- grpo_g8 seed 1 failed: no space left on the disk" in out
    assert "1 cell: 1 failed" in out


def test_other_weights_to_begin_from_can_change_a_result(tmp_path, quiet, monkeypatch, capsys):
    study(tmp_path / "demo")

    def again(run: Run, cfg: Any, label: str) -> None:
        new = made_again(cfg.into, run, right=83)
        write_json(new.directory / "provenance.json", {"attempts": [HERE | {"fingerprints": {"warmstart": "v"}}]})

    monkeypatch.setattr(command, "again", again)
    assert command.main([str(tmp_path / "demo"), "grpo_g8-s1-bbbbbbbb", f"into={tmp_path / 'new'}"]) == 0
    out = capsys.readouterr().out
    assert "warm start: recorded w, here v; can change results" in out
    assert "1 cell: 1 within its interval" in out


def test_selection(tmp_path):
    study(tmp_path / "demo")
    study_builder.write_run(tmp_path / "demo", "grpo_g16", 0, answers(80), result={"row": "grpo_g16 kl_coef=0.04"})
    folder = str(tmp_path / "demo")

    def chosen(*rest: str) -> list[str]:
        return [run.run_id for run in command.arguments([folder, *rest]).runs]

    assert chosen("grpo_g8", "seed=0,2") == ["grpo_g8-s0-bbbbbbbb", "grpo_g8-s2-bbbbbbbb"]
    assert chosen("grpo_g16 kl_coef=0.04") == ["grpo_g16-s0-bbbbbbbb"]  # a row's name, not a key
    assert len(chosen("all")) == 4
    given = command.arguments([folder, "all", "task.path=here", "threads=2"])
    assert given.given == {"task.path": "here", "threads": "2"}
    assert given.run
    assert not command.arguments([folder]).run


@pytest.mark.parametrize(
    ("rest", "line"),
    [
        (["grpo_g9"], "'grpo_g9' is neither a row nor a run of demo; did you mean 'grpo_g8'"),
        (["all", "grpo_g8"], "all and a selection contradict each other"),
        (["all", "optim.eps=1"], "optim.eps would make it another run"),
        (["seed=x"], "seed=x: give numbers"),
        (["seed=9"], "no finished run to reproduce"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys, rest, line):
    study(tmp_path / "demo")
    assert command.main([str(tmp_path / "demo"), *rest]) == 2
    err = capsys.readouterr().err
    assert line in err
    assert err.count("\n") == 1


def test_no_folder_or_no_study(tmp_path, capsys):
    assert command.main([]) == 2
    assert command.main([str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("error: ") == 2


def test_report_writes_out_what_is_off(tmp_path):
    row = study(tmp_path)
    cell = compare(row[1], made_again(tmp_path, row[1], right=60), row, exact=False)
    text = report.cells([cell], [])
    assert "| grpo_g8 | 1 | 82.00 | 60.00 | 72.06 to 91.94 |" in text
    assert "- grpo_g8 seed 1 is off: eval.final.greedy.acc" in text
    assert "  - eval.final.greedy.acc: recorded 0.82, new 0.6, expected within 0.720" in text


# ------------------------------------------------------------------ the configuration of a record


def committed() -> Run:
    return load_run(Path(__file__).parent.parent / "results" / "zoo-arithmetic" / "grpo_g8-s0-162128be")


def test_a_committed_record_is_the_run_that_it_names(tmp_path):
    from grpo_bench.config import config_hash, run_dir

    run = committed()
    cfg = config_of(run, tmp_path, {})
    assert config_hash(cfg) == run.config_hash  # this version reads it as the one that wrote it
    assert run_dir(cfg) == tmp_path / "zoo-arithmetic" / run.run_id
    assert (cfg.tracker.name, cfg.export, cfg.results) == ("none", False, str(tmp_path))
    assert config_of(run, tmp_path, {"threads": "2"}).threads == 2


def test_a_record_that_keeps_only_the_name_of_a_folder_asks_where_it_is(tmp_path):
    folder = Path(__file__).parent.parent / "results" / "first_light-gsm8k"
    run = next(run for run in load_study(folder).runs if run.arm == "ppo")
    with pytest.raises(UserError, match=r"needs task.path=gsm8k, which is not here; say where it is: task.path=PATH"):
        config_of(run, tmp_path, {})
