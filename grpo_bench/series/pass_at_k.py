"""pass@k of the sampled answers to the final test: one curve a row, over the k that were asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grpo_bench.stats import Interval, mean_t_interval
from grpo_bench.table.arms import Arm
from grpo_bench.table.compare import Reference

SEEDS_FOR_T = 3  # below, Student's interval over seeds says nothing


@dataclass(frozen=True)
class PassCurve:
    """``ks`` ascending; ``mean`` over seeds with its t-interval where there are 3 or more; ``seeds[i]`` one run's."""

    label: str
    ks: list[int]
    mean: list[float]
    intervals: list[Interval | None]
    seeds: list[tuple[int, list[float]]]


def pass_curves(arms: Sequence[Arm], references: Sequence[Reference] = ()) -> list[PassCurve]:
    """The models before RL first, then the rows; those without at least two k are left out."""
    curves = []
    for reference in references:
        found = {int(key.split("@")[1]): value for key, value in reference.evals.items() if "sampled/pass@" in key}
        ks = sorted(k for k, value in found.items() if value is not None)
        if len(ks) > 1:
            curves.append(PassCurve(reference.label, ks, [float(found[k] or 0) for k in ks], [None] * len(ks), []))
    for arm in arms:
        runs = [(run.seed, _passes(run.final.get("sampled") or {})) for run in arm.scored]
        runs = [(seed, passes) for seed, passes in runs if passes]
        if not runs:
            continue
        ks = sorted(set.intersection(*(set(passes) for _, passes in runs)))
        if len(ks) < 2:
            continue
        values = {k: [passes[k] for _, passes in runs] for k in ks}
        mean = [sum(values[k]) / len(runs) for k in ks]
        intervals = [mean_t_interval(values[k]) if len(runs) >= SEEDS_FOR_T else None for k in ks]
        seeds = [(seed, [passes[k] for k in ks]) for seed, passes in runs]
        curves.append(PassCurve(arm.label, ks, mean, intervals, seeds))
    return curves


def _passes(sampled: dict[str, Any]) -> dict[int, float]:
    kept = {key: value for key, value in sampled.items() if key.startswith("pass@") and value is not None}
    return {int(key.removeprefix("pass@")): float(value) for key, value in kept.items()}
