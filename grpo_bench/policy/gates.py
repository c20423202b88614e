"""The gate of a SwiGLU layer in one pass over memory, put in the place of the model's own.

arXiv 2002.05202, eq. 6: down(silu(gate(x)) · up(x)). In tensor operations what stands between the products makes two
passes forward and three backward over the widest activations of a model, and rounds in between.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules import module as hooks

from grpo_bench import kernels
from grpo_bench.kernels import gpu, layers, products
from grpo_bench.policy.linear import TrainedLinear

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return layers.gate(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return layers.gate_gradient(gate, up, grads[0])


class _GatedDown(torch.autograd.Function):
    """The gate and the linear layer behind it.

    That layer's input, as wide as ``gate`` and ``up`` each, is not kept for the gradient of its weight: the backward
    pass reads both for their own gradients, and makes it again as it does.
    """

    @staticmethod
    def forward(
        ctx: Any, gate: Tensor, up: Tensor, low: Tensor | None, own: bool, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        """(...,k) twice, fp32 (h,k) weights, their bfloat16 copy where it was made already, (h,) or None -> (...,h).

        ``own``: in fp32 with the products that ``TrainedLinear`` makes.
        """
        ctx.own = own
        if own:
            ctx.save_for_backward(gate, up, weight)
            return products.linear(layers.gate(gate, up), weight, bias)
        if low is None or low.dtype != gate.dtype:
            low = weight.to(gate.dtype)
        ctx.save_for_backward(gate, up, low)
        with torch.autocast("cpu", enabled=False):
            return F.linear(layers.gate(gate, up), low, None if bias is None else bias.to(gate.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        gate, up, low = ctx.saved_tensors
        *_, trained, biased = ctx.needs_input_grad
        grad = grads[0].to(gate.dtype).reshape(-1, low.shape[0])
        of_weight = of_bias = None
        with torch.autocast("cpu", enabled=False):
            product = products.input_gradient(grad, low) if ctx.own else grad @ low
            product = product.view(gate.shape)  # its gradient, which it overwrites
            of_gate, of_up = layers.gate_gradient(gate, up, product, product if trained else None)
            if trained:
                product = product.view(-1, low.shape[1])
                own = ctx.own or gate.dtype == torch.bfloat16
                of_weight = products.weight_gradient(grad, product) if own else grad.t() @ product
            if biased:
                of_bias = grad.sum(0, dtype=torch.float32)
        return of_gate, of_up, None, None, of_weight, of_bias


def _need_not_keep(down: nn.Module, gate: Tensor, up: Tensor) -> bool:
    """Whether ``down`` would keep its input, and is a plain linear layer whose work ``_GatedDown`` can do."""
    if type(down) not in (nn.Linear, TrainedLinear) or "forward" in vars(down):
        return False
    if gate.device.type != "cpu" or gpu.serves(gate):  # the other passes do not make it
        return False
    own = (down._forward_hooks, down._forward_pre_hooks, down._backward_hooks, down._backward_pre_hooks)
    if any(own) or hooks._has_any_global_hook():
        return False
    if not down.weight.requires_grad or not (gate.requires_grad or up.requires_grad):
        return False
    if torch.is_autocast_enabled("cpu"):
        low = gate.dtype == torch.bfloat16
        return low and isinstance(down, TrainedLinear) and down.joined is None and down.trains(gate)
    return all(x.dtype == torch.float32 for x in (gate, *down.parameters(recurse=False)))


_MADE: dict[type[nn.Module], type[nn.Module]] = {}


def _faster(own: type[nn.Module]) -> type[nn.Module]:
    """A subclass, since a deep copy of a model must take it along."""
    if own not in _MADE:

        def forward(self: Any, x: Tensor) -> Tensor:
            gate, up = self.gate_proj(x), self.up_proj(x)
            if kernels.take(gate, up) and gate.shape == up.shape:
                down = self.down_proj
                if not torch.is_grad_enabled():
                    out: Tensor = down(layers.gate(gate, up))
                elif _need_not_keep(down, gate, up):
                    own = isinstance(down, TrainedLinear) and down.multiplies(gate)
                    out = _GatedDown.apply(gate, up, getattr(down, "low", None), own, down.weight, down.bias)
                else:
                    out = down(_Gated.apply(gate, up))
            else:
                out = self.down_proj(self.act_fn(gate) * up)
            return out

        _MADE[own] = type(own.__name__, (own,), {"forward": forward, "__module__": own.__module__, "faster": True})
    return _MADE[own]


@torch.no_grad()
def install(model: PreTrainedModel) -> int:
    """Replace the layers that compute this formula; returns how many. One that answers otherwise stays as it is."""
    found = 0
    for module in model.modules():
        own, parts = type(module), [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
        if hasattr(own, "faster") or not all(isinstance(part, nn.Module) for part in parts):
            continue
        weight = getattr(parts[0], "weight", None)
        # transformers' own class or torch's: both are named so
        if type(getattr(module, "act_fn", None)).__name__ not in ("SiLU", "SiLUActivation") or weight is None:
            continue
        x = torch.linspace(-2.0, 3.0, 3 * weight.shape[1], device=weight.device).view(1, 3, -1).to(weight.dtype)
        probes = (x, 1000 * x)  # a layer that clamps shows at the larger one
        try:
            expected = [module(probe) for probe in probes]
            module.__class__ = _faster(own)
            same = all(_near(module(probe), wanted) for probe, wanted in zip(probes, expected, strict=True))
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):  # of another calling convention
            same = False
        if same:
            found += 1
        else:
            module.__class__ = own
    return found


def _near(ours: Any, expected: Any) -> bool:
    if not isinstance(ours, Tensor) or not isinstance(expected, Tensor) or ours.shape != expected.shape:
        return False
    far = (ours.double() - expected.double()).abs().max()
    low = expected.dtype in (torch.bfloat16, torch.float16)
    return ours.dtype == expected.dtype and bool(far <= (0.02 if low else 1e-5) * expected.double().abs().max())
