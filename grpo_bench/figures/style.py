"""How every figure looks, and how it is saved: PNG to look at, SVG to print, the same file whenever its numbers are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from grpo_bench.stats import Interval

# eight hues that the common colour-vision deficiencies keep apart (Okabe & Ito), dark ones first; yellow is left out
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)))
INK, FAINT = "#222222", "#8a8a8a"
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


def line_style(i: int) -> dict[str, Any]:
    """Colour, then dashes: 21 rows are told apart."""
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i // len(COLOURS) % len(DASHES)]}


def blank(width: float, height: float) -> Figure:
    """An empty figure in inches."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)  # no pyplot: no window system, no global state
    return figure


def fixed(width: float, height: float, left: float, right: float, top: float, bottom: float) -> Figure:
    """An empty figure whose margins are given in inches: a layout that is solved would draw every text once more."""
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    figure.subplots_adjust(
        left=left / width, right=1 - right / width, top=1 - top / height, bottom=bottom / height, hspace=0.6, wspace=0.3
    )
    return figure


def gaps(figure: Figure, across: float, down: float, columns: int, rows: int) -> None:
    """Set the room between panels, in inches."""
    width, height = figure.get_size_inches()
    pars = figure.subplotpars
    panel = ((pars.right - pars.left) * width - across * (columns - 1)) / columns
    tall = ((pars.top - pars.bottom) * height - down * (rows - 1)) / rows
    figure.subplots_adjust(wspace=across / panel, hspace=down / tall)


def heading(figure: Figure, title: str, note: str) -> None:
    """The title above, in ink; what the marks mean below, in grey."""
    _, height = figure.get_size_inches()
    figure.text(0.01, 1 - 0.09 / height, title, ha="left", va="top", fontsize=12, color=INK)
    figure.text(0.01, 0.07 / height, note, ha="left", va="bottom", fontsize=8, color=FAINT)


def amounts(axes: Axes) -> None:
    """An x-axis of counts or seconds: few ticks, thousands with separators."""
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(_amount)


def _amount(value: float, _: object) -> str:
    if abs(value) >= 1e7:
        return f"{value:.3g}".replace("e+", "e")
    return f"{value:,.0f}" if abs(value) >= 10 or value == 0 else f"{value:g}"


def interval(axes: Axes, at: float, estimate: Interval, colour: str, *, across: bool, scale: float = 100) -> None:
    """A filled mark with its 95 % interval, horizontally (``across``) or vertically at ``at``."""
    if np.isfinite(estimate.low):
        ends, place = [scale * estimate.low, scale * estimate.high], [at, at]
        x, y = (ends, place) if across else (place, ends)
        axes.plot(x, y, color=colour, linewidth=2.2, solid_capstyle="butt", zorder=2)
    x1, y1 = (scale * estimate.estimate, at) if across else (at, scale * estimate.estimate)
    axes.plot([x1], [y1], marker="o", markersize=6.5, color=colour, zorder=4)


def rings(axes: Axes, x: Sequence[float], y: Sequence[float], colour: str) -> None:
    """Single seeds."""
    axes.scatter(x, y, s=16, facecolors="none", edgecolors=colour, linewidths=1, zorder=3)


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write ``stem``.png and ``stem``.svg; the paths written."""
    png, svg = stem.with_suffix(".png"), stem.with_suffix(".svg")
    # without the date and the program's version a figure is the same file whenever its numbers are
    figure.savefig(png, dpi=120, metadata={"Software": None})
    figure.set_layout_engine("none")  # it is laid out now; the second time would cost as much again
    figure.savefig(svg, metadata={"Date": None, "Creator": None})
    return [png, svg]
