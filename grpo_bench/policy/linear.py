"""Linear layers of training in bfloat16 on a CPU: the gradient of their fp32 weights is the product's fp32 sum.

Under autocast torch rounds that gradient to bfloat16 and turns it back into fp32, and multiplies more slowly (see
``kernels/weight_gradient.c``). Layers whose sizes, types or devices ``kernels.trains`` does not take stay torch's.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from grpo_bench import kernels

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GATES = ("gate_proj", "up_proj")
SIBLINGS = (("q_proj", "k_proj", "v_proj"), GATES)  # layers of one input, by their usual names
FEW_TOKENS = 64  # fewer are too little work to lay out the factors for; chosen, not measured


class _Linears(torch.autograd.Function):
    """Layers of one input; what their inputs' gradients sum up to is summed by the products."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor | None) -> tuple[Tensor, ...]:
        """Weights, then as many biases or Nones."""
        weights, biases = parameters[: len(parameters) // 2], parameters[len(parameters) // 2 :]
        ctx.type, ctx.biased = x.dtype, [bias is not None for bias in biases]
        x = x.to(torch.bfloat16)
        lows = [weight.detach().to(torch.bfloat16) for weight in weights if weight is not None]
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
        flat = x.reshape(-1, x.shape[-1])
        own = [grad.to(torch.bfloat16).reshape(-1, grad.shape[-1]) for grad in grads]
        wanted = ctx.needs_input_grad[1 + len(lows) :]
        grad_x: Tensor | None = None
        grad_biases: list[Tensor | None] = []
        with torch.autocast("cpu", enabled=False):
            if ctx.needs_input_grad[0]:
                grad_x = own[0] @ lows[0]
                for grad, low in zip(own[1:], lows[1:], strict=True):
                    torch.addmm(grad_x, grad, low, out=grad_x)
                grad_x = grad_x.view(x.shape).to(ctx.type)
            for grad, biased, needed in zip(own, ctx.biased, wanted, strict=True):
                grad_biases.append(grad.sum(0, dtype=torch.float32) if biased and needed else None)
        return grad_x, *kernels.weight_gradients(own, flat), *grad_biases


class Siblings:
    """Layers of one input, called one after the other: the first computes all, the others take their part."""

    def __init__(self, layers: list[TrainedLinear]) -> None:
        self.layers = layers
        self.release()

    def release(self) -> None:
        """Forget what was not asked for, as when memory ran out between two of the layers."""
        self._input: Tensor | None = None
        self._parts: list[Tensor | None] = []

    def part(self, number: int, input: Tensor) -> Tensor:
        """What the ``number``-th layer makes of ``input``."""
        if self._input is not input or self._parts[number] is None:
            parameters = [x.weight for x in self.layers] + [x.bias for x in self.layers]
            self._parts, self._input = list(_Linears.apply(input, *parameters)), input
        out, self._parts[number] = self._parts[number], None
        if not any(part is not None for part in self._parts):
            self._input = None
        assert out is not None
        return out

    def __deepcopy__(self, memo: dict[int, Any]) -> Siblings:
        memo[id(self)] = own = Siblings([])  # before the layers, which know it
        own.layers = [copy.deepcopy(layer, memo) for layer in self.layers]
        return own


class TrainedLinear(nn.Linear):
    """A linear layer whose weight's gradient is made here while autocast to bfloat16 is on."""

    siblings: Siblings | None = None
    number = 0  # among them

    def forward(self, input: Tensor) -> Tensor:
        if not self._trains(input):
            return super().forward(input)
        if self.siblings is not None and all(layer._trains(input) for layer in self.siblings.layers):
            return self.siblings.part(self.number, input)
        out: Tensor = _Linears.apply(input, self.weight, self.bias)[0]
        return out

    def _trains(self, input: Tensor) -> bool:
        low = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        trained = torch.is_grad_enabled() and self.weight.requires_grad
        many = input.numel() >= FEW_TOKENS * self.in_features
        return (
            low
            and trained
            and many
            and input.dtype in kernels.NAMES
            and input.device.type == "cpu"
            and kernels.trains(self.weight)
        )


def install(model: PreTrainedModel) -> int:
    """Let the plain linear layers of a model be such; returns how many."""
    found = 0
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = TrainedLinear
            found += 1
    for module in model.modules():
        for names in SIBLINGS:
            layers = [x for name in names if isinstance(x := getattr(module, name, None), TrainedLinear)]
            if len(layers) == len(names) == len({id(x) for x in layers}) and len({x.in_features for x in layers}) == 1:
                siblings = Siblings(layers)
                for number, layer in enumerate(layers):
                    layer.siblings, layer.number = siblings, number
    return found


def release(model: nn.Module) -> None:
    """Let layers forget what they computed for siblings that were not called, with all that it holds in memory."""
    for module in model.modules():
        if isinstance(module, TrainedLinear) and module.siblings is not None:
            module.siblings.release()
