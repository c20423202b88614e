"""Studies of one knob: rows alike but for their group size, or but for their KL coefficient."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_bench.records import Run, read_jsonl
from grpo_bench.stats import Interval
from grpo_bench.table.arms import Arm

ENOUGH = 3  # values of a knob; fewer are a comparison, not a curve
LAST = 5  # the end of a run is its last fifth of steps

_NAMES = (
    "arm",
    "row",
    "seed",
    "study",
    "experiment",
    "tracker",
    "results",
    "threads",
    "parallel",
    "micro_batch_tokens",
)
# what must move with a group's size (whole groups per step and minibatch) or is tuned for it
_WITH_GROUPS = ("group_size", "samples_per_step", "prompts_per_step", "minibatches", "budget", "lr", "critic_lr")
_WITH_KL = ("kl_coef", "lr", "critic_lr")


@dataclass(frozen=True)
class Point:
    """One row at ``value`` of the knob: final accuracy, and per seed (seed, {what: value}) of what was measured."""

    label: str
    value: float
    accuracy: Interval
    seeds: list[tuple[int, dict[str, float]]]

    def mean(self, what: str) -> float | None:
        """Over seeds; None where one of them lacks it."""
        values = [measured.get(what) for _, measured in self.seeds]
        return sum(v for v in values if v is not None) / len(values) if values and None not in values else None


@dataclass(frozen=True)
class Family:
    """Rows alike but for the knob, by its ascending value."""

    name: str
    points: list[Point]


@dataclass(frozen=True)
class GroupSizes:
    """Families over G, and the share of groups without signal that a model's success rates imply, {G: share}."""

    families: list[Family]
    predicted: dict[str, dict[int, float]]  # "before RL", and a row's label for its trained models


def group_sizes(arms: Sequence[Arm]) -> GroupSizes | None:
    """Rows that differ in their group size alone: three values or more, else None.

    Measured are the shares of groups without signal at the first step, where the policy still is the model before RL
    (``first``), and over the last fifth of the steps (``last``).
    """
    families = [
        Family(name, [_point(arm, "group_size", _signal) for arm in members])
        for name, members in _families(arms, "group_size", _WITH_GROUPS)
    ]
    if not families:
        return None
    sizes = sorted({int(point.value) for family in families for point in family.points})
    predicted: dict[str, dict[int, float]] = {}
    if base := next((found for arm in arms for run in arm.scored if (found := _baseline(run)) is not None), None):
        predicted["before RL"] = expected_zero_signal(sampled_counts(base, ("test",)), sizes)
    return GroupSizes(families, {name: shares for name, shares in predicted.items() if shares})


def kl_frontier(arms: Sequence[Arm]) -> list[Family]:
    """Rows that differ in ``kl_coef`` alone: three values or more, else none.

    Measured over the last fifth of the steps: ``kl`` to the reference (k3, nats per token) and ``entropy`` (nats per
    token); without a reference in memory there is no KL to measure.
    """
    return [
        Family(name, [_point(arm, "kl_coef", _drift) for arm in members])
        for name, members in _families(arms, "kl_coef", _WITH_KL)
    ]


def expected_zero_signal(counts: Mapping[str, tuple[int, int]], sizes: Sequence[int]) -> dict[int, float]:
    """{G: mean over problems of p^G + (1 − p)^G}, from (right, answers) of each problem.

    Unbiased for every G up to the number of answers, by (C(c,G) + C(n−c,G)) / C(n,G), the estimator of pass@k
    (Chen et al. 2021, arXiv:2107.03374); a larger G is left out, since the plug-in p̂ = c/n would overstate it.
    """
    if not counts:
        return {}
    fewest = min(n for _, n in counts.values())
    return {
        size: sum(
            (math.comb(right, size) + math.comb(n - right, size)) / math.comb(n, size) for right, n in counts.values()
        )
        / len(counts)
        for size in sizes
        if 1 < size <= fewest
    }


def sampled_counts(directory: Path, splits: Sequence[str]) -> dict[str, tuple[int, int]]:
    """(right, answers) of the sampled answers by problem, from the last evaluation in ``directory``."""
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    last = -1
    for row in read_jsonl(directory / "eval.jsonl", ('"sampled"',)):
        if row.get("mode") != "sampled" or row.get("split") not in splits or row["step"] < last:
            continue
        if row["step"] > last:
            right.clear()
            total.clear()
            last = row["step"]
        right[row["id"]] += bool(row["correct"])
        total[row["id"]] += 1
    return {key: (right[key], n) for key, n in total.items()}


def _families(arms: Sequence[Arm], knob: str, free: Sequence[str]) -> list[tuple[str, list[Arm]]]:
    groups: dict[str, list[Arm]] = {}
    for arm in arms:
        if arm.accuracy and isinstance(arm.config.get(knob), int | float):
            groups.setdefault(_rest(arm.config, free), []).append(arm)
    found = []
    for members in groups.values():
        modes: dict[str, list[Arm]] = {}
        for arm in members:
            modes.setdefault(_held(arm.config) if knob == "group_size" else "", []).append(arm)
        for mode, same in modes.items():
            if len({arm.config[knob] for arm in same}) >= ENOUGH:
                name = f"{same[0].algo}, {mode}" if mode else same[0].algo
                found.append((name, sorted(same, key=lambda arm: arm.config[knob])))
    return found


def _rest(config: dict[str, Any], free: Sequence[str]) -> str:
    return json.dumps({k: v for k, v in config.items() if k not in (*free, *_NAMES)}, sort_keys=True, default=str)


def _held(config: dict[str, Any]) -> str:
    return "fixed prompts a step" if config.get("prompts_per_step") else "fixed samples a step"


def _point(arm: Arm, knob: str, measure: Any) -> Point:
    seeds = [(run.seed, {"acc": float(run.final["greedy"]["acc"])} | measure(run)) for run in arm.scored]
    return Point(arm.label, float(arm.config[knob]), arm.accuracy["acc"].interval, seeds)


def _signal(run: Run) -> dict[str, float]:
    values = _values(run, "group/frac_zero_std")
    if not values:
        return {}
    return {"first": values[0], "last": _end(values)}


def _drift(run: Run) -> dict[str, float]:
    found = {"kl": _values(run, "kl/ref_k3_token"), "entropy": _values(run, "rollout/entropy")}
    return {name: _end(values) for name, values in found.items() if values}


def _values(run: Run, key: str) -> list[float]:
    return [float(row[key]) for row in run.metrics if isinstance(row.get(key), int | float)]


def _end(values: list[float]) -> float:
    part = values[-max(len(values) // LAST, 1) :]
    return sum(part) / len(part)


def _baseline(run: Run) -> Path | None:
    name = ((run.result or {}).get("baselines") or {}).get("base")
    return run.directory.parent / "baselines" / name if name else None
