"""Linear layers of training in bfloat16 on a CPU: the gradient of their fp32 weights is the product's fp32 sum.

Under autocast torch rounds that gradient to bfloat16 and turns it back into fp32, and multiplies more slowly (see
``kernels/weight_gradient.c``). Layers whose sizes, types or devices ``kernels.trains`` does not take stay torch's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from grpo_bench import kernels

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FEW_TOKENS = 64  # fewer are too little work to lay out the factors for; chosen, not measured


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        low = weight.detach().to(torch.bfloat16)
        ctx.type, ctx.biased = x.dtype, bias is not None
        x = x.to(torch.bfloat16)
        ctx.save_for_backward(x, low)
        with torch.autocast("cpu", enabled=False):
            return F.linear(x, low, None if bias is None else bias.to(torch.bfloat16))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        x, low = ctx.saved_tensors
        grad = grads[0].to(torch.bfloat16)
        flat = grad.reshape(-1, grad.shape[-1])
        with torch.autocast("cpu", enabled=False):
            grad_x = (grad @ low).to(ctx.type) if ctx.needs_input_grad[0] else None
            grad_bias = flat.sum(0, dtype=torch.float32) if ctx.biased and ctx.needs_input_grad[2] else None
        return grad_x, kernels.weight_gradient(flat, x.reshape(-1, x.shape[-1])), grad_bias


class TrainedLinear(nn.Linear):
    """A linear layer whose weight's gradient is made here while autocast to bfloat16 is on."""

    def forward(self, input: Tensor) -> Tensor:
        if not self._trains(input):
            return super().forward(input)
        out: Tensor = _Linear.apply(input, self.weight, self.bias)
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
    return found
