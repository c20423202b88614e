"""Studies beside this one, ``results/<other>-<task>``, that answer what it does not ask."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from grpo_bench.records import load_study
from grpo_bench.table.arms import group_arms
from grpo_bench.table.compare import Comparison, declaration
from grpo_bench.table.contrasts import contrast_all
from grpo_bench.table.declared import settings_of
from grpo_bench.types import UserError


def sibling(c: Comparison, name: str) -> Comparison | None:
    """The comparison of ``results/<name>-<task>`` beside this study; None where it is absent, or cannot be read."""
    folder = c.study.folder.resolve()
    task = task_of(c)
    other = folder.parent / f"{name}-{task}"
    if task is None or other == folder or not other.is_dir():
        return None
    return _load(other, _stamp(other))


def task_of(c: Comparison) -> str | None:
    """What the folder's name ends in: the task."""
    return next((str(t["name"]) for config in c.study.configs if (t := config.get("task")) and t.get("name")), None)


def sibling_tasks(c: Comparison) -> dict[str, Comparison]:
    """The same study on other tasks, by task: ``results/<this>-<other task>``."""
    folder, task = c.study.folder.resolve(), task_of(c)
    if task is None or not folder.name.endswith(f"-{task}"):
        return {}
    name = folder.name.removesuffix(task)
    others = sorted(path for path in folder.parent.glob(f"{name}*") if path != folder and path.is_dir())
    found = {path.name.removeprefix(name): _load(path, _stamp(path)) for path in others}
    return {other: one for other, one in found.items() if one is not None and task_of(one) == other}


@lru_cache(maxsize=16)  # the article's table and the card ask for the same ones
def _load(folder: Path, _stamp: tuple[tuple[str, int], ...]) -> Comparison | None:
    """Rows and verdicts only: what a neighbour shows beside them is its own table's work."""
    try:
        study = load_study(folder)
    except UserError:  # a damaged neighbour is its own table's error, not this one's
        return None
    settings = settings_of(study)
    arms, margin = group_arms(study.runs), float(settings.get("margin") or 0.02)
    baseline = settings.get("baseline")
    baseline = baseline if baseline is not None and any(arm.called(baseline) for arm in arms) else None
    declared = [(pair[0], pair[1]) for pair in settings.get("contrasts") or []]
    contrasts, family = contrast_all(arms, declared, baseline, margin, [], verdicts_only=True)
    return Comparison(
        study=study,
        baseline=settings.get("baseline"),
        references=[],
        arms=arms,
        contrasts=contrasts,
        declared=declaration(settings, baseline),
        margin=margin,
        family=family,
        left_out=[],
        notes=[],
    )


def _stamp(folder: Path) -> tuple[tuple[str, int], ...]:
    return tuple(sorted((str(path.parent.name), path.stat().st_mtime_ns) for path in folder.glob("*/result.json")))
