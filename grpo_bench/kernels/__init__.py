"""Own code for sampling and training: what stands between the matrix products, and on a CPU some of these products.

One token of each row costs dozens of tensor operations per layer, of which few are products: dispatching them and
passing over memory again and again took most of the time. ``sampling.c``, ``attention.c``, ``layers.c`` and
``optimiser.c`` do each in one pass on a processor, ``gpu/`` on a GPU; ``products*.c`` read weights in the order in
which they lie, and ``decode_tiles.c`` a prompt's keys for all of its rows at once. Each function equals a form in
torch, which is used where this is not: without a C compiler or Triton, in other precisions than fp32 and bfloat16, with
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
        getattr(library, f"gate_{name}").argtypes = [p, p, p, i, c]
        getattr(library, f"gate_gradient_{name}").argtypes = [p, p, p, p, p, p, i, c]
        rest = [p, p, p, p, i, i, i, i, i, f, i, p, i, c]
        getattr(library, f"packed_attention_{name}").argtypes = [*[p, i, i] * 3, p, p, *rest]
        getattr(library, f"packed_attention_gradient_{name}").argtypes = [*[p, i, i] * 3, *[p] * 6, *rest]
    for names in ("float32_float32", "float32_bfloat16", "bfloat16_bfloat16"):
        getattr(library, f"normed_{names}").argtypes = [p, p, p, i, i, f, f, c]
        getattr(library, f"norm_gradient_{names}").argtypes = [p, p, p, p, p, i, i, f, f, i, c]
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
    if library.can_multiply_bfloat16():
        library.packed_size_bfloat16.argtypes, library.packed_size_bfloat16.restype = [i, i], i
        library.multiply_bfloat16.argtypes = [p, p, p, p, p, p, p, i, i, i, c, c]
        for name in NAMES.values():
            getattr(library, f"pack_{name}_bfloat16").argtypes = [p, i, i, p, i, i, i, c]
        library.weight_gradient_room.argtypes, library.weight_gradient_room.restype = [i, i, i], i
        library.tiled_decode_room.argtypes, library.tiled_decode_room.restype = [i, i], i
        if library.tiled_decode_room(TILES, TILES):
            tiled: Any = library.tiled_decode_attention
            tiled.argtypes = [*[p, i, i] * 3, p, p, i, p, p, i, p, p, p, p, i, i, i, i, i, f, i, f, p, p, i, c]
        if library.weight_gradient_room(TILES, TILES, TILES):
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
def _has_products(dtype: torch.dtype) -> bool:
    """Whether this processor is one that products in ``dtype`` are written for; bfloat16: by its matrix tiles."""
    library = _library()
    return library is not None and dtype in NAMES and bool(getattr(library, f"can_multiply_{NAMES[dtype]}")())


@cache
def _has_tiled_attention() -> bool:
    return _has_products(torch.bfloat16) and bool(_library().tiled_decode_room(TILES, TILES))  # type: ignore[union-attr]
