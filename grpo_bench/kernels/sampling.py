"""Sampling between the matrix products, for one new token of each row: attention, norms, the choice of a token."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from grpo_bench.kernels import NAMES, TILES, _call, _dense_last, _has_products, _library, _threads, gpu


def decode_attention(
    query: Tensor, key: Tensor, value: Tensor, own: tuple[Tensor, Tensor], prompts: tuple[Tensor, Tensor],
    counts: Tensor, sizes: Tensor, places: Tensor, cells: Tensor | None, grid: Tensor | None, members: int,
    scaling: float, window: int | None, softcap: float | None,
) -> Tensor:  # fmt: skip
    """(1,H,N,d) queries and (1,K,N,d) keys and values of one new token of each row -> (1,N,H,d).

    Writes the new keys and values to ``own`` (rows,K,T,d) at (N,) ``counts`` - 1; row n also sees its prompt's
    ``sizes[n]`` tokens in ``prompts`` (P,K,S,d) at ``places[n]``. ``cells``, ``grid`` and ``members`` say the same by
    prompts, see ``rollout.plans.Where``. See ``policy.attention.Plan`` for the rest.
    """
    if gpu.serves(query):
        from grpo_bench.kernels.gpu import attention as on_gpu

        if cells is None or grid is None:  # the rows are that grid
            cells = grid = torch.arange(query.shape[2], device=query.device)
        return on_gpu.decode_attention(
            query, key, value, own, prompts, counts, sizes, cells, grid, members, scaling, window, softcap
        )
    query, key, value = (_dense_last(x[0]) for x in (query, key, value))
    heads, rows, width = query.shape
    out = query.new_empty(1, rows, heads, width)
    most = own[0].shape[2] + prompts[0].shape[2]
    threads = _threads(rows * heads * width * most)
    library: Any = _library()
    seen = (
        query.data_ptr(), query.stride(0), query.stride(1), key.data_ptr(), key.stride(0), key.stride(1),
        value.data_ptr(), value.stride(0), value.stride(1), own[0].data_ptr(), own[1].data_ptr(), own[0].shape[2],
        prompts[0].data_ptr(), prompts[1].data_ptr(), prompts[0].shape[2],
        counts.data_ptr(), sizes.data_ptr(), places.data_ptr(), out.data_ptr(), rows,
    )  # fmt: skip
    rest = (heads, key.shape[0], width, scaling, window or 0, softcap or 0.0)
    if query.dtype == torch.bfloat16 and width % TILES == 0 and _has_tiled_attention():
        scratch = torch.empty(threads, library.tiled_decode_room(most, width), dtype=torch.float32)
        order = torch.empty(2 * rows + len(prompts[0]) + 2, dtype=torch.long)
        _call(
            "tiled_decode_attention",
            *seen, len(prompts[0]), *rest, scratch.data_ptr(), order.data_ptr(), most, threads,
        )  # fmt: skip
    else:
        scratch = torch.empty(threads, library.scores_room(most), dtype=torch.float32)
        _call(f"decode_attention_{NAMES[query.dtype]}", *seen, *rest, scratch.data_ptr(), most, threads)
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float, shift: float = 0.0) -> Tensor:
    """(...,h) and (h,) of one type -> (...,h): x / sqrt(mean(x²) + eps) · (shift + weight)."""
    if gpu.serves(x):
        from grpo_bench.kernels.gpu import layers as on_gpu

        return on_gpu.normed(x, weight, eps, shift, x.dtype)
    x, weight = x.contiguous(), weight.contiguous()
    out, width = torch.empty_like(x), x.shape[-1]
    _call(
        f"rms_norm_{NAMES[x.dtype]}",
        x.data_ptr(), weight.data_ptr(), out.data_ptr(), x.numel() // width, width, eps, shift, _threads(x.numel()),
    )  # fmt: skip
    return out


def draw(logits: Tensor, temperature: float, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """(b,V) logits and (b,) float64 uniforms -> (b,) tokens and (b,) log-probs; see ``rollout.sampling.draw``."""
    if gpu.serves(logits):
        from grpo_bench.kernels.gpu import sampling as on_gpu

        return on_gpu.draw(logits, temperature, uniforms)
    logits, uniforms = _dense_last(logits), uniforms.to(torch.float64).contiguous()
    tokens = torch.empty(len(logits), dtype=torch.long)
    logps = torch.empty(len(logits), dtype=torch.float32)
    _call(
        f"draw_{NAMES[logits.dtype]}",
        logits.data_ptr(), logits.stride(0), *logits.shape, temperature, uniforms.data_ptr(), tokens.data_ptr(),
        logps.data_ptr(), _threads(logits.numel()),
    )  # fmt: skip
    return tokens, logps


@cache
def _has_tiled_attention() -> bool:
    return _has_products(torch.bfloat16) and bool(_library().tiled_decode_room(TILES, TILES))  # type: ignore[union-attr]


def look_up(uniforms: Tensor, numbers: Tensor, counts: Tensor) -> Tensor:
    """(n,T) float64 and (b,) ``numbers`` of its rows, which have ``counts`` tokens -> (b,) the one for the next token.

    On a CPU; all are dense.
    """
    out = torch.empty(len(numbers), dtype=torch.float64)
    where = (numbers.data_ptr(), counts.data_ptr(), len(numbers), out.data_ptr())
    _call("look_up", uniforms.data_ptr(), uniforms.shape[1], *where)
    return out


def settle(
    tokens: Tensor, logps: Tensor, numbers: Tensor, limits: Tensor, is_end: Tensor, counts: Tensor, running: Tensor,
    out: Tensor, all_logps: Tensor, latest: Tensor,
) -> None:  # fmt: skip
    """(b,) new tokens and their fp32 log-probs, taken by rows ``numbers`` of ``out`` and ``all_logps`` (n,T).

    They are written there at (b,) ``counts``, which grow by one where a row was ``running``; it is no longer at a word
    of which (V,) ``is_end`` is true, and at its limit. ``latest`` (b,) become the tokens. On a CPU; all are dense.
    """
    assert logps.dtype == torch.float32
    assert all(x.is_contiguous() for x in (tokens, logps, numbers, limits, counts, running, out, all_logps, latest))
    where = (numbers.data_ptr(), limits.data_ptr(), is_end.data_ptr(), counts.data_ptr(), running.data_ptr())
    _call(
        "settle", tokens.data_ptr(), logps.data_ptr(), len(tokens), out.shape[1], *where, out.data_ptr(),
        all_logps.data_ptr(), latest.data_ptr(),
    )  # fmt: skip
