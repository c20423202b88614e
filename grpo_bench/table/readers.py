"""How a number is read from a run's record: the functions that measures are made of, each a reader or giving one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from grpo_bench.records import Run, training_seconds
from grpo_bench.table.arms import before_rl, mean_of
from grpo_bench.table.curves import DEV, area, area_to, value_at

if TYPE_CHECKING:
    from grpo_bench.table.measures import Reading

    Reader = Callable[[Reading, Run], float | None]


def final(mode: str, key: str) -> Reader:
    return lambda _, run: number((run.final.get(mode) or {}).get(key))


def evaluated(mode: str, key: str) -> Callable[[dict[str, Any]], float | None]:
    return lambda evals: number((evals.get(mode) or {}).get(key))


def gain(key: str) -> Reader:
    def read(_: Reading, run: Run) -> float | None:
        after = number((run.final.get("greedy") or {}).get(key))
        before = number((before_rl(run, "base").get("greedy") or {}).get(key))
        return None if after is None or before is None else after - before

    return read


def format_gain(reading: Reading, run: Run) -> float | None:
    strict, flexible = gain("acc_strict")(reading, run), gain("acc_flexible")(reading, run)
    return None if strict is None or flexible is None else strict - flexible


def stability(key: str) -> Reader:
    return lambda _, run: number(run.stability.get(key))


def whole(read: Reader) -> Reader:
    """Of a whole run: what one spent until it diverged and was stopped is no price of a training."""
    return lambda reading, run: None if run.status == "diverged" else read(reading, run)


def cost(key: str) -> Reader:
    """What a run took, at whatever length; see ``whole``."""
    return lambda _, run: number(run.cost.get(key))


def mean(key: str, first: int | None = None) -> Reader:
    """Mean of a metric over the steps that have it, or over the first few of them."""

    def read(_: Reading, run: Run) -> float | None:
        values = [row.get(key) for row in run.metrics if row.get(key) is not None]
        return mean_of(values[:first], skip=True)

    return read


def last(key: str) -> Reader:
    return lambda _, run: next((v for row in reversed(run.metrics) if (v := number(row.get(key))) is not None), None)


def end(key: str) -> Reader:
    """Mean over the last fifth of the steps: one step is noisy."""

    def read(_: Reading, run: Run) -> float | None:
        values = [v for row in run.metrics if (v := number(row.get(key))) is not None]
        part = values[-max(len(values) // 5, 1) :]
        return sum(part) / len(part) if part else None

    return read


def largest(key: str) -> Reader:
    return lambda _, run: max((v for row in run.metrics if (v := number(row.get(key))) is not None), default=None)


def zero_signal(reading: Reading, run: Run) -> float | None:
    """A group of one has no spread by definition, which says nothing."""
    return None if run.config.get("group_size") == 1 else mean("group/frac_zero_std")(reading, run)


def squared(read: Reader) -> Reader:
    return lambda reading, run: None if (value := read(reading, run)) is None else value**2


def gap(evals: dict[str, Any]) -> float | None:
    greedy = evals.get("greedy") or {}
    wrong, right = number(greedy.get("len_wrong")), number(greedy.get("len_correct"))
    return None if wrong is None or right is None else wrong - right


def trained_seconds(_: Reading, run: Run) -> float | None:
    return training_seconds(run)


def curve_area(key: str) -> Reader:
    return lambda reading, run: area(run, key, reading.whole_end(run, key))


def common_area(key: str, axis: str) -> Reader:
    """Over what all runs that are compared have of ``axis``, so that none is ahead for having gone on longer."""

    def read(reading: Reading, run: Run) -> float | None:
        place = reading.common_end(key, axis)
        return None if place is None else area_to(run, key, axis, place)

    return read


def per(read: Reader, counter: str) -> Reader:
    def ratio(reading: Reading, run: Run) -> float | None:
        above, below = read(reading, run), number(run.cost.get(counter))
        return None if above is None or not below else above / below

    return ratio


def phase(phase: str) -> Reader:
    return lambda _, run: number((run.cost.get("seconds") or {}).get(phase))


def model_states(_: Reading, run: Run) -> float | None:
    """Bytes of all kinds; records older than them have none."""
    held = run.cost.get("memory")
    return float(sum(held.values())) if held else None


def trained_parameters(_: Reading, run: Run) -> float | None:
    found = run.cost.get("parameters") or {}
    return None if found.get("policy") is None else float(found["policy"] + (found.get("critic") or 0))


def to_target(axis: str) -> Reader:
    """A run that never gets there stands at its whole length: a lower bound, which makes differences smaller."""

    def read(reading: Reading, run: Run) -> float | None:
        met = reading.reached(run, axis)
        return None if met is None else met.until if met.at is None else met.at

    return read


def first_third(reading: Reading, run: Run) -> float | None:
    """Share of the dev gain that is there after a third of the samples; None where there is hardly a gain."""
    start, third, end = (value_at(run, DEV, share, reading.whole_end(run, DEV)) for share in (0.0, 1 / 3, 1.0))
    if start is None or third is None or end is None or end - start < 0.02:
        return None
    return (third - start) / (end - start)


def drift(_: Reading, run: Run) -> float | None:
    """Mean length over the last fifth of the steps minus that over the first fifth."""
    lengths = [v for row in run.metrics if (v := number(row.get("completions/len_mean"))) is not None]
    part = max(len(lengths) // 5, 1)
    return sum(lengths[-part:]) / part - sum(lengths[:part]) / part if len(lengths) >= 2 else None


def number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
