"""What stands above a table: task and version, model, budget, evaluation, revisions and the commands."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from grpo_bench.records import Run
from grpo_bench.table.compare import Comparison
from grpo_bench.table.layout import count
from grpo_bench.table.pairs import budget, verifier


@dataclass(frozen=True)
class Heading:
    title: str
    lines: list[tuple[str, str]]


def heading(c: Comparison, command: str) -> Heading:
    """Everything is collected over all runs: where they differ, all values are named."""
    runs = [run for run in c.study.runs if run.config or run.result]
    tasks = _each(_task(run) for run in runs)
    lines = [("Task", tasks), ("Model", _each(_model(run) for run in runs)), ("Budget", _budget(c, runs))]
    lines += [("Test", _each(_test(run) for run in runs)), ("Seeds", _each(str(run.seed) for run in c.study.runs))]
    lines.append(("Revision", _each(_revision(run) for run in runs)))
    if c.baseline:
        lines.append(("Baseline", c.baseline))
    sweeps = _each(_sweep(job) for job in c.study.jobs)
    if sweeps != "not recorded":
        lines.append(("Runs made by", f"`{sweeps}`"))
    lines.append(("Table made by", f"`{command}`"))
    return Heading(c.study.folder.name, lines)


def _task(run: Run) -> str | None:
    task = run.config.get("task") or {}
    if not task:
        return None
    checked = verifier(run)
    said = f"{task.get('name')} v{task.get('version')}, trained on split {task.get('split')}"
    return said + (f", answers checked by {checked}" if checked else "")


def _model(run: Run) -> str:
    size = (run.cost.get("parameters") or {}).get("policy")
    steps = ((run.config.get("model") or {}).get("warmstart") or {}).get("steps")
    warm = f"warm start of {steps} steps" if steps else "no warm start"
    return f"{run.model}" + (f", {count(size)} parameters, {warm}" if size else "")


def _budget(c: Comparison, runs: list[Run]) -> str:
    said = _each(budget(run) for run in runs)
    beyond = [arm.cost["overshoot"] for arm in c.arms if arm.cost.get("overshoot") is not None]
    largest = max((x for x in beyond if x is not None), default=0.0)
    return f"{said} a run" + (f"; overshot by at most {100 * largest:.1f} %" if largest > 0.0005 else "")


def _test(run: Run) -> str | None:
    task, how = run.config.get("task") or {}, run.config.get("eval") or {}
    n = ((run.final.get("greedy") or {}) if run.status == "complete" else {}).get("n")
    if not task or not how or n is None:
        return None
    said = f"{n:,} problems of split {task.get('eval_split')}, greedy"
    if how.get("samples"):
        said += f" and {how['samples']} sampled at temperature {how.get('temperature')}"
    style = (task.get("prompt") or {}).get("style")
    return f"{said}, at most {task.get('max_new_tokens')} tokens, {style} prompt"


def _revision(run: Run) -> str | None:
    git = run.provenance.get("git") or {}
    sha = (run.result or {}).get("git_sha") or git.get("sha")
    if not sha:
        return None
    commit, _, dirty = str(sha).partition("-")
    return commit[:12] + (" with uncommitted changes" if dirty or git.get("dirty") else "")


def _sweep(job: dict[str, Any]) -> str | None:
    command = job.get("command") or job.get("argv")
    return " ".join(map(str, command)) if isinstance(command, list) else command


def _each(values: Iterable[str | None]) -> str:
    """Distinct values in order; a table over runs that differ says so."""
    distinct = list(dict.fromkeys(value for value in values if value))
    return "; ".join(distinct) if any("," in value for value in distinct) else ", ".join(distinct) or "not recorded"
