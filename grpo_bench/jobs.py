"""The jobs of a sweep, one child process each: a job that is killed or runs out of memory leaves the others running."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from grpo_bench.config import run_dir
from grpo_bench.files import disk_errors, write_json
from grpo_bench.nursery import Hatchling, Nursery
from grpo_bench.resume import complete_line, read, standing
from grpo_bench.types import UserError

if TYPE_CHECKING:
    from grpo_bench.config import Config

LIFE_SECONDS = 30.0  # between two signs of life of a job, on a terminal
LIFE_SECONDS_LOG = 300.0  # and into a file
GRACE_SECONDS = 20.0  # a child may finish writing before it is killed
_CHILDREN: set[subprocess.Popen[bytes] | Hatchling] = set()  # alive now
_NURSERY = Nursery()
RUN = [sys.executable, "-m", "grpo_bench"]
_STOPPING = threading.Event()  # no job starts any more
PROGRESS = {"samples": "samples", "tokens": "generated_tokens", "updates": "updates", "flops": "flops"}


def child_command(overrides: list[str], name: str, config_dir: str | None, row: str) -> list[str]:
    """The command that runs one job of a sweep by itself."""
    where = ["--config-name", name, *(["--config-dir", config_dir] if config_dir else [])]
    quoted = "'" + row.replace("\\", "\\\\").replace("'", "\\'") + "'"
    ours = [o for o in overrides if not o.startswith(("hydra.mode=", "hydra/launcher=", "hydra.launcher."))]
    return [*RUN, *where, *ours, f"row={quoted}", "hydra.mode=RUN"]


class Pool:
    """Jobs of a sweep, ``parallel`` of them at once; each is a thread that waits for its child process."""

    def __init__(self) -> None:
        self.failed: set[Path] = set()  # folders of the jobs that did
        self._threads: ThreadPoolExecutor | None = None
        self._waiting: list[Future[bool]] = []

    def start(self, cfg: Config, command: list[str], label: str) -> None:
        """Run the job now (``parallel: 1``), else as soon as there is room for it."""
        if cfg.parallel == 1:
            self._run(cfg, command, label)
            return
        if self._threads is None:
            self._threads = ThreadPoolExecutor(max_workers=cfg.parallel)
        self._waiting.append(self._threads.submit(self._run, cfg, command, label))

    def _run(self, cfg: Config, command: list[str], label: str) -> bool:
        done = one_job(lambda: run_job(cfg, command, label), label)
        if not done:
            self.failed.add(run_dir(cfg))
        return done

    def wait(self) -> None:
        """Until all jobs have ended; whatever ends the parent meanwhile ends them first."""
        try:
            for job in as_completed(self._waiting):
                job.result()
        finally:
            self.stop()

    def stop(self) -> None:
        """End the jobs that run and start no other; nothing to do when all have ended."""
        if self._threads is None:
            _NURSERY.close()
            return
        _STOPPING.set()  # before the children are counted: one that is being started right now sees it
        for job in self._waiting:
            job.cancel()
        children = list(_CHILDREN)
        for child in children:
            child.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        for child in children:
            try:
                child.wait(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._threads = None
        _NURSERY.close()
        _STOPPING.clear()


def one_job(job: Callable[[], bool], label: str) -> bool:
    """What ``job`` says, or False with its line when it raises: its error is no other job's."""
    try:
        return job()
    except UserError as e:
        say(f"{label} FAILED: {e}")
    except Exception as e:
        traceback.print_exc()
        say(f"{label} FAILED: {type(e).__name__}: {e}")
    return False


def run_job(cfg: Config, command: list[str], label: str) -> bool:
    """Run one job of a sweep in a child process unless its record is complete; whether it is complete afterwards.

    Prints one line at the end, and signs of life before it. What the child prints goes to ``stdout.log`` in its folder.
    """
    directory = run_dir(cfg)
    if standing(cfg, directory) == "complete":
        say(f"{label} {complete_line(directory, cfg.export)}")
        return True
    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    code = _run_child(cfg, command, directory, label)
    seconds = time.monotonic() - start
    result = read(directory / "result.json")
    if code == 0 and result:
        say(f"{label} done {duration(seconds)} {outcome(result)}".rstrip())
        return True
    reason = _reason(directory, code)
    say(f"{label} FAILED after {duration(seconds)}: {reason}; see {directory / 'stdout.log'}")
    return False


def _run_child(cfg: Config, command: list[str], directory: Path, label: str) -> int:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    pause = LIFE_SECONDS if sys.stdout.isatty() else LIFE_SECONDS_LOG
    with _log(directory / "stdout.log", new=not cfg.resume) as log:
        child = _start(cfg, command, log, environment)
        _CHILDREN.add(child)
        with _no_orphan(child):
            if _STOPPING.is_set():
                child.terminate()
            while True:
                try:
                    return child.wait(timeout=pause)
                except subprocess.TimeoutExpired:
                    say(f"{label} {life(cfg, directory)}")


def _start(
    cfg: Config, command: list[str], log: IO[bytes], environment: dict[str, str]
) -> subprocess.Popen[bytes] | Hatchling:
    """The job's process: from the nursery where that saves its imports, else one of its own.

    Not beside a GPU, which a process can use only if what it was forked from did not.
    """
    on_cpu = cfg.device == "cpu" and cfg.reward.model.device != "cuda"
    if sys.platform == "linux" and on_cpu and command[:3] == RUN:
        with contextlib.suppress(OSError):
            return _NURSERY.start(command[3:], log, environment)
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment,
        preexec_fn=die_with_parent if sys.platform == "linux" else None,
    )  # fmt: skip


def _log(file: Path, new: bool) -> IO[bytes]:
    with disk_errors(file):
        return open(file, "wb" if new else "ab")


@contextlib.contextmanager
def _no_orphan(child: subprocess.Popen[bytes] | Hatchling) -> Iterator[None]:
    """Whatever ends the parent (Ctrl-C, SIGTERM) ends the child first, with time to write down why."""
    try:
        yield
    finally:
        _CHILDREN.discard(child)
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(timeout=GRACE_SECONDS)
            except BaseException:  # also a second Ctrl-C
                child.kill()
                child.wait()
                raise


def die_with_parent() -> None:
    """In the child: SIGTERM when the parent dies of what it cannot handle (kill -9), so that a restarted sweep does
    not meet a live run of the one before."""
    import ctypes

    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _reason(directory: Path, code: int) -> str:
    """Why a child ended. A killed one could not write it down itself, so that is done here."""
    state = read(directory / "state.json")
    if code < 0:
        name = signal.Signals(-code).name
        reason = f"killed by {name}" + (", most likely out of memory" if name == "SIGKILL" else "")
    elif state.get("status") in ("failed", "diverged") and state.get("reason"):
        reason = str(state["reason"])
    else:
        reason = _last_error(directory / "stdout.log") or f"exit code {code}"
    if state.get("status") in (None, "running"):
        state = {**state, "status": "failed", "reason": reason, "exit_code": code}
        try:
            write_json(directory / "state.json", state)
        except (UserError, OSError) as e:  # the disk that ended the job, often; its reason must not be masked
            reason += f" ({e})"
    return reason


def _last_error(log: Path) -> str:
    """The last line that names an error in what a child printed."""
    lines = [line.strip() for line in tail(log).splitlines() if line.strip()]
    named = [line for line in lines if line.startswith("error: ") or "Error" in line.split(":")[0]]
    return (named or lines or [""])[-1].removeprefix("error: ")


def life(cfg: Config, directory: Path) -> str:
    """Where a running job is: step, reward, accuracy on dev and time left, from the last lines of its record."""
    metrics, timing = _last_row(directory / "metrics.jsonl"), _last_row(directory / "timing.jsonl")
    if not metrics:
        return "starting"
    parts = [f"step {metrics.get('step')}"]
    if isinstance(metrics.get("reward/mean"), int | float):
        parts.append(f"reward {metrics['reward/mean']:.3f}")
    elapsed = timing.get("elapsed_s")
    reached = elapsed if cfg.budget.unit == "seconds" else metrics.get(PROGRESS[cfg.budget.unit])
    if isinstance(reached, int | float) and isinstance(elapsed, int | float) and reached > 0:
        fraction = min(reached / cfg.budget.amount, 1.0)
        parts.append(f"{100 * fraction:.0f} % done, {duration(elapsed * (1 - fraction) / fraction)} left")
    return ", ".join(parts)


def outcome(result: dict[str, Any]) -> str:
    """``acc 0.61``, of the greedy answers at the end; other ends by their status."""
    accuracy = result.get("eval", {}).get("final", {}).get("greedy", {}).get("acc")
    status = result.get("status")
    parts = [f"acc {accuracy:.2f}"] if isinstance(accuracy, int | float) else []
    return " ".join(parts + ([str(status)] if status not in (None, "complete") else []))


def duration(seconds: float) -> str:
    """``45s``, ``12m`` or ``1h05m``."""
    if seconds < 60:
        return f"{seconds:.0f}s"
    minutes = round(seconds / 60)
    return f"{minutes}m" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def say(line: str) -> None:
    print(line, flush=True)


def tail(file: Path, size: int = 1 << 16) -> str:
    """The last bytes of a file as text; empty when it is absent."""
    try:
        with open(file, "rb") as f:
            f.seek(max(0, f.seek(0, os.SEEK_END) - size))
            return f.read().decode(errors="replace")
    except OSError:
        return ""


def _last_row(file: Path) -> dict[str, Any]:
    """The last whole line of a jsonl file that is being written."""
    for line in reversed(tail(file).splitlines()):
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict):
                return row
    return {}
