"""Final accuracy per row, and the differences that verdicts are about, with a ring for every seed."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from grpo_bench.figures.style import COLOURS, FAINT, fixed, heading, interval, rings
from grpo_bench.stats import Interval
from grpo_bench.table.compare import Comparison
from grpo_bench.table.layout import arm_label

TALL = 0.42  # inches a row


def accuracies(c: Comparison) -> Figure | None:
    """Final test accuracy per row with its 95 % interval and a ring per seed; lines at the models before RL."""
    arms = [arm for arm in c.arms if arm.accuracy]
    if not arms:
        return None
    labels = []
    several = len(arms) + len(c.references)
    figure = fixed(7.2, 1.3 + TALL * several, 2.1, 0.35, 0.5, 0.8)
    axes = figure.subplots()
    for i, reference in enumerate(c.references):
        estimate = reference.accuracy["acc"].interval
        labels.append(reference.label)
        interval(axes, i, estimate, FAINT, across=True)
        axes.axvline(100 * estimate.estimate, color=FAINT, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
        _say(axes, estimate, i, FAINT)
    for i, arm in enumerate(arms):
        y = len(labels)
        colour = COLOURS[i % len(COLOURS)]
        estimate, unit = arm.accuracy["acc"].interval, arm.accuracy["acc"].unit
        labels.append(f"{arm_label(arm)}\n{len(arm.scored)} seed{'s' * (len(arm.scored) != 1)}, interval over {unit}")
        interval(axes, y, estimate, colour, across=True)
        _say(axes, estimate, y, colour)
        dots = [100 * run.final["greedy"]["acc"] for run in arm.scored]
        rings(axes, dots, [y + 0.22] * len(dots), colour)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.08)
    axes.xaxis.set_major_formatter(PercentFormatter(decimals=0))
    axes.set_xlabel("accuracy on the final test, greedy")
    note = "Filled: mean with its 95 % interval, over seeds or over problems as named; rings: single seeds."
    heading(figure, c.study.name, note)
    return figure


def differences(c: Comparison) -> Figure | None:
    """Each contrast's difference with its 95 % interval, a ring per paired seed, the margin shaded, its verdict."""
    shown = [one for one in c.contrasts if one.difference.by and not one.difference.refused]
    if not shown:
        return None
    figure = fixed(7.2, 1.3 + TALL * len(shown), 2.4, 1.5, 0.5, 0.8)
    axes = figure.subplots()
    axes.axvspan(-100 * c.margin, 100 * c.margin, color="#eeeeee", zorder=0)
    axes.axvline(0, color=FAINT, linewidth=0.8, zorder=1)
    for y, contrast in enumerate(shown):
        interval(axes, y, contrast.difference.by["acc"].interval, COLOURS[0], across=True)
        dots = [100 * (a.means["acc"] - b.means["acc"]) for a, b in contrast.difference.pairs]
        rings(axes, dots, [y + 0.22] * len(dots), COLOURS[0])
        axes.annotate(
            contrast.verdict, (1, y), (6, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
            va="center", fontsize=8,
        )  # fmt: skip
    axes.set_yticks(range(len(shown)), [f"{one.first} − {one.second}" for one in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.08)
    axes.set_xlabel("difference in accuracy, percentage points")
    note = f"Mean with its plain 95 % interval; rings: paired seeds; grey: the margin of ±{100 * c.margin:g} points."
    words = "differences" if c.declared == "no" else "differences and verdicts"
    heading(figure, f"{c.study.name}: {words}", note)
    return figure


def _say(axes: Axes, estimate: Interval, y: float, colour: str) -> None:
    reach = 100 * (estimate.high if estimate.known else estimate.estimate)
    axes.annotate(
        f"{100 * estimate.estimate:.1f}", (reach, y), (6, 0), textcoords="offset points", va="center", color=colour
    )
