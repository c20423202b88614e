"""Own code for sampling and training: what stands between the matrix products, and on a CPU some of these products.

One token of each row costs dozens of tensor operations per layer, of which few are products: dispatching them and
passing over memory again and again took most of the time. ``sampling.c``, ``attention.c``, ``layers.c`` and
``optimiser.c`` do each in one pass on a processor, ``gpu/`` on a GPU; ``products*.c`` read weights in the order in
which they lie, ``decode_tiles.c`` a prompt's keys for all of its rows at once; ``decoder_layer.c`` makes all calls that
a layer of training consists of, and ``play.c`` many recorded ones. Each function equals a form in torch, which is used
where this is not: without a C compiler or Triton, in other precisions than fp32 and bfloat16, with
``GRPO_BENCH_KERNELS=0``.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from grpo_bench.kernels import build, gpu

NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
TILES = 32  # rows and depth of a block in products.c
SMALL = 2**17  # multiplications that one thread does sooner than it wakes another
_allowed = os.environ.get("GRPO_BENCH_KERNELS", "1") != "0"


_name: str | None = None  # of the library that was loaded


@cache
def _library() -> ctypes.CDLL | None:
    global _name
    try:
        library, _name = build.load()
    except (OSError, subprocess.SubprocessError) as error:
        print(
            f"sampling and training go through torch, more slowly: kernels could not be compiled ({error})",
            file=sys.stderr,
        )
        return None
    i, f, p, c = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p, ctypes.c_int
    for name in NAMES.values():
        attention = getattr(library, f"decode_attention_{name}")
        attention.argtypes = [*[p, i, i] * 3, p, p, i, p, p, i, p, p, p, p, i, i, i, i, f, i, f, p, i, c]
        getattr(library, f"draw_{name}").argtypes = [p, i, i, i, f, p, p, p, c]
        getattr(library, f"rms_norm_{name}").argtypes = [p, p, p, i, i, f, f, c]
        getattr(library, f"soften_{name}").argtypes = [p, i, i, p, f, p, p, p, c]
        getattr(library, f"logp_gradient_{name}").argtypes = [p, i, i, p, p, c]
        getattr(library, f"rotate_{name}").argtypes = [p, i, i, p, p, p, i, i, i, i, i, c, c]
        getattr(library, f"add_{name}").argtypes = [p, p, p, i, c]
        getattr(library, f"gate_{name}").argtypes = [p, p, p, i, i, i, c]
        getattr(library, f"gate_gradient_{name}").argtypes = [*[p] * 6, i, i, i, c]
        rest = [p, p, p, p, i, i, i, i, i, f, i, p, i, c]
        getattr(library, f"packed_attention_{name}").argtypes = [*[p, i, i] * 3, p, p, *rest]
        getattr(library, f"packed_attention_gradient_{name}").argtypes = [*[p, i, i] * 3, *[p] * 6, *rest]
    for names in ("float32_float32", "float32_bfloat16", "bfloat16_bfloat16"):
        getattr(library, f"summed_{names}").argtypes = [p, p, p, i, c]
        getattr(library, f"normed_{names}").argtypes = [*[p] * 5, i, i, f, f, c]
        getattr(library, f"norm_gradient_{names}").argtypes = [*[p] * 9, i, i, f, f, i, c]
    library.look_up.argtypes = [p, i, p, p, i, p]
    library.settle.argtypes = [p, p, i, i, *[p] * 8]
    library.play.argtypes = [p, i]
    library.scores_room.argtypes, library.scores_room.restype = [i], i
    library.attention_room.argtypes, library.attention_room.restype = [i, i, i, c], i
    library.tiled_attention_room.argtypes, library.tiled_attention_room.restype = [i, i, c], i
    library.squared_sums.argtypes, library.squared_sums.restype = [p, i], i
    library.squared_sum.argtypes, library.squared_sum.restype = [p, p, p, i, p, c], ctypes.c_double
    library.adamw.argtypes = [*[p] * 5, i, *[f] * 9, c]
    if library.can_multiply_float32():
        library.packed_size_float32.argtypes, library.packed_size_float32.restype = [i, i], i
        library.multiply_float32.argtypes = [p, p, p, p, p, p, i, i, i, c, c]
        library.pack_float32_float32.argtypes = [p, i, i, p, i, i, i, c]
        library.pack_turned_float32.argtypes = [p, i, i, p, c]
        library.weight_gradient_room_float32.argtypes, library.weight_gradient_room_float32.restype = [i, i, c], i
        library.weight_gradient_float32.argtypes = [p, i, *[p] * 3, i, i, i, c]
    if library.can_multiply_bfloat16():
        library.packed_size_bfloat16.argtypes, library.packed_size_bfloat16.restype = [i, i], i
        library.multiply_bfloat16.argtypes = [p, p, p, p, p, p, p, i, i, i, c, c]
        for name in NAMES.values():
            getattr(library, f"pack_{name}_bfloat16").argtypes = [p, i, i, p, i, i, i, c]
        library.weight_gradient_room.argtypes, library.weight_gradient_room.restype = [i, i, i, c], i
        library.tiled_decode_room.argtypes, library.tiled_decode_room.restype = [i, i], i
        if library.tiled_decode_room(TILES, TILES):
            tiled: Any = library.tiled_decode_attention
            tiled.argtypes = [*[p, i, i] * 3, p, p, i, p, p, i, p, p, p, p, i, i, i, i, i, f, i, f, p, p, i, c]
        if library.weight_gradient_room(TILES, TILES, TILES, 1):
            library.weight_gradient.argtypes = [p, i, p, p, p, i, i, i, c, c]
        if library.tiled_attention_room(TILES, TILES, 0):
            library.tiled_attention.argtypes = library.packed_attention_bfloat16.argtypes
            library.tiled_attention_gradient.argtypes = library.packed_attention_gradient_bfloat16.argtypes
    return library


def allowed() -> bool:
    """Whether own code is to be used where it can be: not with ``GRPO_BENCH_KERNELS=0``."""
    return _allowed


def use(on: bool) -> None:
    """Let kernels be used, or not (they still are not where they cannot be compiled)."""
    global _allowed
    _allowed = on


def available() -> bool:
    """Whether kernels are used on this machine's processor; compiles them at the first call."""
    return _allowed and _library() is not None


def fingerprint(on_gpu: bool = False) -> str | None:
    """What the kernels in use were compiled from, with and for; None where torch's forms are used."""
    if on_gpu:
        return gpu.fingerprint() if _allowed else None
    return _name if available() else None


def take(x: Tensor, *others: Tensor) -> bool:
    """Whether kernels are used for tensors like these, all of one type."""
    if not _allowed or x.dtype not in NAMES or not all(other.dtype == x.dtype for other in others):
        return False
    return gpu.serves(x) or (x.device.type == "cpu" and _library() is not None)


class _Heard(threading.local):
    calls: list[tuple[Any, Sequence[Any], dict[str, Any]]] | None = None


_heard = _Heard()  # a thread's own, as what records the operations between them is


@contextmanager
def heard(calls: list[tuple[Any, Sequence[Any], dict[str, Any]]]) -> Iterator[None]:
    """Write this thread's calls of compiled functions down, as (function, arguments, {}), for as long as this lasts.

    Arguments are addresses: a call may be repeated while the tensors there are alive.
    """
    before, _heard.calls = _heard.calls, calls
    try:
        yield
    finally:
        _heard.calls = before


def _call(name: str, *args: Any) -> None:
    function = getattr(_library(), name)
    function(*args)
    if _heard.calls is not None:
        _heard.calls.append((function, args, {}))


def _threads(work: int) -> int:
    return 1 if work < SMALL else torch.get_num_threads()


def _dense_last(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


@cache
def _has_products(dtype: torch.dtype) -> bool:
    """Whether this processor is one that products in ``dtype`` are written for; in bfloat16 by its matrix tiles or its
    dot products of pairs."""
    library = _library()
    return library is not None and dtype in NAMES and bool(getattr(library, f"can_multiply_{NAMES[dtype]}")())
