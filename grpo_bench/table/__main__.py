"""``python -m grpo_bench.table results/<study>-<task> [baseline=ARM]``: the Markdown goes to stdout, paths to stderr."""

from __future__ import annotations

import sys
from pathlib import Path

from grpo_bench.table import write
from grpo_bench.types import UserError

USAGE = "python -m grpo_bench.table results/<study>-<task> [baseline=ARM]"


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on stderr for bad input."""
    try:
        folder, baseline = _arguments(sys.argv[1:] if argv is None else argv)
        if folder is None:
            print(f"{USAGE}\nWrites table.md, .csv, .tex, .json and figures into the folder, from its records alone.")
            return 0
        text, paths = write(folder, baseline)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text, end="")
    for path in paths:
        print(f"wrote {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}", file=sys.stderr)
    return 0


def _arguments(argv: list[str]) -> tuple[Path | None, str | None]:
    if any(word in ("-h", "--help") for word in argv):
        return None, None
    folders, baseline = [], None
    for word in argv:
        key, given, value = word.partition("=")
        if key == "baseline" and value:
            baseline = value
        elif word.startswith("-") or (given and key.isidentifier()):
            raise UserError(f"unknown argument {word}; usage: {USAGE}")
        else:
            folders.append(word)
    if len(folders) != 1:
        raise UserError(f"{'no' if not folders else 'more than one'} study folder given; usage: {USAGE}")
    return Path(folders[0]), baseline


if __name__ == "__main__":
    sys.exit(main())
