"""A study on a front page: what was run, the short main table, the verdicts, one figure."""

from __future__ import annotations

import os
from pathlib import Path

from grpo_bench.table.compare import Comparison, Declared
from grpo_bench.table.contrast_sheet import verdict_lines
from grpo_bench.table.heading import Heading
from grpo_bench.table.main import main_sheet
from grpo_bench.table.render import as_markdown
from grpo_bench.types import UserError

SHORT: dict[Declared, str] = {
    "contrasts": "declared before the runs",
    "baseline": "declared by the study's baseline: every row against it",
    "no": "none was declared",
}
SHOWN = ("Task", "Model", "Budget", "Test", "Seeds", "Revision", "Runs made by", "Table made by")


def brief(heading: Heading, c: Comparison) -> str:
    """Markdown without headings of its own: it stands inside another page."""
    parts = ["\n".join(f"- {name}: {text}" for name, text in heading.lines if name in SHOWN)]
    sheet = main_sheet(c, short=True)
    parts += [as_markdown(sheet), "\n".join(f"- {note}" for note in sheet.notes)]
    if c.contrasts:
        beforehand = c.declared != "no"
        within = f", margin ±{100 * c.margin:g} points" if beforehand else ""
        parts.append(f"{'Verdicts' if beforehand else 'Differences'} ({SHORT[c.declared]}{within}):")
        parts.append("\n".join(f"- {line}" for line in verdict_lines(c.contrasts)))
    if c.left_out:
        parts.append(f"Not finished: {len(c.left_out)} of {len(c.study.runs)} runs, named in the whole table.")
    return "\n\n".join(parts)


def insert(page: Path, folder: Path, text: str, figure: str | None = None) -> None:
    """Put ``text`` into a page between ``<!-- table:STUDY-TASK -->`` and ``<!-- /table -->``; ``figure`` names an image
    of the study's folder to show below it.

    Raises UserError when the page, its markers or the figure are missing.
    """
    begin, end = f"<!-- table:{folder.resolve().name} -->", "<!-- /table -->"
    if figure is not None:
        text += f"\n\n{_image(page, folder, figure)}"
    try:
        before, found, rest = page.read_text(encoding="utf-8").partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise UserError(f"into={page}: no {begin} followed by {end} there; write both where the table should stand")
        page.write_text(f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}", encoding="utf-8")
    except OSError as error:
        raise UserError(f"into={page} cannot be written: {error.strerror or error}") from None


def _image(page: Path, folder: Path, figure: str) -> str:
    names = [figure] if Path(figure).suffix else [f"{figure}.svg", f"{figure}.png"]
    file = next((folder / name for name in names if (folder / name).is_file()), None)
    if file is None:
        there = sorted({path.stem for path in folder.iterdir() if path.suffix in (".svg", ".png")})
        raise UserError(
            f"figure={figure}: {folder.name} has none of that name; it has {', '.join(there) or 'no figures'}"
        )
    path = Path(os.path.relpath(file.resolve(), page.resolve().parent)).as_posix()
    return f"![{file.stem} of {folder.resolve().name}]({path})"
