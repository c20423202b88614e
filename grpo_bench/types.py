"""What flows through a run: problems, rollouts, one batch per step, and the record of the whole.

Legend of shapes, used in every docstring and as suffixes of names where a shape is not obvious:
P problems of a step, G completions of each (``group_size``), B = P·G rows, T completion tokens (the longest of the
batch), S prompt and completion tokens. Rows of a group stand next to each other: row p·G + g is member g of problem p.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # table code reads this module too and must not pay for torch
    from torch import Tensor


class UserError(Exception):
    """Bad input, config, data or checkpoint: its message is one line that says what to do; the exit code is 2."""


def error_line(e: Exception) -> str:
    """Kind, message and place of an error, on one line."""
    if isinstance(e, SyntaxError) and e.filename:
        return f"SyntaxError: {e.msg} ({Path(e.filename).name}, line {e.lineno})"
    frames = traceback.extract_tb(e.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return " ".join(f"{type(e).__name__}: {e}".split())[:200] + place


@dataclass(frozen=True, slots=True)
class Problem:
    """One question with its gold answer.

    ``id`` is unique within a task and stable between versions of the program (``gsm8k/test/17``); ``solution`` is a
    worked solution, ready to be trained on (empty when the task has none); ``meta`` holds what filters and figures
    group by (``steps``, ``level``, ``subject``).
    """

    id: str
    question: str
    answer: str
    solution: str = ""
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rollouts:
    """G completions for each of P problems, as the engine returns them.

    ``prompt_ids`` has P entries, the others B. ``completion_ids`` end with the end token when ``finished``; a
    completion ended by a stop string is finished as well. ``logps`` are the sampler's own, one per token, in the
    precision and of the (possibly restricted) distribution it drew from: what is equal between engines is the rest.
    """

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    texts: list[str]
    finished: list[bool]
    group_size: int
    logps: list[list[float]] | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Batch:
    """All rows of one step; never mutated, each stage returns ``replace(batch, ...)``.

    ``mask`` is 1 on sampled tokens, the end token included, and is built from generated lengths, never from token
    identity. Log-probs are at the sampling temperature. ``values[:, t]`` sees the prompt and the tokens before t; the
    value after the last token is 0. What is None was not asked for by the algorithm.
    """

    tokens: Tensor  # (B,S) prompts padded on the left, completions on the right
    mask: Tensor  # (B,T)
    group_ids: Tensor  # (B,) which prompt's group
    rewards: Tensor  # (B,) shaped reward
    correct: Tensor  # (B,) strict match and finished
    finished: Tensor  # (B,) ended by itself, not truncated
    prompt_lengths: Tensor | None = None  # (B,) tokens of each prompt; None: no prompt is padded
    old_logp: Tensor | None = None  # (B,T)
    ref_logp: Tensor | None = None  # (B,T)
    values: Tensor | None = None  # (B,T)
    baseline_rewards: Tensor | None = None  # (B,) a greedy rollout's reward
    step_ids: Tensor | None = None  # (B,T) int, which reasoning step of its answer a token is of, from 0
    advantages: Tensor | None = None  # (B,T)
    returns: Tensor | None = None  # (B,T)
    kl_coef: float = 0.0  # current value of an adaptive coefficient
    state: dict[str, float] = field(default_factory=dict)  # running means of the algorithm

    @property
    def group_size(self) -> int:
        """G: rows of a group; all groups of a batch are equally large."""
        return int((self.group_ids == self.group_ids[0]).sum())


@dataclass(frozen=True, slots=True)
class Record:
    """What a finished run leaves: the content of its ``result.json``."""

    run_id: str
    arm: str
    row: str
    algo: str
    model: str
    task: str
    study: str | None
    seed: int
    status: str
    config_hash: str
    prompt_stream_hash: str
    git_sha: str
    eval: dict[str, Any]
    cost: dict[str, Any]
    stability: dict[str, Any]
