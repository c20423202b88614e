"""Accuracy curves of a study with many rows: a panel for each, the others in grey behind it."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from grpo_bench.figures import COLOURS, FAINT, INK, Panel, band, blank, series
from grpo_bench.table.arms import Arm

MANY = 12  # rows; with more, colours and dashes in one panel cannot be told apart
COLUMNS = 5
ACCURACY = Panel("eval/dev/greedy/acc", "Accuracy on dev, greedy", percent=True, rare=True)


def small_multiples(arms: Sequence[Arm], axis: str, label: str, title: str) -> Figure | None:
    """Greedy accuracy on dev against ``axis`` ("samples" or "seconds"), a panel per row in the study's order; None
    where nothing was recorded."""
    found = {name: band(several) for name, several in series(arms, ACCURACY, axis).items()}
    if not found:
        return None
    rows = -(-len(found) // COLUMNS)
    figure = blank(2.3 * COLUMNS, 1.55 * rows + 0.9)
    grid = figure.subplots(rows, COLUMNS, squeeze=False, sharex=True, sharey=True).ravel()
    for axes, (name, (x, mean, low, high)) in zip(grid, found.items(), strict=False):
        for other, (their_x, theirs, _, _) in found.items():
            if other != name:
                axes.plot(their_x, 100 * theirs, color="#d9d9d9", linewidth=0.6, zorder=1)
        axes.fill_between(x, 100 * low, 100 * high, color=COLOURS[0], alpha=0.25, linewidth=0, zorder=2)
        alone = {"marker": "o", "markersize": 4} if len(x) == 1 else {}  # fewer steps than lie between two looks
        axes.plot(x, 100 * mean, color=COLOURS[0], linewidth=1.8, zorder=3, **alone)
        axes.set_title(name, loc="left", color=INK, fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    for axes in grid[len(found) :]:
        axes.set_axis_off()
    figure.suptitle(f"{title}: accuracy on dev, greedy", x=0.01, ha="left", fontsize=12, color=INK)
    note = f"Against {label}. Line: mean over seeds; band: lowest to highest seed; grey: the other rows."
    figure.supxlabel(note, x=0.01, ha="left", fontsize=8, color=FAINT)
    return figure
