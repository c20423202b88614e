"""Values without a critic: what completions from the steps of an answer are worth on average.

Source: VinePPO (Kazemnejad et al. 2024, arXiv:2410.01679, §4): V(s) is the mean reward of K completions sampled
from s. Each of them is a completion like any other: a budget in samples counts it, so that K = 9 branches from each of
8 steps leave such a run a small part of the updates that others make.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from grpo_bench.collect import Experience, appraise, sampling_of
from grpo_bench.rollout import Noise
from grpo_bench.rollout.finish import finish
from grpo_bench.types import Batch

if TYPE_CHECKING:
    from grpo_bench.state import Parts, State

BRANCH_DRAW = -2  # of the rewards: no draw of prompts has this number
PLACES = 1 << 20  # more than an answer has tokens or a step has branches: keeps a branch's three coordinates apart


def step_starts(tokenizer: Any, ids: list[int], delimiters: tuple[str, ...]) -> list[int]:
    """Where the steps of an answer begin: indices of tokens, the first 0, ascending.

    A step ends with the token that completes a delimiter in the decoded text; delimiters in a row count as one, and
    one that no text follows ends the answer, not a step.
    """
    text = tokenizer.decode(ids, skip_special_tokens=True)
    longest_first = sorted(delimiters, key=len, reverse=True)
    pattern = "(?:" + "|".join(map(re.escape, longest_first)) + ")+"
    starts = [0]
    for match in re.finditer(pattern, text):
        if match.end() == len(text):
            break
        start = _tokens_until(tokenizer, ids, text[: match.end()], starts[-1])
        if starts[-1] < start < len(ids):
            starts.append(start)
    return starts


def _tokens_until(tokenizer: Any, ids: list[int], text: str, low: int) -> int:
    """The fewest tokens, more than ``low``, whose text begins with ``text``; all of them where none do."""
    low, high = low + 1, len(ids)
    while low < high:
        middle = (low + high) // 2
        if tokenizer.decode(ids[:middle], skip_special_tokens=True).startswith(text):
            high = middle
        else:
            low = middle + 1
    return low


def branch_values(parts: Parts, state: State, experience: Experience, batch: Batch) -> tuple[Tensor, Tensor]:
    """(B,T) values and (B,T) int step ids, both 0 outside the mask; rows that are dropped cost nothing.

    A token's value is that of the state in which its step begins: the mean reward of K completions from there, under
    the sampling of the rollout and with what the answer so far leaves of ``max_new_tokens``. The first step begins at
    the prompt, whose one estimate all members of its group share.
    """
    cfg, rollouts, size = parts.cfg, experience.rollouts, batch.group_size
    count, delimiters = cfg.algo.branching
    live = batch.mask.any(1).nonzero().squeeze(1).tolist()
    starts = {i: step_starts(parts.tokenizer, rollouts.completion_ids[i], delimiters) for i in live}
    states = list(dict.fromkeys((i // size * size, 0) for i in live))  # a group's prompt goes by its first member
    states += [(i, start) for i in live for start in starts[i][1:]]
    worth = dict(zip(states, _estimate(parts, state, experience, states, count), strict=True))
    values = torch.zeros(batch.mask.shape, dtype=batch.rewards.dtype)
    step_ids = torch.zeros(batch.mask.shape, dtype=torch.long)
    for i in live:
        ends = [*starts[i][1:], len(rollouts.completion_ids[i])]
        for step, (start, end) in enumerate(zip(starts[i], ends, strict=True)):
            values[i, start:end] = worth[(i, start) if start else (i // size * size, 0)]
            step_ids[i, start:end] = step
    return values.to(batch.mask.device), step_ids.to(batch.mask.device)


def _estimate(
    parts: Parts, state: State, experience: Experience, states: list[tuple[int, int]], count: int
) -> list[float]:
    """Mean reward of ``count`` completions from each state (row, tokens of its answer), all of them sampled at once."""
    if not states:
        return []
    cfg, policy, tokenizer, rollouts = parts.cfg, parts.models.policy, parts.tokenizer, experience.rollouts
    prompts = [rollouts.prompt_ids[i // rollouts.group_size] for i, _ in states]
    begun = [rollouts.completion_ids[i][:start] for i, start in states]
    sampling = sampling_of(cfg)
    left = tuple(sampling.max_new_tokens - start for _, start in states)
    names = tuple((i * PLACES + start) * PLACES + k for i, start in states for k in range(count))
    with parts.meter.phase("rollout"):
        branches = parts.engine.generate(
            policy, tokenizer, [p + b for p, b in zip(prompts, begun, strict=True)], count,
            replace(sampling, limits=left), Noise(cfg.seed, "branch", state.step, rows=names),
        )  # fmt: skip
        state.charge(parts.size, branches, extra=True)
        # answers are judged whole: a stop string or a word may lie across the place where the branch left
        whole = [begun[n // count] + ids for n, ids in enumerate(branches.completion_ids)]
        answers = finish([p for p in prompts for _ in range(count)], whole, 1, tokenizer, policy, sampling)
    with parts.meter.phase("reward"):
        rows = [experience.rows[i] for i, _ in states for _ in range(count)]
        total = appraise(cfg, parts.task, tokenizer, rows, answers, state.step, BRANCH_DRAW)[1]
    return [sum(total[n : n + count]) / count for n in range(0, len(total), count)]
