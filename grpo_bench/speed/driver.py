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

from grpo_bench import heap
from grpo_bench.provenance import base_names
from grpo_bench.speed.child import Spec
from grpo_bench.speed.workloads import PEERS, Workload
from grpo_bench.types import UserError

GRACE_SECONDS = 5.0  # for a child to end by itself before it is killed
DEADLINE = 3600.0  # seconds of one visit
POLL_SECONDS = 0.01
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
        child = self._start(spec, python)
        try:
            while child.advance(time.monotonic() + limit):
                pass
            return child.result()
        finally:
            child.end()

    def together(self, specs: list[Spec], limit: float = DEADLINE) -> list[dict[str, Any] | Failed]:
        """The results of children that are in memory together and take one step each in turns; one runs at a time."""
        deadline, children = time.monotonic() + limit, list[Child]()
        out: dict[Child, dict[str, Any] | Failed] = {}

        def go_on(child: Child) -> None:
            try:
                if not child.advance(deadline):
                    out[child] = child.result()
            except Failed as e:
                out[child] = e
            if child in out:
                child.end()

        try:
            for spec in specs:
                children.append(self._start(replace(spec, turns=True)))
                go_on(children[-1])
            while waiting := [child for child in children if child not in out]:
                for child in waiting:
                    go_on(child)
        finally:
            for child in children:
                child.end()
        return [out[child] for child in children]

    def _start(self, spec: Spec, python: str | None = None) -> Child:
        self._count += 1
        place = self.folder / f"{self._count}.json"
        place.write_text(json.dumps(asdict(spec)), encoding="utf-8")
        return Child(place, python or self.python(spec.contender), _environment(spec))


class Child:
    """A contender's process, which may stop itself to wait for its turn."""

    def __init__(self, place: Path, python: str, environment: dict[str, str]) -> None:
        """``place``: its specification."""
        self.place, self.log, self.begun = place, place.with_suffix(".log"), time.monotonic()
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [python, "-m", "grpo_bench.speed.child", str(place)],
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment,
                start_new_session=True,
            )  # fmt: skip

    def advance(self, deadline: float) -> bool:
        """Let it run: True when it waits for its next turn, False when it has ended; ``Failed`` at the deadline."""
        os.kill(self.process.pid, signal.SIGCONT)
        while True:
            pid, status = os.waitpid(self.process.pid, os.WUNTRACED | os.WNOHANG)
            if pid and os.WIFSTOPPED(status):
                return True
            if pid:
                self.process.returncode = os.waitstatus_to_exitcode(status)  # Popen did not wait for it itself
                return False
            if time.monotonic() > deadline:
                raise Failed(f"did not end within {deadline - self.begun:.0f} s")
            time.sleep(POLL_SECONDS)

    def result(self) -> dict[str, Any]:
        """What it wrote; ``Failed`` with its last line where it did not."""
        out, code = self.place.with_suffix(".out.json"), self.process.returncode
        if code != 0 or not out.is_file():
            raise Failed(_reason(self.log.read_text(errors="replace"), code))
        made: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return made

    def end(self) -> None:
        """End it, and whatever it started: a session of its own makes them one group."""
        for number in (signal.SIGTERM, signal.SIGCONT):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=GRACE_SECONDS)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _environment(spec: Spec) -> dict[str, str]:
    """The parent's, with the package where it is, and nothing that goes out to a network."""
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    threads = {"OMP_NUM_THREADS": str(spec.threads)} if spec.threads else {}
    defaults = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "TOKENIZERS_PARALLELISM": "false"}
    quiet = {"TRL_EXPERIMENTAL_SILENCE": "1", "PYTHONWARNINGS": "ignore"}
    return {**defaults, **os.environ, **heap.at_start(), **threads, **quiet, "PYTHONPATH": os.pathsep.join(paths)}


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
        for several in [list(running)] if workload.turns == "steps" else [[entry] for entry in running]:
            need = MARGIN * sum(took.get(entry, 0.0) for entry in several)
            if remaining() < max(need, 1.0):
                say(f"{', '.join(map(str, several))}: left out, {remaining():.0f} s are left of {left:.0f}")
                continue
            start = time.monotonic()
            outcomes = _outcomes(
                several, spec, runner, remaining(), prepare=any(entry not in took for entry in several)
            )
            for entry, one, outcome in outcomes:
                if not isinstance(outcome, Failed) and entry not in idle:
                    try:
                        idle[entry] = _idle(runner, one, outcome)
                    except Failed as e:
                        outcome = e
                if isinstance(outcome, Failed):
                    running.remove(entry)
                    say(f"{entry}: {outcome}")
                    yield {"kind": "failed", "contender": entry.name, "dtype": entry.dtype, "reason": str(outcome)}
                    continue
                took[entry] = (time.monotonic() - start) / len(several)
                row = {
                    "kind": "visit", "contender": entry.name, "dtype": entry.dtype, "repetition": repetition,
                    "idle_bytes": idle[entry], "visit_s": took[entry], **_public(outcome),
                }  # fmt: skip
                say(f"{entry}: {_shown(row)}")
                yield row


def _outcomes(
    several: list[Entry], spec: Spec, runner: Runner, limit: float, prepare: bool
) -> list[tuple[Entry, Spec, dict[str, Any] | Failed]]:
    """What came of a visit of one contender, or of several that take steps in turns."""
    specs: dict[Entry, Spec] = {}
    out: dict[Entry, dict[str, Any] | Failed] = {}
    for entry in several:
        specs[entry] = replace(
            spec,
            contender=entry.contender,
            options=entry.options,
            dtype=entry.dtype,
            floors=entry.contender == "native",
        )
        try:
            if missing := _missing(entry, runner):
                raise Failed(missing)
            if entry.contender == "trl-ppo" and prepare:
                runner.visit(replace(specs[entry], contender="prepare"))
        except Failed as e:
            out[entry] = e
    asked = [entry for entry in several if entry not in out]
    limit = min(DEADLINE, limit)
    if len(several) > 1:
        out |= zip(asked, runner.together([specs[entry] for entry in asked], limit), strict=True)
    for entry in asked:
        if entry in out:
            continue
        try:
            out[entry] = runner.visit(specs[entry], limit)
        except Failed as e:
            out[entry] = e
    return [(entry, specs[entry], out[entry]) for entry in several]


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
