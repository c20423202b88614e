"""The optimiser of one network: its steps, its schedules, what it refuses to apply."""

from __future__ import annotations

import math

import pytest
import torch
from kernel_data import kernels_on, needs_compiler  # noqa: F401 (a fixture)
from model_data import make

from grpo_bench import kernels
from grpo_bench.kernels import optimiser as compiled
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # compiled, and torch's
def test_gradients_that_are_added_count_in_the_norm_and_the_step(dtype: torch.dtype) -> None:
    weights = [torch.nn.Parameter(torch.zeros(n, dtype=dtype)) for n in (2, 1, 1, 1)]
    optimiser = Optimiser([(weights, 0.1)], make("optim.grad_clip=null", "optim.warmup_updates=0").optim)
    weights[0].grad = torch.tensor([1.0, 2.0], dtype=dtype)
    weights[1].grad = torch.tensor([4.0], dtype=dtype)
    stranger = torch.nn.Parameter(torch.zeros(1, dtype=dtype))
    more = {weights[0]: [1.0, 0.0], weights[2]: [-4.0], stranger: [9.0]}
    optimiser.add({p: torch.tensor(x, dtype=dtype) for p, x in more.items()})
    # gradients (2, 2), 4, -4 and none: 4 + 4 + 16 + 16 = 40
    assert optimiser.step(1.0, 0.0) == (pytest.approx(math.sqrt(40)), True)
    # by the rate, against the sign, and no further than decay where there is none
    moved = [x.tolist() for x in weights]
    assert moved == [pytest.approx(x) for x in ([-0.1, -0.1], [-0.1], [0.1], [0.0])]
    assert all(p.grad is None for p in weights)
    optimiser.add({weights[0]: torch.ones(2, dtype=dtype)})
    optimiser.forget()
    assert optimiser.step(1.0, 0.0)[0] == 0.0


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


SHAPES = [(300, 70), (1,), (), (0, 3), (17,), (2, 16384), (3, 5, 7)]


def trained(on: bool, threads: int, clip: str, steps: int = 4) -> tuple[list[float], Optimiser]:
    """Steps on random gradients of all sizes, one tensor's missing at the second step."""
    kernels.use(on)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    cfg = make(f"optim.grad_clip={clip}", "optim.warmup_updates=3", "optim.weight_decay=0.1").optim
    optimiser = Optimiser([(weights[:3], 0.1), (weights[3:], 0.03)], cfg)
    norms = []
    for step in range(steps):
        for i, p in enumerate(weights):
            p.grad = None if step == i == 1 else torch.randn_like(p) * 10 ** (i - 3)
        norms.append(optimiser.step(0.0, 0.0)[0])
    return norms, optimiser


@needs_compiler
@pytest.mark.parametrize("clip", ["null", "1.0", "1e9"])
def test_compiled_steps_are_those_of_torch(monkeypatch: pytest.MonkeyPatch, clip: str) -> None:
    monkeypatch.setattr(kernels, "SMALL", 0)  # small as they are, two threads share them
    (norms, own), (again, same), (plain, other) = (trained(*x, clip) for x in ((True, 1), (True, 2), (False, 1)))
    assert norms == again == pytest.approx(plain, rel=1e-5)
    for a, b, c in zip(own.parameters, same.parameters, other.parameters, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=1e-5, atol=1e-6)
        found, wanted = own.adamw.state[a], other.adamw.state[c]
        assert list(found) == list(wanted)
        for name, value in wanted.items():
            assert found[name].dtype == value.dtype
            largest = float(value.abs().max()) if value.numel() else 0.0
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6 * largest)
    assert own.adamw.state_dict()["param_groups"] == other.adamw.state_dict()["param_groups"]


@needs_compiler
def test_moments_are_put_where_room_was_made_and_only_when_they_are_made() -> None:
    kernels.use(True)
    own, unused = torch.nn.Parameter(torch.ones(3, 4)), torch.nn.Parameter(torch.ones(2))
    optimiser = Optimiser([([own, unused], 0.1)], make().optim)
    optimiser.reserve()
    assert optimiser.adamw.state_dict()["state"] == {}
    room = [x.data_ptr() for x in optimiser._room[own]]
    optimiser.reserve()
    own.grad = torch.full_like(own, 2.0)
    optimiser.step(0.0, 0.0)
    state = optimiser.adamw.state[own]
    assert [state["exp_avg"].data_ptr(), state["exp_avg_sq"].data_ptr()] == room
    assert list(optimiser.adamw.state_dict()["state"]) == [0]  # a weight without a gradient has none
    optimiser.reserve()
    assert optimiser._room == {}


@needs_compiler
def test_a_state_goes_from_one_to_the_other() -> None:
    """Three steps of one, one of the other: a run may be resumed on another machine."""
    found = []
    for on in (True, False):
        optimiser = trained(on, 1, "1.0", 3)[1]
        kernels.use(not on)
        following = Optimiser([(optimiser.parameters[:3], 0.1), (optimiser.parameters[3:], 0.03)], optimiser.cfg)
        following.adamw.load_state_dict(optimiser.adamw.state_dict())
        for p in following.parameters:
            p.grad = torch.ones_like(p)
        following.step(0.0, 0.0)
        found.append(following.parameters)
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@needs_compiler
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_what_is_not_finite_shows_in_the_norm(wrong: float) -> None:
    grads = [torch.ones(5000), torch.ones(3, 700)]
    grads[1][2, 699] = wrong
    assert not math.isfinite(compiled.norm(grads))
    assert compiled.norm(grads[:1]) == pytest.approx(math.sqrt(5000))
    assert compiled.norm([]) == 0


@needs_compiler
def test_what_is_added_before_the_norm_is_added_in_place() -> None:
    grads = [torch.arange(40_000, dtype=torch.float32), torch.ones(3)]
    more = torch.arange(40_000, 0, -1, dtype=torch.float32)
    assert compiled.norm(grads, [more, None]) == pytest.approx(math.sqrt(40_000 * 40_000**2 + 3))
    assert grads[0].eq(40_000).all()
    assert grads[1].eq(1).all()


@needs_compiler
def test_what_is_compiled_for() -> None:
    x = torch.zeros(4, 4)
    assert compiled.takes([x, x.clone()])
    assert not compiled.takes([x, x.double()])
    assert not compiled.takes([x[:, :2]])
    kernels.use(False)
    assert not compiled.takes([x])
