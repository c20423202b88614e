"""Grading that goes on beside other work: answers are handed in as they end, and grades taken when they are needed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

from grpo_bench.tasks.grading import Grade, grade_math_soon
from grpo_bench.types import Problem

if TYPE_CHECKING:
    from grpo_bench.tasks.verifier import Verifier


class Grading(ABC):
    """The grades of one response to each of some problems. Equal to ``task.grade`` however its work is spread."""

    @property
    def listener(self) -> Callable[[int, str, bool], None] | None:
        """What an engine tells (row, text, finished) as completions end; None where it need not tell."""
        return None

    @abstractmethod
    def add(self, row: int, response: str) -> None:
        """The response to the ``row``-th problem is known; returns at once. It may be called for any rows, or none."""

    @abstractmethod
    def result(self, responses: Sequence[str]) -> list[Grade]:
        """One grade per problem, in order; waits for those that are not given yet.

        ``responses`` are what is graded: rows that nobody added, or added with another text, are graded now.
        """


class Lazy(Grading):
    """All of it when it is asked for: for rules that take microseconds, less than it takes to tell another process."""

    def __init__(self, problems: Sequence[Problem], grade: Callable[[Sequence[Problem], Sequence[str]], list[Grade]]):
        self.problems, self.grade = problems, grade

    def add(self, row: int, response: str) -> None:
        return

    def result(self, responses: Sequence[str]) -> list[Grade]:
        return self.grade(self.problems, responses)


class Verified(Grading):
    """Mathematical equivalence, in the worker processes of a verifier from the moment that a response is added."""

    def __init__(self, problems: Sequence[Problem], verifier: Verifier) -> None:
        self.problems, self.verifier = problems, verifier
        self._asked: dict[int, tuple[str, Future[Grade]]] = {}

    @property
    def listener(self) -> Callable[[int, str, bool], None]:
        return lambda row, text, finished: self.add(row, text)

    def add(self, row: int, response: str) -> None:
        self._asked[row] = response, grade_math_soon(response, self.problems[row].answer, self.verifier)

    def result(self, responses: Sequence[str]) -> list[Grade]:
        if len(responses) != len(self.problems):
            raise ValueError(f"{len(responses)} responses to {len(self.problems)} problems")
        for row, response in enumerate(responses):
            if row not in self._asked or self._asked[row][0] != response:
                self.add(row, response)
        return [self._asked[row][1].result() for row in range(len(responses))]
