"""The product of a gate is made again in the backward pass: no result changes, and it is not kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_data import kernels_on, needs_compiler, needs_training_tiles  # noqa: F401 (a fixture)
from model_data import batch_of, make, ragged
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from grpo_bench import kernels
from grpo_bench.kernels import layers
from grpo_bench.policy import decoder_layer, gates, layout, linear, make_models
from grpo_bench.policy.load import load_model

pytestmark = needs_compiler
TYPES = [torch.float32, pytest.param(torch.bfloat16, marks=needs_training_tiles)]
WIDTH, INNER = 32, 96


class Layer(nn.Module):
    def __init__(self, biased: bool = False) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.gate_proj, self.up_proj = (nn.Linear(WIDTH, INNER, bias=biased) for _ in range(2))
        self.down_proj, self.act_fn = nn.Linear(INNER, WIDTH, bias=biased), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def faster(biased: bool = False) -> Layer:
    layer = Layer(biased)
    linear.install(layer)
    linear.join(layer)
    assert gates.install(layer) == 1
    return layer


def tokens(*shape: int) -> Tensor:
    torch.manual_seed(8)
    return torch.randn(*shape, WIDTH).requires_grad_()


def trained(layer: nn.Module, x: Tensor, dtype: torch.dtype, call: Callable[..., Tensor] | None = None) -> list[Any]:
    """What comes out, with the gradients of a sum of it by ``x`` and by the parameters."""
    x = x.detach().clone().requires_grad_(x.requires_grad)
    layer.zero_grad()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        out = layer(x) if call is None else call(layer, x)
    (out.float() * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    return [out.detach(), x.grad, *(p.grad for p in layer.parameters())]


def same(found: list[Any], expected: list[Any]) -> bool:
    pairs = list(zip(found, expected, strict=True))
    assert all((a is None) == (b is None) for a, b in pairs)
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs if a is not None)


def kept(layer: nn.Module, x: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Tensors as wide as a gate that a forward pass leaves for the backward one."""
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.shape[-1] == INNER and tensor.numel() == x.numel() // WIDTH * INNER:
            found[tensor.data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            out = layer(x)
        assert out.requires_grad
    return list(found.values())


@pytest.fixture
def before(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """``trained`` by a gate and a linear layer of which each keeps what it needs."""

    def plain(*args: Any) -> list[Any]:
        with monkeypatch.context() as patch:
            patch.setattr(gates, "_need_not_keep", lambda *_: False)
            return trained(*args)

    return plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("count", [1, 15, 16, 31, 4096, 4097, 300_001])
def test_the_product_comes_with_the_gradients_bit_for_bit(count, threads, dtype):
    torch.set_num_threads(threads)
    torch.manual_seed(count)
    gate, up, grad = (10 * torch.randn(3, count)).to(dtype)
    gate[0] = torch.nan if count > 1 else 1.0
    alone = layers.gate_gradient(gate, up, grad)
    product, over = torch.empty_like(gate), grad.clone()
    apart, within = layers.gate_gradient(gate, up, grad, product), layers.gate_gradient(gate, up, over, over)
    expected = layers.gate(gate, up)
    for a, b in zip((product, over, *apart, *within), (expected, expected, *alone, *alone), strict=True):
        assert torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", [(1, 200), (3, 70), (130,), (1, 3)])
def test_nothing_that_is_computed_changes(shape, biased, dtype, before):
    """Few tokens too, where torch makes the weights' gradients in bfloat16."""
    layer, x = faster(biased), tokens(*shape)
    expected = before(layer, x, dtype)
    assert same(trained(layer, x, dtype), expected)
    if dtype == torch.float32:
        for own, wanted in zip(expected, trained(Layer(biased), x, dtype), strict=True):
            torch.testing.assert_close(own, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", TYPES)
def test_the_product_is_not_kept(dtype, monkeypatch):
    layer, x = faster(), tokens(1, 200)
    made: list[Tensor] = []
    own = layers.gate
    monkeypatch.setattr(layers, "gate", lambda *args: made.append(own(*args)) or made[-1])
    found = kept(layer, x, dtype)
    assert len(found) == 2
    assert len(made) == 1
    assert not any(torch.equal(made[0], tensor) for tensor in found)
    monkeypatch.setattr(gates, "_need_not_keep", lambda *_: False)
    assert len(kept(layer, x, dtype)) == 3


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    "frozen",
    [["down_proj.weight"], ["down_proj.bias"], ["gate_proj.weight", "gate_proj.bias"], ["gate_proj", "up_proj"]],
)
@pytest.mark.parametrize("below", [True, False])
def test_what_is_frozen_has_no_gradient(frozen, below, dtype, before):
    layer, x = faster(biased=True), tokens(1, 200).requires_grad_(below)
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(not any(name.startswith(start) for start in frozen))
    expected = before(layer, x, dtype)
    assert same(trained(layer, x, dtype), expected)
    assert [p.grad is not None for p in layer.parameters()] == [p.requires_grad for p in layer.parameters()]


@pytest.mark.parametrize("dtype", TYPES)
def test_gates_that_nobody_trains_are_not_kept_instead(dtype):
    layer, x = faster(), tokens(1, 200).requires_grad_(False)
    for part in (layer.gate_proj, layer.up_proj):
        part.weight.requires_grad_(False)
    assert len(kept(layer, x, dtype)) == 1


@pytest.mark.parametrize("dtype", TYPES)
def test_only_the_gradients_that_are_asked_for(dtype, before):
    layer, x = faster(biased=True), tokens(1, 200)
    wanted = before(layer, x, dtype)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        y = layer(x)
    y = (y.float() * torch.linspace(-1, 1, y.numel()).view_as(y)).sum()
    parts = [x, *layer.parameters()]
    for part, expected in zip(parts, wanted[1:], strict=True):
        assert torch.equal(torch.autograd.grad(y, part, retain_graph=True)[0], expected)  # of what is kept, again


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("reentrant", [True, False])
def test_in_a_checkpointed_block(reentrant, dtype):
    layer, x = faster(biased=True), tokens(1, 200)
    again = trained(layer, x, dtype, lambda *args: checkpoint(*args, use_reentrant=reentrant))
    assert same(again, trained(layer, x, dtype))


@pytest.mark.parametrize("dtype", TYPES)
def test_copies_and_shared_weights(dtype, before):
    layer, x = faster(), tokens(1, 200)
    assert same(trained(copy.deepcopy(layer), x, dtype), trained(layer, x, dtype))
    twin = faster()
    twin.down_proj.weight = layer.down_proj.weight
    both = nn.Sequential(layer, twin)
    assert same(trained(both, x, dtype), before(both, x, dtype))


@pytest.mark.parametrize("dtype", TYPES)
def test_hooks_and_other_layers_see_the_product(dtype):
    x, seen = tokens(1, 200), []

    class Other(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            seen.append(input.shape)
            return super().forward(input)

    def of_class(layer: Layer) -> None:
        layer.down_proj.__class__ = Other

    def instead(layer: Layer) -> None:
        own = layer.down_proj.forward
        layer.down_proj.forward = lambda input: seen.append(input.shape) or own(input)  # type: ignore[method-assign]

    ways: list[Callable[[Layer], Any]] = [
        lambda layer: layer.down_proj.register_forward_hook(lambda _, args, __: seen.append(args[0].shape)),
        lambda layer: layer.down_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape)),
        lambda layer: layer.down_proj.register_full_backward_hook(lambda _, grads, __: seen.append(grads[0].shape)),
        lambda _: nn.modules.module.register_module_forward_pre_hook(
            lambda module, args: seen.append(args[0].shape) if getattr(module, "in_features", 0) == INNER else None
        ),
        of_class,
        instead,
    ]
    for way in ways:
        layer = faster()
        handle = way(layer)
        seen.clear()
        try:
            trained(layer, x, dtype)
        finally:
            if hasattr(handle, "remove"):
                handle.remove()
        assert seen == [(1, 200, INNER)]


def test_other_types_go_as_before():
    layer = faster().double()
    x = tokens(1, 200).double().requires_grad_()
    assert torch.autograd.gradcheck(layer, (x[:, :2].detach().requires_grad_(),))
    half = faster()
    half.down_proj.double()
    with pytest.raises(RuntimeError, match="dtype"):
        half(x.float())


@needs_training_tiles
def test_a_copy_of_the_weight_that_was_made_before_is_used():
    layer, x = faster(), tokens(1, 200)
    expected = trained(layer, x, torch.bfloat16)
    layer.down_proj.low = layer.down_proj.weight.detach().bfloat16()  # type: ignore[assignment]
    assert same(trained(layer, x, torch.bfloat16), expected)
    plain = trained(layer, x, torch.float32)
    layer.down_proj.low = 2 * layer.down_proj.low  # type: ignore[assignment]
    assert torch.equal(trained(layer, x, torch.bfloat16)[0], 2 * expected[0])
    assert same(trained(layer, x, torch.float32), plain)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("lora", ["null", "{r:2,alpha:4,targets:null}"])
@pytest.mark.parametrize("again", [False, True])
def test_policies_train_as_before(lora, again, dtype, monkeypatch):
    """With adapters, whose layers are others, and with layers computed again."""
    cfg = make("model.tiny.hidden_size=64", "model.tiny.intermediate_size=96", f"model.lora={lora}").model
    net = load_model(cfg, torch.device("cpu"))
    if again:
        net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy = make_models(net, cfg, dtype, critic=False, reference=False).policy
    batch = batch_of(ragged(24, 8))
    rows = layout(batch, torch.arange(len(batch.mask)))
    made, own = [], gates._need_not_keep
    monkeypatch.setattr(decoder_layer, "_takes", lambda *_: False)  # of layers that are one operation there is none
    monkeypatch.setattr(gates, "_need_not_keep", lambda *args: made.append(own(*args)) or made[-1])
    found = []
    for kept in (False, True):
        if kept:
            assert made
            assert all(made) == any(made) == (lora == "null")
            monkeypatch.setattr(gates, "_need_not_keep", lambda *_: False)
        policy.zero_grad()
        logp, _ = policy.logp(rows, 1.0)
        logp.sum().backward()
        found.append([logp.detach(), *(p.grad for p in policy.parameters())])
    assert same(*found)


def test_not_without_kernels():
    layer, x = faster(), tokens(1, 200)
    kernels.use(False)
    expected = trained(Layer(), x, torch.float32)
    assert same(trained(layer, x, torch.float32), expected)
