"""The evaluation rows of runs: right answers on dev at each evaluation, and the answers to chosen problems."""

from __future__ import annotations

import gzip
import heapq
import json
import re
import zlib
from collections.abc import Callable, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grpo_bench.records import Run, read_evaluations
from grpo_bench.types import UserError

_ID = re.compile(r'"id": ?"((?:[^"\\]|\\.)*)"')
_SPLIT = re.compile(r'"split": ?"(\w+)"')


def dev_scores(runs: Sequence[Run]) -> dict[int, NDArray[np.float64]]:
    """By step, (seeds, problems) of right greedy answers on dev, where every run answered the same problems then; a run
    that ended before others stands at its last answers."""
    looks = [_looks(run.directory) for run in runs]
    if not looks:
        return {}
    found: dict[int, NDArray[np.float64]] = {}
    for step in sorted(set[int]().union(*looks)):
        there = [one[step if step in one else max(one)] for one in looks if one and (step in one or step > max(one))]
        if len(there) == len(looks) and all(one.keys() == there[0].keys() for one in there):
            found[step] = np.array([[one[key] for key in sorted(there[0])] for one in there])
    return found


def _looks(directory: Path) -> dict[int, dict[str, float]]:
    found = read_evaluations(directory, "dev")
    return {step: dict(zip(one.ids, one.by["acc"].tolist(), strict=True)) for step, one in found.items()}


class Lines:
    """The lines of a run's eval.jsonl or samples.jsonl with the problem that each is about; none where it is absent.

    A line is parsed when it is asked for: the files are large, and a page shows few of their problems. With ``rank``
    only the lines of the ``most`` problems of each split that rank lowest are kept: of any larger set of problems they
    are all of this file that could be among its lowest.
    """

    def __init__(self, directory: Path, name: str, rank: Callable[[str], Any] | None = None, most: int = 0) -> None:
        self._path = directory / name
        self._lines: dict[str | None, dict[str, list[str]]] = {}
        for line in _read(self._path):
            if (id := _ID.search(line)) is not None:
                split = _SPLIT.search(line)
                # an id as it is in JSON: escapes are rare, and decoding them would cost as much as the line
                self._lines.setdefault(split[1] if split else None, {}).setdefault(id[1], []).append(line)
        self._ids = {split: set(found) for split, found in self._lines.items()}
        if rank is not None:
            kept = {split: heapq.nsmallest(most, found, key=rank) for split, found in self._lines.items()}
            self._lines = {split: {id: self._lines[split][id] for id in ids} for split, ids in kept.items()}

    def ids(self, split: str | None) -> Set[str]:
        """The problems of a split (None: the file has no splits), those whose lines were not kept too."""
        return self._ids.get(split, set())

    def counts(self, split: str | None) -> dict[str, int]:
        """How many lines of each problem are kept."""
        return {id: len(lines) for id, lines in self._lines.get(split, {}).items()}

    def rows(self, split: str | None, id: str) -> list[dict[str, Any]]:
        """The rows about a problem, in the order of the file; UserError where one is damaged."""
        try:
            return [json.loads(line) for line in self._lines.get(split, {}).get(id, [])]
        except ValueError as error:
            raise UserError(f"damaged record {self._path}: {error}; remove the run's folder and rerun it") from None


def _read(path: Path) -> list[str]:
    packed = path.with_name(path.name + ".gz")
    try:
        if path.is_file():
            content = path.read_bytes()
        elif packed.is_file():
            content = gzip.decompress(packed.read_bytes())
        else:
            return []
        return content.decode("utf-8").split("\n")[:-1]  # after the last newline: nothing, or what is being written
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"damaged record {path}: {error}; remove the run's folder and rerun it") from None
