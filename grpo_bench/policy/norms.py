"""Root-mean-square normalisation with few passes over memory, put in the place of the model's own.

arXiv 1910.07467, eq. 4: y = x / sqrt(mean(x²) + ε) · w. transformers' modules make seven passes and, under autocast,
hand on fp32 which every linear layer after them casts again; this makes three, one where kernels are used, and hands on
what the layers compute in. The mean is taken in fp32, in float64 for float64 (transformers': always fp32).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from grpo_bench import kernels
from grpo_bench.kernels import layers, sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, out: torch.dtype) -> Tensor:
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).mul_(weight).to(out)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, Tensor | None, None, None]:
        """With x̂ = x·s and s the scale: dx = s·(g·w − x̂·mean(g·w·x̂)), dw = Σ g·x̂ over tokens."""
        x, weight, scale = ctx.saved_tensors
        width = x.shape[-1]
        wide, grad = x.to(scale.dtype).reshape(-1, width), grads[0].to(scale.dtype).reshape(-1, width)
        flat = scale.view(-1, 1)
        both = grad * wide
        shared = (both @ weight.to(scale.dtype)).unsqueeze(-1).mul_(flat).mul_(flat).mul_(flat).div_(width)
        grad_x = (grad * weight).mul_(flat).addcmul_(wide, shared, value=-1)
        grad_weight = (both.mT @ flat).squeeze(-1).to(weight.dtype) if ctx.needs_input_grad[1] else None
        return grad_x.view(x.shape).to(x.dtype), grad_weight, None, None


class _KernelNorm(torch.autograd.Function):
    """The same in one pass forward and one backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, shift: float, out: torch.dtype) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps, ctx.shift = eps, shift
        return layers.normed(x, weight, eps, shift, out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight = layers.norm_gradient(x, weight, grads[0], ctx.eps, ctx.shift)
        return of_x, of_weight if ctx.needs_input_grad[1] else None, None, None, None


def rms_norm(x: Tensor, weight: Tensor, eps: float, shift: float = 0.0) -> Tensor:
    """(...,h) -> (...,h) with weights shift + ``weight``, in autocast's precision where it is on, else in ``x``'s."""
    device = x.device.type
    if not torch.is_grad_enabled() and not torch.is_autocast_enabled(device):  # sampling, scoring in full precision
        if kernels.take(x):
            return sampling.rms_norm(x, weight.to(x.dtype), eps, shift)
        if not shift:
            return torch.rms_norm(x, weight.shape, weight.to(x.dtype), eps)
    out = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    y: Tensor
    if kernels.take(x) and _fits(x, weight) and layers.norms(x.dtype, out):
        y = _KernelNorm.apply(x, weight, eps, shift, out)
        return y
    if shift:  # in fp32: 1 + w in bfloat16 would lose most of w
        weight = shift + (weight if weight.dtype == torch.float64 else weight.float())
    with torch.autocast(device, enabled=False):
        y = _RMSNorm.apply(x, weight, eps, out)
    return y


def _fits(x: Tensor, weight: Tensor) -> bool:
    return weight.dtype == torch.float32 and weight.shape == x.shape[-1:]


def norm_eps(module: nn.Module) -> float | None:
    return next(
        (v for name in ("variance_epsilon", "eps") if isinstance(v := getattr(module, name, None), float)), None
    )


_MADE: dict[tuple[type[nn.Module], bool], type[nn.Module]] = {}


def _faster(own: type[nn.Module], shifted: bool) -> type[nn.Module]:
    """A subclass, since a deep copy of a model must take it along."""
    if (own, shifted) in _MADE:
        return _MADE[own, shifted]

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        return rms_norm(hidden_states, self.weight, norm_eps(self) or 0.0, float(shifted))

    made = type(
        own.__name__,
        (own,),
        {"forward": forward, "__module__": own.__module__, "faster": True, "shift": float(shifted)},
    )
    _MADE[own, shifted] = made
    return made


@torch.no_grad()
def install(model: PreTrainedModel) -> int:
    """Replace the norms that compute this formula, with w or 1 + w (Gemma); returns how many.

    Each class is asked: one that answers otherwise, or that has no vector of weights, stays as it is.
    """
    found = 0
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if not type(module).__name__.endswith("RMSNorm") or hasattr(type(module), "faster"):
            continue
        if not isinstance(weight, Tensor) or weight.dim() != 1 or norm_eps(module) is None:
            continue
        x = torch.linspace(-2.0, 3.0, 3 * len(weight), device=weight.device).view(3, -1).to(weight.dtype)
        own = module(x)
        for shifted in (False, True):
            ours = rms_norm(x, weight, norm_eps(module) or 0.0, float(shifted))
            if own.dtype == ours.dtype and torch.allclose(own, ours, rtol=1e-5, atol=1e-5):
                module.__class__ = _faster(type(module), shifted)
                found += 1
                break
    return found
