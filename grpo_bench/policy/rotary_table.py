"""Cosines and sines of positions looked up, where a model would compute them anew for each token that is sampled.

A model's own module makes the table, once for all positions that a rollout can have: what is looked up is what it
would have computed.
"""

from __future__ import annotations

import inspect
import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MOST = 2**13  # positions: of heads of 128 numbers 8 MiB
ROUNDED = 256  # tables are made for so many positions more at a time
Table = tuple[Tensor, Tensor]
_tables: weakref.WeakKeyDictionary[nn.Module, dict[Any, Table]] = weakref.WeakKeyDictionary()
_MADE: dict[type[nn.Module], type[nn.Module]] = {}


def bounded(positions: Tensor, most: int) -> Tensor:
    """(1,N) positions, with the knowledge that all are below ``most``: they may be looked up."""
    positions.most = most  # type: ignore[attr-defined]
    return positions


def _kind(module: Any, dtype: torch.dtype, device: torch.device) -> Any:
    frequencies = module.inv_freq
    return dtype, device, frequencies.data_ptr(), frequencies._version


@torch.no_grad()
def prepare(model: nn.Module, most: int) -> None:
    """Make the tables of a model on a CPU for positions below ``most``: before a step is recorded, not within it."""
    example = next(model.parameters())  # what comes from the embedding is of its type
    for module in model.modules() if example.device.type == "cpu" else ():
        if not hasattr(type(module), "looks_up") or most > MOST:
            continue
        kind, kept = _kind(module, example.dtype, example.device), _tables.setdefault(module, {})
        if kind not in kept or len(kept[kind][0]) < most:
            kept.clear()
            positions = torch.arange(-(-most // ROUNDED) * ROUNDED, device=example.device)
            made = type(module).__base__.forward(module, example, positions[None])  # type: ignore[union-attr]
            kept[kind] = made[0][0].contiguous(), made[1][0].contiguous()


def _looks_up(own: type[nn.Module]) -> type[nn.Module]:
    """A subclass, since a deep copy of a model must take it along."""
    if own not in _MADE:

        def forward(self: Any, x: Tensor, position_ids: Tensor) -> Table:
            most, made = getattr(position_ids, "most", None), _tables.get(self, {})
            table = None if most is None else made.get(_kind(self, x.dtype, x.device))
            if most is None or table is None or len(table[0]) < most:
                plain: Table = own.forward(self, x, position_ids)
                return plain
            cosines, sines = table
            return cosines.index_select(0, position_ids[0])[None], sines.index_select(0, position_ids[0])[None]

        _MADE[own] = type(own.__name__, (own,), {"forward": forward, "__module__": own.__module__, "looks_up": True})
    return _MADE[own]


@torch.no_grad()
def _by_position(module: Any) -> bool:
    """Whether it gives a (1,N,d) cosine and sine for (1,N) positions, each for itself."""
    some, every = (torch.tensor([numbers], device=module.inv_freq.device) for numbers in ([4, 0, 4], [0, 1, 2, 3, 4]))
    x = torch.zeros(1, 3, 8, device=some.device)
    try:
        found, table = module(x, some), module(x, every)
        pair = isinstance(found, tuple) and len(found) == 2 and not any(part.is_complex() for part in found)
        return pair and all(torch.equal(a[0], b[0][some[0]]) for a, b in zip(found, table, strict=True))
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):  # of another calling convention
        return False


def install(model: PreTrainedModel) -> int:
    """Let rotary embeddings of fixed frequencies be looked up; returns how many."""
    found = 0
    for module in model.modules():
        own = type(module)
        if hasattr(own, "looks_up") or not own.__name__.endswith("RotaryEmbedding"):
            continue
        fixed = getattr(module, "rope_type", None) in ("default", "linear", "llama3")
        theirs = own.__module__.startswith("transformers.models.")
        takes = list(inspect.signature(own.forward).parameters) == ["self", "x", "position_ids"]
        has = isinstance(getattr(module, "inv_freq", None), Tensor)
        if fixed and theirs and takes and has and _by_position(module):
            module.__class__ = _looks_up(own)
            found += 1
    return found
