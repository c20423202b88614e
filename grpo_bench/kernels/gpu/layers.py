"""Norms, gates and rotary embeddings, forward and backward, each in one pass over memory: see ``kernels.layers``."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096  # elements that one program holds at once
PROGRAMS = 1024  # that share the rows of a norm's backward pass; each sums the gradient of the weights by itself


def _dense_last(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _tile(width: int) -> tuple[int, int]:
    """Rows and columns, powers of two, that cover ``width`` columns."""
    columns = triton.next_power_of_2(width)
    return max(TILE // columns, 1), columns


@triton.jit
def _normed(
    x, weight, out, rows, width, eps, shift, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    at = row[:, None] * width + column[None, :]
    a = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32) + shift
    scale = tl.rsqrt(tl.sum(a * a, axis=1) / width + eps)
    tl.store(out + at, (a * scale[:, None] * w[None, :]).to(out.dtype.element_ty), mask=inside)


def normed(x: Tensor, weight: Tensor, eps: float, shift: float, out: torch.dtype) -> Tensor:
    """See ``kernels.layers.normed``; the weights may be of any type."""
    x, weight = x.contiguous(), weight.contiguous()
    made, width = torch.empty_like(x, dtype=out), x.shape[-1]
    rows, (some, columns) = x.numel() // width, _tile(width)
    if rows:
        _normed[(triton.cdiv(rows, some),)](x, weight, made, rows, width, eps, shift, some, columns)
    return made


@triton.jit
def _norm_gradient(
    x, weight, grad, of_x, sums, rows, width, eps, shift, steps,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """With x̂ = x·s and s the scale: dx = s·(g·w − x̂·mean(g·w·x̂)), dw = Σ g·x̂ over rows."""
    program, programs = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    column = tl.arange(0, COLUMNS)
    w = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32) + shift
    total = tl.zeros((ROWS, COLUMNS), tl.float32)  # over rows at the end only: they are other warps'
    for step in range(steps):
        row = (program + step * programs) * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (column < width)[None, :]
        at = row[:, None] * width + column[None, :]
        a = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(a * a, axis=1) / width + eps)
        a = a * scale[:, None]
        total += g * a
        g = g * w[None, :]
        shared = tl.sum(g * a, axis=1) / width
        tl.store(of_x + at, ((g - a * shared[:, None]) * scale[:, None]).to(of_x.dtype.element_ty), mask=inside)
    tl.store(sums + program * width + column, tl.sum(total, axis=0), mask=column < width)


def norm_gradient(x: Tensor, weight: Tensor, grad: Tensor, eps: float, shift: float) -> tuple[Tensor, Tensor]:
    """See ``kernels.layers.norm_gradient``."""
    x, weight, grad = x.contiguous(), weight.contiguous(), grad.contiguous()
    width = x.shape[-1]
    rows, (some, columns) = x.numel() // width, _tile(width)
    of_x, tiles = torch.empty_like(x), triton.cdiv(rows, some)
    programs = max(min(tiles, PROGRAMS), 1)
    sums = torch.empty(programs, width, dtype=torch.float32, device=x.device)
    _norm_gradient[(programs,)](
        x, weight, grad, of_x, sums, rows, width, eps, shift, triton.cdiv(tiles, programs), some, columns
    )
    return of_x, sums.sum(0)


@triton.jit
def _gate(
    gate, up, out, gate_row, up_row, rows, width, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    g = tl.load(gate + row[:, None] * gate_row + column[None, :], mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + row[:, None] * up_row + column[None, :], mask=inside, other=0.0).to(tl.float32)
    made = (g * tl.sigmoid(g) * u).to(out.dtype.element_ty)
    tl.store(out + row[:, None] * width + column[None, :], made, mask=inside)


def gate(gate: Tensor, up: Tensor) -> Tensor:
    """See ``kernels.layers.gate``; rows may stand apart, as those of a part of a wider product do."""
    width = gate.shape[-1]
    g, u = (_dense_last(x.reshape(-1, width)) for x in (gate, up))
    out, (some, columns) = gate.new_empty(gate.shape), _tile(width)
    if rows := len(g):
        _gate[(triton.cdiv(rows, some),)](g, u, out, g.stride(0), u.stride(0), rows, width, some, columns)
    return out


@triton.jit
def _gate_gradient(
    gate, up, grad, of_gate, of_up, count, BLOCK: tl.constexpr
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    g = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
    d = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    s = tl.sigmoid(g)
    tl.store(of_gate + at, (d * u * s * (1.0 + g * (1.0 - s))).to(of_gate.dtype.element_ty), mask=inside)
    tl.store(of_up + at, (d * g * s).to(of_up.dtype.element_ty), mask=inside)


def gate_gradient(gate: Tensor, up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """See ``kernels.layers.gate_gradient``."""
    gate, up, grad = gate.contiguous(), up.contiguous(), grad.contiguous()
    of_gate, of_up, count = torch.empty_like(gate), torch.empty_like(up), gate.numel()
    if count:
        _gate_gradient[(triton.cdiv(count, 1024),)](gate, up, grad, of_gate, of_up, count, 1024)
    return of_gate, of_up


@triton.jit
def _rotate(
    x, y, cosines, sines, of_x, of_y, x_head, x_row, y_head, y_row, rows, x_heads, y_heads, HALF: tl.constexpr,
    BACK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    if tl.program_id(1) == 0:
        _turn(x, cosines, sines, of_x, x_head, x_row, rows, x_heads, HALF, BACK, ROWS, COLUMNS)
    else:
        _turn(y, cosines, sines, of_y, y_head, y_row, rows, y_heads, HALF, BACK, ROWS, COLUMNS)


@triton.jit
def _turn(
    x, cosines, sines, out, x_head, x_row, rows, heads, HALF: tl.constexpr, BACK: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    both = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row, head = both // heads, both % heads
    column = tl.arange(0, COLUMNS)
    inside = (both < rows * heads)[:, None] & (column < HALF)[None, :]
    first = x + (head * x_head + row * x_row)[:, None] + column[None, :]
    angle = row[:, None] * (2 * HALF) + column[None, :]
    a = tl.load(first, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(first + HALF, mask=inside, other=0.0).to(tl.float32)
    cos_a = tl.load(cosines + angle, mask=inside, other=0.0)
    cos_b = tl.load(cosines + angle + HALF, mask=inside, other=0.0)
    sin_a = tl.load(sines + angle, mask=inside, other=0.0)
    sin_b = tl.load(sines + angle + HALF, mask=inside, other=0.0)
    if BACK:
        y, z = a * cos_a + b * sin_b, b * cos_b - a * sin_a
    else:
        y, z = a * cos_a - b * sin_a, b * cos_b + a * sin_b
    to = out + both[:, None] * (2 * HALF) + column[None, :]
    tl.store(to, y.to(out.dtype.element_ty), mask=inside)
    tl.store(to + HALF, z.to(out.dtype.element_ty), mask=inside)


def rotate(x: Tensor, y: Tensor, cosines: Tensor, sines: Tensor, back: bool) -> tuple[Tensor, Tensor]:
    """See ``kernels.layers.rotate``."""
    x, y = _dense_last(x), _dense_last(y)
    heads, rows, width = x.shape
    out = [z.new_empty(rows, len(z), width) for z in (x, y)]
    some, columns = _tile(width // 2)
    some = max(some // 4, 1)
    if rows:
        _rotate[(triton.cdiv(rows * max(heads, len(y)), some), 2)](
            x, y, cosines, sines, *out, x.stride(0), x.stride(1), y.stride(0), y.stride(1), rows, heads, len(y),
            width // 2, back, some, columns,
        )  # fmt: skip
    return out[0].transpose(0, 1), out[1].transpose(0, 1)
