"""Files that survive a crash: atomic writes, and append-only jsonl that can be cut back to a known point."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from grpo_bench.types import UserError

_FULL = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than this disk or process allows",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "no permission to write",
}


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what a user can mend (full, read-only, forbidden) into one line about ``path``; the rest propagates."""
    try:
        yield
    except OSError as error:
        code = error.errno
        if code not in _FULL:
            raise
        raise UserError(_full_line(path, code)) from error
    except Exception as error:
        # safetensors reports the system's error as text inside an exception of its own
        found = re.search(r"os error (\d+)", str(error)) if type(error).__name__ == "SafetensorError" else None
        if found is None or int(found[1]) not in _FULL:
            raise
        raise UserError(_full_line(path, int(found[1]))) from error


def _full_line(path: Path, code: int) -> str:
    mend = "free some space" if code not in (errno.EROFS, errno.EACCES) else "choose a writable folder with results=…"
    return f"cannot write {path}: {_FULL[code]}; {mend} and run the same command again, it continues where it stopped"


def sync_folder(folder: Path) -> None:
    """Make renames within ``folder`` durable; a no-op where folders cannot be opened."""
    try:
        fd = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows
        return
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``path`` so that a reader, or a crash, sees the old content or the new, never a part.

    UserError, and no temporary file left, where the disk refuses it.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with disk_errors(path):
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """``value`` as readable JSON, atomically; NaN is refused (``metrics.finite`` removes it)."""
    write_atomic(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def remove_tree(folder: Path) -> None:
    """Delete ``folder`` at once for readers: renamed away first, so no half-deleted folder keeps its name."""
    doomed = folder.with_name(f".{folder.name}.old.tmp")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(folder, doomed)
    shutil.rmtree(doomed)


class Journal:
    """One append-only jsonl file with its size and running hash.

    Appends are unbuffered: a killed process loses at most a torn last line, and closing after a full disk has nothing
    left to write. ``mark`` is what a checkpoint remembers; ``rewind`` cuts the file back to a mark. Rows are ASCII
    JSON: no reader splits a line at U+2028.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: Any = None
        self._size = 0
        self._hash = hashlib.sha256()

    def matches(self, mark: dict[str, Any]) -> bool:
        """Whether the file still begins with the bytes that ``mark`` was taken of."""
        return self._digest(mark["bytes"]) == mark["sha256"]

    def rewind(self, mark: dict[str, Any] | None) -> None:
        """Open for appending after the first ``mark["bytes"]`` bytes; None: empty."""
        self.close()
        size = mark["bytes"] if mark else 0
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (closed by close)
        self._file.truncate(size)
        self._hash = hashlib.sha256()
        with open(self.path, "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                self._hash.update(block)
        self._size = size

    def append(self, *rows: dict[str, Any]) -> None:
        """Hand rows to the system, in one piece where it takes them so."""
        data = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode()
        with disk_errors(self.path):
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
        self._size += len(data)
        self._hash.update(data)

    def mark(self) -> dict[str, Any]:
        """Size and hash so far, after the bytes are durable."""
        with disk_errors(self.path):
            os.fsync(self._file.fileno())
        return {"bytes": self._size, "sha256": self._hash.hexdigest()}

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _digest(self, size: int) -> str | None:
        digest, left = hashlib.sha256(), size
        if not self.path.exists():
            return digest.hexdigest() if size == 0 else None
        with open(self.path, "rb") as file:
            while left and (block := file.read(min(left, 1 << 20))):
                digest.update(block)
                left -= len(block)
        return digest.hexdigest() if left == 0 else None
