"""Attention of packed rows on a CPU by the compiled kernels, which work on the rows as they stand.

The scores are made again in the backward pass: what is kept are queries, keys, values, what comes out, and one number
per query.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from grpo_bench.kernels import attention
from grpo_bench.kernels.attention import Sequences


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, sequences: Sequences, scaling: float, window: int | None
    ) -> Tensor:
        ctx.sequences, ctx.scaling, ctx.window = sequences, scaling, window
        out, lse = attention.attend(query[0], key[0], value[0], sequences, scaling, window, sums=True)
        ctx.save_for_backward(query, key, value, out[None], lse)
        return out[None]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        found = attention.attend_gradient(
            query[0], key[0], value[0], out[0], lse, grads[0][0], ctx.sequences, ctx.scaling, ctx.window
        )
        return *(x[None] for x in found), None, None, None


def attend(
    query: Tensor, key: Tensor, value: Tensor, sequences: Sequences, scaling: float, window: int | None
) -> Tensor:
    """(1,H,N,d), (1,K,N,d) twice -> (1,N,H,d)."""
    if not torch.is_grad_enabled():
        return attention.attend(query[0], key[0], value[0], sequences, scaling, window, sums=False)[0][None]
    out: Tensor = _PackedAttention.apply(query, key, value, sequences, scaling, window)
    return out
