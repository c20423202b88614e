"""What an algorithm does to answers of one token, computed by its own methods."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from grpo_bench.types import Batch

if TYPE_CHECKING:
    from grpo_bench.algos import Algorithm
    from grpo_bench.config import Config

ALONE = 8  # answers of an example where a prompt has one


class Outcome(NamedTuple):
    """Of each answer: its advantage, what its log-prob is pushed by, whether ``keep`` leaves it in."""

    rewards: list[float]
    advantages: list[float]
    pushes: list[float]  # −∂loss/∂log π at π = π_old, before the average
    kept: list[bool]


def answers(rewards: list[float], group_size: int) -> Batch:
    """Finished answers of one token in float64; values, log-ratios, greedy rewards and running means are 0."""
    worth = torch.tensor(rewards, dtype=torch.float64)
    ones = torch.ones(len(rewards), 1, dtype=torch.float64)
    return Batch(
        tokens=torch.zeros(len(rewards), 2, dtype=torch.long),
        mask=ones,
        group_ids=torch.arange(len(rewards)) // group_size,
        rewards=worth,
        correct=worth > 0.5,
        finished=torch.ones(len(rewards), dtype=torch.bool),
        prompt_lengths=torch.ones(len(rewards), dtype=torch.long),
        old_logp=-ones,
        ref_logp=-ones,
        values=torch.zeros_like(ones),
        baseline_rewards=torch.zeros_like(worth),
        step_ids=torch.zeros(len(rewards), 1, dtype=torch.long),
        state={},
    )


def outcome(algo: Algorithm, rewards: list[float], group_size: int) -> Outcome:
    """Of a step that has these answers and no others: what normalises over a batch sees them alone."""
    batch = answers(rewards, group_size)
    kept = algo.keep(batch)
    batch = replace(batch, mask=batch.mask * kept[:, None])
    batch = algo.credited(batch)
    assert batch.old_logp is not None
    assert batch.advantages is not None
    _, gradient = surrogate(algo, batch, torch.zeros_like(batch.old_logp))
    return Outcome(
        rewards, batch.advantages[:, 0].tolist(), (gradient * batch.mask)[:, 0].tolist(), [bool(row) for row in kept]
    )


def surrogate(algo: Algorithm, batch: Batch, log_ratio: Tensor) -> tuple[Tensor, Tensor]:
    """(−loss, −∂loss/∂log π) of each token, (B,T), where log π/π_old is ``log_ratio``; without the KL."""
    assert batch.old_logp is not None
    logp = (batch.old_logp + log_ratio).requires_grad_()
    entropy = torch.zeros_like(logp) if algo.needs_entropy else None
    loss = algo.token_loss(logp, replace(batch, kl_coef=0.0), entropy)
    if not loss.requires_grad:  # nothing is selected, nothing is learned
        return -loss, torch.zeros_like(logp)
    (gradient,) = torch.autograd.grad((loss * batch.mask).sum(), logp)
    return -loss.detach(), -gradient


def example(cfg: Config) -> tuple[str, list[Outcome]]:
    """What the answers are, and the outcome for one right answer, for all right and for all wrong."""
    size = cfg.group_size if cfg.group_size > 1 else min(ALONE, cfg.samples)
    what = f"one prompt with {size} answers" if cfg.group_size > 1 else f"{size} prompts with one answer each"
    several = [[1.0] + [0.0] * (size - 1), [1.0] * size, [0.0] * size]
    return what, [outcome(cfg.algo, rewards, cfg.group_size) for rewards in several]
