"""What stands between a layer's products, forward and backward: rotary embeddings, gates, norms and sums.

Functions of tensors without autograd; ``policy`` makes differentiable operations of them. See the package for where
they are used.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from grpo_bench.kernels import NAMES, _call, _dense_last, _threads, gpu

NORM_ROWS = 128  # whose gradients of a norm's weights are summed before the blocks' are


def rotate(
    x: Tensor,
    y: Tensor,
    cosines: Tensor,
    sines: Tensor,
    back: bool = False,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """(H,N,d), (K,N,d) and fp32 (N,d) twice -> (H,N,d) and (K,N,d), laid out as (N,H,d): z·cos + half-rotated z·sin.

    ``back``: from the gradients of what comes out to those of ``x`` and ``y``. On a CPU they may be written to ``out``,
    such as ``x`` and ``y`` themselves, whose last dimensions are dense.
    """
    rows, width = x.shape[1:]
    assert width % 2 == 0
    assert y.shape[1:] == x.shape[1:]
    assert all(t.shape == (rows, width) and t.dtype == torch.float32 and t.is_contiguous() for t in (cosines, sines))
    if gpu.serves(x):
        from grpo_bench.kernels.gpu import layers as on_gpu

        assert out is None
        return on_gpu.rotate(x, y, cosines, sines, back)
    to, other = (None, None) if out is None else out
    return _rotated(x, cosines, sines, back, to), _rotated(y, cosines, sines, back, other)


def _rotated(x: Tensor, cosines: Tensor, sines: Tensor, back: bool, out: Tensor | None) -> Tensor:
    x = _dense_last(x)
    heads, rows, width = x.shape
    if out is None:
        out = x.new_empty(rows, heads, width).transpose(0, 1)
    assert out.shape == x.shape
    assert out.dtype == x.dtype
    assert out.stride(2) == 1
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


def summed(x: Tensor, plus: Tensor) -> Tensor:
    """x + plus, of the type of ``x``: two tensors of one shape on a CPU, ``plus`` perhaps in bfloat16."""
    assert x.shape == plus.shape
    x, plus = x.contiguous(), plus.contiguous()
    out = torch.empty_like(x)
    _call(
        f"summed_{NAMES[x.dtype]}_{NAMES[plus.dtype]}",
        x.data_ptr(), plus.data_ptr(), out.data_ptr(), x.numel(), _threads(x.numel()),
    )  # fmt: skip
    return out


def gate(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate)·up of two tensors of one shape and type; on a CPU they may be the halves of (n,2m)."""
    if gpu.serves(gate):
        from grpo_bench.kernels.gpu import layers as on_gpu

        return on_gpu.gate(gate, up)
    assert gate.shape == up.shape
    gate, up, *sizes = _gated(gate, up)
    out = torch.empty(gate.shape, dtype=gate.dtype)
    _call(
        f"gate_{NAMES[gate.dtype]}", gate.data_ptr(), up.data_ptr(), out.data_ptr(), *sizes, _threads(gate.numel())
    )  # fmt: skip
    return out


def gate_gradient(
    gate: Tensor, up: Tensor, grad: Tensor, product: Tensor | None = None, out: Sequence[Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Of ``gate``, by its first and its second argument; all of one shape and type.

    On a CPU ``product``, which may be ``grad``, becomes what ``gate`` makes of them, and gradients may be written to
    ``out``, laid out as ``gate`` and ``up`` are.
    """
    assert product is None or (product.shape == gate.shape and product.is_contiguous() and not gpu.serves(gate))
    if gpu.serves(gate):
        from grpo_bench.kernels.gpu import layers as on_gpu

        assert out is None
        return on_gpu.gate_gradient(gate, up, grad)
    assert gate.shape == up.shape == grad.shape
    if out is None:
        gate, up = gate.contiguous(), up.contiguous()
        out = torch.empty_like(gate), torch.empty_like(up)
    (gate, up, *sizes), grad, (of_gate, of_up) = _gated(gate, up), grad.contiguous(), out
    assert of_gate.shape == of_up.shape == gate.shape
    assert of_gate.dtype == of_up.dtype == gate.dtype
    assert of_gate.stride() == of_up.stride() == gate.stride()
    _call(
        f"gate_gradient_{NAMES[gate.dtype]}",
        gate.data_ptr(), up.data_ptr(), grad.data_ptr(), of_gate.data_ptr(), of_up.data_ptr(),
        None if product is None else product.data_ptr(), *sizes, _threads(gate.numel()),
    )  # fmt: skip
    return of_gate, of_up


def _gated(gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor, int, int, int]:
    """Both as the kernels take them, their rows, these rows' width, and how far they are apart."""
    if gate.dim() == 2 and gate.stride() == up.stride() == (2 * gate.shape[1], 1):
        return gate, up, *gate.shape, gate.stride(0)
    return gate.contiguous(), up.contiguous(), 1, gate.numel(), gate.numel()


def norms(x: torch.dtype, out: torch.dtype) -> bool:
    """Whether ``normed`` takes such an input to such an output."""
    return x in NAMES and out in NAMES and not (x == torch.bfloat16 and out == torch.float32)


def normed(x: Tensor, weight: Tensor, eps: float, shift: float, out: torch.dtype) -> Tensor:
    """(...,h) and fp32 (h,) -> (...,h) of type ``out``: x / sqrt(mean(x²) + eps) · (shift + weight)."""
    if gpu.serves(x):
        from grpo_bench.kernels.gpu import layers as on_gpu

        return on_gpu.normed(x, weight, eps, shift, out)
    return _normed(x, None, weight, eps, shift, out)[1]


def sum_normed(x: Tensor, plus: Tensor, weight: Tensor, eps: float, shift: float) -> tuple[Tensor, Tensor]:
    """(...,h) twice and fp32 (h,) -> x + plus, of the type of ``x``, and ``normed`` of it, of that of ``plus``.

    On a CPU."""
    return _normed(x, plus, weight, eps, shift, plus.dtype)


def _normed(
    x: Tensor, plus: Tensor | None, weight: Tensor, eps: float, shift: float, out: torch.dtype
) -> tuple[Tensor, Tensor]:
    x, weight = x.contiguous(), weight.contiguous()
    assert weight.shape == x.shape[-1:]
    made, width, both = torch.empty_like(x, dtype=out), x.shape[-1], x
    given: list[int | None] = [None, None]
    if plus is not None:
        plus, both = plus.contiguous(), torch.empty_like(x)
        assert plus.shape == x.shape
        given = [plus.data_ptr(), both.data_ptr()]
    _call(
        f"normed_{NAMES[x.dtype]}_{NAMES[out]}",
        x.data_ptr(), *given, weight.data_ptr(), made.data_ptr(), x.numel() // width, width, eps, shift,
        _threads(x.numel()),
    )  # fmt: skip
    return both, made


def norm_gradient(x: Tensor, weight: Tensor, grad: Tensor, eps: float, shift: float) -> tuple[Tensor, Tensor]:
    """Of ``normed``: by ``x``, of its type, and by ``weight``, (h,) fp32; ``grad`` is of the type that came out."""
    if gpu.serves(x):
        from grpo_bench.kernels.gpu import layers as on_gpu

        return on_gpu.norm_gradient(x, weight, grad, eps, shift)
    of_x = torch.empty(x.shape, dtype=x.dtype)
    return of_x, _norm_gradient(x, None, weight, grad, None, of_x, None, None, eps, shift)


def residual_gradient(
    x: Tensor,
    plus: Tensor | None,
    weight: Tensor,
    grad: Tensor,
    total: Tensor,
    eps: float,
    shift: float,
    own: bool = False,
    low: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Of what stands on ``x``, or on x + ``plus`` (see ``sum_normed``), by way of its norm and beside it. On a CPU.

    ``grad`` is the gradient by what the norm made, and becomes that; ``total`` is the one that goes past the norm. ->
    The whole gradient by x (+ plus), in the place of ``total`` where that is one's ``own``, and the one by ``weight``.
    ``low``, of the type of ``grad``, becomes the first too.
    """
    of_x = total if own else torch.empty_like(total)
    return of_x, _norm_gradient(x, plus, weight, grad, total, of_x, low, grad, eps, shift)


def _norm_gradient(
    x: Tensor,
    plus: Tensor | None,
    weight: Tensor,
    grad: Tensor,
    total: Tensor | None,
    of_x: Tensor,
    low: Tensor | None,
    made: Tensor | None,
    eps: float,
    shift: float,
) -> Tensor:
    x, weight, grad = x.contiguous(), weight.contiguous(), grad.contiguous()
    for dtype, given in ((x.dtype, (total, of_x)), (grad.dtype, (grad, plus, low, made))):
        assert all(t is None or (t.shape == x.shape and t.dtype == dtype and t.is_contiguous()) for t in given)
    assert weight.shape == x.shape[-1:]
    width = x.shape[-1]
    rows = x.numel() // width
    sums = torch.empty(-(-rows // NORM_ROWS), width, dtype=torch.float32)
    more, added, less, again = (None if t is None else t.data_ptr() for t in (plus, total, low, made))
    _call(
        f"norm_gradient_{NAMES[x.dtype]}_{NAMES[grad.dtype]}",
        x.data_ptr(), more, weight.data_ptr(), grad.data_ptr(), added, of_x.data_ptr(), less, again, sums.data_ptr(),
        rows, width, eps, shift, NORM_ROWS, _threads(x.numel()),
    )  # fmt: skip
    return sums.sum(0)
