"""The command line: what it refuses, what it shows, and sweeps whose jobs fail in every way."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from grpo_bench import cli, jobs
from grpo_bench.config import run_dir
from grpo_bench.jobs import child_command, duration, life, outcome
from grpo_bench.pool import Pool
from grpo_bench.preflight import preflight
from grpo_bench.resume import complete_line, is_complete, standing
from grpo_bench.types import UserError

REPO = Path(__file__).resolve().parent.parent

# Stands in for grpo_bench.run in child processes: a record in a moment, and the ends that a run can have.
FAKE_RUN = """
import json, os, signal, sys, time, types

def run(cfg, directory):
    import yaml
    from grpo_bench.types import UserError
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.yaml").write_text(yaml.safe_dump(cfg.model_dump(mode="json")))
    (directory / "state.json").write_text(json.dumps({"status": "running", "pid": os.getpid()}))
    if cfg.group_size == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    if cfg.group_size == 2:
        raise UserError("the data are not there; give task.path=...")
    if cfg.group_size == 16:
        raise RuntimeError("boom")
    if cfg.seed in (9, 19):
        time.sleep(60)
    result = {"status": "complete", "git_sha": "0" * 40, "row": cfg.row, "eval": {"final": {"greedy": {"acc": 0.625}}}}
    (directory / "result.json").write_text(json.dumps(result))
    return result

sys.modules["grpo_bench.run"] = types.ModuleType("grpo_bench.run")
sys.modules["grpo_bench.run"].run = run
"""


def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line, in this process."""
    monkeypatch.setattr(sys, "argv", ["grpo_bench", *arguments])
    code = 0
    try:
        cli.main()
    except SystemExit as e:
        code = int(e.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def fake(tmp_path: Path) -> dict[str, str]:
    """Environment in which every Python process has the fake run."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(FAKE_RUN)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(REPO)])}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "grpo_bench", *arguments]


def start(tmp_path: Path, env: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments), cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores Ctrl-C
    )  # fmt: skip


# ------------------------------------------------------------------ refused before anything starts


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["algo=ppo", "groupsize=16"],
            "error: 1 of 1 runs have a bad config; nothing was started\n  [algo=ppo groupsize=16]\n"
            "    unknown option 'groupsize'; did you mean 'group_size'?\n",
        ),
        (
            ["-m", "arm=ppo,grpo_g8", "algo=ppo"],
            "error: 1 of 2 runs have a bad config; nothing was started\n  [arm=grpo_g8 algo=ppo]\n"
            "    algo=ppo contradicts arm=grpo_g8, which is algo=grpo; drop one of the two\n",
        ),
        (
            ["-m", "arm=grpo_g8", "group_size=16", "seed=0,1"],
            "error: 2 of 2 runs have a bad config; nothing was started\n"
            "  [arm=grpo_g8 group_size=16 seed=0] and 1 more\n"
            "    group_size=16 contradicts arm=grpo_g8, which has group_size=8; drop it, choose another arm, "
            "or vary it in the sweep (group_size=8,16)\n",
        ),
        (
            ["arm=ppo_tuned", "algo.lam=0.95"],
            "    algo.lam=0.95 contradicts arm=ppo_tuned, which has algo.lam=1.0; drop it",
        ),
        (
            ["arm=ppo,grpo_g8"],
            "error: arm=ppo,grpo_g8: several values; add -m to run them all, or write [a,b] for a list\n",
        ),
        (["seed=range(3)"], "error: seed=range(3): several values; add -m"),
        (["--config-dir", "sweeps", "--config-name", "demo"], "error: demo is a sweep; add -m to run its jobs\n"),
        (
            ["--config-dir", "sweeps", "--config-name", "dema", "-m"],
            "no dema.yaml in conf/ or --config-dir; did you mean",
        ),
        (["--config-dir", "nowhere"], "error: --config-dir nowhere: there is no such folder\n"),
        (["--config-path", "x"], "error: --config-path and --experimental-rerun are not supported"),
        (["seed"], "error: 'seed' is not key=value"),
        (["task.stop=[a"], "error: 'task.stop=[a' is not key=value"),
        (
            ["task=gsm8k", "model=smollm2-135m", "task.path=/nowhere/at/all"],
            "    task.path=/nowhere/at/all: there is no such file or folder\n",
        ),
        (
            ["task=gsm8k", "model=smollm2-135m", "task.path=sweeps"],
            "    task.path=sweeps: no train.jsonl or train.parquet there (found: ",
        ),
        (
            ["-m", "budget.amount=512,1024", "threads=1,2"],
            "error: 4 of 4 jobs would write the same 1 run folder(s): they differ in budget.amount, threads alone, "
            "and not in what makes a run its own; give one value of budget.amount, threads\n",
        ),
        (
            ["-m", "lr=1e-5,0.00001", "seed=0,1"],
            "error: 4 of 4 jobs would write the same 2 run folder(s): a value is given twice;",
        ),
        (["-m", "seed=0,0,1"], "error: 2 of 3 jobs would write the same 1 run folder(s): a value is given twice;"),
        (["model=hf", "model.path=nothing.gguf"], "    model.path=nothing.gguf: there is no such file or folder\n"),
        (["study.name=x", "study.baseline=grpo_8"], "    study: arm 'grpo_8' is not known; did you mean 'grpo_g8'"),
        (["dialect=x"], "    dialect=x is not known to algo=grpo"),
    ],
)
def test_bad_input_ends_with_2_and_says_why(
    arguments: list[str],
    expected: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(REPO)
    code, out, err = call(capsys, monkeypatch, *arguments, f"results={tmp_path / 'results'}")
    assert code == 2
    # the folder of this test is among the overrides that are shown
    assert expected in err.replace(f" results={tmp_path / 'results'}", "")
    assert out == ""
    assert "Traceback" not in err
    assert not (tmp_path / "results").exists()


def test_a_folder_that_cannot_be_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = call(capsys, monkeypatch, f"results={tmp_path / 'file'}")
    assert code == 2
    assert "file/adhoc cannot be written (Not a directory); choose another folder: results=..." in err


def test_cuda_is_refused_without_a_device(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grpo_bench.device.cuda_available", lambda: False)
    code, _, err = call(capsys, monkeypatch, "device=cuda")
    assert code == 2
    assert "device=cuda: no CUDA device is visible to this torch; use device=cpu" in err


def test_missing_packages_are_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, err = call(capsys, monkeypatch, "tracker=wandb", "device=cpu")
    assert code == 2
    assert "tracker=wandb needs the package wandb; pip install wandb" in err


def test_an_arm_of_ones_own_is_checked_too(tmp_path: Path) -> None:
    (tmp_path / "arm").mkdir()
    head = "# @package _global_\n"
    (tmp_path / "arm" / "mine.yaml").write_text(head + "defaults: [grpo_g16]\narm: mine\nkl_coef: 0.1\n")
    (tmp_path / "arm" / "wrong.yaml").write_text(head + "defaults: [{override /algo: grpo}]\narm: other\n")
    plan = preflight(["arm=mine", "lr=1e-5"], config_dir=str(tmp_path))
    assert (plan.jobs[0].config.arm, plan.jobs[0].config.group_size) == ("mine", 16)
    for overrides, expected in (
        (["arm=mine", "kl_coef=0"], "kl_coef=0 contradicts arm=mine, which has kl_coef=0.1"),
        (["arm=mine", "group_size=8"], "group_size=8 contradicts arm=mine"),  # set by the arm that it builds on
        (["arm=wrong"], "it should be named as its file, arm: wrong"),
    ):
        with pytest.raises(UserError, match=expected):
            preflight(overrides, config_dir=str(tmp_path))


# ------------------------------------------------------------------ what it shows


def test_cfg_job_shows_what_would_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = call(capsys, monkeypatch, "--cfg", "job", "arm=ppo_tuned", "device=cpu", "seed=4")
    shown = yaml.safe_load(out)
    assert code == 0
    assert (shown["seed"], shown["algo"]["lam"], shown["device"]) == (4, 1.0, "cpu")
    assert shown["lr"] > 0  # resolved
    assert shown["critic_lr"] > 0
    assert "# prompts per step: 256; completions per step: 256\n" in out  # PPO: one completion per prompt
    assert "# updates per step: 4 (2 epochs x 2 minibatches)\n" in out
    assert "# steps for 10240 samples: 40; updates: 160\n" in out  # 10240 / 256 = 40, 40 x 4 = 160
    code, out, _ = call(capsys, monkeypatch, "--cfg", "job", "-m", "arm=grpo_g4,grpo_g8", "seed=0,1")
    assert [part["row"] for part in yaml.safe_load_all(out)] == ["grpo_g4", "grpo_g4", "grpo_g8", "grpo_g8"]


def test_help_lists_groups_and_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = call(capsys, monkeypatch, "--help")
    assert code == 0
    for part in ("python -m grpo_bench algo=grpo group_size=16", "grpo_g16", "smollm2-135m", "tensorboard", "demo"):
        assert part in out


def test_warnings_name_the_rows_that_they_concern() -> None:
    plan = preflight(["arm=ppo,grpo_g8", "rollout.top_p=0.9"], multirun=True)
    found = plan.warnings()
    assert any(line.startswith("rollout.top_p=0.9 samples") for line in found)
    assert any(line.startswith("ppo: algo.vf_coef=0.5") for line in found)


@pytest.mark.parametrize(
    ("overrides", "rows"),
    [
        (["arm=ppo,grpo_g8", "seed=range(2)"], ["ppo", "ppo", "grpo_g8", "grpo_g8"]),
        (["algo=ppo,grpo"], ["ppo", "grpo"]),
        (["arm=grpo_g8", "group_size=4,8"], ["grpo_g8 group_size=4", "grpo_g8 group_size=8"]),
        (["arm=grpo_g8", "kl_coef=0.01", "lr=1e-5,1e-4"], ["grpo_g8 lr=1e-05", "grpo_g8 lr=0.0001"]),
    ],
)
def test_a_row_is_its_arm_and_what_varies(overrides: list[str], rows: list[str]) -> None:
    assert [job.config.row for job in preflight(overrides, multirun=True).jobs] == rows


def test_the_parent_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from grpo_bench import cli; from grpo_bench.preflight import preflight; "
        f"preflight(['arm=ppo,grpo_g8', 'results={tmp_path}'], multirun=True).warnings(); "
        "print([m for m in ('torch', 'transformers', 'datasets', 'wandb') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# ------------------------------------------------------------------ sweeps


def test_a_sweep_survives_its_jobs(tmp_path: Path, fake: dict[str, str]) -> None:
    shared = ["-m", "arm=grpo_g8", "study.name=iso", "results=out"]
    sizes = "group_size=8,4,2,16"  # a key of the arm, which the sweep varies: each its own row
    done = subprocess.run(command(*shared, sizes), cwd=tmp_path, env=fake, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("#")]
    assert done.returncode == 1, done.stderr
    assert len(lines) == 4
    assert lines[0].startswith("#1/4 grpo_g8 group_size=8 seed=0 done ")
    assert lines[0].endswith(" acc 0.62")  # 0.625 to two digits, half to even
    assert "#2/4 grpo_g8 group_size=4 seed=0 FAILED" in lines[1]
    assert "killed by SIGKILL" in lines[1]
    assert "#3/4 grpo_g8 group_size=2 seed=0 FAILED" in lines[2]
    assert "the data are not there; give task.path=..." in lines[2]
    assert "#4/4 grpo_g8 group_size=16 seed=0 FAILED" in lines[3]
    assert "RuntimeError: boom" in lines[3]
    assert "Traceback" not in done.stdout + done.stderr
    assert "error: 3 of 4 jobs are not complete; the same command continues them" in done.stderr
    summary = done.stdout[done.stdout.index("1 of 4 jobs are complete; not complete: 1 killed, 2 error") :].splitlines()
    assert summary[1].startswith("  grpo_g8 group_size=4 seed=0: killed by SIGKILL")
    assert summary[2:4] == [
        "  grpo_g8 group_size=2 seed=0: the data are not there; give task.path=...",
        "  grpo_g8 group_size=16 seed=0: RuntimeError: boom",
    ]
    assert "table: python -m grpo_bench.table out/iso-arithmetic" in done.stdout

    study = tmp_path / "out" / "iso-arithmetic"
    jobs = {job["row"]: job for job in json.loads((study / "jobs.json").read_text())["jobs"]}
    assert list(jobs) == [f"grpo_g8 group_size={size}" for size in (8, 4, 2, 16)]
    assert {job["run_id"] for job in jobs.values()} == {path.name for path in study.iterdir() if path.is_dir()}
    first, killed, refused, crashed = (study / job["run_id"] for job in jobs.values())
    assert jobs["grpo_g8 group_size=8"]["overrides"] == ["arm=grpo_g8", *shared[2:], "group_size=8"]
    assert json.loads((first / "result.json").read_text())["row"] == "grpo_g8 group_size=8"
    state = json.loads((killed / "state.json").read_text())
    assert (state["status"], state["exit_code"]) == ("failed", -signal.SIGKILL)
    assert "Traceback" in (crashed / "stdout.log").read_text()
    assert "Traceback" not in (refused / "stdout.log").read_text()

    again = command(*shared, "group_size=8,32")
    done = subprocess.run(again, cwd=tmp_path, env=fake, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "#1/2 grpo_g8 group_size=8 seed=0 complete before, skipped (by commit 00000000, this is " in done.stdout
    assert "#2/2 grpo_g8 group_size=32 seed=0 done" in done.stdout
    merged = json.loads((study / "jobs.json").read_text())["jobs"]
    assert sorted(int(job["row"].partition("=")[2]) for job in merged) == [2, 4, 8, 16, 32]


@pytest.mark.parametrize("parallel", [1, 2])
def test_an_error_of_the_parent_in_one_job_is_that_jobs(
    parallel: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def job(cfg: Any, command: list[str], label: str, *_: Any) -> None:
        if cfg.seed == 0:
            raise UserError("cannot write there")
        if cfg.seed == 1:
            raise OSError(5, "Input/output error")
        jobs.say(f"{label} done")

    monkeypatch.setattr(jobs, "run_job", job)
    plan = preflight([f"results={tmp_path}", f"parallel={parallel}", "seed=0,1,2"], multirun=True)
    pool = Pool()
    for number, planned in enumerate(plan.jobs):
        pool.start(planned.config, [], f"#{number}")
    pool.wait()
    lines = sorted(capsys.readouterr().out.splitlines())
    assert lines == ["#0 FAILED: cannot write there", "#1 FAILED: OSError: [Errno 5] Input/output error", "#2 done"]
    first, second = (run_dir(planned.config) for planned in plan.jobs[:2])
    assert pool.failed == {first: "cannot write there", second: "OSError: [Errno 5] Input/output error"}


def test_jobs_side_by_side(tmp_path: Path, fake: dict[str, str]) -> None:
    arguments = ["-m", "group_size=8,2,32", "parallel=2", "threads=1", "results=out"]
    blocked = run_dir(preflight(["group_size=32", f"results={tmp_path / 'out'}"]).jobs[0].config)
    blocked.parent.mkdir(parents=True)
    blocked.write_text("")  # a file where the folder of the last job should be
    done = subprocess.run(command(*arguments), cwd=tmp_path, env=fake, capture_output=True, text=True)
    lines = {line.partition(" ")[0]: line for line in done.stdout.splitlines() if line.startswith("#")}
    assert done.returncode == 1, done.stderr
    assert sorted(lines) == ["#1/3", "#2/3", "#3/3"]
    assert " done " in lines["#1/3"]
    assert "the data are not there" in lines["#2/3"]
    assert "FAILED: FileExistsError" in lines["#3/3"]
    assert "error: 2 of 3 jobs are not complete" in done.stderr


def test_a_sweep_from_the_start_ends_as_what_it_did(tmp_path: Path, fake: dict[str, str]) -> None:
    arguments = ["-m", "group_size=8,2", "results=out", "resume=false", "isolate=false"]
    for size in (8, 2):  # both complete before; the second fails now, before it touches its record
        cfg = preflight([f"group_size={size}", f"results={tmp_path / 'out'}"]).jobs[0].config
        folder = run_dir(cfg)
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(cfg.model_dump(mode="json")))
        (folder / "result.json").write_text('{"status": "complete"}')
    done = subprocess.run(command(*arguments), cwd=tmp_path, env=fake, capture_output=True, text=True)
    assert "#1/2 grpo group_size=8 seed=0 done" in done.stdout
    assert "#2/2 grpo group_size=2 seed=0 FAILED" in done.stdout
    assert done.returncode == 1
    assert "error: 1 of 2 jobs are not complete" in done.stderr  # not both, and not none


def test_a_full_disk_at_the_log_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(jobs, "open", full, raising=False)
    cfg = preflight([f"results={tmp_path}"]).jobs[0].config
    with pytest.raises(UserError, match=r"cannot write .*stdout\.log: no space left on the disk"):
        jobs.run_job(cfg, [sys.executable, "-c", ""], "#1/1")


@pytest.mark.parametrize("content", ["{", "[]", '{"jobs": [1]}', '{"jobs": null}'])
def test_a_damaged_list_of_jobs_is_one_line(content: str, tmp_path: Path) -> None:
    plan = preflight([f"results={tmp_path}", "study.name=x"])
    plan.open_results()
    (tmp_path / "x-arithmetic" / "jobs.json").write_text(content)
    with pytest.raises(UserError, match=r"jobs\.json cannot be read; delete it"):
        plan.write_jobs()


def test_jobs_in_one_process(tmp_path: Path, fake: dict[str, str]) -> None:
    arguments = ["-m", "group_size=8,2", "isolate=false", "results=out"]
    done = subprocess.run(command(*arguments), cwd=tmp_path, env=fake, capture_output=True, text=True)
    assert done.returncode == 1
    assert "#1/2 grpo group_size=8 seed=0 done acc 0.62" in done.stdout
    assert "#2/2 grpo group_size=2 seed=0 FAILED: the data are not there" in done.stdout
    assert "note: give study.name=... to make a table of these runs" in done.stderr


def test_a_single_run_and_its_errors(tmp_path: Path, fake: dict[str, str]) -> None:
    for size, code, expected in (
        (8, 0, ""),
        (8, 0, "complete before, skipped"),
        (2, 2, "error: the data are not there; give task.path=...\n"),
        (16, 1, "RuntimeError: boom"),
    ):
        done = subprocess.run(
            command(f"group_size={size}", "results=out"), cwd=tmp_path, env=fake, capture_output=True, text=True
        )
        assert done.returncode == code, done.stderr
        assert expected in done.stdout + done.stderr
        assert ("Traceback" in done.stderr) == (code == 1)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "site"}  # Hydra leaves nothing elsewhere


def wait_for_child(folder: Path) -> int:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for state in folder.glob("**/state.json"):
            try:
                return int(json.loads(state.read_text())["pid"])
            except ValueError:
                pass
        time.sleep(0.1)
    raise AssertionError("the job did not start")


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except FileNotFoundError:
            return True
        if "State:\tZ" in status:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_no_orphan_is_left(tmp_path: Path, fake: dict[str, str], sent: signal.Signals, code: int) -> None:
    parent = start(tmp_path, fake, "-m", "seed=9,10", "results=out")
    child = wait_for_child(tmp_path / "out")
    parent.send_signal(sent)
    out, err = parent.communicate(timeout=60)
    assert parent.returncode == code, err
    assert gone(child)
    assert "Traceback" not in err
    assert "seed=10" not in out  # nothing was started after it


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_no_orphan_of_jobs_side_by_side(tmp_path: Path, fake: dict[str, str]) -> None:
    parent = start(tmp_path, fake, "-m", "seed=9,19,10", "parallel=2", "threads=1", "results=out")
    deadline = time.monotonic() + 60
    while len(states := list((tmp_path / "out").glob("**/state.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.1)
    children = [int(json.loads(state.read_text())["pid"]) for state in states]
    parent.send_signal(signal.SIGTERM)
    out, err = parent.communicate(timeout=60)
    assert len(children) == 2
    assert parent.returncode == 143, err
    assert all(map(gone, children))
    assert "Traceback" not in err
    assert "seed=10" not in out  # nothing was started after them


def test_child_command_quotes_the_row() -> None:
    line = child_command(["arm=a", "hydra/launcher=joblib", "hydra.mode=MULTIRUN"], "demo", "sweeps", "a stop='x'")
    assert line[1:] == [
        "-m", "grpo_bench", "--config-name", "demo", "--config-dir", "sweeps", "arm=a", "row='a stop=\\'x\\''",
        "hydra.mode=RUN",
    ]  # fmt: skip


# ------------------------------------------------------------------ finished and unfinished records


def recorded(tmp_path: Path, *overrides: str, complete: bool = True) -> Any:
    """A configuration and the folder of a run of 1000 samples of it."""
    cfg = preflight(["device=cpu", "budget.amount=1000", *overrides]).jobs[0].config
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(cfg.model_dump(mode="json")))
    if complete:
        (tmp_path / "result.json").write_text(json.dumps({"git_sha": "f" * 40}))
    return cfg


def with_budget(cfg: Any, amount: float) -> Any:
    return cfg.model_copy(update={"budget": cfg.budget.model_copy(update={"amount": amount})})


def test_standing_of_a_record(tmp_path: Path) -> None:
    cfg = recorded(tmp_path, complete=False)
    assert standing(cfg, tmp_path / "absent") == "new"
    assert standing(cfg, tmp_path) == "incomplete"
    cfg = recorded(tmp_path)
    assert standing(cfg, tmp_path) == "complete"
    assert standing(with_budget(cfg, 2000), tmp_path) == "extended"
    assert standing(cfg.model_copy(update={"resume": False}), tmp_path) == "new"
    assert is_complete(cfg.model_copy(update={"resume": False}), tmp_path)
    assert not is_complete(with_budget(cfg, 2000), tmp_path)
    assert not is_complete(cfg, tmp_path / "absent")
    with pytest.raises(UserError, match=r"budget.amount=500 is less than the 1000 samples of .*cut short"):
        standing(with_budget(cfg, 500), tmp_path)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_schedule_that_ends_with_its_budget_is_not_extended(tmp_path: Path, schedule: str) -> None:
    cfg = recorded(tmp_path, f"optim.schedule={schedule}")
    assert standing(cfg, tmp_path) == "complete"
    with pytest.raises(UserError, match=f"optim.schedule={schedule} was laid out for 1000 samples"):
        standing(with_budget(cfg, 2000), tmp_path)


def test_a_record_that_cannot_be_read(tmp_path: Path) -> None:
    cfg = recorded(tmp_path)
    (tmp_path / "config.yaml").write_text("budget: [")
    with pytest.raises(UserError, match="cannot be read; delete"):
        standing(cfg, tmp_path)


def test_skipping_says_when_the_commit_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded(tmp_path)
    monkeypatch.setattr("grpo_bench.provenance.git_sha", lambda: "a" * 40)
    assert "skipped (by commit ffffffff, this is aaaaaaaa)" in complete_line(tmp_path)
    monkeypatch.setattr("grpo_bench.provenance.git_sha", lambda: "f" * 40)
    assert "commit" not in complete_line(tmp_path)
    missing = f"its export is missing: run python -m grpo_bench.evaluate checkpoint={tmp_path} export={tmp_path}/export"
    assert complete_line(tmp_path, export=True).endswith(missing)
    (tmp_path / "export").mkdir()
    assert "export" not in complete_line(tmp_path, export=True).replace(str(tmp_path), "")


def test_signs_of_life(tmp_path: Path) -> None:
    cfg = preflight(["budget.amount=1000"]).jobs[0].config
    assert life(cfg, tmp_path) == "starting"
    rows = '{"step": 1, "samples": 125}\n{"step": 2, "samples": 250, "reward/mean": 0.5}\n{"step": 3, "sam'
    (tmp_path / "metrics.jsonl").write_text(rows)
    (tmp_path / "timing.jsonl").write_text('{"step": 2, "elapsed_s": 100.0}\n')
    # a quarter took 100 s, so three quarters take 300 s
    assert life(cfg, tmp_path) == "step 2, reward 0.500, 25 % done, 5m left"
    assert [duration(s) for s in (45.4, 90, 3600, 3900)] == ["45s", "2m", "1h00m", "1h05m"]
    assert outcome({"status": "diverged", "eval": {"final": {"greedy": {"acc": 0.61}}}}) == "acc 0.61 diverged"
