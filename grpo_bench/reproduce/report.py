"""What a reproduction found, as text and as data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from grpo_bench.reproduce.check import Difference
from grpo_bench.reproduce.compare import ACCURACY, CLOCKS, LEVEL, Cell, Figure, Row, Word

SHOWN = 6  # figures of a cell that are off and written out


def differences(found: Sequence[Difference]) -> str:
    """One line each, those that can change results first."""
    if not found:
        return "nothing differs from what was recorded: machine, versions, commit, data and model are the same\n"
    ordered = sorted(found, key=lambda one: not one.changes)
    return "".join(f"- {one}\n" for one in ordered)


def cells(found: Sequence[Cell], rows: Sequence[Row]) -> str:
    """The verdicts as a Markdown table, the rows' means below their cells, and what is off in words."""
    out = ["| row | seed | accuracy % recorded | new | expected within | figures | verdict |"]
    out.append("| :--- | ---: | ---: | ---: | :--- | :--- | :--- |")
    of = {row.row: row for row in rows}
    names = list(dict.fromkeys(cell.run.row for cell in found))
    for name in names:
        members = [cell for cell in found if cell.run.row == name]
        for cell in members:
            figure = cell.accuracy
            numbers = _numbers(figure) if figure else ("–", "–", "–")
            out.append(f"| {name} | {cell.run.seed} | {' | '.join(numbers)} | {_count(cell)} | {_word(cell.word)} |")
        if (row := of.get(name)) is not None and row.recorded_seeds > 1:
            seeds = f"mean of {row.seeds}"
            out.append(f"| {name} | {seeds} | {' | '.join(_numbers(row.mean))} |  | {_word(row.mean.word)} |")
    out += ["", *_reasons(found)]
    if any(cell.word in ("within", "off") for cell in found):
        out.append(
            f"- expected within: where one more run of the row (or the mean of as many more as were made) lies in "
            f"{100 * LEVEL:.0f} of 100 cases, by Student's t over its recorded seeds; with one seed, as far as flipped "
            f"answers alone reach. The other figures share one error of {100 * (1 - LEVEL):.0f} % per cell."
        )
    return "\n".join(out) + "\n"


def verdict(found: Sequence[Cell]) -> str:
    """The last line: how many of each."""
    counts = {word: sum(cell.word == word for cell in found) for word in get_args(Word)}
    parts = [f"{count} {_word(word)}" for word, count in counts.items() if count]
    return f"{len(found)} cell{'s' * (len(found) != 1)}: {', '.join(parts)}"


def as_json(checks: Sequence[Difference], found: Sequence[Cell], rows: Sequence[Row]) -> dict[str, Any]:
    """Everything, for programs."""

    def figure(one: Figure) -> dict[str, Any]:
        interval = None if one.low is None else [one.low, one.high]
        return {"recorded": one.recorded, "new": one.new, "interval": interval, "verdict": one.word}

    return {
        "differences": [
            {"what": d.what, "recorded": d.recorded, "here": d.here, "changes_results": d.changes, "why": d.why}
            for d in checks
        ],
        "cells": [
            {
                "run_id": cell.run.run_id, "row": cell.run.row, "seed": cell.run.seed, "verdict": cell.word,
                "reason": cell.reason, "figures": {one.name: figure(one) for one in cell.figures},
            }
            for cell in found
        ],
        "rows": [
            {"row": row.row, "seeds": row.seeds, "recorded_seeds": row.recorded_seeds, **figure(row.mean)}
            for row in rows
        ],
    }  # fmt: skip


def _reasons(found: Sequence[Cell]) -> list[str]:
    lines = []
    for cell in found:
        where = f"{cell.run.row} seed {cell.run.seed}"
        if cell.word == "failed":
            lines.append(f"- {where} failed: {cell.reason}")
        if cell.word == "not judged":
            lines.append(f"- {where} is not judged: {cell.reason}")
        if cell.word != "off":
            continue
        lines.append(f"- {where} is off: {cell.reason}")
        off = [one for one in cell.figures if one.word == "off"]
        for one in off[:SHOWN]:
            inside = f", expected within {one.low:.6g} to {one.high:.6g}" if one.low is not None else ""
            lines.append(f"  - {one.name}: recorded {one.recorded:.6g}, new {one.new:.6g}{inside}")
        if len(off) > SHOWN:
            lines.append(f"  - and {len(off) - SHOWN} more")
    return lines


def _numbers(figure: Figure) -> tuple[str, str, str]:
    def points(value: float | None) -> str:
        return "–" if value is None else f"{100 * value:.2f}"

    inside = "–"
    if figure.low is not None and figure.high is not None:
        inside = f"{points(max(0.0, figure.low))} to {points(min(1.0, figure.high))}"
    return points(figure.recorded), points(figure.new), inside


def _count(cell: Cell) -> str:
    """``12 identical, 3 within`` of the figures beside accuracy and clocks; how the time compares."""
    words = [one.word for one in cell.figures if one.name != ACCURACY and one.name not in CLOCKS]
    parts = [f"{words.count(w)} {w}" for w in ("identical", "within", "off", "not judged") if w in words]
    clock = next((one for one in cell.figures if one.name == CLOCKS[0]), None)
    if clock and clock.recorded and clock.new:
        parts.append(f"time x {clock.new / clock.recorded:.2f}")
    return ", ".join(parts)


def _word(word: str) -> str:
    return {"within": "within its interval"}.get(word, word)
