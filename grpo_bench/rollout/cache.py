"""Keys and values of a rollout: a prompt's once for all of its group, and each row's own tokens beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_bench import kernels

SLAB_BYTES = 2**26  # what of it is not written takes no memory
ALIGNMENT = 64


@dataclass(slots=True)
class LayerCache:
    """Buffers of one layer; a row's token t (t = 0 is its first sampled one) stands at own[:, :, t]."""

    prompt_keys: Tensor  # (prompts,K,S,d)
    prompt_values: Tensor
    own_keys: Tensor  # (rows,K,T,d)
    own_values: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """All four."""
        return self.prompt_keys, self.prompt_values, self.own_keys, self.own_values


class SharedPrefixCache:
    """Places for ``prompts`` prompts of at most ``width`` tokens and for ``rows`` completions of at most ``length``.

    Made for a rollout, or for several of the same sizes, written in place; a layer's buffers are made when its first
    prompts come, which tell heads and widths. Where attention is torch's all are zero at first: places never written
    are masked, and a masked NaN would still be one. Compiled attention does not look at them.
    """

    def __init__(self, prompts: int, width: int, rows: int, length: int) -> None:
        self.prompts, self.width, self.rows, self.length = prompts, width, rows, length
        self.layers: dict[int, LayerCache] = {}
        self.slabs: list[Tensor] = []  # bytes, where compiled attention on a CPU is used
        self._taken = 0  # of the last of them

    def put_prompts(self, layer: int, first: int, keys: Tensor, values: Tensor) -> None:
        """Write (P,K,S,d) keys and values of prompts to the places from ``first`` on."""
        if layer not in self.layers:
            compiled = keys.shape == values.shape and kernels.take(keys, values)
            made = torch.zeros if not compiled else torch.empty if keys.device.type != "cpu" else self._room
            self.layers[layer] = LayerCache(
                *(
                    made(places, x.shape[1], length, x.shape[3], dtype=x.dtype, device=x.device)
                    for places, length in ((self.prompts, self.width), (self.rows, self.length))
                    for x in (keys, values)
                )
            )
        held = self.layers[layer]
        held.prompt_keys[first : first + len(keys), :, : keys.shape[2]] = keys
        held.prompt_values[first : first + len(values), :, : values.shape[2]] = values

    def _room(self, *shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Like torch.empty, but from memory of many layers: it lies in large pages, which are faster to come by."""
        size = math.prod(shape) * dtype.itemsize
        if not self.slabs or self.slabs[-1].nbytes - self._taken < size:
            self.slabs.append(torch.empty(max(SLAB_BYTES, size), dtype=torch.uint8, device=device))
            self._taken = 0
        part = self.slabs[-1][self._taken : self._taken + size]
        self._taken += -(-size // ALIGNMENT) * ALIGNMENT
        return part.view(dtype).view(shape)

    def move_rows(self, source: Tensor, target: Tensor, length: int) -> None:
        """Copy the first ``length`` own tokens of rows to other places."""
        for held in self.layers.values():
            for x in (held.own_keys, held.own_values):
                x[target, :, :length] = x[source, :, :length]

    def move_prompts(self, source: Tensor, target: Tensor) -> None:
        """Copy prompts to other places."""
        for held in self.layers.values():
            for x in (held.prompt_keys, held.prompt_values):
                x[target] = x[source]
