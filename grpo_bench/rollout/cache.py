"""A KV cache layer with room for the whole answer, so that a decode step writes in place instead of copying."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer


class RoomyLayer(DynamicLayer):
    """transformers' dynamic layer, but its buffers hold ``capacity`` positions from the start of decoding."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def _show(self) -> tuple[Tensor, Tensor]:
        assert self._keys is not None
        assert self._values is not None
        self.keys, self.values = self._keys[:, :, : self.length], self._values[:, :, : self.length]
        return self.keys, self.values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        new = key_states.shape[-2]
        if self._keys is None or self._values is None:  # the prompt: kept at its own size until rows are selected
            self._keys, self._values = key_states, value_states
        else:
            self._keys[:, :, self.length : self.length + new] = key_states
            self._values[:, :, self.length : self.length + new] = value_states
        self.length += new
        return self._show()

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep (or repeat) rows, in buffers of full capacity."""
        assert self._keys is not None
        assert self._values is not None

        def select(x: Tensor) -> Tensor:
            out = torch.empty(len(indices), x.shape[1], self.capacity, x.shape[3], dtype=x.dtype, device=x.device)
            out[:, :, : self.length] = x[indices, :, : self.length]
            return out

        self._keys, self._values = select(self._keys), select(self._values)
        self._show()


def make_cache(config: Any, capacity: int) -> Cache:
    """A cache for a model: with room where every layer attends to everything, else transformers' own."""
    config = config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds == {"full_attention"} and getattr(config, "sliding_window", None) is None:
        return Cache(layers=[RoomyLayer(capacity) for _ in range(config.num_hidden_layers)])
    return DynamicCache(config=config)
