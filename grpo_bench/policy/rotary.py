"""Rotary embeddings in one pass over queries and keys, put in the place of a modelling file's own function.

arXiv 2104.09864. transformers' models look the function ``apply_rotary_pos_emb`` up in their modelling file. In tensor
operations it makes ten passes over queries and keys, forward and again backward, and hands on fp32 under autocast,
which attention casts again. What is not as it is in this project's forwards (one row of tokens, fp32 or bfloat16) goes
to the original. Other models of the same file in the process, such as a reward model, have it too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from grpo_bench import kernels
from grpo_bench.kernels import layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FUNCTION = "apply_rotary_pos_emb"
Pair = tuple[Tensor, Tensor]


class _Rotated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, cosines: Tensor, sines: Tensor) -> Pair:
        ctx.save_for_backward(cosines, sines)
        return _turned(query, key, cosines, sines)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, None, None]:
        cosines, sines = ctx.saved_tensors
        q, k = layers.rotate(grads[0][0], grads[1][0], cosines, sines, back=True)
        return q[None], k[None], None, None


def _takes(query: Tensor, key: Tensor, cosines: Tensor, sines: Tensor) -> bool:
    """(1,·,N,d) queries and keys of one type and (1,N,d) cosines and sines that leave them in it."""
    if not kernels.take(query, key) or query.dim() != 4 or query.shape[:1] != (1,) or key.shape[:1] != (1,):
        return False
    shape = (1, query.shape[2], query.shape[3])
    if query.shape[2:] != key.shape[2:] or cosines.shape != shape or sines.shape != shape or shape[2] % 2:
        return False
    if cosines.requires_grad or cosines.dtype not in kernels.NAMES or sines.dtype != cosines.dtype:
        return False
    device = query.device.type
    autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == query.dtype
    return autocast or torch.promote_types(query.dtype, cosines.dtype) == query.dtype


def rotated(query: Tensor, key: Tensor, cosines: Tensor, sines: Tensor) -> Pair:
    """(1,H,N,d), (1,K,N,d) and (1,N,d) twice -> queries and keys with their positions in them; see ``_takes``."""
    cosines, sines = wide(cosines), wide(sines)
    if not torch.is_grad_enabled():  # sampling: the operation itself takes less time than autograd's form of it
        return _turned(query, key, cosines, sines)
    q, k = _Rotated.apply(query, key, cosines, sines)
    return q, k


def _turned(query: Tensor, key: Tensor, cosines: Tensor, sines: Tensor) -> Pair:
    q, k = layers.rotate(query[0], key[0], cosines, sines)
    return q[None], k[None]


def wide(x: Tensor) -> Tensor:
    """(N,d) in fp32; kept with the tensor, which all layers share."""
    if x.dtype == torch.float32:
        return x[0].contiguous()
    if not hasattr(x, "wide"):
        x.wide = x[0].float().contiguous()  # type: ignore[attr-defined]
    kept: Tensor = x.wide  # type: ignore[attr-defined]
    return kept


def _faster(original: Callable[..., Pair]) -> Callable[..., Pair]:
    def apply(*args: Any, **kwargs: Any) -> Pair:
        if len(args) == 4 and not kwargs and all(isinstance(x, Tensor) for x in args) and _takes(*args):
            return rotated(*args)
        return original(*args, **kwargs)

    apply.original = original  # type: ignore[attr-defined]
    return apply


@torch.no_grad()
def install(model: PreTrainedModel) -> int:
    """Replace the function in the modelling files of ``model``, where it computes this formula; returns in how many.

    It is asked: one that answers otherwise (pairs that lie side by side, a part of each head) stays.
    """
    if not kernels.take(torch.empty(0, device=model.device)):
        return 0
    found = 0
    for name in {type(module).__module__ for module in model.modules()}:
        file = sys.modules.get(name)
        original = getattr(file, FUNCTION, None)
        if file is None or not callable(original) or not name.startswith("transformers.models."):
            continue
        if hasattr(original, "original"):
            found += 1
        elif _computes_it(original, model.device):
            setattr(file, FUNCTION, _faster(original))
            found += 1
    return found


def _computes_it(original: Callable[..., Any], device: torch.device) -> bool:
    def line(first: float, last: float, *shape: int) -> Tensor:
        count = torch.Size(shape).numel()
        return torch.linspace(first, last, count, dtype=torch.float32, device=device).view(shape)

    angles = line(0.0, 4.0, 1, 3, 8)
    given = line(-2.0, 3.0, 1, 2, 3, 8), line(2.0, -1.0, 1, 1, 3, 8), angles.cos(), angles.sin()
    try:
        expected = original(*given)
        return all(torch.allclose(a, b, atol=1e-5) for a, b in zip(rotated(*given), expected, strict=True))
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):  # of another calling convention
        return False
