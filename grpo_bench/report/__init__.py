"""``report.html`` of a study: one file with its verdicts, pictures, tables and answers that opens from disk, offline.

``write(folder)`` makes it from the records alone; no torch, no network, no browser needed to make it.
"""

from __future__ import annotations

from pathlib import Path

from grpo_bench.table import Table
from grpo_bench.types import UserError

__all__ = ["NAME", "write"]

NAME = "report.html"


def write(
    folder: Path, baseline: str | None = None, data: Path | None = None, table: Table | None = None
) -> tuple[Path, list[str]]:
    """Write ``report.html`` into ``folder`` (``results/<study>-<task>``); its path and what a writer should know.

    ``data`` is the folder of the task's data set, where the one in the records is not there; without it the page shows
    ids in place of questions. ``table`` saves building what is at hand. UserError for an absent or damaged study, and
    where the page cannot be written.
    """
    from grpo_bench.report.page import render  # jinja2 loads in a moment, and a bad folder should not wait for it
    from grpo_bench.table import build

    page, notes = render(table or build(folder, baseline), data)
    path = folder / NAME
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    return path, notes
