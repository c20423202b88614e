"""Mirrors: they show what they are given, and nothing that happens to them reaches a run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from grpo_bench import trackers, wandb_process
from grpo_bench.trackers import Mirror, Nothing, make_tracker
from grpo_bench.types import Problem, UserError

REPO = Path(__file__).resolve().parent.parent


class Named(BaseModel):
    name: str


class Study(BaseModel):
    name: str | None = "group_size"


class TrackerSettings(BaseModel):
    name: str = "none"
    project: str = "grpo_bench"
    entity: str | None = None
    mode: str = "offline"
    tags: list[str] = ["test"]
    completions: int = 4


class Settings(BaseModel):
    """As much of a config as a tracker reads."""

    arm: str | None = "grpo_g8"
    row: str | None = "grpo_g8 kl_coef=0.04"
    study: Study = Study()
    algo: Named = Named(name="grpo")
    task: Named = Named(name="arithmetic")
    model: Named = Named(name="tiny")
    results: str = "/home/somebody/data"
    tracker: TrackerSettings = TrackerSettings()


def settings(name: str, mode: str = "offline") -> Any:
    return Settings(tracker=TrackerSettings(name=name, mode=mode))


METRICS = {"samples": 8, "generated_tokens": 80, "reward/mean": 0.5, "kl/coef": None}
TIMING = {"elapsed_s": 2.0, "seconds": {"rollout": 1.0}, "peak_memory_bytes": 10**9}
ROWS = [{"prompt": "1 + 1 =", "response": "| 2 #### 2", "reward": 1.0}]
SUMMARY = {"eval": {"final": {"greedy": {"acc": 0.75}}}, "status": "complete"}


def play(tracker: trackers.Tracker) -> None:
    tracker.log({**METRICS, **TIMING}, 1)
    tracker.completions(ROWS, 1)
    tracker.log({**METRICS, "samples": 16}, 2)
    tracker.finish(0, SUMMARY)


def test_none(tmp_path):
    tracker = make_tracker(settings("none"), tmp_path, "r", False)
    assert isinstance(tracker, Nothing)
    play(tracker)
    assert list(tmp_path.iterdir()) == []


def test_missing_package_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[wandb\]', or tracker=none"):
        make_tracker(settings("wandb"), tmp_path, "r", False)


def test_tensorboard_event_file_can_be_read(tmp_path, capsys):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    play(make_tracker(settings("tensorboard"), tmp_path, "r", False))
    assert capsys.readouterr().err == ""
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("reward/mean")] == [(8, 0.5), (16, 0.5)]
    assert [e.value for e in events.Scalars("time/rollout_s")] == [1.0]
    assert [e.value for e in events.Scalars("result/eval/final/greedy/acc")] == [0.75]
    tags = events.Tags()
    assert "kl/coef" not in tags["scalars"]
    texts = {tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in tags["tensors"]}
    assert "    | 2 #### 2" in texts["completions/0/text_summary"]
    assert "results: data" in texts["config/text_summary"]


def test_tensorboard_continued_curve_has_no_point_twice(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = make_tracker(settings("tensorboard"), tmp_path, "r", False)
    for step in (1, 2, 3):
        first.log({"samples": 8 * step, "reward/mean": 0.1 * step}, step)
    first.finish(1, {})
    time.sleep(1.1)  # event files are ordered by the second in their name
    second = make_tracker(settings("tensorboard"), tmp_path, "r", True)  # continues after step 1
    for step in (2, 3):
        second.log({"samples": 8 * step, "reward/mean": 0.1 * step}, step)
    second.finish(0, {})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("reward/mean")] == [8, 16, 24]


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), OSError("x")])
def test_nothing_that_a_mirror_raises_reaches_the_run(capsys, error):
    def start() -> trackers.Tracker:
        raise error

    play(Mirror("wandb", start))
    assert capsys.readouterr().err.count("warning") == 1


def test_mirror_that_hangs_is_left_behind(capsys):
    hang = threading.Event()

    class Hanging(Nothing):
        def log(self, metrics, step):
            hang.wait()

    mirror = Mirror("wandb", Hanging, finish_seconds=0.1)
    begin = time.monotonic()
    play(mirror)
    assert time.monotonic() - begin < 20
    assert "did not finish within 0 s" in capsys.readouterr().err
    hang.set()


def test_calls_are_copied_before_the_mirror_sees_them():
    seen, go = [], threading.Event()

    class Slow(Nothing):
        def log(self, metrics, step):
            go.wait()
            seen.append(dict(metrics))

    mirror = Mirror("slow", Slow)
    metrics = {"samples": 1}
    mirror.log(metrics, 1)
    metrics["samples"] = 2
    go.set()
    mirror.finish(0, {})
    assert seen == [{"samples": 1}]


def test_context_manager_finishes_a_failed_run_and_leaves_a_finished_one():
    ends: list[int] = []

    class Noting(Nothing):
        def finish(self, exit_code, summary):
            ends.append(exit_code)

    with pytest.raises(ZeroDivisionError), Mirror("m", Noting):
        raise ZeroDivisionError
    with Mirror("m", Noting) as mirror:
        mirror.finish(0, {})
    assert ends == [1, 0]


@pytest.mark.parametrize(
    ("tracker", "task", "asked"),
    [("wandb", "arithmetic", True), ("wandb", "gsm8k", False), ("wandb", "math", False), ("wandb", "custom", False),
     ("tensorboard", "gsm8k", True)],  # which stays in the run's folder
)  # fmt: skip
def test_questions_that_are_not_ours_go_to_no_server(tracker, task, asked):
    cfg: Any = Settings(tracker=TrackerSettings(name=tracker), task=Named(name=task))
    row = {"step": 2, "id": f"{task}/train/7", "response": "#### 2", "correct": True}
    problem = Problem(str(row["id"]), "1 + 1?", "2")
    expected = row | ({"question": "1 + 1?", "gold": "2"} if asked else {})
    assert trackers.completion_rows(cfg, [row], [problem]) == [expected]
    assert trackers.withholds(cfg) is not asked
    cfg.tracker.completions = 0
    assert not trackers.withholds(cfg)  # nothing is sent, so nothing is said


def test_place_of_a_run_in_its_project():
    cfg = settings("wandb")
    assert trackers.place_of(cfg) == {
        "group": "group_size-arithmetic grpo_g8 kl_coef=0.04",
        "job_type": "train",
        "tags": ["test", "group_size", "arithmetic", "grpo_g8", "grpo", "tiny"],
    }
    alone = cfg.model_copy(update={"study": Study(name=None), "arm": None, "row": None})
    assert trackers.place_of(alone) == {
        "group": "grpo", "job_type": "train", "tags": ["test", "arithmetic", "grpo", "tiny"],
    }  # fmt: skip
    long = cfg.model_copy(update={"row": "r" * 200, "arm": "a" * 80, "algo": Named(name="a" * 80)})
    place = trackers.place_of(long)
    assert len(place["group"]) == 128
    assert [len(tag) for tag in place["tags"]] == [4, 10, 10, 64, 4]  # wandb refuses longer ones


class FakeRun:
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def define_metric(self, *args: Any, **kwargs: Any) -> None:
        self.calls.append((*args, kwargs))


def test_every_unit_of_a_budget_is_an_axis_to_choose(monkeypatch):
    class EndError(Exception):
        pass

    def lines() -> Iterator[str]:
        yield json.dumps({"finish_seconds": 1})
        raise EndError

    run = FakeRun()
    monkeypatch.setitem(sys.modules, "wandb", type(sys)("wandb"))
    monkeypatch.setattr(wandb_process, "_init", lambda wandb, order: run)
    with pytest.raises(EndError):
        wandb_process.serve(lines())
    axes = ["samples", "generated_tokens", "time/total_s", "updates", "flops"]
    assert run.calls == [*((axis, {}) for axis in axes), ("*", {"step_metric": "samples"})]


def test_id_is_fresh_per_attempt_and_kept_when_continued(tmp_path):
    first = trackers._attempt_id(tmp_path, "run-s0-abcd", False)
    assert trackers._attempt_id(tmp_path, "run-s0-abcd", True) == first
    assert trackers._attempt_id(tmp_path, "run-s0-abcd", False) != first
    assert len(trackers._attempt_id(tmp_path, "x" * 200, False)) <= 64


# From here on a process of its own stands for a run, as it is killed or its wandb's processes are frozen.
RUN = """
import sys, time
from pathlib import Path
sys.path[:0] = [".", "tests"]
import test_trackers as t
from grpo_bench import trackers
mode, folder, limit = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
trackers.INIT_SECONDS, trackers.FINISH_SECONDS = 3.0, limit
tracker = trackers.make_tracker(t.settings("wandb", mode), folder, "run-s0-abcd", False)
tracker.log({**t.METRICS, **t.TIMING}, 1)
print("started", flush=True)
if sys.stdin.readline():
    t.play(tracker)
    print("over", flush=True)
"""


@contextmanager
def a_run(folder: Path, mode: str = "auto", limit: float = 60.0, **env: str) -> Iterator[subprocess.Popen[str]]:
    pytest.importorskip("wandb")
    clean = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, mode, str(folder), str(limit)],
        **{"cwd": REPO, "env": {**clean, "HOME": str(folder), **env}, "text": True},
        **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE},
    )
    try:
        assert process.stdout.readline() == "started\n", process.stderr.read()
        yield process
    finally:
        process.kill()
        process.communicate()


def children(pid: int) -> list[int]:
    return [int(n) for n in subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()]


def wait_for(what: Callable[[], Any], seconds: float = 40) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def wandb_file(folder: Path) -> Path | None:
    return next(iter(folder.glob("wandb/offline-run-*/*.wandb")), None)


def finished(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate("go\n", timeout=100)
    assert process.returncode == 0, err
    assert out == "over\n"
    assert "Traceback" not in err
    return err


def test_wandb_offline_writes_a_run_without_an_account(tmp_path):
    with a_run(tmp_path) as process:
        assert finished(process) == ""
    written = wandb_file(tmp_path)
    assert (tmp_path / "wandb" / "id").read_text() in written.name
    content = written.read_bytes()
    for text in (b"reward/mean", b"time/rollout_s", b"generated_tokens", b"final/greedy/acc"):
        assert text in content
    for text in (b"group_size-arithmetic grpo_g8 kl_coef=0.04", b"group_size", b"arithmetic", b"grpo_g8", b"tiny"):
        assert text in content
    assert b"/home/somebody" not in content
    assert list(tmp_path.glob("wandb/offline-run-*/files/media/table/completions*.json"))


@pytest.mark.slow
def test_wandb_with_an_account_and_an_unreachable_server_goes_offline(tmp_path):
    # port 9 (discard) of this machine: refused at once, as by a server that is down
    with a_run(tmp_path, WANDB_API_KEY="a" * 40, WANDB_BASE_URL="http://127.0.0.1:9") as process:
        err = finished(process)
    assert err.count("warning: wandb is offline for this run") == 1
    assert b"reward/mean" in wandb_file(tmp_path).read_bytes()


def test_wandb_that_explodes_in_log_costs_one_warning(tmp_path):
    (tmp_path / "wandb.py").write_text(
        "class Settings:\n    def __init__(self, **_): pass\n"
        "class Run:\n    def define_metric(self, *_, **__): pass\n"
        "    def log(self, _): raise RuntimeError('server said 500\\nand more')\n"
        "def setup(**_): pass\n"
        "def init(**_): return Run()\n"
    )
    with a_run(tmp_path, mode="offline", PYTHONPATH=str(tmp_path)) as process:
        time.sleep(1)
        err = finished(process)
    assert err == "warning: wandb failed (RuntimeError: server said 500); it is off for this run\n"


def test_a_killed_run_leaves_wandbs_file_whole(tmp_path):
    with a_run(tmp_path) as process:
        (mirror,) = wait_for(lambda: children(process.pid))
        wait_for(lambda: wandb_file(tmp_path))
        process.kill()
        process.communicate(timeout=60)  # the mirror holds stderr until it has written everything
    wait_for(lambda: not Path(f"/proc/{mirror}/cmdline").exists())
    assert b"reward/mean" in wandb_file(tmp_path).read_bytes()


@pytest.mark.parametrize("frozen", ["service", pytest.param("mirror", marks=pytest.mark.slow)])
def test_wandb_that_freezes_delays_the_end_by_its_limit_only(tmp_path, frozen):
    if not Path("/proc/self/stat").exists():
        pytest.skip("needs /proc")
    with a_run(tmp_path, limit=2.0) as process:
        (mirror,) = wait_for(lambda: children(process.pid))
        wait_for(lambda: wandb_file(tmp_path))
        # what wandb asks of the machine at its start has processes of its own, for a moment
        (service,) = wait_for(lambda: found if len(found := children(mirror)) == 1 else [])
        pid = service if frozen == "service" else mirror
        os.kill(pid, signal.SIGSTOP)
        try:
            begin = time.monotonic()
            assert "did not finish within 2 s" in finished(process)
            assert time.monotonic() - begin < 30  # without the limit: for ever
        finally:
            with suppress(ProcessLookupError):
                os.kill(service, signal.SIGKILL)


def test_wandb_whose_process_is_killed_costs_one_warning(tmp_path):
    with a_run(tmp_path) as process:
        (mirror,) = wait_for(lambda: children(process.pid))
        os.kill(mirror, signal.SIGKILL)
        err = finished(process)
    assert err.count("warning") == 1
    assert "its process ended with exit code -9" in err
