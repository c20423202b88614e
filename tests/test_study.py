"""plan, status and retry: what they say of records, and what they run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock
from model_data import make
from test_cli import FAKE_RUN

from grpo_bench import summary as end_of_sweep
from grpo_bench.config import run_dir, run_id
from grpo_bench.ending import kind, plainly, reason_of
from grpo_bench.preflight import Plan, preflight
from grpo_bench.provenance import host
from grpo_bench.study import cli, plan, select, status
from grpo_bench.study.status import standing_of
from grpo_bench.types import UserError

REPO = Path(__file__).resolve().parent.parent
SWEEP = """
defaults: [base, _self_, {arm: null}]
study: {name: small, baseline: grpo_g8}
threads: 1
budget: {unit: samples, amount: 1024}
hydra: {sweeper: {params: {arm: "grpo_g8,ppo_tuned", seed: "0,1,2"}}}
"""
DRY = {
    "steps": 4, "step_s": 2.0, "completion_s": 0.01, "checkpoint_s": 0.5, "setup_s": 6.0, "test_n": 1000,
    "per_step": {"samples": 256.0, "tokens": 5000.0, "updates": 1.0, "flops": 1e9}, "answer_tokens": 10.0,
    "warm_start_s": 55.0, "warm_started": True, "baselines": {"pretrained": "pretrained-a", "base": "base-b"},
    "memory_bytes": 2 * 10**9, "gpu_memory_bytes": 0,
}  # fmt: skip


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the sweep ``small``; nothing is known to this machine."""
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "small.yaml").write_text(SWEEP)
    monkeypatch.setenv("GRPO_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def planned(sweep: Path, *overrides: str) -> Plan:
    return preflight(list(overrides), "small", str(sweep / "sweeps"), multirun=True)


def record(cfg: Any, state: dict[str, Any], result: dict[str, Any] | None = None, cpu: str | None = None) -> Path:
    """The folder of a run, as far as study reads it."""
    from grpo_bench.provenance import cpu_name

    folder = run_dir(cfg)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(cfg.model_dump(mode="json", by_alias=True)))
    (folder / "state.json").write_text(json.dumps(state))
    attempts = [{"cpu": cpu or cpu_name(), "cpu_count": os.cpu_count()}]
    (folder / "provenance.json").write_text(json.dumps({"attempts": attempts}))
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))
    return folder


def finished(seconds: float, status: str = "complete", **more: Any) -> dict[str, Any]:
    cost = {"seconds": {"total": seconds}, "peak_memory_bytes": 10**9}
    return {"status": status, "budget": {"unit": "samples", "amount": 1024}, "cost": cost, **more}


def mixed(sweep: Path) -> Plan:
    """Of six runs one is complete, one diverged, one failed, one was killed, one runs and one never began."""
    plan = planned(sweep)
    plan.open_results()
    plan.write_jobs()
    a, b, c, d, e, _ = [job.config for job in plan.jobs]
    record(a, {"status": "complete"}, finished(100.0))
    record(b, {"status": "failed", "reason": "MemoryError: no more", "exit_code": 1})
    record(c, {"status": "running", "pid": 2**22 + 5, "step": 2})  # above the largest process id
    record(d, {"status": "diverged"}, finished(60.0, "diverged", reason="loss not finite in 5 steps in a row"))
    folder = record(e, {"status": "running", "pid": os.getpid()})
    (folder / "metrics.jsonl").write_text('{"step": 1, "samples": 256, "reward/mean": 0.5}\n')
    (folder / "timing.jsonl").write_text('{"step": 1, "elapsed_s": 10.0}\n')
    return plan


# ------------------------------------------------------------------ status


def test_status_tells_each_run_apart(
    sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed(sweep)
    monkeypatch.setattr(status.psutil.Process, "cmdline", lambda self: ["python", "-m", "grpo_bench", "seed=1"])
    assert cli.main(["status", "results/small-arithmetic", "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)
    assert [run["state"] for run in runs] == ["complete", "failed", "failed", "diverged", "running", "to run"]
    assert [run["reason"] for run in runs[1:]] == [
        "out of memory: MemoryError: no more",
        "its process is gone, at step 2: killed without a word",
        "loss not finite in 5 steps in a row",
        "step 1, reward 0.500, 25 % done, 30s left",
        "",
    ]
    assert cli.main(["status", "small", "--config-dir", "sweeps"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("results/small-arithmetic: 6 runs: 1 complete, 1 diverged, 1 running, 2 failed, 1 to run\n")
    assert "  grpo_g8 seed=1: out of memory: MemoryError: no more\n" in text
    # two failed grpo_g8 at 100 s, 30 s of the running one, one ppo_tuned at 60 s
    assert text.endswith("time left: 5m of work\n")  # 290 s


def test_a_record_of_another_machine_runs_as_long_as_it_is_fresh(sweep: Path) -> None:
    cfg = planned(sweep).jobs[0].config
    folder = record(cfg, {"status": "running", "pid": 2**22 + 5}, cpu="another")
    assert standing_of(folder, "x", 0).state == "running"
    old = status.time.time() - 2 * status.NEWS_SECONDS
    for file in folder.iterdir():
        os.utime(file, (old, old))
    assert standing_of(folder, "x", 0).state == "failed"


def test_a_process_id_counts_beside_its_machine(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes of a cluster are alike, and their process ids mean nothing to each other."""
    cfg = planned(sweep).jobs[0].config
    monkeypatch.setattr(status.psutil.Process, "cmdline", lambda self: ["python", "-m", "grpo_bench", "seed=1"])
    folder = record(cfg, {"status": "running", "pid": 2**22 + 5, "host": "another"})
    assert standing_of(folder, "x", 0).state == "running"
    folder = record(cfg, {"status": "running", "pid": 2**22 + 5, "host": host()})
    assert standing_of(folder, "x", 0).state == "failed"
    folder = record(cfg, {"status": "running", "pid": os.getpid(), "host": host()})
    assert standing_of(folder, "x", 0).state == "running"
    folder = record(cfg, {"status": "running", "pid": os.getpid(), "host": "another"})
    old = status.time.time() - 2 * status.NEWS_SECONDS
    for file in folder.iterdir():
        os.utime(file, (old, old))
    assert standing_of(folder, "x", 0).state == "failed"


def test_a_second_process_does_not_end_the_record_of_the_first(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    running = {"status": "running", "pid": 1, "step": 3}
    (tmp_path / "state.json").write_text(json.dumps(running))
    (tmp_path / "stdout.log").write_text("error: another process (process 1) is writing it; wait for it or stop it\n")
    with FileLock(tmp_path / "checkpoints" / "lock"):
        assert "another process" in reason_of(tmp_path, 2, running, 0)
    assert json.loads((tmp_path / "state.json").read_text()) == running
    assert "another process" in reason_of(tmp_path, 2, running, 0)
    assert json.loads((tmp_path / "state.json").read_text())["status"] == "failed"


def test_an_extended_budget_is_to_run(sweep: Path) -> None:
    cfg = planned(sweep).jobs[0].config
    folder = record(cfg, {"status": "complete"}, finished(100.0))
    assert standing_of(folder, "x", 0, 1024.0).state == "complete"
    assert standing_of(folder, "x", 0, 2048.0).state == "to run"


def test_quick_and_without_torch(sweep: Path) -> None:
    mixed(sweep)
    code = (
        "import sys; from grpo_bench.study.cli import main; "
        "main(['status', 'results/small-arithmetic']); main(['status', 'small', '--config-dir', 'sweeps']); "
        "main(['plan', 'small', '--config-dir', 'sweeps', '--measure', 'never']); "
        "print([m for m in ('torch', 'transformers', 'datasets', 'matplotlib') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# ------------------------------------------------------------------ plan


def rows_of(selected: Any, measure: Any = "never") -> list[plan.Row]:
    from grpo_bench.resources import Machine

    return plan.rows_of(selected, measure, lambda line: None, Machine(4, 100 * 10**9))


def test_seconds_of_a_run_by_its_dry_step(sweep: Path) -> None:
    cfg = (
        planned(sweep, "eval.every=2", "eval.n=100", "eval.samples=1", "eval.ks=[1]", "checkpoint.every=3")
        .jobs[0]
        .config
    )
    # 1024 / 256 = 4 steps of 2 s; dev at 0, 2, 4: 3 x 100 x 2 answers of 0.01 s; test 1000 x 2; 2 checkpoints; setup
    assert plan.run_seconds(cfg, DRY) == pytest.approx(6 + 4 * 2 + 3 * 2 + 20 + 2 * 0.5)
    tokens = cfg.model_copy(update={"budget": cfg.budget.model_copy(update={"unit": "tokens", "amount": 12_000})})
    assert plan.total_steps(tokens, DRY) == 3  # the first that reaches it
    clock = cfg.model_copy(update={"budget": cfg.budget.model_copy(update={"unit": "seconds", "amount": 9.0})})
    assert plan.total_steps(clock, DRY) == 5


def test_plan_by_records_dry_steps_and_not_at_all(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from grpo_bench.study import dry

    mixed(sweep)
    monkeypatch.setattr(status.psutil.Process, "cmdline", lambda self: ["python", "-m", "grpo_bench", "seed=1"])
    selected = select.select("small", [], "sweeps")
    first, second = rows_of(selected)
    assert (first.cost.seconds, first.cost.known) == (100.0, "its records")
    assert (second.cost.seconds, second.cost.known) == (None, "nothing")  # a diverged run is no measure
    assert [len(row.todo) for row in (first, second)] == [2, 1]
    measured = []
    monkeypatch.setattr(dry, "measure", lambda cfg: measured.append(cfg.row) or DRY)
    rows = rows_of(selected, "missing")
    assert measured == ["ppo_tuned"]
    assert rows[1].cost.known == "a dry run of 4 steps"
    text = plan.render(selected, rows, plan.Machine(4, 100 * 10**9), 90 * 10**9)
    assert "6 runs (2 rows) to results/small-arithmetic: 2 complete, 3 to run (1 of them continued), 1 running" in text
    assert "for the models before RL, evaluated once" in text
    measured.clear()
    rows_of(selected, "again")
    assert measured == ["grpo_g8", "ppo_tuned"]
    assert rows_of(select.select("small", ["budget.amount=2048"], "sweeps"))[0].cost.seconds == 200.0


def test_what_a_dry_run_tells(sweep: Path, tmp_path: Path) -> None:
    """Steps of 9, 2 and 4 s; 30 of 40 s in phases, parts of phases not counted again; 64 dev and 64 test answers."""
    from grpo_bench.study import dry

    cfg = select.select("small", ["eval.samples=0", "eval.ks=[]"], "sweeps").plan.jobs[0].config
    small = cfg.model_copy(update={"eval": cfg.eval.model_copy(update={"every": 2, "n": 64, "test_n": 64})})
    lines = [{"step": step, "time/step_s": s} for step, s in ((0, 5.0), (1, 9.0), (2, 2.0), (3, 4.0))]
    (tmp_path / "timing.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    seconds = {"rollout": 10.0, "reward": 1.0, "score": 2.0, "update": 4.2, "eval": 12.8, "total": 40.0}
    cost = {
        "seconds": seconds | {"parts": {"actor": 3.0, "critic": 1.2}}, "samples": 96, "generated_tokens": 960,
        "updates": 10, "warmup_updates": 2, "empty_updates": 0, "flops": 3e9,
    }  # fmt: skip
    result = {"cost": cost, "eval": {"final": {"greedy": {"len_mean": 10.0}}}}
    found = dry._found(cfg, small, result, tmp_path, 60.0)
    assert (found["steps"], found["step_s"]) == (3, 3.0)
    assert found["completion_s"] == pytest.approx(0.1)
    assert found["checkpoint_s"] == pytest.approx(10.0)
    assert found["setup_s"] == pytest.approx(60 - 40 - 6.4)
    assert found["per_step"] == {"samples": 32, "tokens": 320, "updates": 4, "flops": 1e9}


def test_what_the_study_shares_counts_once(sweep: Path) -> None:
    selected = select.select("small", ["eval.samples=0", "eval.ks=[]"], "sweeps")
    rows = rows_of(selected)
    for row in rows:
        row.dry = DRY
    cfg = selected.plan.jobs[0].config
    # 1000 answers of 0.01 s for both rows together, and the pretrained model's at full length instead of 10 tokens
    assert plan.shared_seconds(rows) == pytest.approx(10 + 10 * cfg.task.max_new_tokens / 10)
    there = sweep / "results" / "small-arithmetic" / "baselines" / "base-b"
    there.mkdir(parents=True)
    (there / "result.json").write_text("{}")
    assert plan.shared_seconds(rows) == pytest.approx(10 * cfg.task.max_new_tokens / 10)


# ------------------------------------------------------------------ which study


def test_a_folder_gives_the_runs_that_its_sweep_gave(sweep: Path) -> None:
    before = mixed(sweep)
    after = select.select("results/small-arithmetic", [], "sweeps").plan
    assert [run_id(job.config) for job in after.jobs] == [run_id(job.config) for job in before.jobs]
    assert [job.config.row for job in after.jobs] == [job.config.row for job in before.jobs]
    with pytest.raises(UserError, match=r"would now be small-arithmetic/.*settings differ from those it ran with"):
        select.select("results/small-arithmetic", ["kl_coef=0.5"], "sweeps")
    with pytest.raises(UserError, match="give the name of the sweep to vary something"):
        select.select("results/small-arithmetic", ["seed=1,2"], "sweeps")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["status", "demmo"], "error: no study 'demmo': no demmo.yaml in "),
        (["status", "results/nothing-arithmetic"], "error: no results/nothing-arithmetic/jobs.json: give a results"),
        (["plan", "demo", "seed"], "error: seed: overrides are written KEY=VALUE"),
        (["plan", "demo", "sed=1"], "unknown option 'sed'; did you mean 'seed'?"),
        (["plan", "demo", "--config-dir", "nowhere"], "error: no study 'demo': no demo.yaml in nowhere"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    err = capsys.readouterr().err
    assert expected in err
    assert "Traceback" not in err


# ------------------------------------------------------------------ retry


def test_retry_runs_the_failed_ones_and_only_those(sweep: Path) -> None:
    (sweep / "site").mkdir()
    (sweep / "site" / "sitecustomize.py").write_text(FAKE_RUN)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(sweep / "site"), str(REPO)])}
    mixed(sweep)
    command = [sys.executable, "-m", "grpo_bench.study", "retry", "results/small-arithmetic", "--config-dir", "sweeps"]
    # the process of the running one is this test's, which is none of ours: it counts as gone
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("#")]
    assert [line.partition(" done")[0] for line in lines] == [
        "#1/3 grpo_g8 seed=1", "#2/3 grpo_g8 seed=2", "#3/3 ppo_tuned seed=1"
    ]  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout == "none of 6 runs has failed\n"


# ------------------------------------------------------------------ the end of a sweep


@pytest.mark.parametrize("fails", [False, True])
def test_a_mirrored_study_gets_its_tables_sent(
    fails: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines: list[list[str]] = []

    def run(line: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        lines.append(line[2:])
        bad = fails and line[2] == "grpo_bench.publish"
        return subprocess.CompletedProcess(line, 2 * bad, "3 files sent\n", "error: wandb refuses\n" if bad else "")

    monkeypatch.setattr(end_of_sweep.subprocess, "run", run)
    tracker = make("tracker.name=wandb", "tracker.project=p", "tracker.mode=offline").tracker
    end_of_sweep._show("results/x-arithmetic", tracker)
    assert lines == [
        ["grpo_bench.table", "results/x-arithmetic"],
        ["grpo_bench.publish", "results/x-arithmetic", "project=p", "mode=offline"],
    ]
    out, err = capsys.readouterr()
    assert ("3 files sent" in out, "warning: " in err and "wandb refuses" in err) == (not fails, fails)


# ------------------------------------------------------------------ why a job ended


@pytest.mark.parametrize(
    ("code", "kernel", "expected", "sort"),
    [
        (-9, 0, "killed by SIGKILL (kill -9); the kernel killed nothing for lack of memory meanwhile", "killed"),
        (-9, None, "killed by SIGKILL: by kill -9, or by the system for lack of memory", "killed"),
        (-9, 1, "out of memory: killed by SIGKILL, most likely by the kernel, which ran out of memory meanwhile",
         "out of memory"),
        (-11, 0, "killed by SIGSEGV", "killed"),
        (1, 0, "RuntimeError: boom", "error"),
        (137, 0, "RuntimeError: boom", "error"),
    ],
)  # fmt: skip
def test_reasons(code: int, kernel: int | None, expected: str, sort: str, tmp_path: Path) -> None:
    (tmp_path / "stdout.log").write_text("step 1\nRuntimeError: boom\n")
    before = {"status": "failed", "reason": "of the last time"}
    (tmp_path / "state.json").write_text(json.dumps(before))
    assert reason_of(tmp_path, code, before, kernel) == expected
    assert kind(expected) == sort
    state = json.loads((tmp_path / "state.json").read_text())
    assert (state["status"], state["reason"], state["exit_code"]) == ("failed", expected, code)


def test_a_reason_that_the_run_wrote_down_is_kept(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"status": "failed", "reason": "interrupted", "exit_code": 143}')
    assert reason_of(tmp_path, 143, {}, 0) == "interrupted"
    assert kind("interrupted") == "interrupted"


@pytest.mark.parametrize(
    "reason",
    [
        "MemoryError: Unable to allocate 1.00 GiB",
        "RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
        "OSError: [Errno 12] Cannot allocate memory",
    ],
)
def test_memory_that_ran_out_is_named(reason: str) -> None:
    assert plainly(reason) == f"out of memory: {reason}"
    assert plainly(plainly(reason)) == plainly(reason)
    assert plainly("RuntimeError: boom") == "RuntimeError: boom"
