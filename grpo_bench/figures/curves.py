"""Learning curves of a study: a panel per metric, every row in each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from grpo_bench.figures.style import INK, amounts, fixed, gaps, heading, line_style
from grpo_bench.series.curves import AXES, POINTS, Curve, Panel, on

LABELLED = 5  # with more curves, names at their ends would collide: a legend instead
COLUMNS = 3


def curves(found: Mapping[Panel, Mapping[str, Curve]], axis: str, title: str) -> Figure | None:
    """One panel per metric against ``axis`` (a key of AXES): the mean over seeds with its band. None where nothing was
    recorded."""
    placed = {panel: on(dict(rows), axis) for panel, rows in found.items()}
    shown = [panel for panel, rows in placed.items() if rows]
    if not shown:
        return None
    labels = list(dict.fromkeys(label for panel in shown for label in placed[panel]))
    styles = {label: line_style(i) for i, label in enumerate(labels)}
    direct = len(labels) <= LABELLED
    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    free = rows * columns - len(shown)
    legend_below = not direct and not free
    foot = 0.75 + (0.2 * (-(-len(labels) // 5)) if legend_below else 0)
    figure = fixed(4.1 * columns, 2.6 * rows + 0.5 + foot, 0.55, 1.0 if direct else 0.15, 0.65, foot + 0.1)
    gaps(figure, 1.25 if direct else 0.6, 0.75, columns, rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, axes in zip(shown, grid, strict=False):
        _panel(axes, panel, axis, placed[panel], styles, direct=direct)
        axes.set_xlabel(AXES[axis])
    for axes in grid[len(shown) :]:
        axes.set_axis_off()
    if not direct:
        handles = [Line2D([], [], label=label, **styles[label], linewidth=2) for label in labels]
        if free:
            columns = -(-len(handles) // 10)
            grid[len(shown)].legend(handles=handles, loc="upper left", ncols=columns, frameon=False)
        else:
            figure.legend(
                handles=handles, loc="lower left", bbox_to_anchor=(0.005, 0.3 / figure.get_figheight()), ncols=5,
                frameon=False, fontsize=8,
            )  # fmt: skip
    heading(figure, title, _note({panel: placed[panel] for panel in shown}, labels))
    return figure


def _note(shown: Mapping[Panel, Mapping[str, Curve]], labels: list[str]) -> str:
    every = [(panel, curve) for panel, rows in shown.items() for curve in rows.values()]
    said = "Line: mean over seeds; thin: single seeds; ×: diverged. Band: lowest to highest seed"
    if any(curve.band == "bootstrap" for _, curve in every):
        said += "; of accuracy: 95 %, bootstrap over seeds and problems"
    if any(len(one.steps) > POINTS for _, curve in every for one in curve.seeds):
        said += f". Steps are averaged to {POINTS} points"
    counts = {label: max(len(rows[label].seeds) for rows in shown.values() if label in rows) for label in labels}
    alike = set(counts.values())
    seeds = f"{alike.pop()} each" if len(alike) == 1 else ", ".join(f"{label} {n}" for label, n in counts.items())
    return f"{said}. Seeds: {seeds}."


def _panel(
    axes: Axes, panel: Panel, axis: str, rows: Mapping[str, Curve], styles: dict[str, dict[str, Any]], *, direct: bool
) -> None:
    scale = 100 if panel.percent else 1
    ends: list[tuple[float, str]] = []
    for label, curve in rows.items():
        style = styles[label]
        x = curve.x[axis]
        several = len(curve.seeds) > 1
        if several or curve.band == "bootstrap":
            axes.fill_between(x, scale * curve.low, scale * curve.high, color=style["color"], alpha=0.16, linewidth=0)
        if several:
            thin = [np.column_stack([one.x[axis], scale * one.y]) for one in curve.seeds]
            axes.add_collection(LineCollection(thin, colors=style["color"], linewidths=0.6, alpha=0.35))
        marker: dict[str, Any] = {"marker": "o", "markersize": 3.2} if panel.rare and len(x) <= 40 else {}
        axes.plot(x, scale * curve.mean, **style, **marker, linewidth=1.8)
        for one in curve.seeds:
            if one.diverged:
                axes.plot(one.x[axis][-1], scale * one.y[-1], marker="x", markersize=7, color=style["color"], mew=2)
        ends.append((float(scale * curve.mean[-1]), label))
    axes.autoscale_view()
    axes.set_title(panel.title, loc="left", color=INK)
    axes.margins(x=0.02)
    amounts(axes)
    if panel.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    if direct:
        _name_ends(axes, ends, styles)


def _name_ends(axes: Axes, ends: list[tuple[float, str]], styles: dict[str, dict[str, Any]]) -> None:
    """Each curve's name right of the panel at the height of its end, pushed apart where they would overlap."""
    low, high = axes.get_ylim()
    gap = 0.085 * (high - low)
    ends = sorted(ends)
    heights = [y for y, _ in ends]
    for i in range(1, len(heights)):  # up from the lowest, then down again from the panel's upper edge
        heights[i] = max(heights[i], heights[i - 1] + gap)
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], high if i + 1 == len(heights) else heights[i + 1] - gap)
    for (_, label), y in zip(ends, heights, strict=True):
        axes.annotate(
            label, (1.0, (y - low) / (high - low)), (4, 0), xycoords="axes fraction", textcoords="offset points",
            va="center", fontsize=8, color=styles[label]["color"], annotation_clip=False,
        )  # fmt: skip
    axes.set_ylim(low, high)
