"""Rows over several tasks: the same study on other tasks beside this one, taken together as rliable does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from grpo_bench.records import Run
from grpo_bench.stats import Interval
from grpo_bench.stats.aggregate import (
    iqm_interval,
    optimality_gap,
    performance_profile,
    probability_of_improvement_interval,
)
from grpo_bench.table.compare import Comparison
from grpo_bench.table.layout import NONE, Sheet
from grpo_bench.table.pairs import refusal, side
from grpo_bench.table.siblings import sibling_tasks, task_of

LEVELS = (0.25, 0.5, 0.75)  # of accuracy, that the performance profile is read at


@dataclass(frozen=True)
class Across:
    """A row's runs on every task: ``scores`` (seeds, tasks) of the seeds that finished on all of them."""

    label: str
    seeds: list[int]
    scores: NDArray[np.float64]
    runs: list[list[Run]]


def tasks_sheet(c: Comparison) -> Sheet | None:
    """Interquartile mean, probability of improvement over the baseline and performance profile of the rows that this
    study and its siblings on other tasks share; None where there is one task alone, or no such row."""
    others = sibling_tasks(c)
    here = task_of(c)
    if not others or here is None:
        return None
    found = across([c, *others.values()])
    if not found:
        return None
    baseline = next((row for row in found if row.label == c.baseline), None)
    header = ["", "seeds", "mean %", "IQM % [95 %]", "gap to 100 %"]
    header += [f"P(above {baseline.label}) [95 %]"] if baseline else []
    header += [f"runs above {100 * level:.0f} %" for level in LEVELS]
    rows = []
    for row in found:
        middle = iqm_interval(row.scores)
        cells = [row.label, str(len(row.seeds)), f"{100 * row.scores.mean():.1f}", _text(middle, 100, 1)]
        cells.append(f"{100 * optimality_gap(row.scores):.1f}")
        if baseline:
            cells.append("baseline" if row is baseline else _improvement(row, baseline))
        rows.append([*cells, *[f"{100 * share:.0f} %" for share in performance_profile(row.scores, LEVELS)]])
    notes = [
        f"Tasks: {', '.join([here, *others])}, each with its own model; seeds are those that finished on every task. "
        "Accuracies of the final greedy tests.",
        "IQM: mean of the middle half of all runs and tasks. P(above): probability that a run of the row beats one of "
        "the baseline on the same task, averaged over tasks; 0.5 is no improvement. Intervals: stratified bootstrap "
        "over runs (Agarwal et al. 2021); they describe and carry no verdict.",
    ]
    return Sheet("tasks", "Several tasks together", header, rows, notes)


def across(studies: list[Comparison]) -> list[Across]:
    """Rows that are one row in every study and share finished seeds there, in the order of the first study."""
    by_study = []
    for study in studies:
        rows: dict[str, list[dict[int, Run]]] = {}
        for arm in study.arms:
            rows.setdefault(arm.row, []).append({run.seed: run for run in arm.scored})
        by_study.append({row: runs[0] for row, runs in rows.items() if len(runs) == 1})
    found = []
    for row in by_study[0]:
        if not all(row in rows for rows in by_study):
            continue
        seeds = sorted(set.intersection(*(set(rows[row]) for rows in by_study)))
        if seeds:
            runs = [[rows[row][seed] for rows in by_study] for seed in seeds]
            scores = np.array([[side(run).means["acc"] for run in one] for one in runs])
            found.append(Across(row, seeds, scores, runs))
    return found


def _improvement(row: Across, baseline: Across) -> str:
    theirs = dict(zip(baseline.seeds, baseline.runs, strict=True))
    for seed, runs in zip(row.seeds, row.runs, strict=True):
        if seed in theirs and any(refusal(a, b) for a, b in zip(runs, theirs[seed], strict=True)):
            return "not comparable"
    return _text(probability_of_improvement_interval(row.scores, baseline.scores), 1, 2)


def _text(interval: Interval, scale: float, digits: int) -> str:
    """One run has no spread to redraw."""
    if interval.n < 2:
        return f"{scale * interval.estimate:.{digits}f}" if interval.n else NONE
    low, high = (f"{scale * bound:.{digits}f}" for bound in (interval.low, interval.high))
    return f"{scale * interval.estimate:.{digits}f} [{low}, {high}]"
