"""What the parts of a reward look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from grpo_bench.tasks.grading import Grade, correct
from grpo_bench.types import Problem


@dataclass(frozen=True, slots=True)
class Scored:
    """B completions, as every part of a reward sees them (and a function of one's own, which is one more part).

    Sequences have one entry per row; rows of a group stand next to each other: row p·``group_size`` + g is completion
    g of problem p.
    """

    problems: Sequence[Problem]  # question, gold answer, meta
    prompts: Sequence[str]  # the question as the policy was asked
    responses: Sequence[str]  # text, without the end token
    grades: Sequence[Grade]  # strict, flexible, extracted, marked
    finished: Sequence[bool]  # ended by itself, not cut at max_new_tokens
    seed: int
    step: int
    token_ids: Sequence[Sequence[int]]  # sampled tokens, the end token included
    max_new_tokens: int
    group_size: int
    draw: int = 0  # which rollout of the step: 0 the first, others further ones (drawn again, greedy, branches)

    @property
    def lengths(self) -> list[int]:
        """Sampled tokens of each row, the end token included."""
        return [len(ids) for ids in self.token_ids]

    @property
    def right(self) -> list[bool]:
        """Strict match that ended by itself: truncated answers count as wrong."""
        return [correct(grade, ended) for grade, ended in zip(self.grades, self.finished, strict=True)]

    def row(self, index: int) -> Scored:
        """One row by itself, a group of one."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        lists: dict[str, Any] = {n: value[index : index + 1] for n, value in own.items() if hasattr(value, "__len__")}
        return replace(self, **lists, group_size=1)
