"""The figures of a study, drawn from its records; ``draw`` writes those that its records have something for."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from grpo_bench.figures.accuracy import accuracies, differences
from grpo_bench.figures.costs import accuracy_against_cost, pass_at_k, phases
from grpo_bench.figures.curves import curves
from grpo_bench.figures.knobs import group_size, kl
from grpo_bench.figures.small_multiples import MANY, small_multiples
from grpo_bench.figures.style import COLOURS, DASHES, FAINT, INK, STYLE, blank, save
from grpo_bench.resources import cores
from grpo_bench.series.curves import ACCURACY, AXES, PANELS, learning_curves
from grpo_bench.series.knobs import group_sizes, kl_frontier
from grpo_bench.series.pass_at_k import pass_curves
from grpo_bench.series.spending import phase_seconds, spent
from grpo_bench.table.compare import Comparison

__all__ = ["COLOURS", "DASHES", "FAINT", "INK", "STYLE", "blank", "draw", "save"]


def draw(comparison: Comparison, folder: Path) -> list[Path]:
    """Write the figures (.png and .svg) into ``folder``; the paths of those drawn.

    ``curves_samples``, ``curves_tokens``, ``curves_seconds``, ``accuracy``, ``differences``, ``cost``, ``phases``,
    ``pass_at_k``, and ``group_size`` and ``kl`` in a study of such a knob. What was not recorded is not drawn.
    """
    arms, name = comparison.arms, comparison.study.name
    many = len(arms) > MANY
    found = learning_curves(arms, (ACCURACY,) if many else PANELS)
    line = small_multiples if many else curves
    make: dict[str, Callable[[], Figure | None]] = {
        **{f"curves_{axis}": partial(line, found, axis, name) for axis in AXES},
        "accuracy": partial(accuracies, comparison),
        "differences": partial(differences, comparison),
        "cost": lambda: accuracy_against_cost(spent(arms), name),
        "phases": lambda: phases(phase_seconds(arms), name),
        "pass_at_k": lambda: pass_at_k(pass_curves(arms, comparison.references), name),
        "group_size": lambda: group_size(group_sizes(arms), name),
        "kl": lambda: kl(kl_frontier(arms), name),
    }
    with mpl.rc_context(STYLE):
        return [path for paths in _drawn({folder / stem: one for stem, one in make.items()}) for path in paths]


_MAKE: dict[Path, Callable[[], Figure | None]] = {}  # that forked processes find


def _drawn(make: dict[Path, Callable[[], Figure | None]]) -> list[list[Path]]:
    """The files of each figure; drawing is about half of a table's time, so it is shared out over the cores."""
    workers = min(cores(), len(make))
    _MAKE.update(make)
    try:
        if workers < 2 or "fork" not in multiprocessing.get_all_start_methods() or "torch" in sys.modules:
            return [_draw(stem) for stem in make]  # a process with threads of its own must not be forked
        with multiprocessing.get_context("fork").Pool(workers) as pool:
            return pool.map(_draw, make, chunksize=1)
    finally:
        _MAKE.clear()


def _draw(stem: Path) -> list[Path]:
    figure = _MAKE[stem]()
    return [] if figure is None else save(figure, stem)
