"""What accuracy cost: each row's final accuracy beside samples, tokens, seconds and FLOPs, and its seconds by phase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grpo_bench.records import TRAINING as PHASES
from grpo_bench.records import Run, training_seconds
from grpo_bench.stats import Interval
from grpo_bench.table.arms import Arm

COSTS = {
    "seconds": "seconds, evaluations left out",
    "samples": "training samples",
    "tokens": "tokens generated",
    "flops": "FLOPs, by theory",
}


@dataclass(frozen=True)
class Spent:
    """A row's final accuracy with its interval; per seed (seed, accuracy, {cost: amount}); ``mean`` over seeds."""

    label: str
    accuracy: Interval
    seeds: list[tuple[int, float, dict[str, float]]]
    mean: dict[str, float]


def spent(arms: Sequence[Arm]) -> list[Spent]:
    """Rows with a final accuracy, in the study's order; a cost that any seed lacks is left out of ``mean``, which is
    over complete runs where there are any: what a run spent before it was stopped is not the price of a whole one."""
    rows = []
    for arm in arms:
        if not arm.accuracy:
            continue
        seeds = [(run.seed, float(run.final["greedy"]["acc"]), _amounts(run)) for run in arm.scored]
        whole = [_amounts(run) for run in arm.scored if run.status == "complete"] or [one for _, _, one in seeds]
        known = [key for key in COSTS if all(key in amounts for amounts in whole)]
        mean = {key: sum(amounts[key] for amounts in whole) / len(whole) for key in known}
        rows.append(Spent(arm.label, arm.accuracy["acc"].interval, seeds, mean))
    return rows


def _amounts(run: Run) -> dict[str, float]:
    cost = run.cost
    amounts: dict[str, Any] = {"samples": cost.get("samples"), "tokens": cost.get("generated_tokens")}
    amounts |= {"flops": cost.get("flops"), "seconds": training_seconds(run)}
    return {key: float(value) for key, value in amounts.items() if isinstance(value, int | float)}


def _phases(run: Run) -> dict[str, float]:
    seconds = run.cost.get("seconds") or {}
    return {phase: float(seconds[phase]) for phase in PHASES if isinstance(seconds.get(phase), int | float)}


def phase_seconds(arms: Sequence[Arm]) -> dict[str, tuple[dict[str, float], list[tuple[int, float]]]]:
    """By row: mean seconds of each phase per 1,000 training samples, and (seed, their sum) of each run.

    Per sample, since a step and an update are not the same amount of work in every algorithm.
    """
    found: dict[str, tuple[dict[str, float], list[tuple[int, float]]]] = {}
    for arm in arms:
        runs = [run for run in arm.runs if run.status == "complete" and run.cost.get("samples") and _phases(run)]
        if not runs:
            continue
        each = [{k: 1000 * s / run.cost["samples"] for k, s in _phases(run).items()} for run in runs]
        mean = {phase: sum(one.get(phase, 0.0) for one in each) / len(each) for phase in PHASES}
        found[arm.label] = (mean, [(run.seed, sum(one.values())) for run, one in zip(runs, each, strict=True)])
    return found
