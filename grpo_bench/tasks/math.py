"""MATH (arXiv 2103.03874): competition problems of seven subjects and five levels, 7,500 to train on, 5,000 to test.

MATH-500 (arXiv 2305.20050) is 500 of the 5,000; the other 12,000 are then free to train on (``split=12k``). A problem
that is evaluated on is never trained on, whichever file it came from: MATH-500 is matched by the problems' text.
"""

from __future__ import annotations

import re
from pathlib import Path

from grpo_bench.config_checks import SPLITS
from grpo_bench.tasks.data import BadRow, Row, parse_rows, read_split, text_field
from grpo_bench.tasks.dataset import DatasetTask, Splits, check_count, name_ids, normalise
from grpo_bench.tasks.grading import last_boxed
from grpo_bench.types import Problem, UserError

ROWS = {"train": 7500, "test": 5000}
ROWS_500 = 500


class MathTask(DatasetTask):
    """MATH; ``meta.level`` is 1 to 5, None where the data say "Level ?"; ``meta.subject`` is "Algebra", ..."""

    def read(self) -> Splits:
        pair = (self.cfg.split, self.cfg.eval_split)
        if pair not in SPLITS["math"]:
            known = " or ".join(f"task.split={split} task.eval_split={other}" for split, other in SPLITS["math"])
            raise UserError(f"task.split={pair[0]} with task.eval_split={pair[1]} is refused; choose {known}")
        train, test = self._split("train"), self._split("test")
        if self.cfg.eval_split == "test":
            return Splits(train, test)
        math500 = self._math500()
        if self.cfg.split == "7.5k":
            return Splits(train, math500, held_out=test)
        chosen = {normalise(problem.question) for problem in math500}
        rest = [problem for problem in test if normalise(problem.question) not in chosen]
        removed = [problem for problem in test if normalise(problem.question) in chosen]
        found = {normalise(problem.question) for problem in removed}
        missing = [problem.id for problem in math500 if normalise(problem.question) not in found]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(math500)} MATH-500 problems are not in the test split of MATH "
                f"({name_ids(missing)}); split=12k cannot keep them out of train: check task.path and task.math500_path"
            )
        self.notes.append(f"split=12k: {len(removed)} problems of MATH-500 taken out, {len(train) + len(rest):,} left")
        return Splits(train + rest, math500, held_out=removed)

    def _split(self, split: str) -> list[Problem]:
        rows = read_split(self.cfg.path, self.cfg.hub, self.cfg.hub_config, split)
        self.notes += check_count(f"math {split}", len(rows), ROWS[split])
        return parse_rows(rows, lambda row: parse(row, f"math/{split}"))

    def _math500(self) -> list[Problem]:
        path = self.cfg.math500_path
        if path is None and self.cfg.path is not None:
            path = str(find_math500(Path(self.cfg.path).expanduser()))
        rows = read_split(path, self.cfg.math500_hub, None, "test", setting="task.math500_path")
        self.notes += check_count("math500", len(rows), ROWS_500)
        return parse_rows(rows, lambda row: parse(row, "math500"))


def find_math500(folder: Path) -> Path:
    """The folder ``math500`` inside or beside a folder of MATH."""
    for place in (folder / "math500", folder.absolute().parent / "math500"):
        if place.is_dir():
            return place
    raise UserError(
        f"no folder math500 inside or beside task.path={folder}; give task.math500_path=..., a folder with "
        "test.jsonl, or task.split=7.5k task.eval_split=test"
    )


def parse(row: Row, prefix: str) -> Problem:
    """A row {problem, solution, level, type or subject} as a problem; gold is what the solution's last box holds."""
    question, solution = text_field(row, "problem"), text_field(row, "solution")
    subject = text_field(row, "subject" if "subject" in row.values else "type")
    answer = last_boxed(solution)
    if answer is None:  # an empty box is another matter: MATH has two, and train drops them by name
        raise BadRow("field 'solution' has no \\boxed{...} answer")
    return Problem(
        id=f"{prefix}/{row.index}",
        question=question,
        answer=answer,
        solution=solution,
        meta={"level": read_level(row), "subject": subject},
    )


def read_level(row: Row) -> int | None:
    """``"Level 5"``, ``"5"`` or 5 as 5; ``"Level ?"`` as None; raises BadRow for anything else."""
    level = row.values.get("level")
    match = re.fullmatch(r"(?:Level )?([1-5?])", str(level).strip())
    if match is None or isinstance(level, float | bool):
        raise BadRow(f"field 'level' must be 'Level 1' to 'Level 5', not {level!r}")
    return None if match[1] == "?" else int(match[1])
