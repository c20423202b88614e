"""One step's experience: problems -> completions -> grades -> rewards -> a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from grpo_bench import ops, rewards
from grpo_bench.rewards.repetition import repetition
from grpo_bench.rollout import Engine, Noise, Sampling
from grpo_bench.tasks import Task
from grpo_bench.tasks.grading import Grade, correct
from grpo_bench.tasks.overlap import Grading
from grpo_bench.types import Batch, Problem, Rollouts

if TYPE_CHECKING:
    from grpo_bench.config import Config
    from grpo_bench.cost import Meter
    from grpo_bench.policy import Policy


@dataclass(frozen=True, slots=True)
class Experience:
    """A batch with what it was made of; lists have one entry per row."""

    batch: Batch
    rows: list[Problem]
    rollouts: Rollouts
    grades: list[Grade]
    parts: dict[str, list[float]]


def sampling_of(cfg: Config) -> Sampling:
    """The training rollouts' sampling."""
    r = cfg.rollout
    return Sampling(r.temperature, cfg.task.max_new_tokens, r.top_p, r.top_k, tuple(cfg.task.stop))


def collect(
    cfg: Config,
    task: Task,
    policy: Policy,
    tokenizer: Any,
    engine: Engine,
    problems: list[Problem],
    step: int,
    meter: Meter,
    draw: int = 0,
    scored: Callable[[Batch], Batch] | None = None,
) -> Experience:
    """Sample ``group_size`` completions of each problem, grade and reward them; ``draw`` counts those of a step.

    Completions are graded as they end, beside the sampling of the others, and what is left of it beside ``scored``: a
    function of the batch, its rewards still 0, that fills ``old_logp``, ``ref_logp`` and ``values``.
    """
    rows = [problem for problem in problems for _ in range(cfg.group_size)]
    grading = task.grading(rows)
    with meter.phase("rollout"):
        prompts = task.prompt_ids(problems, tokenizer)
        noise = Noise(cfg.seed, "train", step, draw)
        rollouts = engine.generate(
            policy, tokenizer, prompts, cfg.group_size, sampling_of(cfg), noise, ended=grading.listener
        )
    batch = make_batch(rollouts, [0.0] * len(rows), [False] * len(rows), policy.device)
    if scored is not None:
        known = scored(batch)
        batch = replace(batch, old_logp=known.old_logp, ref_logp=known.ref_logp, values=known.values)
    with meter.phase("reward"):
        grades, total, parts = appraise(cfg, task, tokenizer, rows, rollouts, step, draw, grading)
    right = [correct(grade, ended) for grade, ended in zip(grades, rollouts.finished, strict=True)]
    batch = replace(batch, rewards=batch.rewards.new_tensor(total), correct=batch.correct.new_tensor(right))
    return Experience(batch, rows, rollouts, grades, parts)


def appraise(
    cfg: Config,
    task: Task,
    tokenizer: Any,
    rows: list[Problem],
    rollouts: Rollouts,
    step: int,
    draw: int,
    grading: Grading | None = None,
) -> tuple[list[Grade], list[float], dict[str, list[float]]]:
    """Grades, shaped rewards and their parts of any completions, one problem of ``rows`` for each.

    ``grading`` is that of these rows, where it has begun.
    """
    grades = (grading or task.grading(rows)).result(rollouts.texts)
    texts = [task.prompt(problem, tokenizer) for problem in rows]
    scored = rewards.Scored(
        rows, texts, rollouts.texts, grades, rollouts.finished, cfg.seed, step,
        rollouts.completion_ids, cfg.task.max_new_tokens, rollouts.group_size, draw,
    )  # fmt: skip
    return grades, *rewards.score(cfg, scored)


def make_batch(rollouts: Rollouts, total: list[float], correct: list[bool], device: torch.device) -> Batch:
    """Pad prompts on the left and completions on the right; the mask comes from lengths alone."""
    group = rollouts.group_size
    prompts = [rollouts.prompt_ids[i // group] for i in range(len(rollouts.completion_ids))]
    width, length = max(map(len, prompts)), max(max(map(len, rollouts.completion_ids)), 1)
    tokens = np.zeros((len(prompts), width + length), dtype=np.int64)
    for row, prompt, completion in zip(tokens, prompts, rollouts.completion_ids, strict=True):
        row[width - len(prompt) : width] = prompt
        row[width : width + len(completion)] = completion
    sizes = torch.tensor([len(c) for c in rollouts.completion_ids], device=device)
    return Batch(
        tokens=torch.from_numpy(tokens).to(device),
        mask=(torch.arange(length, device=device)[None] < sizes[:, None]).float(),
        group_ids=torch.arange(len(prompts), device=device) // group,
        rewards=torch.tensor(total, device=device),
        correct=torch.tensor(correct, device=device),
        finished=torch.tensor(rollouts.finished, device=device),
        prompt_lengths=torch.tensor([len(p) for p in prompts], device=device),
    )


def drop(batch: Batch, keep: Tensor) -> Batch:
    """Rows that are not kept stay in place with mask 0, so that B and every row's place are what they were."""
    return replace(batch, mask=batch.mask * keep[:, None])


def _surprise(logps: list[list[float]] | None) -> float | None:
    """Mean of -log p over all tokens: an unbiased estimate of the entropy of what was drawn from."""
    tokens = sum(map(len, logps or ()))
    return -sum(map(sum, logps or ())) / tokens if tokens else None


def describe(experience: Experience, kept: Tensor, used: Tensor | None = None) -> dict[str, float | None]:
    """What was sampled, under the glossary's names: reward/, group/, completions/.

    (B,) ``kept`` is the algorithm's verdict, ``used`` says which rows the step trains on, where those are fewer.
    """
    batch, ids = experience.batch, experience.rollouts.completion_ids
    lengths = torch.tensor([float(len(c)) for c in ids])
    correct, finished = batch.correct.cpu(), batch.finished.cpu()
    rewards_B = batch.rewards.cpu()
    rewards_PG = rewards_B.view(-1, batch.group_size)
    right_PG = correct.view(-1, batch.group_size)
    flat = ops.flat_groups(rewards_B, batch.group_size).squeeze(1)
    kept_P = kept.cpu().view(-1, batch.group_size).any(1)
    used_P = kept_P if used is None else used.cpu().view(-1, batch.group_size).any(1)

    def mean(x: Tensor) -> float | None:
        return float(x.float().mean()) if len(x) else None

    return {
        "reward/mean": mean(rewards_B),
        "reward/std": float(rewards_B.std(correction=0)),
        "reward/min": float(rewards_B.min()),
        "reward/max": float(rewards_B.max()),
        "reward/group_std_mean": mean(rewards_PG.std(1, correction=0)),
        "reward/correct": mean(correct),
        "reward/flexible": mean(torch.tensor([g.flexible for g in experience.grades])),
        "reward/format": mean(torch.tensor([g.marked for g in experience.grades])),
        **{f"reward/{name}/mean": sum(values) / len(values) for name, values in experience.parts.items()},
        "group/frac_zero_std": mean(flat),
        "group/frac_all_correct": mean(right_PG.all(1)),
        "group/frac_all_wrong": mean(~right_PG.any(1)),
        "group/effective": float((used_P & ~flat).sum()),
        "group/filtered": float((~kept_P).sum()),
        "group/frac_kept": mean(kept_P),
        "completions/len_mean": mean(lengths),
        "completions/len_min": float(lengths.min()),
        "completions/len_max": float(lengths.max()),
        "completions/len_correct": mean(lengths[correct]),
        "completions/len_wrong": mean(lengths[~correct]),
        "completions/truncated_frac": mean(~finished),
        "completions/eos_frac": mean(finished),
        "completions/terminated_len_mean": mean(lengths[finished]),
        "completions/repetition": sum(map(repetition, ids)) / len(ids),
        "rollout/entropy": _surprise(experience.rollouts.logps),
    }
