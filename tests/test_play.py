"""Calls that are played together do what they do one by one, in their order, between calls that are not compiled."""

from __future__ import annotations

import ctypes
import math
import re
from pathlib import Path

import pytest
import torch
from kernel_data import PRODUCTS, kernels_on, needs_compiler, packed  # noqa: F401
from torch import Tensor

from grpo_bench import kernels
from grpo_bench.kernels import layers, products, sampling
from grpo_bench.kernels.play import together


def _again(calls: list) -> None:
    for function, args, kwargs in calls:
        function(*args, **kwargs)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_played_calls_give_what_they_gave(dtype):
    torch.manual_seed(0)
    x, weight = torch.randn(6, 32).to(dtype), torch.randn(32).to(dtype)
    cosines, sines = torch.randn(6, 8), torch.randn(6, 8)
    query, uniforms = torch.randn(4, 6, 8).to(dtype), torch.rand(6, dtype=torch.float64)
    calls: list = []
    with kernels.heard(calls):
        made = [
            sampling.rms_norm(x, weight, 1e-5, 0.5),
            layers.gate(x, x),
            *layers.rotate(query, query, cosines, sines),
        ]
        total = torch.empty_like(x)
        layers.add(made[0], made[1], total)
        drawn = sampling.draw(total, 0.7, uniforms)
    played, kept = together(calls)
    assert len(calls) == 6
    assert [function.__name__ for function, _, _ in played] == ["play"]
    assert kept
    results = [*made, total, *drawn]
    want = [result.clone() for result in results]
    for result in results:
        result.fill_(1)
    _again(played)
    assert all(torch.equal(a, b) for a, b in zip(results, want, strict=True))
    x.mul_(-2)  # what they read is read anew
    _again(played)
    assert torch.equal(made[0], sampling.rms_norm(x, weight, 1e-5, 0.5))


@needs_compiler
@pytest.mark.parametrize("dtype", PRODUCTS)
@pytest.mark.parametrize("gated", [False, True])
def test_played_products_give_what_they_gave(dtype, gated):
    torch.manual_seed(0)
    x, bias = torch.randn(32, 64).to(dtype), None if gated else torch.randn(32).to(dtype)  # whole tiles: no padding
    ready, columns = packed(torch.randn(32, 64), dtype), 16 if gated else 32
    calls: list = []
    with kernels.heard(calls):
        outs = [products.multiply(x, ready, columns, bias, gated) for _ in range(2)]
    want = outs[0].clone()
    for out in outs:
        out.zero_()
    played, _kept = together(calls)
    _again(played)
    assert all(torch.equal(out, want) for out in outs)


@needs_compiler
def test_calls_keep_their_order():
    """Doubled, made 3 by torch, doubled twice: 12; a run of one stays as it is."""
    x = torch.ones(4)
    calls: list = []

    def double() -> None:
        layers.add(x, x, x)

    def three() -> None:
        x.fill_(3.0)

    with kernels.heard(calls):
        double()
        calls.append((three, (), {}))
        double()
        double()
    played, _kept = together(calls)
    assert [function.__name__ for function, _, _ in played] == ["add_float32", "three", "play"]
    _again(played)
    assert x.tolist() == [12.0] * 4


@needs_compiler
def test_a_row_is_settled_where_it_stands():
    """Rows 2, 0 and 1 of three: one goes on, one takes an end, one comes to its limit, and one that ended writes behind
    its end without growing."""
    nan = math.nan

    def table() -> tuple[Tensor, Tensor]:
        return torch.full((4, 5), -1), torch.full((4, 5), nan, dtype=torch.float64)

    out, logps = table()
    numbers, counts = torch.tensor([2, 0, 1, 3]), torch.tensor([1, 3, 0, 2])
    running, limits = torch.tensor([True, True, True, False]), torch.tensor([5, 4, 5, 5])
    is_end, latest = torch.tensor([False, False, True]), torch.zeros(4, dtype=torch.long)
    tokens, scores = torch.tensor([1, 0, 2, 1]), torch.tensor([-0.5, -1.0, -2.0, -3.0])
    sampling.settle(tokens, scores, numbers, limits, is_end, counts, running, out, logps, latest)
    want, scored = table()
    want[2, 1], want[0, 3], want[1, 0], want[3, 2] = 1, 0, 2, 1
    scored[2, 1], scored[0, 3], scored[1, 0], scored[3, 2] = -0.5, -1.0, -2.0, -3.0
    assert torch.equal(out, want)
    assert torch.equal(logps.nan_to_num(nan=7.0), scored.nan_to_num(nan=7.0))
    assert counts.tolist() == [2, 4, 1, 2]
    assert running.tolist() == [True, False, False, False]
    assert latest.tolist() == [1, 0, 2, 1]


@needs_compiler
def test_each_row_is_given_its_next_number():
    uniforms = torch.arange(12, dtype=torch.float64).view(3, 4)
    assert sampling.look_up(uniforms, torch.tensor([2, 0, 2]), torch.tensor([0, 3, 1])).tolist() == [8.0, 3.0, 9.0]


@needs_compiler
def test_forms_take_what_their_functions_take():
    """Each argument from the slot of its number, as the pointer, integer or float that it is declared as in Python."""
    kinds = {"PTR": ctypes.c_void_p, "REAL": ctypes.c_float, "INT": ctypes.c_int64, "(int)INT": ctypes.c_int}
    found = 0
    for path in Path(kernels.__file__).parent.glob("*.[ch]"):
        for name, arguments in re.findall(r"^CALLED\((\w+|NAME\(\w+\)), (.*?)\)\n", path.read_text(), re.M | re.S):
            names = [name] if "NAME" not in name else [f"{name[5:-1]}_{kind}" for kind in kernels.NAMES.values()]
            taken = [re.fullmatch(r"((?:\(int\))?\w+)\((\d+)\)", one.strip()) for one in arguments.split(",")]
            assert all(taken)
            assert [int(one[2]) for one in taken] == list(range(len(taken)))
            for function in (getattr(kernels._library(), each, None) for each in names):
                if function is not None and function.argtypes is not None:  # some are for some processors only
                    assert [kinds[one[1]] for one in taken] == list(function.argtypes)
                    found += 1
    assert found >= 14
