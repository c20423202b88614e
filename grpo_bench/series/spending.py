"""What accuracy cost: each row's final accuracy beside samples, tokens, seconds and FLOPs, and its seconds by phase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grpo_bench.records import Run
from grpo_bench.stats import Interval
from grpo_bench.table.arms import Arm

COSTS = {
    "seconds": "seconds, evaluations left out",
    "samples": "training samples",
    "tokens": "tokens generated",
    "flops": "FLOPs, by theory",
}
PHASES = ("rollout", "reward", "score", "update")  # what trains; evaluation is not charged


@dataclass(frozen=True)
class Spent:
    """A row's final accuracy with its interval; per seed (seed, accuracy, {cost: amount}); ``mean`` over seeds."""

    label: str
    accuracy: Interval
    seeds: list[tuple[int, float, dict[str, float]]]
    mean: dict[str, float]


def spent(arms: Sequence[Arm]) -> list[Spent]:
    """Rows with a final accuracy, in the study's order; a cost that any seed lacks is left out of ``mean``."""
    rows = []
    for arm in arms:
        if not arm.accuracy:
            continue
        seeds = [(run.seed, float(run.final["greedy"]["acc"]), _amounts(run)) for run in arm.scored]
        known = [key for key in COSTS if all(key in amounts for _, _, amounts in seeds)]
        mean = {key: sum(amounts[key] for _, _, amounts in seeds) / len(seeds) for key in known}
        rows.append(Spent(arm.label, arm.accuracy["acc"].interval, seeds, mean))
    return rows


def _amounts(run: Run) -> dict[str, float]:
    cost = run.cost
    amounts: dict[str, Any] = {"samples": cost.get("samples"), "tokens": cost.get("generated_tokens")}
    amounts |= {"flops": cost.get("flops"), "seconds": seconds_of(run)}
    return {key: float(value) for key, value in amounts.items() if isinstance(value, int | float)}


def seconds_of(run: Run) -> float | None:
    """Seconds of training, evaluation left out; None where none were recorded."""
    seconds = _phases(run)
    return sum(seconds.values()) if seconds else None


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
