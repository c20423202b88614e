"""Algorithms as a picture: the objective of a token over its ratio, what it pushes the token by, the lone winner."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray

from grpo_bench.explain.example import answers, outcome, surrogate
from grpo_bench.figures import COLOURS, DASHES, FAINT, INK, STYLE, blank
from grpo_bench.files import disk_errors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from grpo_bench.algos import Algorithm
    from grpo_bench.config import Config

GROUPS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
POINTS = 601
WIDEST = 6.0  # largest ratio drawn
NARROWEST = 0.02  # smallest ratio drawn


def draw(several: Sequence[Config], beside: Sequence[Config], file: Path) -> None:
    """Draw the algorithms of these runs and, behind them, those ``beside`` them; PNG or SVG by the file's name.

    One panel row for the objective over ρ = π/π_old of a single token with A = 1 and A = −1 (less its value at ρ = 1),
    one for its gradient by log π, and a column for the advantages of [1, 0, …, 0] over the group's size, alone in its
    step. Computed by each algorithm's own ``token_loss`` and ``advantages``, without the KL. UserError when ``file``
    cannot be written.
    """
    shown = {_label(cfg): cfg.algo for cfg in several}
    behind = {_label(cfg): cfg.algo for cfg in beside if cfg.algo not in shown.values()}
    with mpl.rc_context(STYLE):
        figure = _figure(behind, shown)
        with disk_errors(file):
            metadata = {"Software": None} if file.suffix == ".png" else {"Date": None, "Creator": None}
            figure.savefig(file, dpi=120, metadata=metadata)


def objective(algo: Algorithm, advantage: float, ratios: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """(objective less its value at ρ = 1, gradient by log π) of a token with this advantage at each ratio."""
    points = [1.0, *ratios]
    batch = answers([float(advantage > 0)] * len(points), 1)
    zero = torch.zeros_like(batch.mask)
    credit = torch.full_like(batch.mask, advantage)
    batch = replace(batch, old_logp=zero, ref_logp=zero, advantages=credit, returns=zero)
    log_ratios = torch.tensor(points, dtype=torch.float64).log()[:, None]
    values, pushes = (part[:, 0].numpy() for part in surrogate(algo, batch, log_ratios))
    return values[1:] - values[0], pushes[1:]


def lone_winner(algo: Algorithm, sizes: Sequence[int]) -> tuple[list[float], list[float]]:
    """Advantages of the winner and of a loser of [1, 0, …, 0] for each group size."""
    found = [outcome(algo, [1.0] + [0.0] * (size - 1), size).advantages for size in sizes]
    return [advantages[0] for advantages in found], [advantages[1] for advantages in found]


def _figure(behind: dict[str, Algorithm], shown: dict[str, Algorithm]) -> Figure:
    everything = behind | shown
    ratios = np.linspace(*_range(shown.values()), POINTS)
    # those behind are wide and pale, so that they show under curves that run along them
    pale = [{"color": "#d4d4d4", "linewidth": 7.0}, {"color": FAINT, "linewidth": 3.4, "linestyle": (0, (3, 1.5))}]
    styles = {label: pale[i % 2] for i, label in enumerate(behind)} | {
        label: {
            "color": COLOURS[i % len(COLOURS)], "linewidth": 1.7,
            "linestyle": DASHES[i // len(COLOURS) % len(DASHES)] if len(shown) > len(COLOURS) else DASHES[i % 2],
        }
        for i, label in enumerate(shown)
    }  # fmt: skip
    figure = blank(11.0, 6.2)
    grid = figure.subplots(2, 3)
    for column, advantage in enumerate((1.0, -1.0)):
        for label, algo in everything.items():
            for axes, curve in zip(grid[:, column], objective(algo, advantage, ratios), strict=True):
                axes.plot(ratios, curve, label=label, **styles[label])
        sign = "A = 1" if advantage > 0 else "A = −1"
        grid[0, column].set_title(f"Objective, {sign}", loc="left", color=INK)
        grid[1, column].set_title(f"Its gradient by log π, {sign}", loc="left", color=INK)
        for axes in grid[:, column]:
            axes.axvline(1.0, color=FAINT, linewidth=0.7)
            axes.set_xlabel("ρ = π/π_old of a token")
    for label, algo in everything.items():
        for axes, values in zip(grid[:, 2], lone_winner(algo, GROUPS), strict=True):
            dots = "" if label in behind else "o"
            axes.plot(GROUPS, values, label=label, marker=dots, markersize=2.8, **styles[label])
    for axes, who in zip(grid[:, 2], ("the winner", "a loser"), strict=True):
        axes.set_title(f"Advantage of {who} of [1, 0, …, 0]", loc="left", color=INK)
        axes.set_xscale("log", base=2)
        axes.set_xticks([2, 4, 8, 16, 32, 64], ["2", "4", "8", "16", "32", "64"])
        axes.minorticks_off()
        axes.set_xlabel("answers")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=min(len(labels), 6), frameon=False)
    figure.supxlabel(
        "Objective less its value at ρ = 1, without the KL; answers of one token; the answers of [1, 0, …, 0] are all "
        "that a step has.",
        x=0.01, ha="left", fontsize=8, color=FAINT,
    )  # fmt: skip
    return figure


def _range(several: Iterable[Algorithm]) -> tuple[float, float]:
    """Smallest and largest ratio that show where these algorithms' bounds act."""
    low = high = 0.0
    for algo in several:
        bounds = [bound for bound in algo.clip_range if math.isfinite(bound)]
        reach = 3 * max(bounds) if bounds else 1.5
        low, high = max(low, reach), max(high, reach, 1.2 * (getattr(algo, "dual_clip", None) or 0) - 1)
    return max(1 - low, NARROWEST), min(1 + high, WIDEST)


def _label(cfg: Config) -> str:
    """What a legend calls a run: its arm, else its algorithm, with its dialect."""
    dialect = "" if cfg.dialect == "paper" else f", {cfg.dialect}"
    return f"{cfg.arm or cfg.algo.card().title}{dialect}"
