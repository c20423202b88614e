"""What a step trains on: prompts are drawn, and drawn again while the algorithm keeps too few groups of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from grpo_bench.algos.base import Algorithm
from grpo_bench.branches import branch_values
from grpo_bench.collect import Experience, appraise, collect, make_batch, sampling_of
from grpo_bench.rollout import Noise
from grpo_bench.types import Batch, Rollouts

if TYPE_CHECKING:
    from grpo_bench.state import Parts, State

GREEDY_DRAW = -1  # of the rewards: no draw of prompts has this number


@dataclass(frozen=True, slots=True)
class Gathered:
    """The completions of one step; all of ``sampled`` are charged."""

    experience: Experience  # the step's own: B rows, kept groups first where prompts were drawn again
    used: Tensor  # (B,) bool, rows that are trained on
    sampled: Experience  # of every draw, which is what the metrics speak of
    kept: Tensor  # (rows of sampled,) bool, the algorithm's verdict
    taken: Tensor  # (rows of sampled,) bool, kept and in the step: not surplus
    refills: int  # draws beyond the first


def scores_first(parts: Parts) -> bool:
    """Whether a step's completions are scored while the last of them are graded.

    So where grading goes on in other processes and no reward decides what is scored: nothing is dropped, sampled
    beside or passed over for its sake. A function of the configuration alone, so that runs repeat to the bit.
    """
    algo = parts.cfg.algo
    keeps_all = type(algo).keep is Algorithm.keep and algo.extra_rollouts == "none"
    return keeps_all and algo.acts_without_advantage and parts.task.grades_aside


def gather(parts: Parts, state: State, scored: Callable[[Batch], Batch] | None = None) -> Gathered:
    """Draw a step's prompts and sample their groups; with ``refill_limit`` draw as many again until there are enough.

    A step has ``cfg.prompts`` groups whatever happens: kept ones in the order of drawing, surplus ones left out, and
    where too few were kept dropped ones take the places. ``keep`` sees each draw by itself. ``scored`` is for
    ``collect``, where ``scores_first`` allows it.
    """
    cfg, algo = parts.cfg, parts.cfg.algo
    draws: list[Experience] = []
    verdicts: list[Tensor] = []
    found = 0
    while not draws or (found < cfg.prompts and len(draws) <= algo.refill_limit):
        problems = [parts.task.train_problem(state.prompts + i) for i in range(cfg.prompts)]
        state.prompts += len(problems)
        drawn = collect(
            cfg, parts.task, parts.models.policy, parts.tokenizer, parts.engine, problems, state.step, parts.meter,
            len(draws), scored,
        )  # fmt: skip
        state.charge(parts.size, drawn.rollouts)
        coefficient = state.algo.get("kl_coef", cfg.kl_coef)
        drawn = replace(drawn, batch=replace(drawn.batch, kl_coef=coefficient, state=dict(state.algo)))
        draws.append(drawn)
        verdicts.append(algo.keep(drawn.batch))
        found += int(verdicts[-1].view(-1, cfg.group_size).any(1).sum())
    if len(draws) == 1:
        return Gathered(draws[0], verdicts[0], draws[0], verdicts[0], verdicts[0], 0)
    sampled, kept = regroup(draws), torch.cat(verdicts)
    kept_P = kept.view(-1, cfg.group_size).any(1)
    groups = torch.argsort(~kept_P, stable=True)[: cfg.prompts]
    rows = (groups[:, None] * cfg.group_size + torch.arange(cfg.group_size, device=groups.device)).flatten()
    taken = torch.zeros_like(kept)
    taken[rows] = kept[rows]
    return Gathered(regroup([sampled], groups.tolist()), kept[rows], sampled, kept, taken, len(draws) - 1)


def regroup(draws: Sequence[Experience], groups: Sequence[int] | None = None) -> Experience:
    """The groups of several draws as one experience, all of them or those named, in that order."""
    size = draws[0].rollouts.group_size
    prompts = [prompt for drawn in draws for prompt in drawn.rollouts.prompt_ids]
    groups = range(len(prompts)) if groups is None else groups
    rows = [p * size + g for p in groups for g in range(size)]

    def of_rows(lists: Sequence[Sequence[Any]]) -> list[Any]:
        joined = [entry for one in lists for entry in one]
        return [joined[row] for row in rows]

    logps = [drawn.rollouts.logps for drawn in draws if drawn.rollouts.logps is not None]
    rollouts = Rollouts(
        prompt_ids=[prompts[p] for p in groups],
        completion_ids=of_rows([drawn.rollouts.completion_ids for drawn in draws]),
        texts=of_rows([drawn.rollouts.texts for drawn in draws]),
        finished=of_rows([drawn.rollouts.finished for drawn in draws]),
        group_size=size,
        logps=of_rows(logps) if len(logps) == len(draws) else None,
    )
    first = draws[0].batch
    batch = make_batch(
        rollouts,
        of_rows([drawn.batch.rewards.tolist() for drawn in draws]),
        of_rows([drawn.batch.correct.tolist() for drawn in draws]),
        first.mask.device,
    )
    return Experience(
        batch=replace(batch, kl_coef=first.kl_coef, state=first.state),
        rows=of_rows([drawn.rows for drawn in draws]),
        rollouts=rollouts,
        grades=of_rows([drawn.grades for drawn in draws]),
        parts={name: of_rows([drawn.parts[name] for drawn in draws]) for name in draws[0].parts},
    )


def with_extras(parts: Parts, state: State, experience: Experience, batch: Batch) -> Batch:
    """The batch with what the algorithm's ``extra_rollouts`` tell, for the rows that it still has."""
    kind = parts.cfg.algo.extra_rollouts
    if kind == "greedy":
        return replace(batch, baseline_rewards=greedy_rewards(parts, state, experience, batch))
    if kind == "branches":
        values, step_ids = branch_values(parts, state, experience, batch)
        return replace(batch, values=values, step_ids=step_ids)
    return batch


def greedy_rewards(parts: Parts, state: State, experience: Experience, batch: Batch) -> Tensor:
    """(B,) the reward of each prompt's one greedy completion; 0 where all of its group is dropped, for none is made."""
    cfg, size = parts.cfg, batch.group_size
    live = batch.mask.any(1).view(-1, size).any(1).nonzero().squeeze(1).tolist()
    rewards = batch.rewards.new_zeros(len(batch.mask) // size)
    if live:
        rows = [experience.rows[p * size] for p in live]
        grading = parts.task.grading(rows)
        with parts.meter.phase("rollout"):
            rollouts = parts.engine.generate(
                parts.models.policy, parts.tokenizer, [experience.rollouts.prompt_ids[p] for p in live], 1,
                replace(sampling_of(cfg), temperature=0.0), Noise(cfg.seed, "train", state.step),
                ended=grading.listener,
            )  # fmt: skip
        state.charge(parts.size, rollouts, extra=True)
        with parts.meter.phase("reward"):
            total = appraise(cfg, parts.task, parts.tokenizer, rows, rollouts, state.step, GREEDY_DRAW, grading)[1]
        rewards[live] = torch.tensor(total, dtype=rewards.dtype, device=rewards.device)
    return rewards.repeat_interleave(size)
