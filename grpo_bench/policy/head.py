"""Log-probs and entropies of chosen tokens from hidden states, without ever holding all logits in full precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from grpo_bench import kernels
from grpo_bench.kernels import head as compiled
from grpo_bench.kernels import products
from grpo_bench.policy.memory import kept_elements

# of logits worked on at once in torch's form: what stays in a processor's cache; fp32 copies that a GPU has room for
BLOCK_ELEMENTS = {"cpu": 2**20, "cuda": 2**26}


def head_logp(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, made: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(n,h) states, (V,h) head, (n,) targets -> log-probs and entropies at ``temperature``, both (n,).

    ``made``: the head's weight in the products' precision, where somebody has it already. The softmax is in fp32
    (float64 for float64); the products are in ``hidden``'s precision. Gradients flow through the log-probs alone.
    """
    device = hidden.device.type
    low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    size = max(kept_elements(hidden.device, low) // weight.shape[0], 1)
    keep = len(targets) <= size
    fits = made is not None and made.dtype == low
    cast = made if made is not None and fits else weight.detach().to(low)  # once for all chunks, which keep it
    parts = [
        _HeadLogp.apply(h, weight, cast, y, temperature, keep)
        for h, y in zip(hidden.split(size), targets.split(size), strict=True)
    ]
    if len(parts) == 1:
        return parts[0][0], parts[0][1]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def _soften(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies; ``logits`` (n,V) become probabilities, in place."""
    if kernels.take(logits):
        return compiled.soften(logits, targets, temperature)
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    logp = torch.empty(len(logits), dtype=wide, device=logits.device)
    entropy = torch.empty_like(logp)
    rows = max(BLOCK_ELEMENTS[logits.device.type] // logits.shape[1], 1)
    for start in range(0, len(logits), max(rows, 1)):
        part = slice(start, start + rows)
        x = logits[part].to(wide)  # a copy, unless the products were as wide
        if temperature != 1:
            x = x.div_(temperature) if x.data_ptr() != logits[part].data_ptr() else x / temperature
        largest = x.amax(-1, keepdim=True)
        own = x.gather(-1, targets[part, None]) - largest
        x = x.sub_(largest)
        p = torch.exp(x)
        total = p.sum(-1, keepdim=True)
        p.div_(total)
        normaliser = total.log_().squeeze(-1)
        logp[part] = own.squeeze(-1) - normaliser
        torch.nan_to_num_(x, neginf=0.0)  # a word of logit -inf has p = 0 and adds nothing
        entropy[part] = normaliser - x.mul_(p).sum(-1)
        logits[part] = p
    return logp, entropy


def _gradient(probs: Tensor, targets: Tensor, scales: Tensor) -> None:
    """(n,V) probabilities become ``scales`` (n,) times (1 at the target − p), in place."""
    if kernels.take(probs):
        compiled.logp_gradient(probs, targets, scales)
        return
    rows = max(BLOCK_ELEMENTS[probs.device.type] // probs.shape[1], 1)
    for start in range(0, len(probs), rows):
        part = slice(start, start + rows)
        wide = probs[part].to(scales.dtype).mul_(-scales[part, None])
        wide.scatter_add_(1, targets[part, None], scales[part, None])
        probs[part] = wide


def _logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """(n,h), (V,h) of one type -> (n,V)."""
    return products.linear(hidden, weight) if _wide(hidden, weight) else hidden @ weight.mT


def _wide(rows: Tensor, weight: Tensor) -> bool:
    """Whether products of these rows with the weight, in fp32, are made here."""
    return rows.dtype == torch.float32 and len(rows) >= products.FEW_ROWS and products.trains(weight, torch.float32)


class _HeadLogp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, cast: Tensor, targets: Tensor, temperature: float, keep: bool
    ) -> tuple[Tensor, Tensor]:
        """``cast`` is ``weight`` in the products' precision; the gradient is ``weight``'s."""
        ctx.dtypes = (hidden.dtype, weight.dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.to(cast.dtype)
            ctx.own = _wide(hidden, cast) if cast.dtype == torch.float32 else products.trains(weight, cast.dtype)
            logits = _logits(hidden, cast)
            logp, entropy = _soften(logits, targets, temperature)
        ctx.temperature = temperature
        ctx.probs = logits if keep and ctx.needs_input_grad[0] else None
        ctx.save_for_backward(hidden, cast, targets)
        ctx.mark_non_differentiable(entropy)
        return logp, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """d logp / d logits = (1 at the target − p) / temperature."""
        hidden, weight, targets = ctx.saved_tensors
        probs = ctx.probs
        ctx.probs = None
        with torch.autocast(hidden.device.type, enabled=False):
            if probs is None:
                probs = _logits(hidden, weight)
                _soften(probs, targets, ctx.temperature)
            _gradient(probs, targets, grads[0] / ctx.temperature)
            grad_hidden = grad_weight = None
            if ctx.needs_input_grad[0]:
                own = _wide(probs, weight)
                grad_hidden = products.input_gradient(probs, weight) if own else (probs @ weight).to(ctx.dtypes[0])
            if ctx.needs_input_grad[1] and ctx.own:
                grad_weight = products.weight_gradient(probs, hidden)
            elif ctx.needs_input_grad[1]:
                grad_weight = (probs.mT @ hidden).to(ctx.dtypes[1])
        return grad_hidden, grad_weight, None, None, None, None
