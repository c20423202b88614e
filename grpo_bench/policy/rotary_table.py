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
        if not hasattr(type(module), "looks_up"):
            continue
        kind, kept = _kind(module, example.dtype, example.device), _tables.setdefault(module, {})
        if kind not in kept or len(kept[kind][0]) < most:
            kept.clear()
            positions = torch.arange(1 << max(most - 1, 0).bit_length(), device=example.device)
            cosines, sines = type(module).__base__.forward(module, example, positions[None])  # type: ignore[union-attr]
            kept[kind] = cosines[0].contiguous(), sines[0].contiguous()


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
        if fixed and theirs and takes and isinstance(getattr(module, "inv_freq", None), Tensor):
            module.__class__ = _looks_up(own)
            found += 1
    return found
