"""Matrix products on a processor: with weights packed for it, and the gradients of weights.

A library lays a matrix out anew at each call; ``products.c`` and ``products_float32.c`` read one that was packed
beforehand, for the few rows of a decode step, and ``weight_gradient.c`` sums bfloat16 products in fp32. Where torch's
products in fp32 do not use all of a processor, training's are made here too (``linear``, ``input_gradient``,
``weight_gradients``).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from grpo_bench import kernels
from grpo_bench.kernels import NAMES, TILES, _call, _dense_last, _has_products, _library, _threads

TILE = 16  # columns of one tile of what is packed
FEW_TOKENS = 64  # of training: fewer are too little work to lay out the factors for; chosen, not measured
# the same in fp32, where both factors are laid out; with a head of 151,936 words as much as torch at 128 (measured)
FEW_ROWS = 256
NARROW = 32  # weights that are narrower stay torch's in fp32: most of what is computed of a block would be in vain


def multiplies(weight: Tensor, dtype: torch.dtype = torch.bfloat16) -> bool:
    """Whether products with copies of ``weight`` in ``dtype`` are made here: in bfloat16 by the processor's matrix
    tiles or dot products of pairs, in fp32 by its widest vectors."""
    if not kernels.allowed() or weight.device.type != "cpu" or weight.dim() != 2:
        return False
    return weight.dtype in (NAMES if dtype == torch.bfloat16 else (dtype,)) and _has_products(dtype)


def _packed_size(columns: int, depth: int, dtype: torch.dtype) -> int:
    library: Any = _library()
    return int(getattr(library, f"packed_size_{NAMES[dtype]}")(columns, depth))


def packed_room(shapes: Sequence[Sequence[int]], dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    """Room for ``pack`` of weights of each of these shapes (n,k), one behind the other in one place.

    The system can hold one place in large pages; looking up the addresses of many small ones took a tenth of the
    products' time (measured).
    """
    sizes = [_packed_size(columns, depth, dtype) for columns, depth in shapes]
    return list(torch.empty(sum(sizes), dtype=dtype).split(sizes))


def pack(weight: Tensor, room: Tensor, first: int | None = None, step: int = 1) -> Tensor:
    """(n,k) weights in the order in which ``multiply`` reads them, in ``room`` and of its type -> ``room``.

    With ``first`` they are part of what is packed there: their tiles of 16 columns, the last one filled up with zeros,
    become the first, the (first + step)th and so on.
    """
    weight = weight.contiguous()
    columns, depth = weight.shape
    tiles = -(-columns // TILE)
    if first is None:
        first, tiles = 0, tiles + tiles % 2
        assert room.numel() == _packed_size(columns, depth, room.dtype)
    assert room.numel() >= _packed_size((first + (tiles - 1) * step + 1) * TILE, depth, room.dtype)
    assert room.is_contiguous()
    _call(
        f"pack_{NAMES[weight.dtype]}_{NAMES[room.dtype]}",
        weight.data_ptr(), columns, depth, room.data_ptr(), tiles, first, step, _threads(weight.numel()),
    )  # fmt: skip
    return room


def _padded(rows: int, depth: int) -> tuple[int, int]:
    """The size of what ``multiply`` in bfloat16 lays out anew of its (rows, depth) factor: tiles that would read past
    its end."""
    there = rows // TILES * TILES if depth % TILES == 0 else 0  # read where they lie
    return -(-rows // TILES) * TILES - there if there < rows else 0, -(-depth // TILES) * TILES


def multiply(x: Tensor, packed: Tensor, columns: int, bias: Tensor | None = None, gated: bool = False) -> Tensor:
    """(...,k) and packed (n,k) weights of one type, n = ``columns`` -> (...,n) x·Wᵀ + bias, summed in fp32.

    ``gated``: what is packed are two such weights, tile by tile in turns -> silu(x·Vᵀ) · x·Wᵀ, without a bias.
    """
    x = x.contiguous()
    depth = x.shape[-1]
    width = 2 * -(-columns // TILE) * TILE if gated else columns
    assert x.dtype == packed.dtype
    assert packed.numel() == _packed_size(width, depth, packed.dtype)
    assert bias is None or (bias.dtype == x.dtype and bias.numel() == columns and bias.is_contiguous())
    out = x.new_empty(*x.shape[:-1], columns)
    rows = x.numel() // depth
    given = (x.data_ptr(), packed.data_ptr(), None if bias is None else bias.data_ptr(), out.data_ptr(), None, None)
    if x.dtype == torch.float32:
        sizes = (rows, columns, depth, int(gated), _threads(rows * width * depth))
        _call("multiply_float32", *given, *sizes)
        return out
    size = _padded(rows, depth)
    padded = x.new_empty(size) if size[0] else None
    sizes = (rows, columns, depth, int(gated), _threads(columns * depth))
    _call("multiply_bfloat16", *given, None if padded is None else padded.data_ptr(), *sizes)
    return out


def with_sum(product: tuple[Any, Sequence[Any], dict[str, Any]], added: Tensor, to: Tensor, out: Tensor) -> Any:
    """A call heard of ``multiply``, to -> a call that also writes ``added`` + ``to`` to ``out``; None if it is not one.

    (n,m) of the product's type, dense; ``out`` may not lie where the product's factors do.
    """
    function, args, _ = product
    name = getattr(function, "__name__", "")
    if not name.startswith("multiply_") or args[3] != to.data_ptr() or name != f"multiply_{NAMES.get(to.dtype)}":
        return None
    x, *_, rows, columns, depth, gated, _ = args
    count = rows * columns
    if args[4] is not None or gated or to.numel() != count or not added.numel() == out.numel() == count:
        return None
    packed = to.element_size() * _packed_size(columns, depth, to.dtype)  # may be a place of the moment, see ``linear``
    read = [(x, to.element_size() * rows * depth), (args[1], packed), (to.data_ptr(), to.nbytes)]
    if args[2] is not None:
        read.append((args[2], to.element_size() * columns))
    if to.dtype == torch.bfloat16 and args[6] is not None:
        padded, wide = _padded(rows, depth)
        read.append((args[6], to.element_size() * padded * wide))
    if any(start < out.data_ptr() + out.nbytes and out.data_ptr() < start + size for start, size in read):
        return None
    return function, (*args[:4], added.data_ptr(), out.data_ptr(), *args[6:]), {}


def trains_in(dtype: torch.dtype) -> bool:
    """Whether this processor's products of training in ``dtype`` are made here, of weights that are not too narrow."""
    return _has_weight_gradient(dtype)


@cache
def _has_weight_gradient(dtype: torch.dtype) -> bool:
    library: Any = _library()
    if not _has_products(dtype):
        return False
    if dtype == torch.float32:
        return torch.backends.mkl.is_available() and bool(library.can_train_float32())
    return bool(library.weight_gradient_room(TILES, TILES, TILES, 1))


def trains(weight: Tensor, dtype: torch.dtype = torch.bfloat16) -> bool:
    """Whether training's products with these (m,k) fp32 weights are made here, of a layer that computes in ``dtype``.

    In bfloat16 the weights' gradient, in fp32 all three: where torch's are slower.
    """
    on_cpu = weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.dim() == 2
    fits = dtype == torch.bfloat16 or (dtype == torch.float32 and on_cpu and min(weight.shape) >= NARROW)
    return kernels.allowed() and on_cpu and fits and trains_in(dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """fp32 (...,k) and (m,k) -> (...,m): x·weightᵀ + bias."""
    columns, depth = weight.shape
    packed = pack(weight, weight.new_empty(_packed_size(columns, depth, weight.dtype)))
    return multiply(x, packed, columns, None if bias is None else bias.contiguous())


def input_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    """fp32 (...,m) and (m,k) -> (...,k): grad·weight."""
    weight = weight.contiguous()
    depth, columns = weight.shape
    packed = weight.new_empty(_packed_size(columns, depth, weight.dtype))
    _call("pack_turned_float32", weight.data_ptr(), columns, depth, packed.data_ptr(), _threads(weight.numel()))
    return multiply(grad, packed, columns)


def weight_gradients(grads: Sequence[Tensor], x: Tensor) -> list[Tensor]:
    """(n,m) for each of some layers of one input and (n,k), all of one type -> each layer's (m,k) fp32: gradᵀ·x, summed
    in fp32. In bfloat16 ``x`` is laid out once for all of them."""
    x = x.contiguous()
    if x.dtype == torch.float32:
        return [_weight_gradient_float32(_dense_last(grad), x) for grad in grads]
    rows, depth = x.shape
    library: Any = _library()
    threads = _threads(rows * depth * max(grad.shape[1] for grad in grads))
    size = library.weight_gradient_room(rows, max(grad.shape[1] for grad in grads), depth, threads)
    scratch = torch.empty(size + TILES, dtype=torch.bfloat16)
    aligned = scratch.data_ptr() + -scratch.data_ptr() % 64
    out = []
    for made, grad in enumerate(map(_dense_last, grads)):
        assert grad.shape[0] == rows
        assert grad.dtype == x.dtype == torch.bfloat16
        whole = torch.empty(grad.shape[1], depth, dtype=torch.float32)
        _call(
            "weight_gradient",
            grad.data_ptr(), grad.stride(0), x.data_ptr(), whole.data_ptr(), aligned, rows, len(whole), depth,
            int(made > 0), min(threads, _threads(rows * len(whole) * depth)),
        )  # fmt: skip
        out.append(whole)
    return out


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """``weight_gradients`` of one layer."""
    return weight_gradients([grad], x)[0]


def _weight_gradient_float32(grad: Tensor, x: Tensor) -> Tensor:
    rows, depth = x.shape
    columns = grad.shape[1]
    assert grad.shape[0] == rows
    assert grad.dtype == x.dtype == torch.float32
    library: Any = _library()
    out, threads = x.new_empty(columns, depth), _threads(rows * columns * depth)
    scratch = x.new_empty(library.weight_gradient_room_float32(columns, depth, threads))
    _call(
        "weight_gradient_float32",
        grad.data_ptr(), grad.stride(0), x.data_ptr(), out.data_ptr(), scratch.data_ptr(), rows, columns, depth,
        threads,
    )  # fmt: skip
    return out
