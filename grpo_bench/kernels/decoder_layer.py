"""A decoder layer in training, forward and backward, by one call each: see ``decoder_layer.c``.

Functions of tensors without autograd; ``policy.decoder_layer`` makes a differentiable operation of them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grpo_bench import kernels
from grpo_bench.kernels import NAMES, _library
from grpo_bench.kernels.attention import Sequences, _tiled
from grpo_bench.kernels.layers import NORM_ROWS
from grpo_bench.kernels.products import FEW_ROWS, NARROW, trains_in

# of torch, in the order of ``use_torch``
FUNCTIONS = (
    "aoti_torch_create_tensor_from_blob", "aoti_torch_delete_tensor_object", "aoti_torch_cpu_mm_out",
    "aoti_torch_cpu_addmm_out",
)  # fmt: skip
# from torch 2.13 on, the text of a thread's last failure as const char *; before that it is logged
WHY = "torch_exception_get_what_without_backtrace"
TYPES = {"aoti_torch_dtype_float32": 6, "aoti_torch_dtype_bfloat16": 15}  # as decoder_layer.c has them
COUNTS = (3, 1, 2, 1)  # layers of each input: queries, keys and values; the output; gate and up; down
LAYERS = sum(COUNTS)
OF_INPUT = [list(range(start, end)) for start, end in pairwise(accumulate(COUNTS, initial=0))]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a layer computes with beside its weights."""

    eps: tuple[float, float]  # of its norms
    shifts: tuple[float, float]  # added to their weights
    width: int  # of a head
    scaling: float
    window: int | None


class _Layer(ctypes.Structure):
    """See decoder_layer.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("tokens", "hidden", "inner", "heads", "kv", "width")),
        *((name, ctypes.c_int64) for name in ("window", "prompts", "most", "tiled", "own")),
        *((name, ctypes.c_int64) for name in ("threads", "small", "block")),
        ("eps", ctypes.c_double * 2), ("shifts", ctypes.c_double * 2), ("scaling", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("starts", "lengths", "firsts", "order", "cosines", "sines")),
        ("norms", ctypes.c_void_p * 2), ("weights", ctypes.c_void_p * LAYERS), ("biases", ctypes.c_void_p * LAYERS),
        *((name, ctypes.c_void_p) for name in ("x", "kept", "lse", "out", "grad")),
        ("sums", ctypes.c_void_p * 2), ("of_weights", ctypes.c_void_p * LAYERS),
        *((name, ctypes.c_void_p) for name in ("of_output", "scratch")),
    )  # fmt: skip


_Two, _Addresses, _Pair = ctypes.c_double * 2, ctypes.c_void_p * LAYERS, ctypes.c_void_p * 2


@cache
def _torch() -> Any:
    """The library of torch's that has ``FUNCTIONS`` and ``TYPES``, which is loaded already; None where none has."""
    path = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        try:
            found = ctypes.CDLL(str(path / name))
            if all(hasattr(found, name) for name in FUNCTIONS) and all(
                getattr(found, t)() == n for t, n in TYPES.items()
            ):
                return found
        except (OSError, AttributeError):
            continue
    return None


def given_of_torch() -> list[ctypes.c_void_p]:
    """What ``use_torch`` is given."""
    return [ctypes.cast(getattr(_torch(), name), ctypes.c_void_p) for name in FUNCTIONS]


@cache
def available() -> bool:
    """Whether this torch has the products that a layer calls, and there is what calls them."""
    library: Any = _library()
    if library is None or _torch() is None:
        return False
    library.use_torch.argtypes = [ctypes.c_void_p] * len(FUNCTIONS)
    library.use_torch(*given_of_torch())
    for function in _functions():
        function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_int64
    return True


def _why() -> str | None:
    """What torch says of this thread's last failed product; None where it does not tell."""
    if not hasattr(_torch(), WHY):
        return None
    function = getattr(_torch(), WHY)
    function.argtypes, function.restype = [], ctypes.c_char_p
    return str(function().decode(errors="replace"))


def _functions() -> list[Any]:
    found = [getattr(_library(), f"decoder_layer{part}_{NAMES[torch.float32]}") for part in ("", "_gradient", "_kept")]
    for part in ("", "_gradient", "_kept"):
        name = f"decoder_layer{part}_{NAMES[torch.bfloat16]}"
        if hasattr(_library(), name):  # compiled for processors with tiles or dot products of pairs alone
            found.append(getattr(_library(), name))
    return found


@dataclass(slots=True)
class Layer:
    """What a call is given: tensors that have to stay, and what C reads of them."""

    given: _Layer
    dtype: torch.dtype
    sizes: list[int]  # outputs of each linear layer
    held: tuple[Any, ...]

    @staticmethod
    def of(
        x: Tensor, angles: tuple[Tensor, Tensor], sequences: Sequences, recipe: Recipe, norms: Sequence[Tensor],
        weights: Sequence[Tensor], sizes: list[int],
    ) -> Layer:  # fmt: skip
        """Of (N,h) and fp32 (N,d) twice; ``weights`` as ``forward`` has them."""
        assert available()
        tokens, hidden = x.shape
        dtype, width = weights[0].dtype, recipe.width
        assert all(t.dtype == torch.float32 and t.is_contiguous() for t in (x, *angles, *norms))
        assert all(t.dtype == dtype and t.is_contiguous() for t in weights)
        assert all(t.shape == (tokens, width) for t in angles)
        assert all(t.shape == (hidden,) for t in norms)
        assert sizes == [sizes[0], sizes[1], sizes[1], hidden, sizes[4], sizes[4], hidden]
        assert sizes[0] % width == sizes[1] % width == sizes[0] % sizes[1] == 0
        depths = (hidden, sizes[0], hidden, sizes[4])
        assert [t.shape for t in weights] == [
            (m, k) for own, k in zip(_outputs(sizes, dtype), depths, strict=True) for m in own
        ]
        assert sequences.tokens == tokens
        parts = (sequences.starts, sequences.lengths, sequences.firsts, sequences.order, *angles)
        near = recipe.window if recipe.window is not None and recipe.window < sequences.most else 0
        own = dtype == torch.float32 and tokens >= FEW_ROWS and trains_in(dtype)
        given = _Layer(
            tokens, hidden, sizes[4], sizes[0] // width, sizes[1] // width, width, near, len(sequences.order),
            sequences.most, int(dtype == torch.bfloat16 and _tiled()), NARROW if own else 0, torch.get_num_threads(),
            kernels.SMALL, NORM_ROWS, _Two(*recipe.eps), _Two(*recipe.shifts), recipe.scaling,
            *(t.data_ptr() for t in parts), _Pair(*(t.data_ptr() for t in norms)),
            _Addresses(*(t.data_ptr() for t in weights)),
        )  # fmt: skip
        given.x = x.data_ptr()
        return Layer(given, dtype, sizes, (x, *parts, *norms, *weights))

    def kept(self) -> Tensor:
        """Room for what is kept from the forward to the backward pass."""
        return torch.empty(self._call("_kept"), dtype=self.dtype)

    def run(self, part: str) -> None:
        """One pass, with scratch of its own. RuntimeError where a product of torch's failed, with what that says;
        MemoryError, as is most likely, where this torch does not say it."""
        self.given.scratch = None
        scratch = torch.empty(self._call(part), dtype=torch.uint8)
        self.given.scratch = scratch.data_ptr()
        assert scratch.data_ptr() % 64 == 0
        if self._call(part) < 0:
            why = _why()
            if why is None:
                raise MemoryError("a product in a decoder layer failed; torch said above why")
            raise RuntimeError(f"a product in a decoder layer failed: {why}")

    def _call(self, part: str) -> int:
        made: int = getattr(_library(), f"decoder_layer{part}_{NAMES[self.dtype]}")(ctypes.byref(self.given))
        return made


def forward(layer: Layer, biases: Sequence[Tensor | None]) -> tuple[Tensor, Tensor, Tensor]:
    """-> (N,h) fp32, and what ``backward`` needs: one tensor of the products' type, and (H,N) fp32.

    Weights are (m,k), in fp32 those of each linear layer: queries, keys, values, the output; gate, up, down. In
    bfloat16 they are those of the layers of each input as one. ``biases``: as many, (m,) of that type, or Nones.
    """
    given = layer.given
    out = torch.empty(given.tokens, given.hidden, dtype=torch.float32)
    kept, lse = layer.kept(), torch.empty(given.heads, given.tokens, dtype=torch.float32)
    given.kept, given.lse, given.out = kept.data_ptr(), lse.data_ptr(), out.data_ptr()
    given.biases = _Addresses()
    if any(bias is not None for bias in biases):
        held = [bias for bias in biases if bias is not None]
        assert all(bias.dtype == layer.dtype and bias.is_contiguous() for bias in held)
        widths = [m for own in _outputs(layer.sizes, layer.dtype) for m in own]
        assert all(bias is None or bias.shape == (m,) for bias, m in zip(biases, widths, strict=True))
        given.biases = _Addresses(*(None if bias is None else bias.data_ptr() for bias in biases))
    layer.run("")
    return out, kept, lse


def backward(
    layer: Layer, kept: Tensor, lse: Tensor, grad: Tensor, biased: Sequence[bool]
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor | None]]:
    """The gradients by ``x`` (N,h), by the norms' weights, by each linear layer's weights, fp32, and by its biases,
    where it has some. ``grad``: (N,h) fp32, by what came out. Gradients of what was kept are written in its place."""
    given, sizes = layer.given, layer.sizes
    tokens, hidden = given.tokens, given.hidden
    grad = grad.contiguous()
    of_x = torch.empty_like(grad)
    sums = [torch.empty(-(-tokens // NORM_ROWS), hidden, dtype=torch.float32) for _ in range(2)]
    joint = layer.dtype == torch.bfloat16
    depths = (hidden, given.heads * given.width, hidden, given.inner)
    some = _outputs(sizes, layer.dtype)
    made = [torch.empty(m, k, dtype=torch.float32) for own, k in zip(some, depths, strict=True) for m in own]
    middle = torch.empty(tokens, hidden, dtype=layer.dtype) if biased[3] else None
    given.kept, given.lse, given.out, given.grad = kept.data_ptr(), lse.data_ptr(), of_x.data_ptr(), grad.data_ptr()
    given.sums = _Pair(*(t.data_ptr() for t in sums))
    given.of_weights = _Addresses(*(t.data_ptr() for t in made))
    given.of_output = None if middle is None else middle.data_ptr()
    layer.run("_gradient")
    if joint:
        made = [
            part for whole, own in zip(made, OF_INPUT, strict=True) for part in whole.split([sizes[i] for i in own])
        ]
    of_biases: list[Tensor | None] = [None] * LAYERS
    if any(biased):
        found = [*_parts(layer, kept, 0), middle, *_parts(layer, kept, 2), grad.to(layer.dtype)]
        of_biases = [
            part.sum(0, dtype=torch.float32) if has and part is not None else None
            for part, has in zip(found, biased, strict=True)
        ]
    return of_x, [t.sum(0) for t in sums], made, of_biases


def _outputs(sizes: list[int], dtype: torch.dtype) -> list[list[int]]:
    """Of each input's products: one of all its layers in bfloat16, else one of each."""
    joint = dtype == torch.bfloat16
    return [[sum(sizes[i] for i in own)] if joint else [sizes[i] for i in own] for own in OF_INPUT]


def _parts(layer: Layer, kept: Tensor, number: int) -> list[Tensor]:
    """(N,m) of each of an input's layers that is kept: of the first input, or of the third, which lies behind it."""
    tokens, sizes = layer.given.tokens, [[layer.sizes[i] for i in own] for own in OF_INPUT]
    start = 0 if number == 0 else -(-tokens * sum(sizes[0]) // 64) * 64
    own = kept[start : start + tokens * sum(sizes[number])]
    if layer.dtype == torch.bfloat16:
        return list(own.view(tokens, -1).split(sizes[number], dim=1))
    return [part.view(tokens, -1) for part in own.split([tokens * m for m in sizes[number]])]
