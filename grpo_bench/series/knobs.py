"""Studies of one knob: rows alike but for their group size, or but for their KL coefficient."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grpo_bench.records import Run
from grpo_bench.stats import Interval
from grpo_bench.table.arms import Arm
from grpo_bench.table.groups import estimates

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
    "grad_noise_every",
    "measure_kl",
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
    """Families over G, and the share of groups without signal that success rates before RL imply: p^G + (1 − p)^G
    averaged over ``problems`` training problems, {"before RL": {G: share}}; {} where they were not measured."""

    families: list[Family]
    predicted: dict[str, dict[int, float]]
    problems: int = 0


def group_sizes(arms: Sequence[Arm]) -> GroupSizes | None:
    """Rows that differ in their group size alone: three values or more, else None. They are a family at equal
    completions a step, or at equal prompts; a row may stand in one of each.

    What success rates imply is read from the study's ``advantage_error.json`` (``python -m grpo_bench.advantage_error``
    writes it); UserError where that is damaged. Measured are the shares of groups without signal at the first step,
    where the policy still is the model before RL (``first``), and over the last fifth of the steps (``last``).
    """
    families = [
        Family(name, [_point(arm, "group_size", _signal) for arm in members])
        for name, members in _families(arms, "group_size", _WITH_GROUPS)
    ]
    if not families:
        return None
    found = estimates(next(run.directory.parent for arm in arms for run in arm.scored)) or {"groups": []}
    sizes = {int(point.value) for family in families for point in family.points}
    shares = {
        entry["group_size"]: share
        for entry in found["groups"]
        if entry["group_size"] in sizes
        and (share := (entry.get("zero_signal_expected") or {}).get("formula")) is not None
    }
    return GroupSizes(families, {"before RL": shares} if shares else {}, found.get("problems") or 0)


def kl_frontier(arms: Sequence[Arm]) -> list[Family]:
    """Rows that differ in ``kl_coef`` alone: three values or more, else none.

    Measured over the last fifth of the steps: ``kl`` to the reference (k3, nats per token) and ``entropy`` (nats per
    token); without a reference in memory there is no KL to measure.
    """
    return [
        Family(name, [_point(arm, "kl_coef", _drift) for arm in members])
        for name, members in _families(arms, "kl_coef", _WITH_KL)
    ]


def _families(arms: Sequence[Arm], knob: str, free: Sequence[str]) -> list[tuple[str, list[Arm]]]:
    groups: dict[str, list[Arm]] = {}
    for arm in arms:
        if arm.accuracy and isinstance(arm.config.get(knob), int | float):
            groups.setdefault(_rest(arm.config, free), []).append(arm)
    found = []
    for members in groups.values():
        modes: dict[str, list[Arm]] = {}
        for arm in members:
            for mode in _held(arm.config) if knob == "group_size" else [""]:
                modes.setdefault(mode, []).append(arm)
        for mode, same in modes.items():
            if len({arm.config[knob] for arm in same}) >= ENOUGH:
                name = f"{same[0].algo}, {mode}" if mode else same[0].algo
                found.append((name, sorted(same, key=lambda arm: arm.config[knob])))
    return found


def _rest(config: dict[str, Any], free: Sequence[str]) -> str:
    return json.dumps({k: v for k, v in config.items() if k not in (*free, *_NAMES)}, sort_keys=True, default=str)


def _held(config: dict[str, Any]) -> list[str]:
    """What a row holds fixed beside others of another G: its completions, or its prompts, a step."""
    prompts, samples, size = (config.get(name) for name in ("prompts_per_step", "samples_per_step", "group_size"))
    if size is None or (prompts is None and samples is None):
        return [""]
    if prompts is None:
        assert samples is not None
        prompts = samples // size
    return [f"{prompts * size} samples a step", f"{prompts} prompts a step"]


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
