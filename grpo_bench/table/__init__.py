"""Tables of a study from its records alone: arms, paired differences, costs, in four formats; no torch.

``build(folder)`` computes them, ``write(folder)`` puts them and the curves beside the records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from grpo_bench.records import load_study
from grpo_bench.table.article import article_sheet
from grpo_bench.table.compare import Comparison, compare
from grpo_bench.table.heading import Heading, heading
from grpo_bench.table.layout import Sheet, sheets
from grpo_bench.table.render import as_csv, as_json, latex, markdown
from grpo_bench.table.shortfall import shortfall_sheet
from grpo_bench.types import UserError

__all__ = ["Table", "build", "write"]


@dataclass(frozen=True)
class Table:
    """A study's tables with the numbers behind them."""

    heading: Heading
    comparison: Comparison
    sheets: list[Sheet]

    def markdown(self, figures: Sequence[str] = ()) -> str:
        """The whole page; ``figures`` are names of images beside it."""
        return markdown(self.heading, self.sheets, self.comparison, list(figures))


def build(folder: Path, baseline: str | None = None) -> Table:
    """Read ``results/<study>-<task>`` and compare its arms; ``baseline`` names a row instead of the study's own.

    Raises UserError for an empty, absent or damaged folder and for a baseline that has no run.
    """
    comparison = compare(load_study(folder), baseline)
    whole = folder.resolve()  # shown as below the working directory, wherever it was called from
    command = f"python -m grpo_bench.table {whole.parent.name}/{whole.name}"
    command += f" baseline={baseline}" if baseline else ""
    more = [sheet for sheet in (shortfall_sheet(comparison), article_sheet(comparison)) if sheet]
    return Table(heading(comparison, command), comparison, [*sheets(comparison), *more])


def write(folder: Path, baseline: str | None = None) -> tuple[str, list[Path]]:
    """Write table.md, .csv, .tex, .json and the figures into ``folder``; the Markdown and the paths written."""
    from grpo_bench.figures import draw  # matplotlib takes a second to load, and a bad folder should not wait for it

    table = build(folder, baseline)
    try:
        drawn = draw(table.comparison, folder)
        images = [path.name for path in drawn if path.suffix == ".png"]
        text = table.markdown(images)
        files = {
            "table.md": text,
            "table.csv": as_csv(table.comparison),
            "table.tex": latex(table.heading, table.sheets, table.comparison),
            "table.json": as_json(table.heading, table.sheets, table.comparison),
        }
        for name, content in files.items():
            (folder / name).write_text(content, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write the table into {folder.name}: {error.strerror or error}") from None
    return text, [*[folder / name for name in files], *drawn]
