"""Curves and the accuracy plot of a study, drawn from its records; PNG to look at, SVG to print."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from grpo_bench.records import Run
from grpo_bench.table.arms import Arm
from grpo_bench.table.compare import Comparison
from grpo_bench.table.layout import arm_label

# eight hues that the common colour-vision deficiencies keep apart (Okabe & Ito), dark ones first; yellow is left out
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)))
INK, FAINT = "#222222", "#8a8a8a"
LABELLED = 5  # with more curves, names at their ends would collide: a legend above instead
POINTS = 120  # a panel shows no more; longer runs are averaged over equally many steps each
STYLE: Any = {
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.hashsalt": "grpo_bench",  # element ids, and so the file, stay the same when nothing changed
    "svg.fonttype": "none",
}


@dataclass(frozen=True)
class Panel:
    """One curve: ``key`` of metrics.jsonl; ``rare`` ones are there at evaluations only and get markers."""

    key: str
    title: str
    percent: bool = False
    rare: bool = False


PANELS = (
    Panel("eval/dev/greedy/acc", "Accuracy on dev, greedy", percent=True, rare=True),
    Panel("reward/mean", "Reward, mean of a step's samples"),
    Panel("kl/ref_k3_token", "KL to the reference (k3), nats per token"),
    Panel("policy/entropy", "Entropy, nats per token"),
    Panel("completions/len_mean", "Length, tokens"),
)
AXES = {"samples": "training samples", "seconds": "seconds, evaluations included"}


def draw(comparison: Comparison, folder: Path) -> list[Path]:
    """Write curves_samples, curves_seconds and accuracy (.png and .svg) into ``folder``; the paths of those drawn.

    What was not recorded is not drawn: a study without one metric line has no curves.
    """
    from grpo_bench.small_multiples import MANY, small_multiples  # here: it is drawn with what stands below

    made: list[tuple[str, Figure]] = []
    with mpl.rc_context(STYLE):
        for axis, words in AXES.items():
            if len(comparison.arms) > MANY:
                figure = small_multiples(comparison.arms, axis, words, comparison.study.name)
            else:
                figure = curves(comparison.arms, axis, comparison.study.name)
            if figure is not None:
                made.append((f"curves_{axis}", figure))
        dots = accuracies(comparison)
        if dots is not None:
            made.append(("accuracy", dots))
        return [path for name, figure in made for path in _save(figure, folder / name)]


def curves(arms: Sequence[Arm], axis: str, title: str) -> Figure | None:
    """One panel per metric against ``axis`` ("samples" or "seconds"): the mean over seeds with a band from the lowest
    to the highest seed. None where nothing was recorded."""
    found = {panel: series(arms, panel, axis) for panel in PANELS}
    shown = [panel for panel in PANELS if found[panel]]
    if not shown:
        return None
    named = [arm for arm in arms if any(arm.label in found[panel] for panel in shown)]
    styles = {arm.label: _style(i) for i, arm in enumerate(named)}
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = blank(4.1 * columns, 2.75 * rows + 0.8)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, axes in zip(shown, grid, strict=False):
        _panel(axes, panel, found[panel], styles, direct=len(named) <= LABELLED)
        axes.set_xlabel(AXES[axis])
    empty = grid[len(shown) :]
    for axes in empty:
        axes.set_axis_off()
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=INK)
    runs = {arm.label: len([run for run in arm.runs if run.metrics]) for arm in named}
    note = "Line: mean over seeds; band: lowest to highest seed; thin: single seeds; ×: diverged."
    if any(len(run.metrics) > POINTS for arm in named for run in arm.runs):
        note += f" Steps are averaged to {POINTS} points."
    note += " Seeds: " + ", ".join(f"{label} {n}" for label, n in runs.items()) + "."
    if len(named) > LABELLED:
        handles = [Line2D([], [], label=label, **styles[label], linewidth=2) for label in styles]
        if len(empty):
            empty[0].legend(handles=handles, loc="upper left", ncols=-(-len(handles) // 10), frameon=False)
        else:
            figure.legend(handles=handles, loc="outside upper right", ncols=min(4, len(handles)), frameon=False)
    figure.supxlabel(note, x=0.01, ha="left", fontsize=8, color=FAINT)
    return figure


def accuracies(c: Comparison) -> Figure | None:
    """Final test accuracy per row with its 95 % interval and a dot per seed; lines at the models before RL."""
    arms = [arm for arm in c.arms if arm.accuracy]
    if not arms:
        return None
    figure = blank(7.2, 1.5 + 0.42 * (len(arms) + len(c.references)))
    axes = figure.subplots()
    labels = []
    for i, reference in enumerate(c.references):
        estimate = reference.accuracy["acc"].interval
        labels.append(reference.label)
        _interval(axes, i, estimate.estimate, estimate.low, estimate.high, FAINT)
        axes.axvline(100 * estimate.estimate, color=FAINT, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
    for i, arm in enumerate(arms):
        y = len(labels)
        colour = COLOURS[i % len(COLOURS)]
        estimate = arm.accuracy["acc"].interval
        unit = arm.accuracy["acc"].unit
        labels.append(f"{arm_label(arm)}\n{len(arm.scored)} seed{'s' * (len(arm.scored) != 1)}, interval over {unit}")
        _interval(axes, y, estimate.estimate, estimate.low, estimate.high, colour)
        dots = [100 * run.final["greedy"]["acc"] for run in arm.scored]
        axes.scatter(dots, [y + 0.22] * len(dots), s=16, facecolors="none", edgecolors=colour, linewidths=1, zorder=3)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(PercentFormatter(decimals=0))
    axes.set_xlabel("accuracy on the final test, greedy")
    axes.set_title(c.study.name, loc="left", fontsize=12, color=INK)
    figure.supxlabel(
        "Filled: mean with its 95 % interval, over seeds or over problems as named; rings: single seeds.",
        x=0.01, ha="left", fontsize=8, color=FAINT,
    )  # fmt: skip
    return figure


def _interval(axes: Axes, y: float, mean: float, low: float, high: float, colour: str) -> None:
    if np.isfinite(low):
        axes.plot([100 * low, 100 * high], [y, y], color=colour, linewidth=2.2, solid_capstyle="butt", zorder=2)
    axes.plot([100 * mean], [y], marker="o", markersize=6.5, color=colour, zorder=4)
    reach = 100 * (high if np.isfinite(high) else mean)
    axes.annotate(f"{100 * mean:.1f}", (reach, y), (6, 0), textcoords="offset points", va="center", color=colour)


@dataclass(frozen=True)
class Curve:
    """One run's curve, and whether the run diverged at its end."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    diverged: bool


def series(arms: Sequence[Arm], panel: Panel, axis: str) -> dict[str, list[Curve]]:
    """The curves of each row that has any, by its label."""
    found = {arm.label: [curve for run in arm.runs if (curve := _curve(run, panel.key, axis))] for arm in arms}
    return {label: several for label, several in found.items() if several}


def _curve(run: Run, key: str, axis: str) -> Curve | None:
    rows = [row for row in run.metrics if isinstance(row.get(key), int | float)]
    place: Callable[[dict[str, Any]], Any] = lambda row: row.get("samples")  # noqa: E731
    if axis == "seconds":
        clock = {row.get("step"): row.get("elapsed_s", row.get("time/total_s")) for row in run.timing}
        place = lambda row: clock.get(row.get("step"))  # noqa: E731
    points = [(float(x), float(row[key])) for row in rows if (x := place(row)) is not None]
    if not points:
        return None
    x, y = np.array(points).T
    if len(x) > POINTS:
        parts = np.array_split(np.arange(len(x)), POINTS)
        x, y = (np.array([values[part].mean() for part in parts]) for values in (x, y))
    return Curve(x, y, run.status == "diverged")


def _panel(
    axes: Axes, panel: Panel, curves: dict[str, list[Curve]], styles: dict[str, dict[str, Any]], *, direct: bool
) -> None:
    scale = 100 if panel.percent else 1
    ends: list[tuple[float, str]] = []
    for label, several in curves.items():
        style = styles[label]
        x, mean, low, high = band(several)
        if len(several) > 1:
            axes.fill_between(x, scale * low, scale * high, color=style["color"], alpha=0.16, linewidth=0)
            for curve in several:
                axes.plot(curve.x, scale * curve.y, color=style["color"], linewidth=0.6, alpha=0.35)
        marker: dict[str, Any] = {"marker": "o", "markersize": 3.2} if panel.rare and len(x) <= 40 else {}
        axes.plot(x, scale * mean, **style, **marker, linewidth=1.8)
        for curve in several:
            if curve.diverged:
                axes.plot(curve.x[-1], scale * curve.y[-1], marker="x", markersize=7, color=style["color"], mew=2)
        ends.append((float(scale * mean[-1]), label))
    axes.set_title(panel.title, loc="left", color=INK)
    axes.margins(x=0.02)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 10 or value == 0 else f"{value:g}")
    if panel.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    if direct:
        _name_ends(axes, ends, styles)


def band(several: Sequence[Curve]) -> tuple[NDArray[np.float64], ...]:
    """Mean, lowest and highest of the runs at common places: where the first has its own, within what all reached.

    Clocks and lengths differ between runs, so each is interpolated; beyond the shortest run there is no band, since
    the mean over the rest would jump.
    """
    start, end = max(curve.x[0] for curve in several), min(curve.x[-1] for curve in several)
    x = several[0].x
    x = x[(x >= start) & (x <= end)]
    x = np.unique(np.concatenate([[min(start, end)], x, [end]]))
    y = np.stack([np.interp(x, curve.x, curve.y) for curve in several])
    return x, y.mean(axis=0), y.min(axis=0), y.max(axis=0)


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


def _style(i: int) -> dict[str, Any]:
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i // len(COLOURS) % len(DASHES)]}


def blank(width: float, height: float) -> Figure:
    """An empty figure in inches."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)  # no pyplot: no window system, no global state
    return figure


def _save(figure: Figure, stem: Path) -> list[Path]:
    png, svg = stem.with_suffix(".png"), stem.with_suffix(".svg")
    # without the date and the program's version a figure is the same file whenever its numbers are
    figure.savefig(png, dpi=120, metadata={"Software": None})
    figure.set_layout_engine("none")  # it is laid out now; the second time would cost as much again
    figure.savefig(svg, metadata={"Date": None, "Creator": None})
    return [png, svg]
