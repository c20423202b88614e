"""What accuracy cost: accuracy against seconds, tokens and FLOPs; seconds by phase; pass@k."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

from grpo_bench.figures.style import COLOURS, INK, amounts, fixed, gaps, heading, interval, line_style, rings
from grpo_bench.series.pass_at_k import PassCurve
from grpo_bench.series.spending import COSTS, PHASES, Spent

DRAWN = ("seconds", "tokens", "flops")  # samples are what most studies hold equal
MARKS = ("o", "s", "^", "D", "v", "P", "X")


def accuracy_against_cost(rows: Sequence[Spent], title: str) -> Figure | None:
    """A panel per cost: each row's mean with its 95 % interval and its seeds as rings. None without a cost."""
    shown = [cost for cost in DRAWN if any(cost in row.mean for row in rows)]
    if not shown:
        return None
    lines = -(-len(rows) // 6)
    figure = fixed(4.1 * len(shown), 3.9 + 0.19 * lines, 0.6, 0.2, 0.6, 0.95 + 0.19 * lines)
    gaps(figure, 0.55, 0.5, len(shown), 1)
    for axes, cost in zip(figure.subplots(1, len(shown), squeeze=False).ravel(), shown, strict=True):
        for i, row in enumerate(rows):
            if cost in row.mean:
                _place(axes, row, cost, i)
        axes.set_xlabel(COSTS[cost])
        axes.set_xlim(left=0)
        amounts(axes)
        axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    handles = [
        Line2D([], [], label=row.label, color=COLOURS[i % len(COLOURS)], marker=_mark(i), linestyle="")
        for i, row in enumerate(rows)
    ]
    foot = 0.28 / figure.get_figheight()
    figure.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.005, foot), ncols=6, frameon=False, fontsize=8)
    note = "Filled: mean over seeds with the 95 % interval of accuracy on the final test; rings: single seeds."
    heading(figure, f"{title}: accuracy against cost", note)
    return figure


def _place(axes: Axes, row: Spent, cost: str, i: int) -> None:
    colour = COLOURS[i % len(COLOURS)]
    if row.accuracy.known:
        ends = [100 * row.accuracy.low, 100 * row.accuracy.high]
        axes.plot([row.mean[cost]] * 2, ends, color=colour, linewidth=1.4)
    axes.plot(row.mean[cost], 100 * row.accuracy.estimate, marker=_mark(i), markersize=6, color=colour)
    points = [(amounts[cost], 100 * acc) for _, acc, amounts in row.seeds]
    rings(axes, [x for x, _ in points], [y for _, y in points], colour)


def _mark(i: int) -> str:
    return MARKS[i // len(COLOURS) % len(MARKS)]


def phases(rows: Mapping[str, tuple[dict[str, float], list[tuple[int, float]]]], title: str) -> Figure | None:
    """Seconds per 1,000 training samples, phase after phase, with a ring at every seed's sum."""
    if not rows:
        return None
    figure = fixed(7.2, 1.4 + 0.32 * len(rows), 1.8, 0.25, 0.75, 0.75)
    axes = figure.subplots()
    places = range(len(rows))
    start = [0.0] * len(rows)
    for colour, phase in zip(COLOURS, PHASES, strict=False):
        seconds = [mean[phase] for mean, _ in rows.values()]
        axes.barh(places, seconds, left=start, color=colour, label=phase, height=0.62)
        start = [a + b for a, b in zip(start, seconds, strict=True)]
    for y, (_, seeds) in zip(places, rows.values(), strict=True):
        rings(axes, [total for _, total in seeds], [y] * len(seeds), INK)
    axes.set_yticks(places, list(rows))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("seconds per 1,000 training samples")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(PHASES), frameon=False, borderaxespad=0.2)
    heading(figure, f"{title}: seconds by phase", "Bars: means over seeds; rings: sums of single seeds.")
    return figure


def pass_at_k(rows: Sequence[PassCurve], title: str) -> Figure | None:
    """pass@k over k: mean over seeds, its 95 % t-interval from three seeds on, seeds as rings."""
    if not rows:
        return None
    lines = -(-len(rows) // 4)
    figure = fixed(7.2, 3.9 + 0.19 * lines, 0.65, 0.2, 0.5, 0.95 + 0.19 * lines)
    axes = figure.subplots()
    for i, row in enumerate(rows):
        style = line_style(i)
        axes.plot(row.ks, [100 * p for p in row.mean], **style, linewidth=1.8, label=row.label)
        for j, (k, estimate) in enumerate(zip(row.ks, row.intervals, strict=True)):
            if estimate is not None:
                interval(axes, k, estimate, style["color"], across=False)
            rings(axes, [k] * len(row.seeds), [100 * passes[j] for _, passes in row.seeds], style["color"])
    axes.set_xscale("log", base=2)
    ks = sorted({k for row in rows for k in row.ks})
    axes.xaxis.set_major_locator(FixedLocator(ks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([str(k) for k in ks])
    axes.set_xlabel("k, sampled answers a problem")
    axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    foot = 0.28 / figure.get_figheight()
    figure.legend(loc="lower left", bbox_to_anchor=(0.005, foot), ncols=4, frameon=False, fontsize=8)
    note = "Line: mean over seeds; bars: 95 % over seeds, from three seeds on; rings: single seeds."
    heading(figure, f"{title}: pass@k on the final test", note)
    return figure
