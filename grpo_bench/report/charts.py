"""The pictures of a page as data: what grpo_bench.series reads from the records, in the shape that the page draws."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from grpo_bench.series.curves import AXES, MORE, PANELS, Curve, Panel, SeedCurve, learning_curves
from grpo_bench.series.knobs import Family, group_sizes, kl_frontier
from grpo_bench.series.pass_at_k import pass_curves
from grpo_bench.series.spending import COSTS, PHASES, phase_seconds, spent
from grpo_bench.stats import Interval
from grpo_bench.table.arms import Arm
from grpo_bench.table.compare import Comparison

DIGITS = 5  # significant ones that a picture keeps
SHOWN = 6  # rows in colour at first, in a study with more than twice as many


def charts(c: Comparison) -> dict[str, Any]:
    """Everything the page's pictures are drawn from; rows are indices into ``rows``. Pictures without data are None."""
    rows = [arm.label for arm in c.arms]
    index = {label: i for i, label in enumerate(rows)}
    curves = learning_curves(c.arms, (*PANELS, *MORE))
    return {
        "study": c.study.name,
        "rows": rows,
        "shown": _shown(c, rows),
        "margin": 100 * c.margin,
        "accuracy": [_accuracy(arm, i) for i, arm in enumerate(c.arms) if arm.accuracy] or None,
        "references": [{"name": r.label} | _percent(r.accuracy["acc"].interval) for r in c.references],
        "differences": _differences(c) or None,
        "axes": AXES,
        "curves": [_panel(panel, found, index) for panel, found in curves.items()] or None,
        "costs": COSTS,
        "cost": _cost(c.arms, index) or None,
        "phaseNames": list(PHASES),
        "phases": _phases(c.arms, index) or None,
        "passes": _passes(c) or None,
        "groups": _groups(c.arms),
        "kl": [_family(family) for family in kl_frontier(c.arms)] or None,
    }


def _shown(c: Comparison, rows: Sequence[str]) -> list[int]:
    if len(rows) <= 2 * SHOWN:
        return list(range(len(rows)))
    first = [i for i, arm in enumerate(c.arms) if c.baseline and arm.called(c.baseline)]
    return sorted([*first, *[i for i in range(len(rows)) if i not in first][: SHOWN - len(first)]])


def _accuracy(arm: Arm, i: int) -> dict[str, Any]:
    estimate = arm.accuracy["acc"]
    seeds = [[run.seed, _round(100 * run.final["greedy"]["acc"])] for run in arm.scored]
    return {"row": i, "kind": estimate.kind, "seeds": seeds} | _percent(estimate.interval)


def _differences(c: Comparison) -> list[dict[str, Any]]:
    found = []
    for one in c.contrasts:
        if one.difference.refused or not one.difference.by:
            continue
        estimate = one.difference.by["acc"]
        each = zip(one.difference.seeds, one.difference.pairs, strict=True)
        seeds = [[seed, _round(100 * (a.means["acc"] - b.means["acc"]))] for seed, (a, b) in each]
        named = {"name": f"{one.first} − {one.second}", "verdict": one.verdict, "kind": estimate.kind, "seeds": seeds}
        found.append(named | _percent(estimate.interval))
    return found


def _panel(panel: Panel, found: dict[str, Curve], index: dict[str, int]) -> dict[str, Any]:
    scale = 100 if panel.percent else 1
    rows = [{"row": index[label]} | _curve(curve, scale) for label, curve in found.items()]
    return {"title": panel.title, "percent": panel.percent, "rare": panel.rare, "rows": rows}


def _curve(curve: Curve, scale: float) -> dict[str, Any]:
    shape = {"mean": curve.mean, "low": curve.low, "high": curve.high}
    return {
        "x": _axes(curve.x),
        **{name: _all(scale * values) for name, values in shape.items()},
        "band": curve.band,
        "seeds": [_seed(one, scale) for one in curve.seeds],
    }


def _seed(one: SeedCurve, scale: float) -> dict[str, Any]:
    return {"seed": one.seed, "x": _axes(one.x), "y": _all(scale * one.y), "diverged": one.diverged}


def _axes(x: dict[str, Any]) -> dict[str, list[float | None]]:
    return {axis: _all(places) for axis, places in x.items() if not any(math.isnan(place) for place in places)}


def _cost(arms: Sequence[Arm], index: dict[str, int]) -> list[dict[str, Any]]:
    return [
        {
            "row": index[one.label],
            "mean": {cost: _round(value) for cost, value in one.mean.items()},
            "seeds": [
                {"seed": seed, "y": _round(100 * acc)} | {cost: _round(value) for cost, value in amounts.items()}
                for seed, acc, amounts in one.seeds
            ],
        }
        | _percent(one.accuracy)
        for one in spent(arms)
    ]


def _phases(arms: Sequence[Arm], index: dict[str, int]) -> list[dict[str, Any]]:
    return [
        {
            "row": index[label],
            "mean": _all(mean[phase] for phase in PHASES),
            "seeds": [[seed, _round(total)] for seed, total in seeds],
        }
        for label, (mean, seeds) in phase_seconds(arms).items()
    ]


def _passes(c: Comparison) -> list[dict[str, Any]]:
    index = {arm.label: i for i, arm in enumerate(c.arms)}
    return [
        {
            "row": index.get(one.label),
            "name": one.label,
            "ks": one.ks,
            "mean": _all(100 * p for p in one.mean),
            "low": _all(100 * e.low if e else math.nan for e in one.intervals),
            "high": _all(100 * e.high if e else math.nan for e in one.intervals),
            "seeds": [[seed, _all(100 * p for p in passes)] for seed, passes in one.seeds],
        }
        for one in pass_curves(c.arms, c.references)
    ]


def _groups(arms: Sequence[Arm]) -> dict[str, Any] | None:
    found = group_sizes(arms)
    if found is None:
        return None
    expected = [
        {"name": name, "x": list(shares), "y": _all(100 * share for share in shares.values())}
        for name, shares in found.predicted.items()
    ]
    return {"families": [_family(family) for family in found.families], "expected": expected}


def _family(family: Family) -> dict[str, Any]:
    points = []
    for point in family.points:
        measured = sorted({what for _, values in point.seeds for what in values} - {"acc"})
        seeds = [
            {"seed": seed, "y": _round(100 * values["acc"])} | {what: _round(values[what]) for what in values}
            for seed, values in point.seeds
        ]
        means = {what: mean for what in measured if (mean := point.mean(what)) is not None}
        shown = {"label": point.label, "value": point.value, "seeds": seeds}
        shown["mean"] = {what: _round(mean) for what, mean in means.items()}
        points.append(shown | _percent(point.accuracy))
    return {"name": family.name, "points": points}


def _percent(interval: Interval) -> dict[str, float | None]:
    return {
        "y" if name == "estimate" else name: _round(100 * getattr(interval, name))
        for name in ("estimate", "low", "high")
    }


def _all(values: Iterable[float]) -> list[float | None]:
    return [_round(float(value)) for value in values]


def _round(value: float) -> float | None:
    if not math.isfinite(value):
        return None
    return float(f"{value:.{DIGITS}g}")
