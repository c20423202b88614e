"""The optimiser of one network: its steps, its schedules, what it refuses to apply."""

from __future__ import annotations

import math

import pytest
import torch
from model_data import make

from grpo_bench.optimiser import Optimiser, schedule
from grpo_bench.update import descend


def test_a_finite_loss_with_a_gradient_that_is_not_is_skipped_too() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimiser = Optimiser([([weight], 0.1)], make().optim)
    (weight.sqrt() * 1.0).sum().backward()  # sqrt(0) = 0 with slope infinity
    norm, applied = optimiser.step(0.0, 0.0)
    assert math.isinf(norm)
    assert not applied
    assert weight.item() == 0.0
    assert weight.grad is None


def test_without_a_clip_gradients_pass_unchanged() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    optimiser = Optimiser([([weight], 0.1)], make("optim.grad_clip=null", "optim.warmup_updates=0").optim)
    (1000 * weight).sum().backward()
    assert optimiser.step(1.0, 0.0) == (1000.0, True)


def test_the_first_adamw_step_by_hand() -> None:
    # g = 3 clipped to 1; m = 0.1, v = 0.05; unbiased m̂ = v̂ = 1: w = 1 − 0.1 · 1/(1 + 1e-8) ≈ 0.9
    weight = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimiser = Optimiser([([weight], 0.1)], make("optim.warmup_updates=0").optim)
    assert descend(optimiser, [(2 * weight).sum(), weight.sum()]) == 3.0  # micro-batches add up
    assert weight.item() == pytest.approx(0.9, abs=1e-8)


@pytest.mark.parametrize(
    ("name", "warm", "update", "progress", "factor"),
    [
        ("constant", 0, 0, 0.0, 1.0),
        ("constant", 10, 0, 0.0, 0.1),  # 1/10
        ("constant", 10, 4, 0.5, 0.5),  # 5/10
        ("constant", 10, 9, 0.9, 1.0),
        ("constant", 10, 500, 1.0, 1.0),
        ("linear", 0, 7, 0.0, 1.0),
        ("linear", 0, 7, 0.25, 0.75),  # 1 − 1/4
        ("linear", 4, 1, 0.25, 0.375),  # 2/4 · 3/4
        ("linear", 0, 7, 1.5, 0.0),  # an overshot budget does not turn negative
        ("cosine", 0, 7, 0.0, 1.0),
        ("cosine", 0, 7, 1 / 3, 0.75),  # (1 + cos 60°)/2 = (1 + 0.5)/2
        ("cosine", 0, 7, 0.5, 0.5),
        ("cosine", 0, 7, 1.0, 0.0),
    ],
)
def test_schedules_by_hand(name: str, warm: int, update: int, progress: float, factor: float) -> None:
    optim = make().optim.model_copy(update={"schedule": name, "warmup_updates": warm})
    assert schedule(optim, update, progress) == pytest.approx(factor, abs=1e-12)
