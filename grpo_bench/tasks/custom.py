"""Questions and answers of one's own: rows {question, answer} and, by choice, {solution, id, meta}.

``task.path`` is a folder with one file per split (``train.jsonl`` and ``test.jsonl``, or parquet), or one single file.
A single file is split by a hash of each question's text: about one in ten goes to test, and a question stays on its
side whatever is added to the file later; equal questions are on one side.

``answer`` is a number (``72``, ``"1,234"``) or a worked solution that ends in ``#### 72`` under the answer rule gsm8k,
an expression or a worked solution with ``\\boxed{}`` under the rule math.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from grpo_bench.tasks.data import BadRow, Row, parse_rows, read_files, read_split, text_field
from grpo_bench.tasks.dataset import DatasetTask, Splits, text_hash
from grpo_bench.tasks.demonstrations import ensure_marked, unmarked
from grpo_bench.tasks.grading import gold_gsm8k, last_boxed
from grpo_bench.types import Problem, UserError

TEST_SHARE = 10  # of a single file, one in so many is for test
SUFFIXES = (".jsonl", ".parquet")


class CustomTask(DatasetTask):
    """Own data; ``meta`` is the row's."""

    def read(self) -> Splits:
        if self.cfg.path is not None and Path(self.cfg.path).expanduser().is_file():
            return self._from_file(Path(self.cfg.path).expanduser())
        if self.cfg.path is None and self.cfg.hub is None:
            raise UserError("task=custom needs task.path=...: a jsonl file or a folder with train.jsonl and test.jsonl")
        train, test = self._split(self.cfg.split), self._split(self.cfg.eval_split)
        ids = {problem.id for problem in train}
        both = [problem.id for problem in test if problem.id in ids]
        if both:
            raise UserError(f"id {both[0]!r} is in both splits of {self.cfg.path or self.cfg.hub}; ids must be unique")
        return Splits(train, test)

    def _split(self, split: str) -> list[Problem]:
        rows = read_split(self.cfg.path, self.cfg.hub, self.cfg.hub_config, split)
        return parse_rows(rows, lambda row: parse(row, split, self.cfg.answer))

    def _from_file(self, file: Path) -> Splits:
        if file.suffix not in SUFFIXES:
            raise UserError(
                f"task.path={file}: give a .jsonl or .parquet file or a folder with train.jsonl and test.jsonl"
            )
        problems = parse_rows(read_files([file]), lambda row: parse(row, "all", self.cfg.answer))
        test = [problem for problem in problems if is_test(problem)]
        train = [problem for problem in problems if not is_test(problem)]
        if not train or not test:
            raise UserError(
                f"{file} has {len(problems)} rows, too few to be split into train and test; "
                "give a folder with train.jsonl and test.jsonl"
            )
        self.notes.append(f"one file split by a hash of the question: {len(train):,} train, {len(test):,} test")
        return Splits(train, test)


def is_test(problem: Problem) -> bool:
    """Whether a problem of a single file belongs to test."""
    return int.from_bytes(text_hash(problem)[:8], "big") % TEST_SHARE == 0


def parse(row: Row, split: str, rule: str) -> Problem:
    """A row as a problem; its id is its own or ``custom/<split>/<row>``."""
    question = text_field(row, "question")
    given = _answer_text(row)
    answer = read_gsm8k(given) if rule == "gsm8k" else read_math(given)
    solution = row.values.get("solution")
    if solution is not None:
        solution = text_field(row, "solution")
    elif (steps := unmarked(rule, given)) not in ("", answer) and steps != given:
        solution = given
    return Problem(
        id=_own_id(row) or f"custom/{split}/{row.index}",
        question=question,
        answer=answer,
        solution=ensure_marked(rule, solution, answer) if solution else "",
        meta=_meta(row),
    )


def read_gsm8k(given: str) -> str:
    """The gold number; raises BadRow."""
    try:
        return gold_gsm8k(given)
    except UserError as error:
        raise BadRow(f"{error} (or use task.answer=math)") from error


def read_math(given: str) -> str:
    """The gold expression: the last box where there is one, else the whole."""
    boxed = last_boxed(given)
    if boxed == "":
        raise BadRow("field 'answer' has an empty \\boxed{}")
    return given if boxed is None else boxed


def _answer_text(row: Row) -> str:
    value = row.values.get("answer")
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else text_field(row, "answer")


def _own_id(row: Row) -> str | None:
    value = row.values.get("id")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).strip():
        raise BadRow(f"field 'id' must be a string or an integer, not {value!r}")
    return str(value) if isinstance(value, int) else text_field(row, "id")


def _meta(row: Row) -> dict[str, Any]:
    value = row.values.get("meta")
    if value is not None and not isinstance(value, dict):
        raise BadRow(f"field 'meta' must be an object, not {type(value).__name__}")
    return dict(value or {})
