"""Training's products in fp32 that are made here: x·Wᵀ, and the gradients by x and by W."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from kernel_data import kernels_on, needs_vectors, own_fp32, packed  # noqa: F401 (fixtures)
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from grpo_bench import kernels
from grpo_bench.kernels import products
from grpo_bench.policy import linear
from grpo_bench.policy.head import head_logp
from grpo_bench.policy.linear import TrainedLinear
from grpo_bench.rollout.tape import Tape

# tokens, outputs, inputs: of one, around a tile's 14 rows and 16 columns, a block's 32 columns, a part's 256 tokens
SIZES = [
    (1, 1, 1), (3, 2, 5), (17, 14, 16), (64, 15, 33), (255, 29, 31), (256, 13, 32), (257, 28, 64), (600, 200, 70),
]  # fmt: skip


def whole_numbers(*size: int, seed: int = 0) -> torch.Tensor:
    """Small ones: their products and sums are exact in fp32, in any order."""
    return torch.randint(-9, 10, size, generator=torch.Generator().manual_seed(seed)).float()


@needs_vectors
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("tokens", "outputs", "inputs"), SIZES)
def test_each_is_the_exact_product(tokens, outputs, inputs, threads):
    torch.set_num_threads(threads)
    x, w, grad = whole_numbers(tokens, inputs), whole_numbers(outputs, inputs, seed=1), whole_numbers(tokens, outputs)
    bias = whole_numbers(outputs, seed=2)
    assert torch.equal(products.linear(x, w).double(), x.double() @ w.double().T)
    assert torch.equal(products.linear(x, w, bias).double(), x.double() @ w.double().T + bias.double())
    assert torch.equal(products.input_gradient(grad, w).double(), grad.double() @ w.double())
    assert torch.equal(products.weight_gradient(grad, x).double(), grad.double().T @ x.double())


@needs_vectors
def test_by_hand():
    x, w, grad = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 6.0]]), torch.tensor([[7.0], [8.0]])
    assert products.linear(x, w, torch.tensor([0.5])).tolist() == [[17.5], [39.5]]
    assert products.input_gradient(grad, w).tolist() == [[35.0, 42.0], [40.0, 48.0]]
    assert products.weight_gradient(grad, x).tolist() == [[31.0, 46.0]]


@needs_vectors
def test_what_does_not_lie_densely():
    """A part of what several layers made, and transposed or strided factors."""
    x, all_grads, w = whole_numbers(40, 70)[:, 3:40], whole_numbers(40, 50), whole_numbers(37, 20).T
    for grad in (all_grads[:, 11:31], all_grads[:, :20], all_grads.T.contiguous().T[:, 5:25]):
        assert torch.equal(products.weight_gradient(grad, x), grad.T @ x.contiguous())
        assert torch.equal(products.input_gradient(grad, w), grad @ w)
    assert torch.equal(products.linear(x, w, whole_numbers(40)[::2]), x @ w.T + whole_numbers(40)[::2])


@needs_vectors
def test_no_tokens():
    assert products.weight_gradient(torch.empty(0, 5), torch.empty(0, 7)).equal(torch.zeros(5, 7))
    assert products.linear(torch.empty(0, 7), torch.ones(5, 7)).shape == (0, 5)
    assert products.input_gradient(torch.empty(0, 5), torch.ones(5, 7)).shape == (0, 7)


@needs_vectors
def test_threads_and_other_rows_change_no_bit():
    torch.manual_seed(0)
    x, w, grad = torch.randn(700, 96), torch.randn(130, 96), torch.randn(700, 130)

    def made() -> list[torch.Tensor]:
        return [products.linear(x, w), products.input_gradient(grad, w), products.weight_gradient(grad, x)]

    torch.set_num_threads(1)
    one = made()
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(made(), one, strict=True))
    assert torch.equal(products.linear(x[100:333], w), one[0][100:333])
    assert torch.equal(products.weight_gradient(grad[:, 7:50], x), one[2][7:50])


def pair(own: int = 40, inputs: int = 36, bias: bool = True) -> tuple[nn.Module, nn.Module]:
    """A layer that trains as ``policy.linear`` lets it, and the same in double."""
    torch.manual_seed(1)
    layer = nn.Linear(inputs, own, bias)
    exact = copy.deepcopy(layer).double()
    assert linear.install(layer) == 1
    assert type(layer) is TrainedLinear
    return layer, exact


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(300, 36), (2, 150, 36)])
def test_a_layer_and_its_gradients(own_fp32, bias, shape):  # noqa: F811
    layer, exact = pair(bias=bias)
    x = torch.randn(shape, requires_grad=True)
    y = x.detach().double().requires_grad_()
    assert layer.multiplies(x) == own_fp32
    found, wanted = layer(x), exact(y)
    assert found.shape == wanted.shape
    found.square().sum().backward()
    wanted.square().sum().backward()
    parameters = zip(layer.parameters(), exact.parameters(), strict=True)
    for a, b in [(found, wanted), (x.grad, y.grad), *((p.grad, q.grad) for p, q in parameters)]:
        assert (a - b).abs().max() <= 2e-6 * b.abs().max()


def test_a_layer_without_gradients_gives_the_same_bits(own_fp32):  # noqa: F811
    layer, _ = pair()
    x = torch.randn(300, 36)
    with torch.no_grad():
        sampled = layer(x)
    assert torch.equal(layer(x), sampled)
    assert not sampled.requires_grad


def test_a_frozen_weight_and_an_input_without_gradient(own_fp32):  # noqa: F811
    layer, exact = pair()
    layer.weight.requires_grad_(False)
    x = torch.randn(300, 36, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert torch.allclose(layer.bias.grad, torch.full((40,), 300.0))
    assert torch.allclose(x.grad.double(), exact.weight.sum(0).expand(300, 36), rtol=1e-5, atol=1e-5)
    layer.weight.requires_grad_(True)
    layer(x.detach()).sum().backward()
    assert torch.allclose(layer.weight.grad, x.detach().sum(0).expand(40, 36), rtol=1e-5, atol=1e-5)


def test_a_frozen_layer_keeps_nothing_of_its_input(own_fp32):  # noqa: F811
    layer, _ = pair()
    layer.requires_grad_(False)
    x = torch.randn(300, 36, requires_grad=True)
    kept: list[torch.Tensor] = []
    with saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = layer(2 * x)
    assert all(t.data_ptr() == layer.weight.data_ptr() for t in kept)
    out.sum().backward()
    assert torch.allclose(x.grad, 2 * layer.weight.sum(0).expand(300, 36), rtol=1e-5, atol=1e-5)


@needs_vectors
def test_whatever_the_default_type_is():
    x, grad = whole_numbers(40, 33), whole_numbers(40, 35)
    torch.set_default_dtype(torch.float64)
    try:
        made = products.weight_gradient(grad, x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert made.dtype == torch.float32
    assert torch.equal(made, grad.T @ x)


@needs_vectors
def test_a_sum_is_not_written_over_a_bias():
    x, plus, out = whole_numbers(256, 33), whole_numbers(256, 35), torch.empty(256, 35)
    calls: list[Any] = []
    with kernels.heard(calls):
        made = products.multiply(x, packed(whole_numbers(35, 33), torch.float32), 35, out[5])
    assert products.with_sum(calls[-1], plus, made, out) is None
    assert products.with_sum(calls[-1], plus, made, torch.empty_like(out)) is not None


@needs_vectors
@pytest.mark.parametrize("rows", [256, 320])
def test_a_product_on_tape_does_not_write_its_sum_over_its_weights(own_fp32, rows):  # noqa: F811
    """They are packed for the moment, in a place as large as what is added where there are as many rows as columns."""
    layer, _ = pair(own=rows, inputs=rows, bias=False)
    layer.requires_grad_(False)
    x, more = whole_numbers(rows, rows), whole_numbers(rows, rows, seed=3)
    layer.weight.data = whole_numbers(rows, rows, seed=4)
    out = torch.empty(rows, rows)

    def work() -> None:
        out.copy_(layer(x) + more)

    with torch.no_grad():
        tape = Tape(work)
        assert tape.refused is None
        for _ in range(2):
            out.zero_()
            tape.play()
            assert torch.equal(out, x @ layer.weight.T + more)


def test_what_stays_torchs(own_fp32):  # noqa: F811
    """Few tokens, other precisions, autocast, and with kernels off all of it."""
    layer, _ = pair()
    few, many = torch.randn(products.FEW_ROWS - 1, 36), torch.randn(products.FEW_ROWS, 36)
    assert layer.multiplies(many) == own_fp32
    assert not layer.multiplies(few)
    assert torch.equal(layer(few), F.linear(few, layer.weight, layer.bias))
    assert not layer.multiplies(many.double())
    assert not layer.multiplies(many.view(-1, 18))  # torch says what is wrong with it
    narrow, _ = pair(own=products.NARROW - 1)
    assert not narrow.multiplies(many)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not layer.multiplies(many)
    kernels.use(False)
    assert not layer.multiplies(many)
    assert torch.equal(layer(many), F.linear(many, layer.weight, layer.bias))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("few_at_once", [False, True])
def test_the_head(own_fp32, temperature, few_at_once, monkeypatch):  # noqa: F811
    if few_at_once:  # logits are then made again for the backward pass
        monkeypatch.setattr("grpo_bench.policy.head.kept_elements", lambda *_: 61 * 300)  # the last have too few rows
    torch.manual_seed(2)
    hidden, weight, targets = torch.randn(700, 36), torch.randn(61, 36), torch.randint(61, (700,))
    found = []
    for dtype in (torch.float32, torch.float64):
        h, w = (x.to(dtype, copy=True).requires_grad_() for x in (hidden, weight))
        logp, entropy = head_logp(h, w, targets, temperature)
        (logp * torch.linspace(-1, 1, 700, dtype=dtype)).sum().backward()
        found.append((logp, entropy, h.grad, w.grad))
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()
