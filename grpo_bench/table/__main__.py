"""``python -m grpo_bench.table FOLDER [baseline=ROW] [into=FILE.md [figure=NAME]] [tuned=FILE.yaml]``.

Markdown to stdout, paths to stderr.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

from grpo_bench.table import build, write
from grpo_bench.table.brief import brief, insert
from grpo_bench.table.ledger import write_tuned
from grpo_bench.types import UserError

USAGE = (
    "python -m grpo_bench.table results/<study>-<task> [baseline=ROW] [into=FILE.md [figure=NAME]] "
    "[tuned=conf/tuned/<task>-<model>.yaml]"
)
HELP = f"""{USAGE}
Writes table.md, .csv, .tex, .json, a CSV per table and figures into the folder, from its records alone.
into=FILE.md also puts the short form there, between <!-- table:STUDY-TASK --> and <!-- /table -->; figure=accuracy adds
that figure of the folder below it. tuned=FILE.yaml writes the learning rates that a sweep over them chose on dev."""


class Arguments(NamedTuple):
    folder: Path
    baseline: str | None = None
    into: Path | None = None
    figure: str | None = None
    tuned: Path | None = None


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on stderr for bad input."""
    words = sys.argv[1:] if argv is None else argv
    if any(word in ("-h", "--help") for word in words):
        print(HELP)
        return 0
    try:
        given = _arguments(words)
        table = build(given.folder, given.baseline)
        text, paths = write(given.folder, given.baseline, table)
        if given.into is not None:
            insert(given.into, given.folder, brief(table.heading, table.comparison), given.figure)
        if given.tuned is not None:
            folder = given.folder.resolve()
            command = f"python -m grpo_bench.table {folder.parent.name}/{folder.name} tuned={given.tuned.as_posix()}"
            for line in write_tuned(table.comparison, given.tuned, command):
                print(f"tuned {line}", file=sys.stderr)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text, end="")
    for path in [*paths, *(path for path in (given.into, given.tuned) if path)]:
        print(f"wrote {path}", file=sys.stderr)
    return 0


def _arguments(argv: list[str]) -> Arguments:
    """Raises UserError for an unknown word, no folder or more than one."""
    folders: list[str] = []
    values: dict[str, str] = {}
    for word in argv:
        key, _, value = word.partition("=")
        if key in ("baseline", "into", "figure", "tuned") and value:
            values[key] = value
        elif word.startswith("-") or ("=" in word and key.isidentifier()):
            raise UserError(f"unknown argument {word}; usage: {USAGE}")
        else:
            folders.append(word)
    if len(folders) != 1:
        raise UserError(f"{'no' if not folders else 'more than one'} study folder given; usage: {USAGE}")
    if "figure" in values and "into" not in values:
        raise UserError(f"figure={values['figure']} needs into=FILE.md; usage: {USAGE}")
    into, tuned = (Path(values[key]) if key in values else None for key in ("into", "tuned"))
    return Arguments(Path(folders[0]), values.get("baseline"), into, values.get("figure"), tuned)


if __name__ == "__main__":
    sys.exit(main())
