"""Studies of one knob: the group size with the signal that it leaves, and the KL coefficient with what it buys."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

from grpo_bench.figures.style import COLOURS, FAINT, INK, amounts, fixed, gaps, heading, interval, line_style, rings
from grpo_bench.series.knobs import Family, GroupSizes


def group_size(found: GroupSizes | None, title: str) -> Figure | None:
    """Left: groups without signal, measured beside p^G + (1 − p)^G averaged over problems; right: accuracy."""
    if found is None:
        return None
    lines = 2 * len(found.families) + len(found.predicted)
    below = 0.95 + 0.17 * lines  # the legend: among falling lines there is no room for it
    figure = fixed(9.0, 2.95 + below, 0.65, 0.2, 0.75, below)
    gaps(figure, 0.7, 0.5, 2, 1)
    left, right = figure.subplots(1, 2)
    for i, family in enumerate(found.families):
        style = line_style(i)
        for what, dash, said in (("first", "-", "first step"), ("last", (0, (4, 1.5)), "last fifth of the steps")):
            points = [(p.value, mean) for p in family.points if (mean := p.mean(what)) is not None]
            left.plot(
                [x for x, _ in points], [100 * y for _, y in points], color=style["color"], linestyle=dash, marker="o",
                markersize=4, label=f"{family.name}: {said}",
            )  # fmt: skip
            for point in family.points:
                seeds = [100 * measured[what] for _, measured in point.seeds if what in measured]
                rings(left, [point.value] * len(seeds), seeds, style["color"])
        _accuracy(right, family, style["color"])
    for name, shares in found.predicted.items():
        left.plot(
            list(shares), [100 * y for y in shares.values()], color=INK, linestyle=(0, (1, 1.2)), marker="x",
            label=f"$p^G + (1 - p)^G$, {name}",
        )  # fmt: skip
    sizes = sorted({point.value for family in found.families for point in family.points})
    for axes, words in ((left, "Groups without signal"), (right, "Accuracy on the final test, greedy")):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(sizes))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels([f"{size:g}" for size in sizes])
        axes.set_xlabel("group size G")
        axes.set_title(words, loc="left", color=INK)
        axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    left.legend(frameon=False, fontsize=7.5, loc="upper left", bbox_to_anchor=(-0.02, -0.17))
    if len(found.families) > 1:
        right.legend(frameon=False, fontsize=8)
    note = "Means over seeds, accuracy with its 95 % interval; rings: single seeds."
    if found.predicted:
        note += f" p: success rate before RL of each of {found.problems} training problems, sampled."
    else:
        note += " What success rates imply was not measured (python -m grpo_bench.advantage_error)."
    heading(figure, f"{title}: group size", note)
    return figure


def kl(families: Sequence[Family], title: str) -> Figure | None:
    """Accuracy over the KL coefficient, and over the KL and the entropy that training ended with."""
    if not families:
        return None
    figure = fixed(12.3, 3.9, 0.65, 0.2, 0.75, 0.75)
    gaps(figure, 0.7, 0.5, 3, 1)
    grid = figure.subplots(1, 3)
    for i, family in enumerate(families):
        colour = COLOURS[i % len(COLOURS)]
        _accuracy(grid[0], family, colour)
        for axes, what in ((grid[1], "kl"), (grid[2], "entropy")):
            _frontier(axes, family, what, colour)
    values = sorted({point.value for family in families for point in family.points})
    positive = [value for value in values if value > 0]
    if positive:
        grid[0].set_xscale("symlog", linthresh=positive[0], linscale=0.5)
    grid[0].xaxis.set_major_locator(FixedLocator(values))
    grid[0].xaxis.set_minor_locator(NullLocator())
    grid[0].set_xticklabels([f"{value:g}" for value in values])
    words = ("KL coefficient", "KL to the reference (k3), nats per token", "entropy, nats per token")
    for axes, said in zip(grid, words, strict=True):
        axes.set_xlabel(said)
        axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    if len(families) > 1:
        grid[0].legend(frameon=False, fontsize=8)
    note = "Accuracy on the final test with its 95 % interval; KL and entropy over the last fifth of the steps; rings: "
    heading(figure, f"{title}: accuracy, KL and entropy", note + "single seeds; numbers: the coefficient.")
    return figure


def _accuracy(axes: Axes, family: Family, colour: str) -> None:
    xs = [point.value for point in family.points]
    axes.plot(xs, [100 * p.accuracy.estimate for p in family.points], color=colour, linewidth=1, label=family.name)
    for point in family.points:
        interval(axes, point.value, point.accuracy, colour, across=False)
        rings(axes, [point.value] * len(point.seeds), [100 * seed["acc"] for _, seed in point.seeds], colour)


def _frontier(axes: Axes, family: Family, what: str, colour: str) -> None:
    known = [(point, mean) for point in family.points if (mean := point.mean(what)) is not None]
    axes.plot([x for _, x in known], [100 * p.accuracy.estimate for p, _ in known], color=FAINT, linewidth=0.8)
    for point, x in known:
        interval(axes, x, point.accuracy, colour, across=False)
        pairs = [(seed[what], 100 * seed["acc"]) for _, seed in point.seeds]
        rings(axes, [a for a, _ in pairs], [b for _, b in pairs], colour)
        axes.annotate(f"{point.value:g}", (x, 100 * point.accuracy.estimate), (6, 4), textcoords="offset points")
    if known:
        amounts(axes)
