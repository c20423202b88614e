"""Attention of one new token of each row over its prompt and its own tokens: see ``kernels.sampling.decode_attention``.

Softmax as in arXiv 1805.02867: with a running maximum, in one pass over the keys; its state after the prompt's keys
goes from one kernel to the next.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LEAST = 16  # rows of a product on tensor cores, and its depth
WARPS = 4


def tile_sizes(dtype: torch.dtype, width: int) -> tuple[int, int, int]:
    """Keys at once, most queries of a group in one program, and stages of loading: what registers and shared memory
    hold."""
    if dtype == torch.bfloat16:
        return (64, 64, 2) if width <= 128 else (32, 16, 2)
    return (32, 16, 2) if width <= 128 else (16, 16, 1)


@triton.jit
def _capped(scores, softcap):
    return softcap * (2.0 * tl.sigmoid(2.0 * scores / softcap) - 1.0)  # softcap · tanh(scores / softcap)


@triton.jit
def _look(
    q, top, total, out, keys, values, count, back, scaling, window,
    softcap, D: tl.constexpr, WIDE: tl.constexpr, KEYS: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """Take ``count`` keys and values in; key j stands ``back`` - j positions before a query's token."""
    place, width = tl.arange(0, KEYS), tl.arange(0, WIDE)
    for start in range(0, count, KEYS):
        j = start + place
        seen = (j < count)[None, :]
        if WINDOW:
            seen = seen & (back[:, None] - j[None, :] < window)
        at = j[:, None] * D + width[None, :]
        inside = (j < count)[:, None] & (width < D)[None, :]
        k = tl.load(keys + at, mask=inside, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scaling
        if SOFTCAP:
            scores = _capped(scores, softcap)
        scores = tl.where(seen, scores, -float("inf"))
        higher = tl.maximum(top, tl.max(scores, axis=1))
        safe = tl.where(higher == -float("inf"), 0.0, higher)  # nothing in the window yet
        p = tl.exp(scores - safe[:, None])
        factor = tl.exp(top - safe)
        v = tl.load(values + at, mask=inside, other=0.0)
        out = out * factor[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        total = total * factor + tl.sum(p, axis=1)
        top = higher
    return top, total, out


@triton.jit
def _attend_to_prompts(
    query, prompt_keys, prompt_values, counts, sizes, cells, grid, tops, totals, sums, q_head, q_row, most, members,
    rows, scaling, window, softcap, SHARED: tl.constexpr, QUERIES: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr,
    KEYS: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """One prompt and one key head, with the query heads that look at it of some of the rows that have this prompt."""
    prompt, head, heads = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    i, width = tl.program_id(2) * QUERIES + tl.arange(0, QUERIES), tl.arange(0, WIDE)
    member, across = i // SHARED, width < D
    cell = prompt * members + member
    row = tl.load(grid + cell, mask=member < members, other=0)
    # a cell without a row repeats row 0, whose own cell is another
    live = (member < members) & (row < rows)
    live = live & (tl.load(cells + row, mask=live, other=-1) == cell)
    mine = head * SHARED + i % SHARED
    some = live[:, None] & across[None, :]
    q = tl.load(query + (mine * q_head + row * q_row)[:, None] + width[None, :], mask=some, other=0.0)
    size = tl.max(tl.load(sizes + row, mask=live, other=0), axis=0).to(tl.int32)
    back = size + tl.load(counts + row, mask=live, other=1).to(tl.int32) - 1
    top = tl.full((QUERIES,), -float("inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    sum = tl.zeros((QUERIES, WIDE), tl.float32)
    base = (prompt * heads + head) * most * D
    top, total, sum = _look(
        q, top, total, sum, prompt_keys + base, prompt_values + base, size, back, scaling, window, softcap,
        D, WIDE, KEYS, WINDOW, SOFTCAP,
    )  # fmt: skip
    at = row * heads * SHARED + mine
    tl.store(tops + at, top, mask=live)
    tl.store(totals + at, total, mask=live)
    tl.store(sums + at[:, None] * D + width[None, :], sum, mask=some)


@triton.jit
def _attend_to_own(
    query, key, value, own_keys, own_values, counts, tops, totals, sums, out, q_head, q_row, k_head, k_row, v_head,
    v_row, length, scaling, window, softcap, SHARED: tl.constexpr, QUERIES: tl.constexpr, D: tl.constexpr,
    WIDE: tl.constexpr, KEYS: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """One row and one key head, with the ``SHARED`` query heads that look at it; goes on from what the prompt gave."""
    row, head, heads = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    width, r = tl.arange(0, WIDE), tl.arange(0, QUERIES)
    across, live = width < D, r < SHARED
    some = live[:, None] & across[None, :]
    mine = head * SHARED + r
    at = row * heads * SHARED + mine
    q = tl.load(query + (mine * q_head + row * q_row)[:, None] + width[None, :], mask=some, other=0.0)
    own = tl.load(counts + row).to(tl.int32) - 1
    top = tl.load(tops + at, mask=live, other=-float("inf"))
    total = tl.load(totals + at, mask=live, other=0.0)
    sum = tl.load(sums + at[:, None] * D + width[None, :], mask=some, other=0.0)
    before = (row * heads + head) * length * D
    top, total, sum = _look(
        q, top, total, sum, own_keys + before, own_values + before, own, own + tl.zeros((QUERIES,), tl.int32), scaling,
        window, softcap, D, WIDE, KEYS, WINDOW, SOFTCAP,
    )  # fmt: skip
    k = tl.load(key + head * k_head + row * k_row + width, mask=across, other=0.0)
    v = tl.load(value + head * v_head + row * v_row + width, mask=across, other=0.0)
    score = tl.sum(q.to(tl.float32) * k.to(tl.float32)[None, :], axis=1) * scaling
    if SOFTCAP:
        score = _capped(score, softcap)
    higher = tl.maximum(top, score)
    p, factor = tl.exp(score - higher), tl.exp(top - higher)
    sum = sum * factor[:, None] + p[:, None] * v.to(tl.float32)[None, :]
    total = total * factor + p
    here = before + own * D + width
    tl.store(own_keys + here, k, mask=across)
    tl.store(own_values + here, v, mask=across)
    tl.store(out + at[:, None] * D + width[None, :], (sum / total[:, None]).to(out.dtype.element_ty), mask=some)


def decode_attention(
    query: Tensor, key: Tensor, value: Tensor, own: tuple[Tensor, Tensor], prompts: tuple[Tensor, Tensor],
    counts: Tensor, sizes: Tensor, cells: Tensor, grid: Tensor, members: int, scaling: float, window: int | None,
    softcap: float | None,
) -> Tensor:  # fmt: skip
    """See ``kernels.sampling.decode_attention``: prompts' keys and values are read once for all rows that look at them.

    (N,) ``cells`` are the rows' places in a (prompts, ``members``) table, (prompts · members,) ``grid`` the table.
    """
    query, key, value = (x[0] if x.stride(-1) == 1 else x[0].contiguous() for x in (query, key, value))
    (heads, rows, width), keys = query.shape, key.shape[0]
    out = query.new_empty(1, rows, heads, width)
    tops = torch.empty(2, rows, heads, dtype=torch.float32, device=query.device)
    sums = torch.empty(rows, heads, width, dtype=torch.float32, device=query.device)
    shared, wide = heads // keys, max(triton.next_power_of_2(width), LEAST)
    some, most, stages = tile_sizes(query.dtype, width)
    mode = {"WINDOW": window is not None, "SOFTCAP": softcap is not None, "num_warps": WARPS, "num_stages": stages}
    together = min(max(triton.next_power_of_2(shared * members), LEAST), most)
    _attend_to_prompts[(len(grid) // members, keys, triton.cdiv(shared * members, together))](
        query, *prompts, counts, sizes, cells, grid, tops[0], tops[1], sums, query.stride(0), query.stride(1),
        prompts[0].shape[2], members, rows, scaling, window or 0, softcap or 1.0, shared, together, width, wide, some,
        **mode,
    )  # fmt: skip
    _attend_to_own[(rows, keys)](
        query, key, value, *own, counts, tops[0], tops[1], sums, out, query.stride(0), query.stride(1), key.stride(0),
        key.stride(1), value.stride(0), value.stride(1), own[0].shape[2], scaling, window or 0, softcap or 1.0, shared,
        max(triton.next_power_of_2(shared), LEAST), width, wide, some, **mode,
    )  # fmt: skip
    return out


@triton.jit
def _merge(
    one, two, lse_one, lse_two, out, lse, rows, heads, D: tl.constexpr,
    ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    both = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # row by row, the heads of a row together
    inside = both < rows * heads
    at = (both % heads) * rows + both // heads
    a = tl.load(lse_one + at, mask=inside, other=0.0)
    b = tl.load(lse_two + at, mask=inside, other=0.0)
    top = tl.maximum(a, b)
    whole = top + tl.log(tl.exp(a - top) + tl.exp(b - top))
    tl.store(lse + at, whole, mask=inside)
    width = tl.arange(0, WIDE)
    some = inside[:, None] & (width < D)[None, :]
    place = both[:, None] * D + width[None, :]
    x = tl.load(one + place, mask=some, other=0.0).to(tl.float32) * tl.exp(a - whole)[:, None]
    y = tl.load(two + place, mask=some, other=0.0).to(tl.float32) * tl.exp(b - whole)[:, None]
    tl.store(out + place, (x + y).to(out.dtype.element_ty), mask=some)


def merge(one: Tensor, two: Tensor, lse_one: Tensor, lse_two: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over two parts of the keys, (N,H,d) and (H,N) log-sums of exponentials each, as over both together."""
    rows, heads, width = one.shape
    assert one.shape == two.shape
    assert lse_one.shape == lse_two.shape == (heads, rows)
    one, two, lse_one, lse_two = (x.contiguous() for x in (one, two, lse_one, lse_two))
    out, lse = torch.empty_like(one), torch.empty_like(lse_one)
    if rows:
        wide = triton.next_power_of_2(width)
        some = max(2048 // wide, 1)
        _merge[(triton.cdiv(rows * heads, some),)](one, two, lse_one, lse_two, out, lse, rows, heads, width, some, wide)
    return out, lse
