"""A run made again against its record: figure by figure, then one verdict for the cell and one for the row.

*Identical*: the evaluation rows are the same byte for byte and every figure is equal. *Within*: the new figure lies in
the interval in which one more run of the recorded row is expected. *Off*: it does not; or it differs at all where
nothing that can change a result differs, since the same machine, threads and versions give the same bits.
*Not judged*: the accuracy differs, and the record gives no interval for it.
"""

from __future__ import annotations

import gzip
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from grpo_bench.records import Run, Scores

Word = Literal["identical", "within", "off", "failed", "not judged"]
LEVEL = 0.95
ACCURACY = "eval.final.greedy.acc"
# what the machine decides is shown and never judged
CLOCKS = ("cost.seconds.total", "cost.peak_memory_bytes")
_STABILITY = ("kl_final", "entropy_final", "grad_norm_max", "reward_std_last", "nan_steps", "skipped_updates")
COUNTS = ("cost.steps", "cost.prompts", "cost.samples", "cost.updates", "stability.nan_steps")
_COST = ("steps", "prompts", "samples", "updates", "generated_tokens", "trained_tokens", "flops")


@dataclass(frozen=True, slots=True)
class Figure:
    """One recorded number and its counterpart; ``low`` and ``high`` are None where no interval can be given."""

    name: str
    recorded: float | None
    new: float | None
    low: float | None
    high: float | None
    word: Word


@dataclass(frozen=True)
class Cell:
    """One run (row x seed) made again; ``reason`` says why it is off or failed."""

    run: Run
    word: Word
    figures: list[Figure] = field(default_factory=list)
    reason: str = ""

    @property
    def accuracy(self) -> Figure | None:
        return next((figure for figure in self.figures if figure.name == ACCURACY), None)


@dataclass(frozen=True)
class Row:
    """The mean accuracy of a row over the seeds that were made again, against the recorded seeds' interval for it."""

    row: str
    mean: Figure
    seeds: int
    recorded_seeds: int


def figures_of(result: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a result.json that can come out again, by their dotted keys; clocks apart."""
    found: dict[str, float] = {}
    evals = result.get("eval") or {}
    for phase in ("final", "base", "pretrained"):
        for mode, values in sorted((evals.get(phase) or {}).items()):
            for key, value in values.items():
                if key not in ("n", "stderr", "split"):
                    found[f"eval.{phase}.{mode}.{key}"] = value
    for part, keys in (("cost", _COST), ("stability", _STABILITY)):
        for key in keys:
            if key in (result.get(part) or {}):
                found[f"{part}.{key}"] = result[part][key]
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


def contradiction(run: Run) -> str:
    """Why a record cannot be right as it stands: its accuracy is not that of its own evaluation rows; "" if it can."""
    said = (((run.result or {}).get("eval") or {}).get("final") or {}).get("greedy") or {}
    rows = run.scores
    if said.get("acc") is None or rows is None:
        return ""
    for name in ("acc", "acc_strict", "acc_flexible"):
        counted = float(rows.by[name].mean())
        if said.get(name) is not None and abs(said[name] - counted) > 1e-9:
            return f"the record contradicts itself: result.json says {name} {said[name]:.4g}, its rows {counted:.4g}"
    return ""


def compare(run: Run, new: Run, row: Sequence[Run], *, exact: bool) -> Cell:
    """``run`` as recorded against ``new``; ``row`` are all recorded runs of its row, ``run`` included.

    ``exact``: nothing that can change a result differs, so everything has to be equal.
    """
    if reason := contradiction(run):
        return Cell(run, "off", reason=reason)
    recorded, made = figures_of(run.result or {}), figures_of(new.result or {})
    names = [name for name in recorded if name in made]
    level = 1 - (1 - LEVEL) / max(1, len(names) - 1)
    figures = []
    for name in names:
        phase = name.split(".")[1]
        if phase in ("base", "pretrained"):  # evaluated once for all seeds: their spread says nothing
            pair = run.baseline_scores(phase), new.baseline_scores(phase)
            half = _problems(*pair) if name.endswith("greedy.acc") else None
            low, high = _widen(None, None, recorded[name], half)
        else:
            others = [f[name] for one in row if one.result and name in (f := figures_of(one.result))]
            low, high = _interval(others, LEVEL if name == ACCURACY else level, 1)
            if name not in COUNTS and len(set(others)) == 1:  # seeds that happen to agree are no interval
                low = high = None
            if name == ACCURACY:
                low, high = _widen(low, high, recorded[name], _problems(run.scores, new.scores))
        figures.append(_judge(name, recorded[name], made[name], low, high, exact))
    figures += [_clock(name, run.result or {}, new.result or {}) for name in CLOCKS]
    gone = sorted(name for name in recorded if name not in made)
    same = rows_digest(run.directory) == rows_digest(new.directory)
    words = [figure.word for figure in figures if figure.name not in CLOCKS]
    if gone:
        return Cell(run, "off", figures, f"the new record lacks {', '.join(gone)}")
    if same and all(word == "identical" for word in words):
        return Cell(run, "identical", figures)
    if exact:
        what = "evaluation rows" if not same else "figures"
        return Cell(run, "off", figures, f"other {what}, though nothing differs that can change them")
    off = [figure.name for figure in figures if figure.word == "off"]
    if off:
        return Cell(run, "off", figures, ", ".join(off))
    if any(figure.name == ACCURACY and figure.word == "not judged" for figure in figures):
        why = "its accuracy differs, and the record has no interval to judge it by"
        return Cell(run, "not judged", figures, why)
    return Cell(run, "within", figures)


def row_mean(row: str, recorded: Sequence[Run], cells: Sequence[Cell]) -> Row | None:
    """The row's mean accuracy; None where no cell of it has one."""
    before = [value for run in recorded if run.result and (value := figures_of(run.result).get(ACCURACY)) is not None]
    made = [(f.recorded, f.new) for cell in cells if (f := cell.accuracy) and f.recorded is not None]
    new = [value for _, value in made if value is not None]
    if not new or not before:
        return None
    old = [value for value, _ in made if value is not None]
    low, high = _interval(before, LEVEL, len(new))
    same = all(cell.word == "identical" for cell in cells)
    exact = any(cell.word == "off" and "nothing differs" in cell.reason for cell in cells)
    mean_old, mean_new = float(np.mean(old)), float(np.mean(new))
    figure = _judge("mean accuracy", mean_old, mean_new, low, high, exact)
    if same:
        figure = Figure(figure.name, mean_old, mean_new, low, high, "identical")
    elif figure.word == "identical":  # equal means of different answers
        figure = Figure(figure.name, mean_old, mean_new, low, high, "off" if exact else "within")
    return Row(row, figure, len(new), len(before))


def rows_digest(directory: Path) -> str:
    """SHA-256 of the evaluation rows as text, packed or not; of nothing where there are none."""
    plain, packed = directory / "eval.jsonl", directory / "eval.jsonl.gz"
    content = plain.read_bytes() if plain.is_file() else b""
    if not content and packed.is_file():
        content = gzip.decompress(packed.read_bytes())
    return hashlib.sha256(content).hexdigest()


def _judge(name: str, recorded: float, new: float, low: float | None, high: float | None, exact: bool) -> Figure:
    word: Word
    if recorded == new:
        word = "identical"
    elif exact:
        word = "off"
    elif low is None or high is None:
        word = "not judged"
    else:
        word = "within" if low <= new <= high else "off"
    return Figure(name, recorded, new, low, high, word)


def _interval(values: Sequence[float], level: float, m: int) -> tuple[float | None, float | None]:
    """Student's prediction interval for the mean of ``m`` further runs, from the recorded seeds; None for one seed.

    mean ± t(n-1)·s·sqrt(1/m + 1/n); a count that every seed shares has a width of 0.
    """
    from scipy.special import stdtrit

    n = len(values)
    if n < 2:
        return None, None
    mean = float(np.mean(values))
    half = float(stdtrit(n - 1, (1 + level) / 2)) * float(np.std(values, ddof=1)) * math.sqrt(1 / m + 1 / n)
    slack = 1e-12 * max(1.0, abs(mean))  # of summing in another order, no more
    return mean - half - slack, mean + half + slack


def _problems(old: Scores | None, new: Scores | None) -> float | None:
    """Half a 95 % interval of the paired difference over problems: what flipped answers alone would explain."""
    if old is None or new is None or old.ids != new.ids or len(old.ids) < 2:
        return None
    difference = new.by["acc"] - old.by["acc"]
    return 1.96 * float(np.std(difference, ddof=1)) / math.sqrt(len(difference))


def _widen(
    low: float | None, high: float | None, recorded: float, half: float | None
) -> tuple[float | None, float | None]:
    """The wider of the seeds' interval and, around the recorded accuracy, that of the problems: with one seed it is
    the only one, and seeds that happen to agree must not make it a point."""
    if half is None:
        return low, high
    bounds = [recorded - half, recorded + half]
    return min([*bounds, *([low] if low is not None else [])]), max([*bounds, *([high] if high is not None else [])])


def _clock(name: str, recorded: Mapping[str, Any], new: Mapping[str, Any]) -> Figure:
    def value(result: Mapping[str, Any]) -> float | None:
        node: Any = result
        for key in name.split("."):
            node = node.get(key) if isinstance(node, Mapping) else None
        return float(node) if isinstance(node, int | float) else None

    return Figure(name, value(recorded), value(new), None, None, "not judged")
