"""What stands between a layer's products, forward and backward: rotary embeddings, gates, norms and sums.

Functions of tensors without autograd; ``policy`` makes differentiable operations of them. See the package for where
they are used.
"""

from __future__ import annotations

import torch
from torch import Tensor

from grpo_bench.kernels import NAMES, _call, _dense_last, _threads, gpu

NORM_ROWS = 128  # whose gradients of a norm's weights are summed before the blocks' are


def rotate(x: Tensor, y: Tensor, cosines: Tensor, sines: Tensor, back: bool = False) -> tuple[Tensor, Tensor]:
    """(H,N,d), (K,N,d) and fp32 (N,d) twice -> (H,N,d) and (K,N,d), laid out as (N,H,d): z·cos + half-rotated z·sin.

    ``back``: from the gradients of what comes out to those of ``x`` and ``y``.
    """
    rows, width = x.shape[1:]
    assert width % 2 == 0
    assert y.shape[1:] == x.shape[1:]
    assert all(t.shape == (rows, width) and t.dtype == torch.float32 and t.is_contiguous() for t in (cosines, sines))
    if gpu.serves(x):
        from grpo_bench.kernels.gpu import layers as on_gpu

        return on_gpu.rotate(x, y, cosines, sines, back)
    return _rotated(x, cosines, sines, back), _rotated(y, cosines, sines, back)


def _rotated(x: Tensor, cosines: Tensor, sines: Tensor, back: bool) -> Tensor:
    x = _dense_last(x)
    heads, rows, width = x.shape
    out = x.new_empty(rows, heads, width).transpose(0, 1)
    _call(
        f"rotate_{NAMES[x.dtype]}",
        x.data_ptr(), x.stride(0), x.stride(1), cosines.data_ptr(), sines.data_ptr(), out.data_ptr(), out.stride(0),
        out.stride(1), heads, rows, width, int(back), _threads(x.numel()),
    )  # fmt: skip
    return out


def add(x: Tensor, y: Tensor, out: Tensor) -> None:
    """``out`` becomes x + y: dense tensors of one shape and type on a CPU."""
    assert x.shape == y.shape == out.shape
    assert x.dtype == y.dtype == out.dtype
    assert x.is_contiguous() and y.is_contiguous() and out.is_contiguous()  # noqa: PT018
    _call(
        f"add_{NAMES[x.dtype]}", x.data_ptr(), y.data_ptr(), out.data_ptr(), x.numel(), _threads(x.numel())
    )  # fmt: skip


def gate(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate)·up of two tensors of one shape and type."""
    if gpu.serves(gate):
        from grpo_bench.kernels.gpu import layers as on_gpu

        return on_gpu.gate(gate, up)
    assert gate.shape == up.shape
    gate, up, count = gate.contiguous(), up.contiguous(), gate.numel()
    out = torch.empty_like(gate)
    _call(
        f"gate_{NAMES[gate.dtype]}", gate.data_ptr(), up.data_ptr(), out.data_ptr(), 1, count, count, _threads(count)
    )  # fmt: skip
    return out


def gate_gradient(gate: Tensor, up: Tensor, grad: Tensor, product: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Of ``gate``, by its first and its second argument; all of one shape and type.

    On a CPU ``product``, which may be ``grad``, becomes what ``gate`` makes of them.
    """
    assert product is None or (product.shape == gate.shape and product.is_contiguous() and not gpu.serves(gate))
    if gpu.serves(gate):
        from grpo_bench.kernels.gpu import layers as on_gpu

        return on_gpu.gate_gradient(gate, up, grad)
    assert gate.shape == up.shape == grad.shape
    gate, up, grad, count = gate.contiguous(), up.contiguous(), grad.contiguous(), gate.numel()
    of_gate, of_up = torch.empty_like(gate), torch.empty_like(up)
    _call(
        f"gate_gradient_{NAMES[gate.dtype]}",
        gate.data_ptr(), up.data_ptr(), grad.data_ptr(), of_gate.data_ptr(), of_up.data_ptr(),
        None if product is None else product.data_ptr(), 1, count, count, _threads(count),
    )  # fmt: skip
    return of_gate, of_up


def norms(x: torch.dtype, out: torch.dtype) -> bool:
    """Whether ``normed`` takes such an input to such an output."""
    return x in NAMES and out in NAMES and not (x == torch.bfloat16 and out == torch.float32)


def normed(x: Tensor, weight: Tensor, eps: float, shift: float, out: torch.dtype) -> Tensor:
    """(...,h) and fp32 (h,) -> (...,h) of type ``out``: x / sqrt(mean(x²) + eps) · (shift + weight)."""
    if gpu.serves(x):
        from grpo_bench.kernels.gpu import layers as on_gpu

        return on_gpu.normed(x, weight, eps, shift, out)
    x, weight = x.contiguous(), weight.contiguous()
    assert weight.shape == x.shape[-1:]
    made, width = torch.empty_like(x, dtype=out), x.shape[-1]
    _call(
        f"normed_{NAMES[x.dtype]}_{NAMES[out]}",
        x.data_ptr(), None, None, weight.data_ptr(), made.data_ptr(), x.numel() // width, width, eps, shift,
        _threads(x.numel()),
    )  # fmt: skip
    return made


def norm_gradient(x: Tensor, weight: Tensor, grad: Tensor, eps: float, shift: float) -> tuple[Tensor, Tensor]:
    """Of ``normed``: by ``x``, of its type, and by ``weight``, (h,) fp32; ``grad`` is of the type that came out."""
    if gpu.serves(x):
        from grpo_bench.kernels.gpu import layers as on_gpu

        return on_gpu.norm_gradient(x, weight, grad, eps, shift)
    x, weight, grad = x.contiguous(), weight.contiguous(), grad.contiguous()
    assert grad.shape == x.shape
    assert weight.shape == x.shape[-1:]
    of_x, width = torch.empty_like(x), x.shape[-1]
    rows = x.numel() // width
    sums = torch.empty(-(-rows // NORM_ROWS), width, dtype=torch.float32)
    _call(
        f"norm_gradient_{NAMES[x.dtype]}_{NAMES[grad.dtype]}",
        x.data_ptr(), None, weight.data_ptr(), grad.data_ptr(), None, of_x.data_ptr(), None, None, sums.data_ptr(),
        rows, width, eps, shift, NORM_ROWS, _threads(x.numel()),
    )  # fmt: skip
    return of_x, sums.sum(0)
