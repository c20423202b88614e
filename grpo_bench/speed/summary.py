"""From measurements to the numbers of a table: medians, ranges, ratios, fractions of floors. Reads no clock."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from grpo_bench.speed.child import PHASES
from grpo_bench.speed.floors import Shape, decode_seconds, prefill_seconds, step_flops, training_flops
from grpo_bench.speed.theory import ratio_as_run, ratio_of
from grpo_bench.types import UserError

Row = dict[str, Any]
MEASUREMENTS, CURVES = "measurements.jsonl", "curves.jsonl"
CRITICS = {"ppo": "separate", "ppo-shared": "shared", "trl-ppo": "separate"}


@dataclass(frozen=True, slots=True)
class Spread:
    """A median with the lowest and highest of ``n`` values."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """ValueError when there are none."""
        found = list(values)
        return cls(median(found), min(found), max(found), len(found))


def read(path: Path) -> list[Row]:
    """The rows of a jsonl file; UserError when it is missing or damaged."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    except OSError as e:
        raise UserError(f"{path} cannot be read ({e.strerror}); measure first: python -m grpo_bench.speed") from None
    except json.JSONDecodeError:
        raise UserError(f"{path} is damaged: a line in it is no JSON; measure again") from None


def ratio(slow: Sequence[float], fast: Sequence[float]) -> Spread:
    """How many times ``slow`` is of ``fast``: of their medians, and the range over repetitions taken in pairs."""
    pairs = [a / b for a, b in zip(slow, fast, strict=False)]
    return Spread(median(slow) / median(fast), min(pairs), max(pairs), len(pairs))


def summarise(rows: list[Row], curves: list[Row]) -> dict[str, Any]:
    """The content of speed.json but for its heading: plain data."""
    machine = _machine([row for row in rows if row["kind"] == "machine"])
    visits: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["kind"] == "visit":
            visits.setdefault((row["contender"], row["dtype"]), []).append(row)
    shapes = {(name, dtype): Shape.read(v[0]["shape"]) for (name, dtype), v in visits.items() if "shape" in v[0]}
    lines = [_line(name, dtype, v, _shape_for(shapes, name, dtype), machine) for (name, dtype), v in visits.items()]
    return {
        "machine": machine,
        "contenders": lines,
        "against_peers": [c for key in visits if (c := _against(key, visits))],
        "floors": [
            _floors(dtype, v, shapes["native", dtype], machine)
            for (name, dtype), v in visits.items()
            if name == "native" and machine
        ],
        "ppo_to_grpo": [
            _critic(name, dtype, visits, shapes["native", dtype])
            for name, dtype in visits
            if name in ("ppo", "ppo-shared") and ("native", dtype) in visits
        ],
        "curves": _curves(curves),
        "left_out": [{k: row[k] for k in ("contender", "dtype", "reason")} for row in rows if row["kind"] == "failed"],
    }


def _machine(rows: list[Row]) -> dict[str, Any]:
    """The best rates that any repetition measured: the floor is what the machine can do, not what it did on average."""
    if not rows:
        return {}
    return {
        "device": rows[0]["device"],
        "bandwidth": max(row["bandwidth"] for row in rows),
        "rates": {dtype: max(row["rates"][dtype] for row in rows) for dtype in rows[0]["rates"]},
    }


def _shape_for(shapes: dict[tuple[str, str], Shape], name: str, dtype: str) -> Shape | None:
    """A contender's own shape, or that of any other on the same prompts: the work is the same."""
    own = shapes.get((name, dtype))
    return own or next((shape for (_, other), shape in shapes.items() if other == dtype), None)


def _steps(visits: list[Row]) -> list[Row]:
    return [step for visit in visits for step in visit["steps"]]


def _per_visit(visits: list[Row]) -> list[float]:
    return [median(step["seconds"] for step in visit["steps"]) for visit in visits]


def _memory(visits: list[Row]) -> list[float]:
    return [float(visit["peak_bytes"] - visit["idle_bytes"]) for visit in visits]


def _line(name: str, dtype: str, visits: list[Row], shape: Shape | None, machine: dict[str, Any]) -> dict[str, Any]:
    steps = _steps(visits)
    out: dict[str, Any] = {
        "contender": name,
        "dtype": dtype,
        "states": visits[0]["states"],
        "processes": len(visits),
        "seconds": asdict(Spread.of(step["seconds"] for step in steps)),
        "phases": {phase: median(step["phases"][phase] for step in steps) for phase in PHASES},
        "samples_per_s": asdict(Spread.of(step["samples"] / step["seconds"] for step in steps)),
        "tokens_per_s": asdict(
            Spread.of(step["tokens"] / (step["phases"]["rollout"] or step["seconds"]) for step in steps)
        ),
        "memory_above_idle": asdict(Spread.of(_memory(visits))),
        "idle_bytes": visits[0]["idle_bytes"],
        "prompt_tokens": sum(steps[0].get("prompt_lengths", [])),
    }
    rate = machine.get("rates", {}).get(dtype)
    if shape is not None and rate and not name.startswith("decode-"):
        flops = step_flops(shape, CRITICS.get(name, "none"))
        out |= {"model_flops": flops, "mfu": flops / (out["seconds"]["median"] * rate)}
    return out


def _against(key: tuple[str, str], visits: dict[tuple[str, str], list[Row]]) -> dict[str, Any] | None:
    """A peer beside this project's contender that does the same work, in the same precision."""
    name, dtype = key
    if not name.startswith(("trl", "hf")) and name not in ("decode-hf", "decode-continuous"):
        return None
    own = "ppo" if name.startswith("trl-ppo") else "decode-native" if name.startswith("decode-") else "native"
    if (own, dtype) not in visits:
        return None
    peer, ours = visits[key], visits[own, dtype]
    return {
        "contender": own,
        "peer": name,
        "dtype": dtype,
        "times_faster": asdict(ratio(_per_visit(peer), _per_visit(ours))),
        # where they take steps in turns, each two stand next to each other: what slows the machine slows both
        "times_faster_by_pairs": asdict(Spread.of(a["seconds"] / b["seconds"] for a, b in _pairs(peer, ours))),
        "memory_share": asdict(ratio(_memory(ours), _memory(peer))),
        "times_faster_rollout": median(s["phases"]["rollout"] for s in _steps(peer))
        / median(s["phases"]["rollout"] for s in _steps(ours)),
    }


def _pairs(a: list[Row], b: list[Row]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The n-th steps of the n-th visits beside each other."""
    return [pair for one, other in zip(a, b, strict=False) for pair in zip(one["steps"], other["steps"], strict=False)]


def _floors(dtype: str, visits: list[Row], shape: Shape, machine: dict[str, Any]) -> dict[str, Any]:
    """The native engine's rollout and training beside the hardware's floor and beside the matrix products alone."""
    bandwidth, rate = machine["bandwidth"], machine["rates"][dtype]
    steps, measured = _steps(visits), [visit["floors"] for visit in visits]
    if not all("rounds" in m for m in measured):
        raise UserError("these floors were measured by an earlier version, another way; measure again")
    rounds = [one for m in measured for one in m["rounds"]]
    prefill = median(one["prefill_s"] for one in rounds)
    rollout = median(step["phases"]["rollout"] for step in steps)
    training = median(step["phases"]["score"] + step["phases"]["update"] for step in steps)
    before, least = prefill_seconds(shape, rate), training_flops(shape) / rate
    floor = before + decode_seconds(shape, dtype, bandwidth, rate)

    def products(kind: str, whole: str, median_s: float) -> dict[str, Any]:
        best = min(m[f"{kind}_best_s"] for m in measured)
        found = [one[f"{kind}_products_s"] / one[f"{whole}_s"] for one in rounds]
        return {
            "products_s": median(one[f"{kind}_products_s"] for one in rounds),
            "fraction_of_products": asdict(Spread.of(found)),
            "best_s": best,
            "fraction_of_best": best / median_s,
        }

    return {
        "dtype": dtype,
        "rollout": {
            "seconds": rollout,
            "floor_s": floor,
            "fraction": floor / rollout,
            **products("decode", "rollout", rollout),
        },
        "prefill": {"seconds": prefill, "floor_s": before},
        "training": {
            "seconds": training,
            "floor_s": least,
            "fraction": least / training,
            **products("training", "training", training),
        },
    }


def _critic(name: str, dtype: str, visits: dict[tuple[str, str], list[Row]], shape: Shape) -> dict[str, Any]:
    """PPO's step beside GRPO's, and the FLOPs beside each other."""
    shared = name == "ppo-shared"
    measured = ratio(_per_visit(visits[name, dtype]), _per_visit(visits["native", dtype]))
    dense, run = ratio_of(shape.size, shared=shared), ratio_as_run(shape, shared=shared)
    return {
        "critic": "shared" if shared else "separate",
        "dtype": dtype,
        "measured": asdict(measured),
        "theory": dense,
        "theory_as_run": run,
        "quotient": measured.median / dense,
        "quotient_as_run": measured.median / run,
    }


def _curves(rows: list[Row]) -> dict[str, list[dict[str, Any]]]:
    out: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["kind"] != "curve":
            continue
        places = out.setdefault(f"{row['curve']}, {row['model']}, {row['dtype']}", [])
        if not any(place["x"] == row["x"] for place in places):
            alike = [r for r in rows if r["kind"] == "curve" and _place(r) == _place(row)]
            places.append(
                {
                    **{k: row[k] for k in ("x", "prompts", "group_size", "prompt_tokens", "tokens")},
                    "seconds": asdict(Spread.of(r["seconds"] for r in alike)),
                    "phases": {p: median(r["phases"].get(p, 0.0) for r in alike) for p in PHASES},
                    "memory_above_idle": median(float(r["peak_bytes"] - r["idle_bytes"]) for r in alike),
                }
            )
    for places in out.values():
        for place in places:
            place["times_first"] = place["seconds"]["median"] / places[0]["seconds"]["median"]
    return out


def _place(row: Row) -> tuple[Any, ...]:
    return row["curve"], row["model"], row["dtype"], row["x"]
