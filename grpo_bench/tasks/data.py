"""Reading and checking the rows of a data set: from local jsonl or parquet files, or from the hub.

A local folder holds one file per split, as people save them and as the hub stores them: ``train.jsonl``,
``train.parquet`` or ``train-00000-of-00001.parquet``, in the folder itself, in ``data/`` or in a folder named after
the hub's config. Local files are read plainly: no cache is written, and the ``datasets`` library is not imported.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_bench.types import Problem, UserError

if TYPE_CHECKING:
    from grpo_bench.config import TaskConfig

NAMED = 5  # bad rows named in one error line
HUB_SECONDS = 10  # the hub is asked once before `datasets` starts its own, much longer, series of retries


@dataclass(frozen=True, slots=True)
class Row:
    """One row as read, with its index in the split and where it came from (``train.jsonl:17``)."""

    values: dict[str, Any]
    index: int
    where: str


class BadRow(ValueError):
    """What is wrong with one row; ``parse_rows`` adds where it is."""


def read_split(
    path: str | None, hub: str | None, hub_config: str | None, split: str, setting: str = "task.path"
) -> list[Row]:
    """All rows of one split: of the local folder ``path`` where there is one, else of data set ``hub`` on the hub.

    Raises UserError, one line, for a missing folder or file, malformed content, an empty split, or a hub that cannot
    be reached; ``setting`` is the option that the line tells the user to set.
    """
    if path is not None:
        rows = read_files(find_files(Path(path).expanduser(), split, hub_config, setting))
    elif hub is not None:
        rows = read_hub(hub, hub_config, split, setting)
    else:
        raise UserError(f"this task has no data set on the hub; give a local folder with {setting}=...")
    if not rows:
        raise UserError(f"split {split!r} of {path or hub} has no rows")
    return rows


def find_files(folder: Path, split: str, hub_config: str | None, setting: str) -> list[Path]:
    """The files of one split, in the order of their names."""
    if not folder.exists():
        raise UserError(f"{setting}={folder}: no such folder; it must hold {split}.jsonl or {split}.parquet")
    if not folder.is_dir():
        raise UserError(f"{setting}={folder} is a file; give the folder that holds {split}.jsonl or {split}.parquet")
    places = [folder, *([folder / hub_config] if hub_config else []), folder / "data"]
    for place in places:
        jsonl = [place / f"{split}.jsonl"] if (place / f"{split}.jsonl").is_file() else []
        parquet = [place / f"{split}.parquet"] if (place / f"{split}.parquet").is_file() else []
        parquet += sorted(place.glob(f"{split}-*-of-*.parquet"))
        if jsonl and parquet:
            raise UserError(f"{place} holds both {jsonl[0].name} and {parquet[0].name}; keep one of them")
        if jsonl or parquet:
            return jsonl or parquet
    there = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
    raise UserError(f"{setting}={folder}: no {split}.jsonl or {split}.parquet there (found: {there})")


def local_files(task: TaskConfig) -> dict[str, list[Path]]:
    """Local files that loading the task will read, by key: ``path`` and, for MATH-500, ``math500_path``.

    Keys without a local folder are left out. Raises UserError as loading would for folders and files that are absent,
    without reading any.
    """
    found: dict[str, list[Path]] = {}
    folder = Path(task.path).expanduser() if task.path is not None else None
    if folder is not None:
        if task.name == "custom" and folder.is_file():
            return {"path": [folder]}
        splits = (task.split, task.eval_split) if task.name == "custom" else ("train", "test")
        found["path"] = [file for split in splits for file in find_files(folder, split, task.hub_config, "task.path")]
    if task.name == "math" and task.eval_split == "math500":
        place = Path(task.math500_path).expanduser() if task.math500_path is not None else None
        if place is None and folder is not None:
            from grpo_bench.tasks.math import find_math500

            place = find_math500(folder)
        if place is not None:
            found["math500_path"] = find_files(place, "test", None, "task.math500_path")
    return found


def read_files(files: Iterable[Path]) -> list[Row]:
    """Rows of jsonl or parquet files, in order."""
    rows: list[Row] = []
    for file in files:
        try:
            part = _read_parquet(file) if file.suffix == ".parquet" else _read_jsonl(file)
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror or error})") from error
        rows += [Row(values, len(rows) + number, where) for number, (values, where) in enumerate(part)]
    return rows


def _read_jsonl(file: Path) -> list[tuple[dict[str, Any], str]]:
    content = file.read_bytes()
    if file.suffix == ".gz":  # evaluations of a record
        try:
            content = gzip.decompress(content)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{file}: not a readable gzip file ({_first_line(error)})") from error
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    while lines and not lines[-1].strip():  # the newline at the end of the file
        lines.pop()
    rows, bad = [], []
    for number, line in enumerate(lines, start=1):
        where = f"{file}:{number}"
        try:
            rows.append((_parse_line(line), where))
        except BadRow as error:
            bad.append((where, str(error)))
    _refuse(bad)
    return rows


def _parse_line(line: bytes) -> dict[str, Any]:
    if not line.strip():
        raise BadRow("empty line")
    try:
        values = json.loads(line.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise BadRow(f"not UTF-8 at byte {error.start + 1}") from error
    except json.JSONDecodeError as error:
        raise BadRow(f"not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise BadRow("not a row: nested too deeply") from error
    if not isinstance(values, dict):
        raise BadRow(f"not a JSON object but {type(values).__name__}")
    return values


def _no_constant(name: str) -> None:
    raise BadRow(f"not JSON: {name}")


def _read_parquet(file: Path) -> list[tuple[dict[str, Any], str]]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(file, memory_map=False).to_pylist()
    except pyarrow.ArrowException as error:
        raise UserError(f"{file}: not a readable parquet file ({_first_line(error)})") from error
    return [(values, f"{file}, row {number}") for number, values in enumerate(rows, start=1)]


def read_hub(hub: str, hub_config: str | None, split: str, setting: str = "task.path") -> list[Row]:
    """Rows of one split through ``datasets``, cached where that library keeps its cache.

    Respects HF_HUB_OFFLINE (cache only). Whatever goes wrong there becomes the user's one line.
    """
    import huggingface_hub
    from huggingface_hub import constants

    advice = f"give a local folder with {setting}=..."
    revision = None
    if not constants.HF_HUB_OFFLINE:
        try:
            revision = huggingface_hub.HfApi().dataset_info(hub, timeout=HUB_SECONDS).sha
        except huggingface_hub.errors.RepositoryNotFoundError as error:
            raise UserError(f"the hub has no data set {hub!r} (or it is private); set task.hub, or {advice}") from error
        except Exception as error:
            raise UserError(
                f"cannot reach the hub for {hub} ({_first_line(error)}); {advice}, "
                "or set HF_HUB_OFFLINE=1 when it was downloaded before"
            ) from error
    import datasets

    try:
        table = datasets.load_dataset(hub, hub_config, split=split, revision=revision)
    except Exception as error:
        offline = " with HF_HUB_OFFLINE set" if constants.HF_HUB_OFFLINE else ""
        what = f"{hub}, split {split!r}, from the hub{offline}"
        raise UserError(f"cannot load {what} ({_first_line(error)}); {advice}") from error
    return [Row(dict(values), index, f"{hub} {split}, row {index + 1}") for index, values in enumerate(table)]


def parse_rows(rows: Sequence[Row], parse: Callable[[Row], Problem]) -> list[Problem]:
    """``parse`` over all rows; every bad row (BadRow) and every repeated id is found before UserError is raised."""
    problems: list[Problem] = []
    bad: list[tuple[str, str]] = []
    seen: dict[str, str] = {}
    for row in rows:
        try:
            problem = parse(row)
            if problem.id in seen:
                raise BadRow(f"id {problem.id!r} is taken by {seen[problem.id]}")
        except BadRow as error:
            bad.append((row.where, str(error)))
            continue
        seen[problem.id] = row.where
        problems.append(problem)
    _refuse(bad)
    return problems


def text_field(row: Row, name: str) -> str:
    """A required, non-empty string of a row, stripped; raises BadRow."""
    if name not in row.values:
        raise BadRow(f"field {name!r} is missing (it has {', '.join(map(repr, row.values)) or 'no fields'})")
    value = row.values[name]
    if not isinstance(value, str):
        raise BadRow(f"field {name!r} must be a string, not {type(value).__name__}")
    if not value.strip():
        raise BadRow(f"field {name!r} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
        raise BadRow(f"field {name!r} is not valid Unicode") from error
    return value.strip()


def _refuse(bad: list[tuple[str, str]]) -> None:
    if bad:
        named = "; ".join(f"{where}: {what}" for where, what in bad[:NAMED])
        more = f"; and {len(bad) - NAMED} more bad rows" if len(bad) > NAMED else ""
        raise UserError(named + more)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
