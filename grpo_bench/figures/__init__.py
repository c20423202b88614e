"""The figures of a study, drawn from its records; ``draw`` writes those that its records have something for."""

from __future__ import annotations

import multiprocessing
import sys
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
    made: dict[str, Figure | None] = {}
    with mpl.rc_context(STYLE):
        many = len(arms) > MANY
        found = learning_curves(arms, (ACCURACY,) if many else PANELS)
        for axis in AXES:
            made[f"curves_{axis}"] = small_multiples(found, axis, name) if many else curves(found, axis, name)
        made["accuracy"] = accuracies(comparison)
        made["differences"] = differences(comparison)
        made["cost"] = accuracy_against_cost(spent(arms), name)
        made["phases"] = phases(phase_seconds(arms), name)
        made["pass_at_k"] = pass_at_k(pass_curves(arms, comparison.references), name)
        made["group_size"] = group_size(group_sizes(arms), name)
        made["kl"] = kl(kl_frontier(arms), name)
        drawn = {folder / stem: figure for stem, figure in made.items() if figure is not None}
        return [path for paths in _saved(drawn) for path in paths]


_FIGURES: dict[Path, Figure] = {}  # that forked processes find


def _saved(drawn: dict[Path, Figure]) -> list[list[Path]]:
    """Each figure's files; rendering is most of a table's time, so it is shared out over the cores."""
    workers = min(cores(), len(drawn))
    if workers < 2 or "fork" not in multiprocessing.get_all_start_methods() or "torch" in sys.modules:
        return [save(figure, stem) for stem, figure in drawn.items()]
    _FIGURES.update(drawn)
    try:
        with multiprocessing.get_context("fork").Pool(workers) as pool:
            return pool.map(_save, drawn, chunksize=1)
    finally:
        _FIGURES.clear()


def _save(stem: Path) -> list[Path]:
    return save(_FIGURES[stem], stem)
