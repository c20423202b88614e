"""``python -m grpo_bench.table FOLDER [baseline=ARM] [into=FILE.md]``: Markdown to stdout, paths to stderr."""

from __future__ import annotations

import sys
from pathlib import Path

from grpo_bench.table import write
from grpo_bench.types import UserError

SHOWN = ("Accuracy", "PPO and GRPO")
USAGE = "python -m grpo_bench.table results/<study>-<task> [baseline=ARM] [into=FILE.md]"


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on stderr for bad input."""
    try:
        folder, baseline, into = _arguments(sys.argv[1:] if argv is None else argv)
        if folder is None:
            print(f"{USAGE}\nWrites table.md, .csv, .tex, .json and figures into the folder, from its records alone.")
            print("into=FILE.md also replaces what stands there between <!-- table:STUDY-TASK --> and <!-- /table -->.")
            return 0
        text, paths = write(folder, baseline)
        if into is not None:
            insert(into, folder.resolve().name, text)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text, end="")
    for path in paths:
        print(f"wrote {path}", file=sys.stderr)
    return 0


def insert(page: Path, study: str, table: str) -> None:
    """Put accuracy and the PPO-and-GRPO table into a page, between its markers; the rest lies beside the records.

    Raises UserError when the page or its markers are missing.
    """
    begin, end = f"<!-- table:{study} -->", "<!-- /table -->"
    try:
        before, found, rest = page.read_text(encoding="utf-8").partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise UserError(f"into={page}: no {begin} followed by {end} there; write both where the table should stand")
        head, *sections = table.partition("\n")[2].split("\n## ")
        kept = [head, *(s.partition("\n")[2] for s in sections if s.startswith(SHOWN))]
        text = "\n\n".join(part.strip() for part in kept)
        page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")
    except OSError as error:
        raise UserError(f"into={page} cannot be written: {error.strerror or error}") from None


def _arguments(argv: list[str]) -> tuple[Path | None, str | None, Path | None]:
    if any(word in ("-h", "--help") for word in argv):
        return None, None, None
    folders, baseline, into = [], None, None
    for word in argv:
        key, given, value = word.partition("=")
        if key == "baseline" and value:
            baseline = value
        elif key == "into" and value:
            into = Path(value)
        elif word.startswith("-") or (given and key.isidentifier()):
            raise UserError(f"unknown argument {word}; usage: {USAGE}")
        else:
            folders.append(word)
    if len(folders) != 1:
        raise UserError(f"{'no' if not folders else 'more than one'} study folder given; usage: {USAGE}")
    return Path(folders[0]), baseline, into


if __name__ == "__main__":
    sys.exit(main())
