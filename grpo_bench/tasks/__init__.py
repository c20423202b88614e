"""What a model is asked: problems, prompts, and how an answer is graded.

``load_task(cfg.task, seed)`` returns one of arithmetic.py, gsm8k.py, math.py, custom.py; they share this interface.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from grpo_bench.tasks.demonstrations import demonstrate, kind_of
from grpo_bench.tasks.prompts import adds_special_tokens, render, separator
from grpo_bench.types import Problem

if TYPE_CHECKING:
    from grpo_bench.config import TaskConfig
    from grpo_bench.tasks.grading import Grade
    from grpo_bench.tasks.overlap import Grading
    from grpo_bench.tasks.verifier import Verifier


class Task(ABC):
    """A source of problems with its prompt and its answer rule.

    ``train`` problems are an endless stream: ``train_problem(i)`` is the i-th one, the same for every algorithm at
    the same seed. ``dev`` is a slice of the training problems that the stream never shows; ``test`` is opened once,
    at the end. A subclass gives ``draw``, ``dev``, ``test`` and ``problem``; prompts, demonstrations and grades
    follow from its config.
    """

    fingerprint: str  # hash of the data (or of the generator's settings) with the task's version
    prompt_stream_hash: str  # data fingerprint + seed + ordering rule

    def __init__(self, cfg: TaskConfig, seed: int) -> None:
        self.cfg = cfg
        self.seed = seed
        self.notes: list[str] = []  # what loading dropped and why, one line each, for the log and the provenance
        self.verifier: Verifier | None = None  # made by the first grade that needs one

    @abstractmethod
    def draw(self, index: int, seed: int, purpose: str) -> Problem:
        """The index-th training problem of the endless stream keyed by (seed, purpose); never a dev problem."""

    @abstractmethod
    def dev(self, n: int) -> list[Problem]:
        """The first n dev problems; fewer when the task has fewer."""

    @abstractmethod
    def test(self, n: int | None) -> list[Problem]:
        """The first n test problems (a fixed order that does not depend on the seed); None: all."""

    @abstractmethod
    def problem(self, id: str) -> Problem:
        """The problem of that id, whatever its split; raises UserError when there is none."""

    def train_problem(self, index: int) -> Problem:
        """The index-th problem of the endless training stream (a shuffle of the data per pass)."""
        return self.draw(index, self.seed, "train")

    def fit(self, tokenizer: Any) -> None:
        """Drop training prompts above ``max_prompt_tokens``; called once, after the tokenizer is loaded.

        Nothing to do for a task whose prompts are short by construction.
        """
        return

    def demonstrations(self, n: int, seed: int) -> list[tuple[Problem, str]]:
        """n training problems with the response to imitate in the warm start.

        Entry i depends on (data, seed, i) alone; its kind (worked, bare, unmarked) is drawn by
        ``cfg.demonstrations``. A response begins with the space that the prompt leaves to it, if any.
        """
        pairs = []
        for index in range(n):
            problem = self.draw(index, seed, "demonstrations")
            kind = kind_of(self.cfg.demonstrations, seed, index)
            pairs.append((problem, separator(self.cfg.prompt) + demonstrate(self.cfg.answer, problem, kind)))
        return pairs

    def prompt(self, problem: Problem, tokenizer: Any) -> str:
        """The model's input for a problem, by ``cfg.prompt``."""
        return render(self.cfg.prompt, problem.question, tokenizer)

    def prompt_ids(self, problems: Sequence[Problem], tokenizer: Any) -> list[list[int]]:
        """Token ids of the problems' prompts, one list each, not padded.

        A chat template writes its special tokens itself; a plain prompt gets the tokenizer's (a BOS, where it has one).
        """
        if not problems:
            return []
        texts = [self.prompt(problem, tokenizer) for problem in problems]
        return tokenizer(texts, add_special_tokens=adds_special_tokens(self.cfg.prompt))["input_ids"]

    def grade(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Grade]:
        """One grade per response; never raises on what a model wrote."""
        from grpo_bench.tasks import grading

        golds = [problem.answer for problem in problems]
        verifier = self._verifier() if self.cfg.answer == "math" else None
        return grading.grade(self.cfg.answer, golds, list(responses), verifier=verifier)

    @property
    def grades_aside(self) -> bool:
        """``grading`` works while the caller does something else."""
        return self.cfg.answer == "math"

    def grading(self, problems: Sequence[Problem]) -> Grading:
        """``grade`` of one response to each problem that may begin before all of them are known, see overlap.py.

        Mathematical equivalence is decided in ``verify_workers`` processes while the caller goes on; the comparison of
        numbers is a matter of microseconds and done when the grades are taken.
        """
        from grpo_bench.tasks.overlap import Lazy, Verified

        if self.grades_aside:
            return Verified(problems, self._verifier())
        return Lazy(problems, self.grade)

    def _verifier(self) -> Verifier:
        if self.verifier is None:
            from grpo_bench.tasks.verifier import Verifier

            self.verifier = Verifier(seconds=self.cfg.verify_seconds, workers=self.cfg.verify_workers)
        return self.verifier

    def verifier_health(self) -> dict[str, float]:
        """Comparisons that were stopped or failed so far, under the glossary's names; {} without a verifier."""
        if self.verifier is None:
            return {}
        return {
            "health/verifier_timeouts": float(self.verifier.verifier_timeouts),
            "health/verifier_errors": float(self.verifier.verifier_errors),
        }

    def close(self) -> None:
        """Stop worker processes; a later ``grade`` starts them again."""
        if self.verifier is not None:
            self.verifier.close()
            self.verifier = None


def load_task(cfg: TaskConfig, seed: int) -> Task:
    """The task of a config: reads and checks its data; raises UserError when there is something wrong with them."""
    if cfg.name == "arithmetic":
        from grpo_bench.tasks.arithmetic import ArithmeticTask

        return ArithmeticTask(cfg, seed)
    if cfg.name == "gsm8k":
        from grpo_bench.tasks.gsm8k import GSM8KTask

        return GSM8KTask(cfg, seed)
    if cfg.name == "math":
        from grpo_bench.tasks.math import MathTask

        return MathTask(cfg, seed)
    from grpo_bench.tasks.custom import CustomTask

    return CustomTask(cfg, seed)
