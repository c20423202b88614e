"""A table of the study as the page shows it: its cells with the value that each is sorted by."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from grpo_bench.table.layout import Bold, Sheet

_NUMBER = re.compile(r"^[<>≥≤~]?\s*([+−-]?[\d,]*\.?\d+(?:e[+-]?\d+)?)(?:\s*(%|[kKMGT]?B\b|[kMB]\b))?")
_UNITS = {"kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "k": 1e3, "M": 1e6, "B": 1e9}
ANSWER = ("verdict", "outcome")  # what a reader came for stands right after what it is about, in sight on a phone
FILTERED = 8  # rows; a shorter table needs no filter


@dataclass(frozen=True, slots=True)
class Cell:
    text: str
    value: float | None  # None: sorted by its text
    bold: bool = False


@dataclass(frozen=True)
class Shown:
    """A table ready to be shown; ``numeric[i]``: column i is of numbers, and aligned right."""

    name: str
    title: str
    header: list[str]
    rows: list[list[Cell]]
    numeric: list[bool]
    notes: list[str]
    wide: bool

    @property
    def filtered(self) -> bool:
        return len(self.rows) >= FILTERED


def shown(sheet: Sheet) -> Shown:
    """The cells of a sheet; a column counts as numeric where half or more of what stands in it begins with a number."""
    order = sorted(range(len(sheet.header)), key=lambda i: (i > 0, sheet.header[i] not in ANSWER))
    header = [sheet.header[i] for i in order]
    cells = [[row[i] for i in order] for row in sheet.rows]
    rows = [[Cell(str(cell), number(cell), isinstance(cell, Bold)) for cell in row] for row in cells]
    numeric = [not sheet.wide and _numeric([row[i] for row in rows]) for i in range(len(header))]
    return Shown(sheet.name, sheet.title, header, rows, numeric, sheet.notes, sheet.wide)


def number(text: str) -> float | None:
    """What a cell is sorted by: 1,024 · 86.4 [85, 88] · +3.2 · 0.61 M · 1.2 GB · 5.2e11 · < 0.001; None for words."""
    match = _NUMBER.match(text.strip())
    if match is None:
        return None
    rest = text.strip()[match.end() :]
    if rest[:1].isalpha() or rest[:1] == "_":  # 2x, 16_p: a name
        return None
    return float(match[1].replace(",", "").replace("−", "-")) * _UNITS.get(match[2] or "", 1.0)


def _numeric(cells: Sequence[Cell]) -> bool:
    said = [cell for cell in cells if cell.text not in ("", "–", "·")]
    return 2 * sum(cell.value is not None for cell in said) >= len(said)
