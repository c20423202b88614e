"""Decode steps on a processor, recorded once and played back: modules and dispatch cost more than small products do.

Between two steps of the same rows nothing changes but what tensors hold: the same operations on the same places. So one
step's operations are written down, torch's by a dispatch mode and the compiled ones by ``kernels``, and the following
steps are a loop over that list. What they compute is what the recorded step computed, operation by operation.
"""

from __future__ import annotations

import ctypes
import weakref
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from grpo_bench import kernels
from grpo_bench.kernels import layers, products
from grpo_bench.kernels.play import together

_aten = torch.ops.aten
_EMPTY = {_aten.empty, _aten.new_empty, _aten.empty_like, _aten.empty_strided, _aten.new_empty_strided}
_COPIES = {_aten.clone, _aten._to_copy}
_OF_VALUES = (
    torch.Tag.data_dependent_output,  # what follows may depend on it
    torch.Tag.dynamic_output_shape,
    torch.Tag.nondeterministic_seeded,
    torch.Tag.inplace_view,  # would change a tensor's shape once more each time
)
ALIGNMENT = 64


class _Places:
    """Memory for what a recorded step makes: given out again once nobody holds it, as in the step itself."""

    def __init__(self) -> None:
        self._free: dict[int, list[Tensor]] = defaultdict(list)
        self._blocks: dict[int, Tensor] = {}  # by address

    def like(self, x: Tensor) -> Tensor:
        """A tensor of the sizes, strides and type of ``x``, not filled."""
        count = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0
        size = max(-(-count * x.element_size() // ALIGNMENT) * ALIGNMENT, ALIGNMENT)
        if self._free[size]:
            block = self._free[size].pop()
        else:
            block = torch.empty(size, dtype=torch.uint8)
            self._blocks[block.data_ptr()] = block
        # the storage made of this object holds it: when it goes, so does every tensor that looks at the block
        holder = (ctypes.c_char * size).from_address(block.data_ptr())
        weakref.finalize(holder, self._free[size].append, block).atexit = False
        flat = torch.frombuffer(holder, dtype=x.dtype, count=size // x.element_size())
        return flat.as_strided(x.shape, x.stride())

    def blocks(self) -> list[Tensor]:
        return list(self._blocks.values())

    def holds(self, x: Tensor) -> bool:
        return x.untyped_storage().data_ptr() in self._blocks

    def place(self, x: Any) -> Any:
        """A tensor on the place of ``x`` that does not hold it; ``x`` itself where that is not one of these."""
        if not isinstance(x, Tensor) or not self.holds(x):
            return x
        block = self._blocks[x.untyped_storage().data_ptr()]
        return block.view(x.dtype).as_strided(x.shape, x.stride(), x.storage_offset())


class _Recording(TorchDispatchMode):
    """Runs operations and writes down those that must run again."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Any], Sequence[Any], dict[str, Any]]] = []
        self.places = _Places()
        self.kept: list[Any] = []  # what pointers of calls may point to
        self.refused: str | None = None  # by which operation

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        if self.refused is not None:
            return made
        if func.overloadpacket in _EMPTY:
            return self.places.like(made)
        given: list[Tensor] = []
        args, kwargs = ([self._place(x, given) for x in args], {k: self._place(x, given) for k, x in kwargs.items()})
        outs = [made] if isinstance(made, Tensor) else list(made) if isinstance(made, (list, tuple)) else []
        if not given and not outs:  # of types and numbers: the same next time
            return made
        storages = {x.untyped_storage().data_ptr() for x in given}
        looks = [isinstance(x, Tensor) and x.untyped_storage().data_ptr() in storages for x in outs]
        if not outs or not all(isinstance(x, Tensor) for x in outs) or any(tag in func.tags for tag in _OF_VALUES):
            self.refused = str(func)
        elif func._schema.is_mutable:
            self.calls.append((func, args, kwargs))
            if not all(looks):  # it also makes something new
                self.refused = str(func)
        elif all(looks):  # the same places next time
            self.kept += [x for x in outs if not self.places.holds(x)]
        else:
            return self._made(func, made, outs, args, kwargs)
        return made

    def _made(self, func: Any, made: Any, outs: list[Tensor], args: list[Any], kwargs: dict[str, Any]) -> Any:
        """What an operation made, moved to places that it is written to again."""
        kept = [self.places.like(x).copy_(x) for x in outs]
        into = [self.places.place(x) for x in kept]
        if func is _aten.add.Tensor and not kwargs and _adds(*args, *into):
            kept = self._sum(*args, *kept)
            return kept[0]
        if func.overloadpacket in _COPIES:
            self.calls.append((_aten.copy_.default, (into[0], args[0]), {}))
        elif len(into) == 1 and (writes := _writes(func)) is not None:
            self.calls.append((writes, args, {**kwargs, "out": into[0]}))
        else:
            self.calls.append((_again, (func, into, args, kwargs), {}))
        return kept[0] if isinstance(made, Tensor) else type(made)(kept)

    def _sum(self, x: Tensor, y: Tensor, kept: Tensor) -> list[Tensor]:
        """What ``add`` of two dense tensors made, written by the product that comes before it where it is of that."""
        if self.calls:
            other = self.places.like(kept).copy_(kept)  # the first may lie on what the product reads
            for out in (kept, other):
                for to, added in ((y, x), (x, y)):
                    if (joined := products.with_sum(self.calls[-1], added, to, out)) is not None:
                        self.calls[-1] = joined
                        return [out]
        layers.add(x, y, self.places.place(kept))  # writes itself down; 62 of torch's took 1.5 ms more in a step
        return [kept]

    def _place(self, x: Any, given: list[Tensor]) -> Any:
        """An argument as it is given again; tensors in it are added to ``given``."""
        if isinstance(x, Tensor):
            given.append(x)
            return self.places.place(x)
        if isinstance(x, (list, tuple)):
            return [self._place(y, given) for y in x]
        return x


def _adds(x: Any, y: Any, out: Tensor) -> bool:
    """Whether the compiled sum takes these."""
    if not isinstance(x, Tensor) or not isinstance(y, Tensor) or not kernels.take(out, x, y):
        return False
    return x.shape == y.shape and all(z.is_contiguous() and z.device.type == "cpu" for z in (x, y, out))


@cache
def _writes(func: Any) -> Any:
    """The form of an operation that writes to ``out``, if it takes the same arguments otherwise."""
    into = getattr(func.overloadpacket, "out", None)
    if into is None:
        return None
    names, own = ([(a.name, str(a.type)) for a in f._schema.arguments] for f in (into, func))
    return into if names == [*own, ("out", "Tensor")] else None


def _again(func: Any, outs: list[Tensor], args: Any, kwargs: Any) -> None:
    made = func(*args, **kwargs)
    for out, x in zip(outs, [made] if isinstance(made, Tensor) else made, strict=True):
        out.copy_(x)


class Tape:
    """A function of tensors in fixed places, recorded: ``play`` does again what it did, and gives its result."""

    def __init__(self, function: Callable[[], Tensor]) -> None:
        """Runs ``function`` once; ``result`` is what it returned, valid until the next ``play``."""
        recording = _Recording()
        with recording, kernels.heard(recording.calls):
            self.result = function()
        self.refused = recording.refused  # None: it can be played
        self._calls = recording.calls if self.refused is None else []
        self._played, calls = together(self._calls)
        self._kept = (recording.places, recording.kept, calls)
        self.memory = recording.places.blocks()  # for what it makes: each time anew
        self.size_bytes = sum(block.nbytes for block in self.memory)

    def play(self) -> Tensor:
        for function, args, kwargs in self._played:
            function(*args, **kwargs)
        return self.result
