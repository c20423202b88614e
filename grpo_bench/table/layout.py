"""What a table is before any file format: rows of text, and how numbers read in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from grpo_bench.table.arms import Arm, Difference
from grpo_bench.table.pairs import Estimate

NONE = "–"


class Bold(str):
    """A cell to be set in bold: a difference whose interval excludes zero."""

    __slots__ = ()


@dataclass
class Sheet:
    """A table as text: ``rows`` are as wide as ``header``; ``wide`` columns hold sentences and may wrap.

    Columns that belong together share a prefix, "s/update: rollout" and "s/update: reward": LaTeX sets it once above.
    """

    name: str
    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    wide: bool = False


def grouped(words: str, names: Sequence[str]) -> list[str]:
    """Header cells of columns that belong together."""
    return [f"{words}: {name}" for name in names]


def arm_label(arm: Arm) -> str:
    return f"{arm.label} (incomplete)" if arm.incomplete else arm.label


def seeds(arm: Arm) -> str:
    done, all_of_them = len(arm.scored), len(arm.runs)
    return str(done) if done == all_of_them else f"{done} of {all_of_them}"


def points(difference: Difference) -> str:
    """A difference in percentage points with its interval, bold where that excludes zero."""
    if difference.refused:
        return "not comparable" if difference.refused != "no seed has a finished run in both" else NONE
    if "acc" not in difference.by:
        return NONE
    interval = difference.by["acc"].interval
    if not interval.known:
        return f"{100 * interval.estimate:+.1f} (no interval)"
    text = f"{100 * interval.estimate:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"
    return Bold(text) if interval.excludes_zero else text


def estimate_text(estimate: Estimate | None) -> str:
    if estimate is None:
        return NONE
    i = estimate.interval
    return f"{100 * i.estimate:.1f}" + (f" [{100 * i.low:.1f}, {100 * i.high:.1f}]" if i.known else "")


def number(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{value:,.{digits}f}"


def percent(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.1f}"


def integer(value: float | None) -> str:
    return NONE if value is None else f"{value:,.0f}"


def general(value: float | None) -> str:
    return NONE if value is None else f"{value:.3g}"


def scientific(value: float | None) -> str:
    return NONE if value is None else f"{value:.2e}".replace("e+", "e")


def pvalue(value: float | None) -> str:
    return NONE if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def count(value: float | None) -> str:
    """Parameters: 613,000 -> "0.61 M"; 0 and unknown have no network to show."""
    if not value:
        return NONE
    for size, unit in ((1e9, "B"), (1e6, "M")):
        if value >= size / 10:
            return f"{value / size:.{2 if value < 100 * size else 0}f} {unit}"
    return integer(value)


def memory(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"
