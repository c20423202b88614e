"""Accuracy curves of a study with many rows: a panel for each, the others in grey behind it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from grpo_bench.figures.style import COLOURS, INK, amounts, fixed, gaps, heading
from grpo_bench.series.curves import ACCURACY, AXES, Curve, Panel, on

MANY = 12  # rows; with more, colours and dashes in one panel cannot be told apart
COLUMNS = 6


def small_multiples(found: Mapping[Panel, Mapping[str, Curve]], axis: str, title: str) -> Figure | None:
    """Greedy accuracy on dev against ``axis`` (a key of AXES), a panel per row in the study's order; None where
    nothing was recorded."""
    rows = on(dict(found.get(ACCURACY, {})), axis)
    if not rows:
        return None
    down = -(-len(rows) // COLUMNS)
    figure = fixed(2.05 * COLUMNS, 1.35 * down + 1.0, 0.5, 0.1, 0.6, 0.6)
    gaps(figure, 0.18, 0.35, COLUMNS, down)
    grid = figure.subplots(down, COLUMNS, squeeze=False, sharex=True, sharey=True).ravel()
    lines = {name: np.column_stack([curve.x[axis], 100 * curve.mean]) for name, curve in rows.items()}
    for axes, (name, curve) in zip(grid, rows.items(), strict=False):
        x = curve.x[axis]
        others = [line for other, line in lines.items() if other != name]
        axes.add_collection(LineCollection(others, colors="#d9d9d9", linewidths=0.6, zorder=1))
        axes.fill_between(x, 100 * curve.low, 100 * curve.high, color=COLOURS[0], alpha=0.25, linewidth=0, zorder=2)
        alone = {"marker": "o", "markersize": 4} if len(x) == 1 else {}  # fewer steps than lie between two looks
        axes.plot(x, 100 * curve.mean, color=COLOURS[0], linewidth=1.8, zorder=3, **alone)
        axes.set_title(name, loc="left", color=INK, fontsize=8.5, pad=3)
    amounts(grid[0])  # axes are shared
    grid[0].xaxis.set_major_locator(MaxNLocator(3))
    grid[0].yaxis.set_major_formatter(PercentFormatter(decimals=0))
    for axes in grid[len(rows) :]:
        axes.set_axis_off()
    bootstrap = any(curve.band == "bootstrap" for curve in rows.values())
    band = "95 %, bootstrap over seeds and problems" if bootstrap else "lowest to highest seed"
    note = f"Against {AXES[axis]}. Line: mean over seeds; band: {band}; grey: the other rows."
    heading(figure, f"{title}: accuracy on dev, greedy", note)
    return figure
