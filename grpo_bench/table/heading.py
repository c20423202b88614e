"""What stands above a table: task and version, model, budget, evaluation, revisions and the commands."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from grpo_bench.provenance import base_names
from grpo_bench.records import Run, Study
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
    models = [_model(run) for run in runs if run.cost] or [run.model for run in runs]
    lines = [("Task", each(map(_task, runs))), ("Model", each(models)), ("Budget", _budget(c, runs))]
    lines += [("Test", each(_test(run) for run in runs)), ("Seeds", each(str(run.seed) for run in c.study.runs))]
    lines.append(("Revision", each(_revision(run) for run in runs)))
    if c.baseline:
        lines.append(("Baseline", c.baseline))
    lines.append(("Runs made by", _sweep(c.study, runs)))
    lines.append(("Table made by", f"`{command}`"))
    return Heading(c.study.name, lines)


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
    said = each(budget(run) for run in runs)
    beyond = [arm.cost["overshoot"] for arm in c.arms if arm.cost.get("overshoot") is not None]
    largest = max((x for x in beyond if x is not None), default=0.0)
    if not beyond:
        return said
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


def _sweep(study: Study, runs: list[Run]) -> str:
    """The command whose jobs these runs are, put together from what each was given."""
    argv: list[str] = next((found for run in runs if (found := run.provenance.get("argv"))), [])
    names = {word: argv[i + 1] for i, word in enumerate(argv[:-1]) if word in ("--config-dir", "--config-name")}
    where = [f"{word} {value}" for word, value in sorted(names.items()) if value != "config"]
    given: dict[str, list[str]] = {}
    for job in study.jobs:
        for override in job.get("overrides") or []:
            key, _, value = base_names(override).partition("=")
            if value not in given.setdefault(key, []):
                given[key].append(value)
    if study.jobs and prod(len(values) for values in given.values()) == len(study.jobs):
        words = [f"{key}={','.join(values)}" for key, values in given.items()]
        return f"`{' '.join(['python -m grpo_bench -m', *where, *words])}`"
    single = [" ".join(["python -m grpo_bench", *(run.provenance.get("argv") or [])[1:]]) for run in runs]
    return f"`{single[0]}`" if len(set(single)) == 1 else "several commands, see provenance.json of each run"


def each(values: Iterable[str | None]) -> str:
    """Distinct values in order; a table over runs that differ says so."""
    distinct = list(dict.fromkeys(value for value in values if value))
    return "; ".join(distinct) if any("," in value for value in distinct) else ", ".join(distinct) or "not recorded"
