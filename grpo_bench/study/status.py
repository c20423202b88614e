"""How the runs of a study stand, from their records alone."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import psutil
import yaml

from grpo_bench.ending import plainly
from grpo_bench.jobs import duration, progress
from grpo_bench.needs import same_machine
from grpo_bench.provenance import host
from grpo_bench.resume import read

State = Literal["complete", "diverged", "running", "failed", "to run"]
STATES: tuple[State, ...] = ("complete", "diverged", "running", "failed", "to run")
NEWS_SECONDS = 600.0  # a run whose process is not on this machine is running as long as its record is this fresh
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Standing:
    """One run: ``reason`` where it failed or diverged; ``seconds`` that it took, ``left`` where it runs."""

    directory: Path
    row: str
    seed: int
    state: State
    reason: str = ""
    step: int | None = None  # of its last checkpoint, where it would be continued
    seconds: float | None = None
    left: float | None = None


def standing_of(directory: Path, row: str, seed: int, amount: float | None = None) -> Standing:
    """How the run in ``directory`` stands; ``amount``: a budget that it is to reach, where it was extended."""
    state, result = read(directory / "state.json"), read(directory / "result.json")
    said, reason = state.get("status"), plainly(str(state.get("reason") or ""))
    if result:
        budget = (result.get("budget") or {}).get("amount")
        if amount is not None and budget is not None and amount > budget:
            return Standing(directory, row, seed, "to run", f"to be extended from {budget:g} to {amount:g}")
        seconds = ((result.get("cost") or {}).get("seconds") or {}).get("total")
        if "diverged" in (result.get("status"), said):
            return Standing(directory, row, seed, "diverged", str(result.get("reason") or reason), seconds=seconds)
        return Standing(directory, row, seed, "complete", seconds=seconds)
    step = state.get("step") or None
    if said == "running":
        if alive(directory, state):
            unit, total = _budget(directory)
            now = progress(directory, unit, total)
            return Standing(directory, row, seed, "running", now.line, step, left=now.left)
        at = f"at step {step}" if step else "before its first checkpoint"
        return Standing(directory, row, seed, "failed", f"its process is gone, {at}: killed without a word", step)
    if said in ("failed", "diverged", "complete"):
        return Standing(directory, row, seed, "failed", reason or "no reason recorded", step)
    return Standing(directory, row, seed, "to run")


def alive(directory: Path, state: dict[str, Any]) -> bool:
    """Whether a record whose ``state`` says "running" is: its process lives here, or, on another machine, writes."""
    try:
        process = psutil.Process(int(state["pid"]))
        ours = "grpo_bench" in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, KeyError, TypeError, ValueError):
        ours = False
    if state.get("host") == host():
        return ours
    if "host" not in state:  # an old record: by what the machine is like
        attempts = read(directory / "provenance.json").get("attempts") or [{}]
        if ours or same_machine(attempts[-1]):
            return ours
    files = (directory / name for name in ("state.json", "metrics.jsonl", "eval.jsonl", "stdout.log"))
    news = max((os.path.getmtime(file) for file in files if file.is_file()), default=0.0)
    return time.time() - news < NEWS_SECONDS


def _budget(directory: Path) -> tuple[str, float]:
    budget = (_config(directory).get("budget")) or {}
    return str(budget.get("unit", "samples")), float(budget.get("amount", 1.0))


def _config(directory: Path) -> dict[str, Any]:
    try:
        content = yaml.load((directory / "config.yaml").read_bytes(), _YAML)
    except (OSError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def of_folder(folder: Path, entries: Sequence[dict[str, Any]]) -> list[Standing]:
    """The jobs of a ``jobs.json``, in its order."""
    return [
        standing_of(folder / str(e["run_id"]), str(e.get("row") or e.get("arm")), int(e.get("seed") or 0))
        for e in entries
    ]


def at_once(runs: Sequence[Standing]) -> int:
    """How many runs of a study are done side by side: as its newest record says, or as many as run now."""
    running = sum(run.state == "running" for run in runs)
    found = [run.directory / "config.yaml" for run in runs if (run.directory / "config.yaml").is_file()]
    newest = max(found, key=os.path.getmtime, default=None)
    said = _config(newest.parent).get("parallel") if newest else 1
    return max(said if isinstance(said, int) else 1, running, 1)


def remaining(runs: Sequence[Standing]) -> float | None:
    """Seconds of work that are left, by what the finished runs of each row took; None: nothing is known yet."""
    taken = {run.row: [r.seconds for r in runs if r.row == run.row and r.seconds] for run in runs}
    known = [s for times in taken.values() for s in times if s]
    total = 0.0
    for run in runs:
        if run.state == "running" and run.left is not None:
            total += run.left
        elif run.state in ("running", "failed", "to run"):
            times = [s for s in taken[run.row] if s] or known
            if not times:
                return None
            total += mean(times)
    return total


def render(title: str, runs: Sequence[Standing]) -> str:
    """The study in words: counts by row, then each run that runs, failed or diverged, then the time that is left."""
    counts = {state: sum(run.state == state for run in runs) for state in STATES}
    said = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
    rows = list(dict.fromkeys(run.row for run in runs))
    lines = [f"{title}: {len(runs)} runs: {said}", ""]
    table = [["row", *STATES, "mean time"]]
    for row in rows:
        mine = [run for run in runs if run.row == row]
        times = [run.seconds for run in mine if run.seconds]
        cells = [str(n) if (n := sum(run.state == state for run in mine)) else "" for state in STATES]
        table.append([row, *cells, duration(mean(times)) if times else ""])
    lines += columns(table)
    for state in ("running", "failed", "diverged"):
        found = [run for run in runs if run.state == state]
        if found:
            lines += ["", f"{state}:", *(f"  {run.row} seed={run.seed}: {run.reason}" for run in found)]
    left = remaining(runs)
    if left is None:
        lines += ["", "time left: not known before a run is complete; `plan` measures it"]
    elif left > 0:
        several = at_once(runs)
        split = f", about {duration(left / several)} with {several} at once" if several > 1 else ""
        lines += ["", f"time left: {duration(left)} of work{split}"]
    return "\n".join(lines)


def as_json(runs: Sequence[Standing]) -> str:
    """The same for programs: one object per run."""
    content = [
        {
            "run_id": run.directory.name, "row": run.row, "seed": run.seed, "state": run.state, "reason": run.reason,
            "step": run.step, "seconds": run.seconds, "left": run.left,
        }
        for run in runs
    ]  # fmt: skip
    return json.dumps(content, indent=1)


def columns(table: Sequence[Sequence[str]]) -> list[str]:
    """Rows of words as lines of aligned columns; the first is text, the others are numbers."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = []
    for first, *numbers in table:
        cells = [first.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(numbers, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines
