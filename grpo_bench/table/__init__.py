"""Tables of a study from its records alone: arms, paired differences, verdicts, costs, in four formats; no torch.

``build(folder)`` computes them, ``write(folder)`` puts them and the figures beside the records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from grpo_bench.records import load_study
from grpo_bench.table.ablation import ablation_sheet
from grpo_bench.table.article import article_sheet
from grpo_bench.table.card import card_sheet
from grpo_bench.table.compare import Comparison, compare
from grpo_bench.table.compute import cost_sheet, efficiency_sheet
from grpo_bench.table.compute_sheet import compute_sheet
from grpo_bench.table.contrast_sheet import contrasts_sheet
from grpo_bench.table.groups import groups_sheet
from grpo_bench.table.heading import Heading, heading
from grpo_bench.table.hypotheses import Finding, evaluate, hypotheses_sheet
from grpo_bench.table.layout import Sheet
from grpo_bench.table.ledger import ledger_sheet
from grpo_bench.table.main import answers_sheet, main_sheet
from grpo_bench.table.render import as_csv, as_json, latex, markdown, sheet_csv
from grpo_bench.table.shortfall import shortfall_sheet
from grpo_bench.table.stability import stability_sheet
from grpo_bench.table.tasks_sheet import tasks_sheet
from grpo_bench.types import UserError

__all__ = ["Table", "build", "write"]

PARTS = "tables"  # folder of one CSV per table


@dataclass(frozen=True)
class Table:
    """A study's tables with the numbers behind them."""

    heading: Heading
    comparison: Comparison
    sheets: list[Sheet]
    findings: list[Finding] = field(default_factory=list)

    def markdown(self, figures: Sequence[str] = ()) -> str:
        """The whole page; ``figures`` are names of images beside it."""
        return markdown(self.heading, self.sheets, self.comparison, list(figures))

    def sheet(self, name: str) -> Sheet | None:
        """The table of that name, None where this study has none."""
        return next((sheet for sheet in self.sheets if sheet.name == name), None)


def build(folder: Path, baseline: str | None = None) -> Table:
    """Read ``results/<study>-<task>`` and compare its arms; ``baseline`` names a row instead of the study's own.

    The tables that measured something, verdicts first. Raises UserError for an empty, absent or damaged folder and for
    a baseline that has no run.
    """
    c = compare(load_study(folder), baseline)
    whole = folder.resolve()  # shown as below the working directory, wherever it was called from
    command = f"python -m grpo_bench.table {whole.parent.name}/{whole.name}"
    command += f" baseline={baseline}" if baseline else ""
    findings = evaluate(c)
    made: list[Sheet | None] = [
        main_sheet(c),
        contrasts_sheet(c) if c.contrasts else None,
        hypotheses_sheet(c, findings),
        article_sheet(c, findings),
        ablation_sheet(c),
        groups_sheet(c),
        ledger_sheet(c),
        answers_sheet(c),
        tasks_sheet(c),
        efficiency_sheet(c),
        cost_sheet(c),
        compute_sheet(c),
        stability_sheet(c),
        shortfall_sheet(c),
        card_sheet(c),
    ]
    return Table(heading(c, command), c, [sheet for sheet in made if sheet and sheet.rows], findings)


def write(folder: Path, baseline: str | None = None, table: Table | None = None) -> tuple[str, list[Path]]:
    """Write table.md, .csv, .tex, .json, a CSV per table and the figures into ``folder``; the Markdown and the paths
    written. ``table`` is what ``build`` gave, where that was called already."""
    from grpo_bench.figures import draw  # matplotlib takes a second to load, and a bad folder should not wait for it

    table = table or build(folder, baseline)
    try:
        drawn = draw(table.comparison, folder)
        images = [path.name for path in drawn if path.suffix == ".png"]
        text = table.markdown(images)
        files = {
            "table.md": text,
            "table.csv": as_csv(table.comparison),
            "table.tex": latex(table.heading, table.sheets, table.comparison),
            "table.json": as_json(table.heading, table.sheets, table.comparison, table.findings),
            **{f"{PARTS}/{sheet.name}.csv": sheet_csv(sheet) for sheet in table.sheets},
        }
        (folder / PARTS).mkdir(exist_ok=True)
        for stale in (folder / PARTS).glob("*.csv"):  # of a table that this study no longer has
            if f"{PARTS}/{stale.name}" not in files:
                stale.unlink()
        for name, content in files.items():
            (folder / name).write_text(content, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write the table into {folder.name}: {error.strerror or error}") from None
    return text, [*[folder / name for name in files], *drawn]
