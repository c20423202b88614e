"""Contenders in turns (A B C A B C ...), each visit a process of its own, one at a time; what they measured as rows."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from grpo_bench.process import ALLOCATOR, PROCESS_DEFAULTS
from grpo_bench.provenance import base_names
from grpo_bench.speed.child import Spec
from grpo_bench.speed.workloads import PEERS, Workload
from grpo_bench.types import UserError

GRACE_SECONDS = 5.0  # for a child to end by itself before it is killed
DEADLINE = 3600.0  # seconds of one visit
MARGIN = 1.15  # a visit may take so many times its last one
Say = Callable[[str], None]
Row = dict[str, Any]


class Failed(Exception):
    """A visit ended without a result; the message says why."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the table: a contender (``trl+checkpointing``: with options) in one precision."""

    name: str
    dtype: str

    @property
    def contender(self) -> str:
        return self.name.partition("+")[0]

    @property
    def options(self) -> list[str]:
        return [word for word in self.name.split("+")[1:] if word]

    def __str__(self) -> str:
        return f"{self.name}, {self.dtype}"


def entries(workload: Workload) -> list[Entry]:
    """Every contender in every precision; UserError for an unknown name."""
    known = ("native", "hf", "ppo", "ppo-shared", *PEERS, "decode-native", "decode-hf", "decode-continuous")
    found = [Entry(name, dtype) for name in workload.contenders for dtype in workload.dtypes]
    if bad := [e.name for e in found if e.contender not in known or (e.options and e.contender not in PEERS)]:
        raise UserError(f"contenders={','.join(bad)} is not known; choose from {', '.join(known)}")
    return [e for e in found if not (e.contender == "trl-pure" and e.dtype == "float32")]  # it is trl itself


class Runner:
    """Starts children, waits for them, and leaves none behind."""

    def __init__(self, folder: Path, trl_ppo_python: str | None = None) -> None:
        self.folder, self.trl_ppo_python = folder, trl_ppo_python
        self._count = 0

    def python(self, contender: str) -> str:
        """The interpreter that a contender runs in."""
        return self.trl_ppo_python or sys.executable if contender == "trl-ppo" else sys.executable

    def visit(self, spec: Spec, limit: float = DEADLINE, python: str | None = None) -> dict[str, Any]:
        """One child's result. ``Failed`` with its last line when it ends without one or takes more than ``limit`` s."""
        self._count += 1
        place = self.folder / f"{self._count}.json"
        place.write_text(json.dumps(asdict(spec)), encoding="utf-8")
        log = place.with_suffix(".log")
        with log.open("wb") as output:
            child = subprocess.Popen(
                [python or self.python(spec.contender), "-m", "grpo_bench.speed.child", str(place)],
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=_environment(spec),
                start_new_session=True,
            )  # fmt: skip
            try:
                code = child.wait(timeout=limit)
            except subprocess.TimeoutExpired:
                raise Failed(f"did not end within {limit:.0f} s") from None
            finally:
                _end(child)
        out = place.with_suffix(".out.json")
        if code != 0 or not out.is_file():
            raise Failed(_reason(log.read_text(errors="replace"), code))
        return json.loads(out.read_text(encoding="utf-8"))


def _environment(spec: Spec) -> dict[str, str]:
    """The parent's, with the package where it is, and nothing that goes out to a network."""
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    threads = {"OMP_NUM_THREADS": str(spec.threads)} if spec.threads else {}
    defaults = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "TOKENIZERS_PARALLELISM": "false"}
    defaults |= PROCESS_DEFAULTS | ALLOCATOR  # as this project's runs have it, and the same for every contender
    quiet = {"TRL_EXPERIMENTAL_SILENCE": "1", "PYTHONWARNINGS": "ignore"}
    return {**defaults, **os.environ, **threads, **quiet, "PYTHONPATH": os.pathsep.join(paths)}


def _end(child: subprocess.Popen[bytes]) -> None:
    """The child, and whatever it started: a session of its own makes them one group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(timeout=GRACE_SECONDS)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _reason(log: str, code: int) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    if code in (-signal.SIGKILL, 137) and not any("Error" in line for line in lines[-3:]):
        return "was killed (out of memory?)"
    last = next((line for line in reversed(lines) if "Error" in line or "error:" in line), lines[-1] if lines else "")
    return str(base_names(last))[:300] or f"ended with exit code {code}"


def measure(workload: Workload, spec: Spec, runner: Runner, say: Say) -> Iterator[Row]:
    """Rows of measurements.jsonl as they come: machine, visits with their steps, idle processes, failures."""
    begun, left = time.monotonic(), workload.seconds or float("inf")

    def remaining() -> float:
        return left - (time.monotonic() - begun)

    running, took, idle = entries(workload), dict[Entry, float](), dict[Entry, int]()
    for repetition in range(workload.repetitions):
        if repetition and all(remaining() < MARGIN * took.get(entry, 0.0) for entry in running):
            say(f"repetition {repetition + 1} left out, {remaining():.0f} s are left of {left:.0f}")
            break
        try:
            result = runner.visit(replace(spec, contender="machine", dtype=",".join(workload.dtypes)))
            yield {"kind": "machine", "repetition": repetition, **_public(result)}
            say(f"repetition {repetition + 1} of {workload.repetitions}: machine {_rates(result)}")
        except Failed as e:
            yield {"kind": "failed", "contender": "machine", "dtype": "", "reason": str(e)}
        for entry in list(running):
            need = MARGIN * took.get(entry, 0.0)
            if remaining() < max(need, 1.0):
                say(f"{entry}: left out, {remaining():.0f} s are left of {left:.0f}")
                continue
            start = time.monotonic()
            one = replace(
                spec, contender=entry.contender, options=entry.options, dtype=entry.dtype,
                floors=entry.contender == "native",
            )  # fmt: skip
            try:
                if missing := _missing(entry, runner):
                    raise Failed(missing)
                if entry.contender == "trl-ppo" and entry not in took:
                    runner.visit(replace(one, contender="prepare"))
                result = runner.visit(one, min(DEADLINE, remaining()))
                if entry not in idle:
                    idle[entry] = _idle(runner, one, result)
            except Failed as e:
                running.remove(entry)
                say(f"{entry}: {e}")
                yield {"kind": "failed", "contender": entry.name, "dtype": entry.dtype, "reason": str(e)}
                continue
            took[entry] = time.monotonic() - start
            row = {
                "kind": "visit", "contender": entry.name, "dtype": entry.dtype, "repetition": repetition,
                "idle_bytes": idle[entry], "visit_s": took[entry], **_public(result),
            }  # fmt: skip
            say(f"{entry}: {_shown(row)}")
            yield row


def _missing(entry: Entry, runner: Runner) -> str:
    """Why a peer cannot run here; "" when it can."""
    from importlib.util import find_spec

    if entry.contender == "trl-ppo" and runner.trl_ppo_python is None:
        return "not measured: give trl_ppo_python=, an interpreter that has TRL 1.10, the last with a PPO trainer"
    if entry.contender in ("trl", "trl-pure") and find_spec("trl") is None:
        return "not measured: trl is not installed"
    return ""


def _idle(runner: Runner, spec: Spec, result: dict[str, Any]) -> int:
    """Bytes of a process that only imported what the contender did; nothing is above it on a GPU's own memory."""
    if result["device"]["type"] == "cuda":
        return 0
    waiting = replace(spec, contender="idle", modules=result["imported"])
    return int(runner.visit(waiting, python=runner.python(spec.contender))["bytes"])


def _public(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key != "imported"}


def _shown(row: Row) -> str:
    seconds = [step["seconds"] for step in row["steps"]]
    above = (row["peak_bytes"] - row["idle_bytes"]) / 1e9
    return f"{min(seconds):.2f} s a step, {above:.2f} GB above idle"


def _rates(result: dict[str, Any]) -> str:
    rates = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in result["rates"].items())
    return f"{result['bandwidth'] / 1e9:.1f} GB/s, {rates}"


@contextlib.contextmanager
def workshop() -> Iterator[Path]:
    """A folder for specifications and results that is gone afterwards; SIGTERM ends like Ctrl-C, without orphans."""

    def stop(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with tempfile.TemporaryDirectory(prefix="grpo_bench_speed_") as folder:
            yield Path(folder)
    finally:
        signal.signal(signal.SIGTERM, before)
