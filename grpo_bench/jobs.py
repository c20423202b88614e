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
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from grpo_bench import heap, needs
from grpo_bench.config import run_dir
from grpo_bench.ending import reason_of, tail
from grpo_bench.files import disk_errors
from grpo_bench.nursery import Hatchling, Nursery
from grpo_bench.resources import oom_kills, resident
from grpo_bench.resume import complete_line, read, standing
from grpo_bench.types import UserError

if TYPE_CHECKING:
    from grpo_bench.config import Config

LIFE_SECONDS = 30.0  # between two signs of life of a job, on a terminal
LIFE_SECONDS_LOG = 300.0  # and into a file
GRACE_SECONDS = 20.0  # a child may finish writing before it is killed
LOOK_SECONDS = 1.0  # between two looks at its memory
CHILDREN: set[subprocess.Popen[bytes] | Hatchling] = set()  # alive now
NURSERY = Nursery()
RUN = [sys.executable, "-m", "grpo_bench"]
SWEEP = "GRPO_BENCH_SWEEP"  # environment: tells jobs in processes of their own what their sweep varies
STOPPING = threading.Event()  # no job starts any more
PROGRESS = {"samples": "samples", "tokens": "generated_tokens", "updates": "updates", "flops": "flops"}


def child_command(overrides: list[str], name: str, config_dir: str | None, row: str) -> list[str]:
    """The command that runs one job of a sweep by itself."""
    where = ["--config-name", name, *(["--config-dir", config_dir] if config_dir else [])]
    ours = [o for o in overrides if not o.startswith(("hydra.mode=", "hydra/launcher=", "hydra.launcher."))]
    return [*RUN, *where, *ours, f"row={quoted(row)}", "hydra.mode=RUN"]


def quoted(text: str) -> str:
    """A value as Hydra's grammar takes it whatever is in it."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


@dataclass
class Memory:
    """Resident bytes of a job's processes: as last seen, and the most that they were."""

    now: int = 0
    peak: int = 0

    def look(self, pid: int) -> None:
        self.now, peak = resident(pid) if pid else (0, 0)
        self.peak = max(self.peak, peak)


def one_job(job: Callable[[], str | None], label: str) -> str | None:
    """What ``job`` says: None, or why it failed. What it raises is printed as its line: its error is no other job's."""
    try:
        return job()
    except UserError as e:
        reason = str(e)
    except Exception as e:
        traceback.print_exc()
        reason = f"{type(e).__name__}: {e}"
    say(f"{label} FAILED: {reason}")
    return reason


def run_job(
    cfg: Config, command: list[str], label: str, environment: Mapping[str, str] | None = None,
    memory: Memory | None = None,
) -> str | None:  # fmt: skip
    """Run one job of a sweep in a child process unless its record is complete; None when it is complete afterwards,
    else why it failed.

    Prints one line at the end, and signs of life before it. What the child prints goes to ``stdout.log`` in its folder.
    ``environment`` is put over this process's own; ``memory`` is told what the job takes.
    """
    directory = run_dir(cfg)
    if standing(cfg, directory) == "complete":
        say(f"{label} {complete_line(directory, cfg.export)}")
        return None
    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    memory = memory or Memory()
    before, kills, start = read(directory / "state.json"), oom_kills(), time.monotonic()
    code = _run_child(cfg, command, directory, label, environment or {}, memory)
    seconds = time.monotonic() - start
    result = read(directory / "result.json")
    if code == 0 and result:
        if memory.peak:
            with contextlib.suppress(OSError, UserError):  # a cache, no part of the record
                needs.remember(cfg, memory=memory.peak)
        say(f"{label} done {duration(seconds)} {outcome(result)}".rstrip())
        return None
    after = oom_kills()
    kernel = after - kills if after is not None and kills is not None else None
    reason = reason_of(directory, code, before, kernel, stopped=STOPPING.is_set())
    say(f"{label} FAILED after {duration(seconds)}: {reason}; see {directory / 'stdout.log'}")
    return reason


def expect(configs: Iterable[Config]) -> None:
    """Jobs like these will come: what they are forked from imports while Hydra composes them once more."""
    if any(_forked(cfg) and cfg.isolate and standing(cfg, run_dir(cfg)) != "complete" for cfg in configs):
        NURSERY.warm(_environment({}))


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    return {**os.environ, **heap.at_start(), "PYTHONUNBUFFERED": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", **more}


def _forked(cfg: Config) -> bool:
    """Not beside a GPU, which a process can use only if what it was forked from did not."""
    return sys.platform == "linux" and cfg.device == "cpu" and cfg.reward.model.device != "cuda"


def _run_child(
    cfg: Config, command: list[str], directory: Path, label: str, more: Mapping[str, str], memory: Memory
) -> int:
    environment = _environment(more)
    pause = LIFE_SECONDS if sys.stdout.isatty() else LIFE_SECONDS_LOG
    with _log(directory / "stdout.log", new=not cfg.resume) as log:
        child = _start(cfg, command, log, environment)
        CHILDREN.add(child)
        with _no_orphan(child):
            if STOPPING.is_set():
                child.terminate()
            said = time.monotonic()
            while True:
                try:
                    return child.wait(timeout=LOOK_SECONDS)
                except subprocess.TimeoutExpired:
                    memory.look(child.pid)
                if time.monotonic() - said >= pause:
                    said = time.monotonic()
                    say(f"{label} {life(cfg, directory)}")


def _start(
    cfg: Config, command: list[str], log: IO[bytes], environment: dict[str, str]
) -> subprocess.Popen[bytes] | Hatchling:
    """The job's process: from the nursery where that saves its imports, else one of its own."""
    if _forked(cfg) and command[:3] == RUN:
        with contextlib.suppress(OSError):
            return NURSERY.start(command[3:], log, environment)
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
        CHILDREN.discard(child)
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


def life(cfg: Config, directory: Path) -> str:
    """Where a running job is: step, reward, share done and time left, from the last lines of its record."""
    return progress(directory, cfg.budget.unit, cfg.budget.amount).line


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a record has come: ``fraction`` of its budget is spent (0..1), ``left`` seconds remain, if known."""

    line: str
    fraction: float = 0.0
    left: float | None = None


def progress(directory: Path, unit: str, amount: float) -> Progress:
    """How far the run in ``directory`` has come with its budget, from the last lines of its record."""
    metrics, timing = _last_row(directory / "metrics.jsonl"), _last_row(directory / "timing.jsonl")
    if not metrics:
        return Progress("starting")
    parts = [f"step {metrics.get('step')}"]
    if isinstance(metrics.get("reward/mean"), int | float):
        parts.append(f"reward {metrics['reward/mean']:.3f}")
    elapsed = timing.get("elapsed_s")
    reached = elapsed if unit == "seconds" else metrics.get(PROGRESS[unit])
    if not isinstance(reached, int | float) or not isinstance(elapsed, int | float) or reached <= 0:
        return Progress(", ".join(parts))
    fraction = min(reached / amount, 1.0)
    left = elapsed * (1 - fraction) / fraction
    return Progress(", ".join([*parts, f"{100 * fraction:.0f} % done, {duration(left)} left"]), fraction, left)


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


def _last_row(file: Path) -> dict[str, Any]:
    """The last whole line of a jsonl file that is being written."""
    for line in reversed(tail(file).splitlines()):
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict):
                return row
    return {}
