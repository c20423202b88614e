"""Attention of packed rows in training, forward and backward: see ``packed_attention.h`` and ``tiled_attention.h``.

Functions of tensors without autograd; ``policy.packed_attention`` makes a differentiable operation of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from grpo_bench.kernels import NAMES, TILES, _call, _dense_last, _has_products, _library, _threads

SCRATCH = 2**28  # floats of all threads; where each needs much, for very long prompts, fewer work


@dataclass(frozen=True, slots=True)
class Sequences:
    """Where the prompts and the rows that continue them stand in a row of tokens; int64, on the CPU."""

    starts: Tensor  # (P+b,) of the P prompts, then of the rows, those of one prompt behind each other
    lengths: Tensor  # (P+b,)
    firsts: Tensor  # (P+1,) where each prompt's rows begin in ``starts``, and their end
    order: Tensor  # (P,) the prompts, those with the most work first
    tokens: int
    most: int  # of a prompt and the longest of its rows

    @staticmethod
    def of(prompts: Tensor, group: Tensor, rows: Tensor) -> Sequences:
        """(P,) lengths of the prompts, which stand first, and of the rows, in the order in which they follow, and
        (b,) whose prompt each row continues."""
        prompts, group, rows = (x.to("cpu", torch.long) for x in (prompts, group, rows))
        lengths = torch.cat([prompts, rows])
        starts = lengths.cumsum(0) - lengths
        sorted_group, by_group = torch.sort(group, stable=True)
        taken = torch.cat([torch.arange(len(prompts)), len(prompts) + by_group])
        firsts = len(prompts) + torch.searchsorted(sorted_group, torch.arange(len(prompts) + 1))
        work = (prompts * prompts).index_add(0, group, rows * (2 * prompts[group] + rows))
        longest = prompts.scatter_reduce(0, group, prompts[group] + rows, "amax")
        return Sequences(
            starts[taken], lengths[taken], firsts, torch.argsort(work, descending=True, stable=True),
            int(lengths.sum()), int(longest.max()),
        )  # fmt: skip


@cache
def _tiled() -> bool:
    """Whether attention in bfloat16 is made by the processor's matrix tiles, or its dot products of pairs."""
    library: Any = _library()
    return _has_products(torch.bfloat16) and bool(library.tiled_attention_room(TILES, TILES, 0))


def _name(query: Tensor, back: str = "") -> str:
    if query.dtype == torch.bfloat16 and _tiled():
        return f"tiled_attention{back}"
    return f"packed_attention{back}_{NAMES[query.dtype]}"


def _arguments(query: Tensor, key: Tensor, value: Tensor, sequences: Sequences) -> list[int]:
    heads, tokens, width = query.shape
    assert key.shape == value.shape == (key.shape[0], tokens, width)
    assert heads % key.shape[0] == 0
    assert tokens == sequences.tokens
    assert query.dtype == key.dtype == value.dtype
    return [number for x in (query, key, value) for number in (x.data_ptr(), x.stride(0), x.stride(1))]


def _rest(query: Tensor, heads: int, sequences: Sequences, scaling: float, window: int | None, back: bool) -> list[Any]:
    """Arguments behind the results; the last but two is scratch, to be given by its address and kept until the call."""
    H, tokens, width = query.shape
    prompts, most = len(sequences.order), sequences.most
    library: Any = _library()
    if query.dtype == torch.bfloat16 and _tiled():
        room = library.tiled_attention_room(most, width, int(back))
    else:
        room = library.attention_room(most, H // heads, width, int(back))
    threads = min(_threads(query.numel() * most), prompts * heads, max(SCRATCH // room, 1))
    scratch = torch.empty(threads, room, dtype=torch.float32)
    parts = (sequences.starts, sequences.lengths, sequences.firsts, sequences.order)
    addresses = [part.data_ptr() for part in parts]
    near = window if window is not None and window < most else 0  # one that hides nothing is none
    return [*addresses, prompts, tokens, H, heads, width, scaling, near, scratch, most, threads]


def attend(
    query: Tensor, key: Tensor, value: Tensor, sequences: Sequences, scaling: float, window: int | None, sums: bool
) -> tuple[Tensor, Tensor | None]:
    """(H,N,d), (K,N,d) twice -> (N,H,d) and, where ``sums``, the (H,N) logarithms of the weights' sums, fp32.

    Tokens see their prompt and themselves causally, rows also all of the prompt that they continue; ``window``: only
    that many positions, their own among them.
    """
    query, key, value = (_dense_last(x) for x in (query, key, value))
    heads, tokens, width = query.shape
    out = query.new_empty(tokens, heads, width)
    lse = query.new_empty(heads, tokens, dtype=torch.float32) if sums else None
    given = _arguments(query, key, value, sequences)
    *more, scratch, most, threads = _rest(query, key.shape[0], sequences, scaling, window, False)
    _call(
        _name(query),
        *given, out.data_ptr(), None if lse is None else lse.data_ptr(), *more, scratch.data_ptr(), most, threads,
    )  # fmt: skip
    return out, lse


def attend_gradient(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, grad: Tensor, sequences: Sequences,
    scaling: float, window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Of ``attend``, by query, key and value: (H,N,d), (K,N,d) twice, laid out as (N,·,d). ``grad``: (N,H,d)."""
    query, key, value = (_dense_last(x) for x in (query, key, value))
    heads, tokens, width = query.shape
    grad = grad.contiguous()
    assert out.shape == grad.shape == (tokens, heads, width)
    assert lse.shape == (heads, tokens)
    assert out.dtype == grad.dtype == query.dtype
    assert out.is_contiguous()
    assert lse.is_contiguous()
    of_query = query.new_empty(tokens, heads, width)
    of_key, of_value = query.new_empty(2, tokens, key.shape[0], width)
    given = _arguments(query, key, value, sequences)
    *more, scratch, most, threads = _rest(query, key.shape[0], sequences, scaling, window, True)
    _call(
        _name(query, "_gradient"),
        *given, out.data_ptr(), grad.data_ptr(), lse.data_ptr(), of_query.data_ptr(), of_key.data_ptr(),
        of_value.data_ptr(), *more, scratch.data_ptr(), most, threads,
    )  # fmt: skip
    return of_query.transpose(0, 1), of_key.transpose(0, 1), of_value.transpose(0, 1)
