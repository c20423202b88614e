"""What a model is asked: problems, prompts, and how an answer is graded.

``load_task(cfg.task, seed)`` returns one of arithmetic.py, gsm8k.py, math.py, custom.py; they share this interface.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from grpo_bench.types import Problem

if TYPE_CHECKING:
    from grpo_bench.config import TaskConfig
    from grpo_bench.tasks.grading import Grade


class Task(ABC):
    """A source of problems with its prompt and its answer rule.

    ``train`` problems are an endless stream: ``train_problem(i)`` is the i-th one, the same for every algorithm at
    the same seed. ``dev`` is a slice of the training problems that the stream never shows; ``test`` is opened once,
    at the end.
    """

    cfg: TaskConfig
    fingerprint: str  # hash of the data (or of the generator's settings) with the task's version
    prompt_stream_hash: str  # data fingerprint + seed + ordering rule
    notes: list[str]  # what loading dropped and why, one line each, for the log and the provenance

    @abstractmethod
    def train_problem(self, index: int) -> Problem:
        """The index-th problem of the endless training stream (a shuffle of the data per pass)."""

    @abstractmethod
    def dev(self, n: int) -> list[Problem]:
        """The first n dev problems; fewer when the task has fewer."""

    @abstractmethod
    def test(self, n: int | None) -> list[Problem]:
        """The first n test problems (a fixed order that does not depend on the seed); None: all."""

    @abstractmethod
    def demonstrations(self, n: int, seed: int) -> list[tuple[Problem, str]]:
        """n training problems with the response to imitate in the warm start."""

    @abstractmethod
    def prompt(self, problem: Problem, tokenizer: Any) -> str:
        """The model's input for a problem, by ``cfg.prompt``."""

    @abstractmethod
    def grade(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Grade]:
        """One grade per response; never raises on what a model wrote."""

    def close(self) -> None:
        """Stop worker processes."""
