"""Rows of a run's record: JSON lines as far as they are written, and evaluation rows as scores by problem."""

from __future__ import annotations

import gzip
import itertools
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grpo_bench.types import UserError

METRICS = ("acc", "acc_strict", "acc_flexible")
_COLUMN = {"acc": "correct", "acc_strict": "strict", "acc_flexible": "flexible"}
_WRITTEN = ("acc_strict", "acc_flexible", "acc")  # their order in a row
# the parts of an evaluation row around its answer; a quote inside the answer is escaped, so neither can match in it
_EVAL_ROW = (
    r'\{"step": (\d+), "split": "%s", "mode": "greedy", "id": "([^"\\]*)", [^\n]*'
    r'"strict": (true|false), "flexible": (true|false), "correct": (true|false), '
)


@dataclass(frozen=True, slots=True)
class Scores:
    """One evaluation, problem by problem: ``by[metric]`` is (problems,), a 0/1 or the mean over samples."""

    ids: tuple[str, ...]
    by: dict[str, NDArray[np.float64]]


def read_json(path: Path) -> Any:
    """The content of a JSON file; UserError naming it where it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"cannot read {path}: {one_line(error)}; restore it, or remove its folder and rerun") from None


def read_jsonl(path: Path, marks: tuple[str, ...] = ()) -> Iterator[dict[str, Any]]:
    """Rows of a .jsonl file, or of its .gz; none where neither exists.

    Only lines that contain every string of ``marks`` are parsed: evaluation files are large and most rows unwanted.
    A last line without its newline is still being written, and left out.
    """
    number = 0
    try:
        for line in _text(path).split("\n")[:-1]:
            number += 1
            if all(mark in line for mark in marks):
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("not an object")
                yield row
    except ValueError as error:
        where = f"{path}:{number}"
        raise UserError(f"damaged record {where}: {one_line(error)}; remove the run's folder and rerun it") from None


def _text(path: Path) -> str:
    """The finished lines of a .jsonl file, or of its .gz; "" where neither exists."""
    packed = path.with_name(path.name + ".gz")
    source = path if path.is_file() else packed
    if not source.is_file():
        return ""
    try:
        content = gzip.decompress(packed.read_bytes()) if source is packed else path.read_bytes()
        return content[: content.rfind(b"\n") + 1].decode()  # after the last newline stands what is being written
    except (ValueError, EOFError, OSError, zlib.error) as error:
        raise UserError(f"damaged record {source}: {one_line(error)}; remove the run's folder and rerun it") from None


def read_scores(directory: Path, split: str) -> Scores | None:
    """Greedy scores of a run's last evaluation on ``split`` ("test", "dev"), by problem in the order of ids."""
    found = read_evaluations(directory, split)
    return found[max(found)] if found else None


def read_evaluations(directory: Path, split: str) -> dict[int, Scores]:
    """Greedy scores of each of a run's evaluations on ``split``, by step; {} where there is none."""
    for name in ("eval.jsonl", "eval.jsonl.gz"):
        if (directory / name).is_file():
            stat = (directory / name).stat()
            return _evaluations(directory, split, (name, stat.st_mtime_ns, stat.st_size))
    return {}


@lru_cache(maxsize=512)  # tables and figures ask for the same rows, and all runs of a study begin from one baseline
def _evaluations(directory: Path, split: str, _stamp: tuple[str, int, int]) -> dict[int, Scores]:
    text = _text(directory / "eval.jsonl")
    # parsing every answer's text would take ten times as long; what is not as the record's writer has it is parsed
    rows = re.findall(_EVAL_ROW % split, text)
    if not rows or len(rows) < text.count(f'"split": "{split}", "mode": "greedy"'):
        return _parsed(directory, split)
    steps, ids, *marks = zip(*rows, strict=True)
    places = np.array(steps).astype(int)
    starts = [0, *(np.flatnonzero(np.diff(places)) + 1).tolist(), len(places)]
    right = {metric: np.array(words) == "true" for metric, words in zip(_WRITTEN, marks, strict=True)}
    found: dict[int, Scores] = {}
    order: dict[tuple[str, ...], tuple[tuple[str, ...], NDArray[np.int64]]] = {}
    for start, end in itertools.pairwise(starts):
        step, key = int(places[start]), ids[start:end]
        if step in found or len(set(key)) < len(key):
            return _parsed(directory, split)
        if key not in order:  # most evaluations ask the same problems in the same order
            by_id = sorted(range(len(key)), key=key.__getitem__)
            order[key] = tuple(key[i] for i in by_id), np.array(by_id)
        names, index = order[key]
        found[step] = Scores(names, {m: values[start:end][index].astype(np.float64) for m, values in right.items()})
    return found


def _parsed(directory: Path, split: str) -> dict[int, Scores]:
    """Row by row: any order of keys, several answers to a problem."""
    sums: dict[int, dict[str, list[float]]] = {}
    try:
        for row in read_jsonl(directory / "eval.jsonl", (f'"{split}"', '"greedy"')):
            if row["split"] == split and row["mode"] == "greedy":
                total = sums.setdefault(row["step"], {}).setdefault(row["id"], [0.0, 0.0, 0.0, 0.0])
                for i, metric in enumerate(METRICS):
                    total[i] += bool(row[_COLUMN[metric]])
                total[3] += 1
    except KeyError as error:
        where = directory / "eval.jsonl"
        raise UserError(f"damaged record {where}: a row lacks {error}; remove the run's folder and rerun it") from None
    found = {}
    for step, by_id in sums.items():
        ids = tuple(sorted(by_id))
        table = np.array([by_id[key] for key in ids])
        found[step] = Scores(ids, {metric: table[:, i] / table[:, 3] for i, metric in enumerate(METRICS)})
    return found


def one_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
