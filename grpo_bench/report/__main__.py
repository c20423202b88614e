"""``python -m grpo_bench.report FOLDER [baseline=ROW] [data=FOLDER]``: the page's path to stdout, notes to stderr."""

from __future__ import annotations

import sys
from pathlib import Path

from grpo_bench.report import write
from grpo_bench.types import UserError

USAGE = "python -m grpo_bench.report results/<study>-<task> [baseline=ROW] [data=FOLDER]"
HELP = f"""{USAGE}
Writes report.html into the folder, from its records alone: verdicts, pictures, tables and answers in one file that
opens from disk without a network. baseline= compares with another row; data= is the folder of the task's data set,
where the one in the records is not on this machine."""


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on stderr for bad input."""
    try:
        words = sys.argv[1:] if argv is None else argv
        if any(word in ("-h", "--help") for word in words):
            print(HELP)
            return 0
        folder, baseline, data = _arguments(words)
        path, notes = write(folder, baseline, data)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for note in notes:
        print(note, file=sys.stderr)
    print(path)
    return 0


def _arguments(argv: list[str]) -> tuple[Path, str | None, Path | None]:
    folders, given = [], {}
    for word in argv:
        key, equals, value = word.partition("=")
        if key in ("baseline", "data") and value:
            given[key] = value
        elif word.startswith("-") or (equals and key.isidentifier()):
            raise UserError(f"unknown argument {word}; usage: {USAGE}")
        else:
            folders.append(word)
    if len(folders) != 1:
        raise UserError(f"{'no' if not folders else 'more than one'} study folder given; usage: {USAGE}")
    data = Path(given["data"]) if "data" in given else None
    if data is not None and not data.exists():
        raise UserError(f"data={data}: there is nothing; give the folder of the task's data set")
    return Path(folders[0]), given.get("baseline"), data


if __name__ == "__main__":
    sys.exit(main())
