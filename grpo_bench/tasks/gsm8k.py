"""GSM8K (arXiv 2110.14168): grade-school word problems, 7,473 to train on and 1,319 to test.

A row's ``answer`` is a worked solution, one step per line, with calculator annotations ``<<48/2=24>>`` that a model
without a calculator must not learn to write, and a last line ``#### 72``.
"""

from __future__ import annotations

import re

from grpo_bench.tasks.data import BadRow, Row, parse_rows, read_split, text_field
from grpo_bench.tasks.dataset import DatasetTask, Splits, check_count
from grpo_bench.tasks.demonstrations import marked
from grpo_bench.tasks.grading import gold_gsm8k
from grpo_bench.types import Problem, UserError

ROWS = {"train": 7473, "test": 1319}


class GSM8KTask(DatasetTask):
    """GSM8K; ``meta.steps`` is the number of lines of the worked solution."""

    def read(self) -> Splits:
        return Splits(train=self._split("train"), test=self._split("test"))

    def _split(self, split: str) -> list[Problem]:
        rows = read_split(self.cfg.path, self.cfg.hub, self.cfg.hub_config, split)
        self.notes += check_count(f"gsm8k {split}", len(rows), ROWS[split])
        return parse_rows(rows, lambda row: parse(row, split))


def parse(row: Row, split: str) -> Problem:
    """A row {question, answer} as a problem; its solution ends in ``#### n``."""
    question, answer = text_field(row, "question"), text_field(row, "answer")
    steps, mark, _ = answer.rpartition("####")
    if not mark:
        raise BadRow("field 'answer' has no line '#### n'")
    if not steps.strip():
        raise BadRow("field 'answer' has no worked solution before '####'")
    gold = read_gold(answer)
    worked = strip_annotations(steps).rstrip()
    return Problem(
        id=f"gsm8k/{split}/{row.index}",
        question=question,
        answer=gold,
        solution=f"{worked}\n{marked('gsm8k', gold)}",
        meta={"steps": sum(1 for line in worked.splitlines() if line.strip())},
    )


def read_gold(answer: str) -> str:
    """The gold number of a marked answer; raises BadRow when there is none."""
    try:
        return gold_gsm8k(answer)
    except UserError as error:
        raise BadRow(f"field 'answer': {error}") from error


def strip_annotations(solution: str) -> str:
    """``solution`` without calculator annotations ``<<...>>``."""
    return re.sub(r"<<[^<>\n]*>>", "", solution)
