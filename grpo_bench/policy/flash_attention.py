"""Attention of packed rows on a GPU by torch's flash attention, which reads the rows as they stand.

Completions look at two parts of the keys: their prompt's, where all rows of a group are one long sequence of queries,
and their own. Each part is one call; together they are one softmax by the log-sums of exponentials that the calls
return (arXiv 2307.08691, §2.3.1). Flash attention's backward pass needs no more than what came out and its log-sums:
given those of both parts together, each part's gradient is its share of the whole.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from grpo_bench import kernels

DTYPES = (torch.bfloat16, torch.float16)
WIDEST = 256  # of a head
LEAST = (8, 0)  # compute capability


@dataclass(frozen=True, slots=True)
class Part:
    """Sequences of queries and the sequences of keys that they look at: ends as (n+1,) int32, and the longest."""

    queries: Tensor
    keys: Tensor
    most_queries: int
    most_keys: int
    causal: bool


@dataclass(frozen=True, slots=True)
class Segments:
    """The three parts of a packed row of tokens: the first ``prompt_tokens`` are the prompts."""

    prompts: Part
    own: Part  # a completion's tokens on each other
    shared: Part  # all of a group's completions on their prompt
    prompt_tokens: int
    tokens: int
    reach: int  # of a prompt and the longest of its rows

    @staticmethod
    def of(prompts: Tensor, group: Tensor, rows: Tensor) -> Segments | None:
        """(P,) lengths of the prompts and (b,) of the rows, (b,) whose prompt each row continues; None where the rows
        of a prompt do not stand together, in the order of the prompts."""
        device = prompts.device
        sizes, groups, lengths = (x.to("cpu", torch.long) for x in (prompts, group, rows))
        if bool((groups[1:] < groups[:-1]).any()):
            return None
        together = torch.zeros_like(sizes).index_add_(0, groups, lengths)

        def ends(x: Tensor) -> Tensor:
            return torch.cat([x.new_zeros(1), x.cumsum(0)]).to(device, torch.int32)

        def longest(x: Tensor) -> int:
            return int(x.max()) if len(x) else 0

        at_prompts, at_rows = ends(sizes), ends(lengths)
        return Segments(
            Part(at_prompts, at_prompts, longest(sizes), longest(sizes), True),
            Part(at_rows, at_rows, longest(lengths), longest(lengths), True),
            Part(ends(together), at_prompts, longest(together), longest(sizes), False),
            int(sizes.sum()), int(sizes.sum() + lengths.sum()), longest(sizes[groups] + lengths),
        )  # fmt: skip


def takes(
    query: Tensor, key: Tensor, value: Tensor, dtype: torch.dtype, window: int | None, segments: Segments
) -> bool:
    """Whether these can be attended to in ``dtype``: a GPU's half precision, and no window that would hide anything."""
    if not query.is_cuda or dtype not in DTYPES or not kernels.allowed() or key.shape != value.shape:
        return False
    heads, keys, width = query.shape[1], key.shape[1], query.shape[-1]
    if heads % keys or width % 8 or width > WIDEST or (window is not None and window < segments.reach):
        return False
    return _works(query.device, dtype, heads, keys, width)


@cache
def _works(device: torch.device, dtype: torch.dtype, heads: int, keys: int, width: int) -> bool:
    """Whether it runs for such heads, forward and backward; says why not."""
    reason = _why_not(device, dtype, heads, keys, width)
    if reason:
        print(f"training's attention repeats prompts for their members, more slowly: {reason}", file=sys.stderr)
    return not reason


def _why_not(device: torch.device, dtype: torch.dtype, heads: int, keys: int, width: int) -> str:
    if torch.cuda.get_device_capability(device) < LEAST or not torch.backends.cuda.is_flash_attention_available():
        return "no flash attention for this GPU and this torch"
    lengths = torch.tensor([3, 2], device=device)
    segments = Segments.of(lengths, torch.tensor([0, 0, 1], device=device), torch.tensor([2, 0, 1], device=device))
    assert segments is not None
    try:
        with torch.enable_grad():
            query, key, value = (
                torch.ones(1, n, segments.tokens, width, dtype=dtype, device=device, requires_grad=True)
                for n in (heads, keys, keys)
            )
            attend(query, key, value, segments, 1.0).sum().backward()
        torch.cuda.synchronize(device)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as e:  # what this build of torch does not do
        return " ".join(str(e).split())[:160]
    return ""


def _forward(q: Tensor, k: Tensor, v: Tensor, part: Part, scaling: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(n,H,d), (m,K,d) twice -> (n,H,d), (H,n) log-sums, and two tensors that the backward pass is given again."""
    out, lse, state, offset, _ = torch.ops.aten._flash_attention_forward(
        q, k, v, part.queries, part.keys, part.most_queries, part.most_keys, 0.0, part.causal, False, scale=scaling
    )
    if lse.shape != (q.shape[1], q.shape[0]):
        raise RuntimeError(f"flash attention's log-sums have the shape {tuple(lse.shape)}: this torch is not known")
    return out, lse, state, offset


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, part: Part, scaling: float,
    state: Tensor, offset: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._flash_attention_backward(
        grad, q, k, v, out, lse, part.queries, part.keys, part.most_queries, part.most_keys, 0.0, part.causal,
        state, offset, scale=scaling,
    )  # fmt: skip
    return found


def _merged(one: Tensor, two: Tensor, lse_one: Tensor, lse_two: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over two parts of the keys, (n,H,d) and (H,n) each, as over both together."""
    if kernels.take(one):
        from grpo_bench.kernels.gpu import attention

        return attention.merge(one, two, lse_one, lse_two)
    lse = torch.logaddexp(lse_one, lse_two)
    shares = [torch.exp(x - lse).T.unsqueeze(-1) for x in (lse_one, lse_two)]
    return (one * shares[0] + two * shares[1]).to(one.dtype), lse


class _FlashAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, segments: Segments, scaling: float) -> Tensor:
        n = segments.prompt_tokens
        out, lse, *state = _forward(q[:n], k[:n], v[:n], segments.prompts, scaling)
        ctx.segments, ctx.scaling = segments, scaling
        if segments.tokens == n:
            ctx.save_for_backward(q, k, v, out, lse, lse, *state)
            return out
        own, lse_own, *_ = _forward(q[n:], k[n:], v[n:], segments.own, scaling)
        shared, lse_shared, *_ = _forward(q[n:], k[:n], v[:n], segments.shared, scaling)
        rows, lse_rows = _merged(own, shared, lse_own, lse_shared)
        out = torch.cat([out, rows])
        ctx.save_for_backward(q, k, v, out, lse, lse_rows, *state)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, lse_rows, *state = ctx.saved_tensors
        segments: Segments = ctx.segments
        n, grad = segments.prompt_tokens, grads[0].contiguous()
        dq, dk, dv = _backward(
            grad[:n], q[:n], k[:n], v[:n], out[:n], lse, segments.prompts, ctx.scaling, *state
        )  # fmt: skip
        if segments.tokens > n:
            own = _backward(
                grad[n:], q[n:], k[n:], v[n:], out[n:], lse_rows, segments.own, ctx.scaling, *state
            )  # fmt: skip
            shared = _backward(
                grad[n:], q[n:], k[:n], v[:n], out[n:], lse_rows, segments.shared, ctx.scaling, *state
            )  # fmt: skip
            whole = [torch.empty_like(x) for x in (q, k, v)]
            whole[0][:n] = dq
            torch.add(own[0], shared[0], out=whole[0][n:])
            for x, of_prompts, of_shared, of_own in zip(whole[1:], (dk, dv), shared[1:], own[1:], strict=True):
                torch.add(of_prompts, of_shared, out=x[:n])
                x[n:] = of_own
            dq, dk, dv = whole
        return dq, dk, dv, None, None


def attend(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scaling: float) -> Tensor:
    """(1,H,N,d), (1,K,N,d) twice -> (1,N,H,d)."""
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    out: Tensor = _FlashAttention.apply(q, k, v, segments, scaling)
    return out[None]
