"""Values of a measure in the rows that a claim names, paired by seed, of runs that may be compared at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from grpo_bench.records import Run
from grpo_bench.row_names import BEFORE_RL
from grpo_bench.table.arms import Arm
from grpo_bench.table.compare import Comparison
from grpo_bench.table.measures import MEASURES, Measure, Reading
from grpo_bench.table.pairs import facts, refusal
from grpo_bench.table.places import resolved

OF_THE_MODEL = ("model", "initial weights", "warm start", "warm-start settings", "compute precision")


@dataclass(frozen=True)
class Values:
    """A measure's values in the rows of a claim: (rows, seeds) of the seeds that every row has; ``lacking`` says why
    there are none."""

    labels: list[str]
    seeds: list[int] = field(default_factory=list)
    rows: list[list[float]] = field(default_factory=list)
    lacking: str = ""
    refused: bool = False


def collect(c: Comparison, reading: Reading, names: Sequence[str], measure: str) -> Values:
    """Values of ``measure`` in the rows ``names`` (a row, an arm, one of ``row_names``), paired by seed.

    Runs that may not be compared as a pair are refused. Costs depend on no test, but on the budget, the model and the
    prompts, and seconds and bytes on the machine and what else runs on it; parameters on nothing of a run.
    """
    names, unknown = resolved(c.arms, names)
    if unknown:
        return Values(list(names), lacking=unknown)
    arms: dict[str, Arm] = {}
    for name in names:
        if name in BEFORE_RL:
            continue
        called = named(c, name)
        if len(called) != 1:
            lacking = f"no run of {name}" if not called else f"{name} names {len(called)} rows"
            return Values(list(names), lacking=lacking)
        arms[name] = called[0]
    if not arms:
        return Values(list(names), lacking="no row of this study is named")
    reading = reading.of(list(arms.values()))
    runs = {name: {run.seed: run for run in arm.scored} for name, arm in arms.items()}
    shared = sorted(set.intersection(*(set(by_seed) for by_seed in runs.values())))
    across = _across(names, list(arms.values()))
    why = None if measure == "parameters" else _refused(list(runs.values()), shared, across, MEASURES[measure])
    if why:
        return Values(list(names), lacking=why, refused=True)
    first = next(iter(runs.values()))
    table: dict[int, list[float | None]] = {
        seed: [
            reading.before(measure, BEFORE_RL[name], first[seed])
            if name in BEFORE_RL
            else reading.value(measure, runs[name][seed])
            for name in names
        ]
        for seed in shared
    }
    complete = {seed: [v for v in row if v is not None] for seed, row in table.items() if None not in row}
    if not complete:
        empty = [name for i, name in enumerate(names) if all(row[i] is None for row in table.values())]
        lacking = "no seed with finished runs of all rows" if not shared else "not recorded"
        return Values(list(names), lacking=lacking + (f" for {', '.join(empty)}" if shared and empty else ""))
    return Values(list(names), list(complete), [list(row) for row in zip(*complete.values(), strict=True)])


def collect_pairs(c: Comparison, reading: Reading, rows: Sequence[str], than: Sequence[str], measure: str) -> Values:
    """Values of two pairs, the four rows of a difference between differences, of the seeds that all four have.

    Each pair must be comparable in itself, and what its runs have in common is its own; from one pair to the other
    task, model and budget may differ, since that is what is asked.
    """
    pairs = [collect(c, reading, names, measure) for names in (rows, than)]
    labels = [label for pair in pairs for label in pair.labels]
    if any(pair.lacking for pair in pairs):
        why = [f"{' against '.join(pair.labels)}: " * pair.refused + pair.lacking for pair in pairs if pair.lacking]
        return Values(labels, lacking="; ".join(dict.fromkeys(why)), refused=any(pair.refused for pair in pairs))
    shared = sorted(set(pairs[0].seeds) & set(pairs[1].seeds))
    if not shared:
        return Values(labels, lacking="no seed with finished runs of all rows")
    places = [[pair.seeds.index(seed) for seed in shared] for pair in pairs]
    kept = [[row[i] for i in at] for pair, at in zip(pairs, places, strict=True) for row in pair.rows]
    return Values(labels, shared, kept)


def named(c: Comparison, name: str) -> list[Arm]:
    return [arm for arm in c.arms if name in (arm.label, arm.row)] or [arm for arm in c.arms if arm.called(name)]


def _across(names: Sequence[str], arms: Sequence[Arm]) -> bool:
    """The claim itself is about models ("the larger, the higher"): its rows name one each, and not the same."""
    return len({arm.model for arm in arms}) > 1 and all(" model=" in name or name in BEFORE_RL for name in names)


def _refused(
    rows: Sequence[Mapping[int, Run]], seeds: Sequence[int], across_models: bool, measure: Measure
) -> str | None:
    """Each row of a claim against its first; where models are what is compared, that they differ is no reason. A
    measure of the final test compares its problems one by one."""
    reasons: dict[str, None] = {}
    for other in rows[1:]:
        for seed in seeds:
            a, b = rows[0][seed], other[seed]
            if not across_models and measure.kind == "accuracy":
                reasons |= {why: None} if (why := refusal(a, b)) is not None else {}
                continue
            first, second = _decisive(a, measure), _decisive(b, measure)
            differ = [k for k, v in first.items() if None not in (v, second[k]) and v != second[k]]
            reasons |= {f"{name} differs": None for name in differ if not (across_models and name in OF_THE_MODEL)}
    return "; ".join(reasons) or None


def _decisive(run: Run, measure: Measure) -> dict[str, str | None]:
    """What must be equal in both runs of a pair: for a cost what decides it, for others all that makes a pair."""
    every = facts(run)
    if measure.kind != "cost":
        return every
    kept = {name: every[name] for name in (*OF_THE_MODEL, "budget", "prompt stream")}
    if measure.unit not in ("s", "bytes") or measure is MEASURES["model_states"]:
        return kept  # tensors are as large on every machine
    device = run.provenance.get("device") or {}
    where: dict[str, Any] = {"processor": run.provenance.get("cpu"), "accelerators": device.get("gpus")}
    where |= {"number of threads": device.get("torch_threads"), "number of jobs at once": run.config.get("parallel")}
    return kept | {name: None if value is None else str(value) for name, value in where.items()}
