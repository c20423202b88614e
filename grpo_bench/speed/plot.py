"""Seconds by phase and memory of each contender as bars; growth as curves. PNG to look at, SVG to print."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from grpo_bench.figures import COLOURS, FAINT, INK, STYLE, blank, save
from grpo_bench.speed.child import PHASES
from grpo_bench.speed.workloads import CURVES


def draw(summary: dict[str, Any], title: str, folder: Path) -> list[Path]:
    """Write speed and growth (.png and .svg) into ``folder``; the paths of those that have something to show."""
    with mpl.rc_context(STYLE):
        made = []
        if summary["contenders"]:
            made.append(("speed", bars(summary["contenders"], title)))
        if summary["curves"]:
            made.append(("growth", growth(summary["curves"], title)))
        return [path for name, figure in made for path in save(figure, folder / name)]


def bars(lines: list[dict[str, Any]], title: str) -> Figure:
    """Left: seconds of a step, phases one after the other; right: memory above an idle process."""
    figure = blank(9.5, 1.3 + 0.42 * len(lines))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    places = range(len(lines))
    start = [0.0] * len(lines)
    for colour, phase in zip(COLOURS, PHASES, strict=False):
        seconds = [line["phases"][phase] for line in lines]
        left.barh(places, seconds, left=start, color=colour, label=phase, height=0.62)
        start = [a + b for a, b in zip(start, seconds, strict=True)]
    for y, line in enumerate(lines):
        s, m = line["seconds"], line["memory_above_idle"]
        left.plot([s["low"], s["high"]], [y, y], color=INK, linewidth=1)
        _label(left, s["median"], max(s["high"], start[y]), y)
        right.barh(y, m["median"] / 1e9, color=FAINT, height=0.62)
        _label(right, m["median"] / 1e9, m["median"] / 1e9, y)
    left.set_yticks(list(places), [f"{line['contender']} ({line['dtype']})" for line in lines])
    left.invert_yaxis()
    left.margins(x=0.12)
    right.margins(x=0.2)
    left.set_xlabel("seconds a step")
    right.set_xlabel("GB above idle")
    figure.legend(*left.get_legend_handles_labels(), frameon=False, fontsize=8, ncols=4, loc="outside upper right")
    for axes in (left, right):
        axes.grid(visible=False, axis="y")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=INK)
    note = "Bars: medians; line: lowest to highest step."
    figure.supxlabel(note, x=0.01, ha="left", fontsize=8, color=FAINT)
    return figure


def _label(axes: Axes, value: float, x: float, y: float) -> None:
    axes.annotate(f"{value:.3g}", (x, y), (5, 0), textcoords="offset points", va="center")


def growth(curves: dict[str, list[dict[str, Any]]], title: str) -> Figure:
    """One panel per curve: seconds of a step, and of its rollout and training, against what grows."""
    kinds = list(dict.fromkeys(name.partition(", ")[0] for name in curves))
    figure = blank(max(3.4 * len(kinds), 7.0), 3.2)
    panels = figure.subplots(1, len(kinds), squeeze=False)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        for i, (name, places) in enumerate((n, p) for n, p in curves.items() if n.partition(", ")[0] == kind):
            x = [place["x"] for place in places]
            seconds = [place["seconds"] for place in places]
            axes.plot(x, [s["median"] for s in seconds], color=COLOURS[i], marker="o", markersize=3.5,
                      label=name.partition(", ")[2])  # fmt: skip
            axes.fill_between(
                x, [s["low"] for s in seconds], [s["high"] for s in seconds], color=COLOURS[i], alpha=0.2, linewidth=0
            )
        axes.set_title(CURVES[kind], loc="left", fontsize=8, color=INK)
        axes.set_ylim(bottom=0)
        if kind == "size":
            axes.set_xscale("log")
        axes.legend(frameon=False, fontsize=7)
    panels[0].set_ylabel("seconds a step")
    figure.suptitle(f"{title}: growth", x=0.01, ha="left", fontsize=12, color=INK)
    return figure
