"""Linear layers of training on a CPU. In bfloat16 the gradient of their fp32 weights is the product's fp32 sum.

Under autocast torch rounds that gradient to bfloat16 and turns it back into fp32, and multiplies more slowly (see
``kernels/weight_gradient.c``). Layers of one input (queries, keys and values; a gate and what it lets through) are one
operation: their gradients by it are summed within the products, and it is laid out once for the gradients of all their
weights. In fp32 a layer's products are made here where torch's use half of a processor (see
``kernels/weight_gradient_float32.c``). Layers whose sizes, types or devices ``kernels.products.trains`` does not take
stay torch's.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from grpo_bench import kernels
from grpo_bench.kernels import products

GATES = ("gate_proj", "up_proj")
SIBLINGS = (("q_proj", "k_proj", "v_proj"), GATES)  # layers of one input, by their usual names


class _Linears(torch.autograd.Function):
    """Layers of one input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, made: Sequence[Tensor | None], *parameters: Tensor | None) -> tuple[Tensor, ...]:
        """Weights in bfloat16 where they were made already, weights, then as many biases or Nones."""
        weights, biases = parameters[: len(parameters) // 2], parameters[len(parameters) // 2 :]
        ctx.type, ctx.biased = x.dtype, [bias is not None for bias in biases]
        ctx.set_materialize_grads(False)  # a layer that was not asked has none
        x = x.to(torch.bfloat16)
        lows = [
            weight.detach().to(torch.bfloat16) if low is None else low
            for low, weight in zip(made, weights, strict=True)
            if weight is not None
        ]
        ctx.save_for_backward(x, *lows)
        with torch.autocast("cpu", enabled=False):
            return tuple(
                F.linear(x, low, None if bias is None else bias.to(torch.bfloat16))
                for low, bias in zip(lows, biases, strict=True)
            )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        x, *lows = ctx.saved_tensors
        count = len(lows)
        asked = [i for i in range(count) if grads[i] is not None]
        own = [grads[i].to(torch.bfloat16).reshape(-1, grads[i].shape[-1]) for i in asked]
        out: list[Tensor | None] = [None] * (2 + 2 * count)
        with torch.autocast("cpu", enabled=False):
            if ctx.needs_input_grad[0] and asked:
                out[0] = input_gradient(own, [lows[i] for i in asked], ctx.type).view(x.shape)
            for i, grad in zip(asked, own, strict=True):
                if ctx.biased[i] and ctx.needs_input_grad[2 + count + i]:
                    out[2 + count + i] = grad.sum(0, dtype=torch.float32)
        for i, made in zip(asked, products.weight_gradients(own, x.reshape(-1, x.shape[-1])), strict=True):
            out[2 + i] = made
        return tuple(out)


class _WideLinear(torch.autograd.Function):
    """A layer in fp32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        of_x, of_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if of_weight else None, weight if of_x else None)  # a frozen layer keeps no input
        return products.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grads[0].reshape(-1, grads[0].shape[-1])
        of_x = of_weight = None
        if weight is not None:
            of_x = products.input_gradient(grad, weight).view(*grads[0].shape[:-1], weight.shape[1])
        if x is not None:
            of_weight = products.weight_gradient(grad, x.reshape(-1, x.shape[-1]))
        return of_x, of_weight, grad.sum(0) if ctx.needs_input_grad[2] else None


def input_gradient(grads: Sequence[Tensor], weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Products of (n,m) and (m,k) tensors of one type, summed in ``dtype`` as autograd would -> (n,k)."""
    total = (grads[0] @ weights[0]).to(dtype)
    for grad, weight in zip(grads[1:], weights[1:], strict=True):
        if dtype == torch.bfloat16:
            torch.addmm(total, grad, weight, out=total)
        else:
            total += grad @ weight
    return total


class Asked:
    """What layers of one input were last asked about."""

    def __init__(self) -> None:
        self.input: Tensor | None = None
        self.parts: list[Tensor | None] = []  # that the others have not taken yet


class Siblings:
    """Layers of one input, called one after the other: the first computes all, the others take their part."""

    def __init__(self, asked: Asked | None = None) -> None:
        self.asked = asked or Asked()

    def compute(self, input: Tensor) -> Sequence[Tensor]:
        """What each of the layers makes of ``input``."""
        raise NotImplementedError

    def release(self) -> bool:
        """Forget what was not asked for; whether there was any, as where memory ran out between two of the layers."""
        left = self.asked.input is not None
        self.asked.input, self.asked.parts = None, []
        return left

    def part(self, number: int, input: Tensor) -> Tensor:
        """What the ``number``-th layer makes of ``input``."""
        asked = self.asked
        if asked.input is not input or asked.parts[number] is None:
            asked.parts, asked.input = list(self.compute(input)), input
        out, asked.parts[number] = asked.parts[number], None
        if not any(part is not None for part in asked.parts):
            asked.input = None
        assert out is not None
        return out


class TrainedSiblings(Siblings):
    """Those that are trained. They do not hold the layers, which know them: a model is freed when it is let go."""

    low: Tensor | None = None  # (Σm,k): their weights in bfloat16, as long as these do not change

    def __init__(self, layers: list[TrainedLinear]) -> None:
        super().__init__()
        self._layers = [weakref.ref(layer) for layer in layers]

    @property
    def layers(self) -> list[TrainedLinear]:
        return [layer for ref in self._layers if (layer := ref()) is not None]

    def compute(self, input: Tensor) -> Sequence[Tensor]:
        layers = self.layers
        made: tuple[Tensor, ...] = _Linears.apply(
            input, [x.low for x in layers], *(x.weight for x in layers), *(x.bias for x in layers)
        )
        return made

    def take(self, input: Tensor) -> bool:
        """Whether all of them train on such an input."""
        return bool(self._layers) and all((layer := ref()) is not None and layer.trains(input) for ref in self._layers)

    def settle(self) -> None:
        """After a forward pass: layers of a model that did not call all of them go alone from here on."""
        if self.release():
            self._layers = []

    def __deepcopy__(self, memo: dict[int, Any]) -> TrainedSiblings:
        """A copy's layers go alone until ``join`` puts them together."""
        return TrainedSiblings([])


class TrainedLinear(nn.Linear):
    """A linear layer whose weight's gradient is made here while autocast to bfloat16 is on, or, where that is faster,
    all of whose products are, in fp32."""

    joined: TrainedSiblings | None = None
    number = 0  # among them
    low: Tensor | None = None  # its weight in bfloat16, as long as that does not change

    def forward(self, input: Tensor) -> Tensor:
        if self.multiplies(input):
            made: Tensor = _WideLinear.apply(input, self.weight, self.bias)
            return made
        if not self.trains(input):
            return super().forward(input)
        if self.joined is not None and self.joined.take(input):
            return self.joined.part(self.number, input)
        out: Tensor = _Linears.apply(input, [self.low], self.weight, self.bias)[0]
        return out

    def multiplies(self, input: Tensor) -> bool:
        """Whether what it makes of ``input``, and its gradients, are products in fp32 that are made here."""
        wide = input.dtype == torch.float32 and not torch.is_autocast_enabled("cpu") and input.device.type == "cpu"
        if not wide or self.weight.dim() != 2:  # as where it is sharded
            return False
        outputs, inputs = self.weight.shape
        many = input.shape[-1:] == (inputs,) and input.numel() >= products.FEW_ROWS * inputs
        fits = self.bias is None or (self.bias.dtype == input.dtype and self.bias.shape == (outputs,))
        return many and fits and products.trains(self.weight, torch.float32)

    def trains(self, input: Tensor) -> bool:
        """Whether the gradient of its weight by what it makes of ``input`` is made here."""
        low = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        trained = torch.is_grad_enabled() and self.weight.requires_grad
        many = input.numel() >= products.FEW_TOKENS * self.in_features
        return (
            low
            and trained
            and many
            and input.dtype in kernels.NAMES
            and input.device.type == "cpu"
            and products.trains(self.weight)
        )


def install(model: nn.Module) -> int:
    """Let the plain linear layers of a model be such; returns how many."""
    found = 0
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = TrainedLinear
            found += 1
    return found


@contextlib.contextmanager
def cast_once(models: Sequence[nn.Module]) -> Iterator[None]:
    """Let forward passes of models that compute in bfloat16 share their weights' copies in it: these do not change
    within.

    ``models`` may be replicas on the same weights. The copies are there until the end, as between a forward and its
    backward pass.
    """
    layers = [x for model in models for x in model.modules() if type(x) is TrainedLinear]
    made: dict[tuple[int, ...], Tensor] = {}
    try:
        for layer in layers:
            some = [layer] if layer.joined is None else layer.joined.layers or [layer]
            places = tuple(x.weight.data_ptr() for x in some)
            if not all(x.weight.requires_grad and products.trains(x.weight) for x in some):
                continue
            if places not in made:
                made[places] = _low(some)
            if some != [layer] and layer.joined is not None:
                layer.joined.low = made[places]
            layer.low = made[places].split([x.out_features for x in some])[some.index(layer)]
        yield
    finally:
        for layer in layers:
            layer.low = None
            if layer.joined is not None:
                layer.joined.low = None


def low_of(layers: Sequence[TrainedLinear]) -> Tensor:
    """(Σm,k) the weights of layers of one input in bfloat16, one behind the other."""
    joined = layers[0].joined
    if joined is not None and joined.low is not None and joined.layers == list(layers):
        return joined.low
    return layers[0].low if len(layers) == 1 and layers[0].low is not None else _low(layers)


def _low(layers: Sequence[TrainedLinear]) -> Tensor:
    sizes = [layer.out_features for layer in layers]
    whole = torch.empty(sum(sizes), layers[0].in_features, dtype=torch.bfloat16)
    for part, layer in zip(whole.split(sizes), layers, strict=True):
        part.copy_(layer.weight.detach())
    return whole


def join(model: nn.Module) -> list[TrainedSiblings]:
    """Put layers of one input together, where all of them are such layers and train."""
    found = []
    for module in model.modules():
        for names in SIBLINGS:
            layers = [x for name in names if type(x := getattr(module, name, None)) is TrainedLinear]
            if len({id(x) for x in layers}) < len(names) or len({x.in_features for x in layers}) > 1:
                continue
            if all(layer.weight.requires_grad for layer in layers):
                siblings = TrainedSiblings(layers)
                for number, layer in enumerate(layers):
                    layer.joined, layer.number = siblings, number
                found.append(siblings)
    return found
