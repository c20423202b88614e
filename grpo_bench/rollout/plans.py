"""The two attention plans of sampling: prompts packed into one row, and one new token of every row at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from grpo_bench import kernels
from grpo_bench.kernels import sampling as compiled
from grpo_bench.kernels.attention import Sequences
from grpo_bench.policy import packed_attention
from grpo_bench.rollout.cache import SharedPrefixCache


class PrefillPlan:
    """Prompts one behind the other, each seeing itself only; their keys and values go to the cache.

    Attention is computed by the compiled kernels, or on prompts padded on the right, where a causal mask hides the
    padding; all else of the forward, which is most of it, computes no padding.
    """

    def __init__(self, lengths: list[int], cache: SharedPrefixCache, first: int, device: torch.device) -> None:
        self.cache, self.first = cache, first
        self.prompts, self.width = len(lengths), max(lengths)
        starts = torch.arange(self.prompts) * self.width
        sizes = torch.tensor(lengths)
        self.positions = torch.cat([torch.arange(n) for n in lengths]).to(device)  # (N,)
        self.last = (sizes.cumsum(0) - 1).to(device)  # (P,) where each prompt's last token stands in the packed row
        none = sizes[:0]
        self.sequences = Sequences.of(sizes, none, none) if device.type == "cpu" else None
        self._places = None if sum(lengths) == len(starts) * self.width else starts.repeat_interleave(sizes).to(device)
        if self._places is not None:
            self._places += self.positions

    def _grid(self, x: Tensor) -> Tensor:
        """(1,K,N,d) -> (P,K,S,d)."""
        packed = x[0].transpose(0, 1)
        if self._places is not None:
            padded = packed.new_zeros(self.prompts * self.width, *packed.shape[1:])
            packed = padded.index_copy_(0, self._places, packed)
        return packed.reshape(self.prompts, self.width, *packed.shape[1:]).transpose(1, 2)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float,
        window: int | None = None, softcap: float | None = None,
    ) -> Tensor:  # fmt: skip
        """See ``policy.attention.Plan``."""
        k, v = self._grid(key), self._grid(value)
        self.cache.put_prompts(layer, self.first, k, v)
        alike = softcap is None and key.shape == value.shape and query.shape[1] % key.shape[1] == 0
        if self.sequences is not None and alike and kernels.available() and kernels.take(query, key, value):
            return packed_attention.attend(query, key, value, self.sequences, scaling, window)
        q = self._grid(query)
        if q.shape[1] != k.shape[1]:
            k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
        hides = window is not None and window < self.width
        if not hides and softcap is None:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)
        else:
            place = torch.arange(self.width, device=q.device)
            back = place[:, None] - place[None, :]
            seen = (back >= 0) & (back < (window or self.width))
            scores = _capped(q @ k.transpose(2, 3) * scaling, softcap).masked_fill(~seen, -torch.inf)
            out = _softmax(scores) @ v
        packed = out.transpose(1, 2).flatten(0, 1)
        return (packed if self._places is None else packed[self._places])[None]


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of one decode step: rows, prompts, most rows of a prompt, and the cache's columns that it reads."""

    rows: int
    prompts: int
    members: int
    width: int  # of prompts
    reach: int  # of own tokens, the new one included
    even: bool  # every prompt fills ``width`` and every row ``reach``: nothing to mask


@dataclass(frozen=True, slots=True)
class Where:
    """Which place of the cache is whose; tensors of the step's N rows."""

    counts: Tensor  # (N,) own tokens, the new one included
    prompt_lengths: Tensor  # (N,)
    places: Tensor  # (N,) of its prompt
    cells: Tensor | None  # (N,) a row's cell in the (prompts · members) grid; None: the rows are that grid
    grid: Tensor | None  # (prompts · members,) the row in each cell, any row in an empty one


class DecodePlan:
    """One new token of each row: it sees its prompt, kept once for the group, and its row's own tokens.

    The rows of a group are one product with their prompt's keys, which are read once for all of them; the two parts
    share one softmax.
    """

    def __init__(self, cache: SharedPrefixCache, shape: Shape, where: Where) -> None:
        self.cache, self.shape, self.where = cache, shape, where
        self.sized = False  # what was computed depends on the width and reach of the shape
        self._masks: dict[int | None, Tensor | None] = {}
        self._targets: dict[int, Tensor] = {}

    def _attend_in_one_pass(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float,
        window: int | None, softcap: float | None,
    ) -> Tensor:  # fmt: skip
        held, where = self.cache.layers[layer], self.where
        own, prompts = (held.own_keys, held.own_values), (held.prompt_keys, held.prompt_values)
        return compiled.decode_attention(
            query, key, value, own, prompts, where.counts, where.prompt_lengths, where.places, where.cells, where.grid,
            self.shape.members, scaling, window, softcap,
        )  # fmt: skip

    def _mask(self, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """(N,1,1,width + reach): 0 where a row may look, −inf elsewhere; the same in every layer of a kind."""
        shape, where = self.shape, self.where
        if window is not None and shape.even and shape.width + shape.reach <= window:
            window = None
        if window is None and shape.even:
            return None
        if window not in self._masks:
            counts, lengths = where.counts[:, None], where.prompt_lengths[:, None]
            prompt = torch.arange(shape.width, device=counts.device)[None]
            own = torch.arange(shape.reach, device=counts.device)[None]
            seen = torch.cat([prompt < lengths, own < counts], dim=1)
            if window is not None:
                seen &= torch.cat([lengths + counts - 1 - prompt, counts - 1 - own], dim=1) < window
            mask = torch.zeros(seen.shape, dtype=dtype, device=counts.device)
            self._masks[window] = mask.masked_fill_(~seen, -torch.inf)[:, None, None]
        return self._masks[window]

    def _write(self, buffer: Tensor, x: Tensor) -> None:
        """(1,K,N,d) of the new tokens to the (rows,K,T,d) buffer, each at its row's own end."""
        heads, length, wide = buffer.shape[1:]
        if heads not in self._targets:
            row = torch.arange(self.shape.rows, device=x.device)[:, None] * heads
            head = torch.arange(heads, device=x.device)
            self._targets[heads] = ((row + head) * length + self.where.counts[:, None] - 1).flatten()
        buffer.view(-1, wide).index_copy_(0, self._targets[heads], x[0].transpose(0, 1).reshape(-1, wide))

    def _spread(self, x: Tensor) -> Tensor:
        """(N,K,R,y) by row -> (P·K, members·R, y) by prompt."""
        shape = self.shape
        cells = x if self.where.grid is None else x[self.where.grid]
        grouped = cells.view(shape.prompts, shape.members, *x.shape[1:]).transpose(1, 2)
        return grouped.reshape(shape.prompts * x.shape[1], shape.members * x.shape[2], x.shape[3])

    def _gather(self, x: Tensor, heads: int) -> Tensor:
        """(P·K, members·R, y) by prompt -> (N,K,R,y) by row."""
        shape = self.shape
        grouped = x.view(shape.prompts, heads, shape.members, -1, x.shape[-1]).transpose(1, 2)
        if self.where.cells is None:
            return grouped.reshape(shape.rows, heads, -1, x.shape[-1])
        return grouped.flatten(0, 1)[self.where.cells]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float,
        window: int | None = None, softcap: float | None = None,
    ) -> Tensor:  # fmt: skip
        """See ``policy.attention.Plan``."""
        held = self.cache.layers[layer]
        alike = query.shape[-1] == value.shape[-1] and query.shape[1] % key.shape[1] == 0
        if alike and kernels.take(query, key, value, held.own_keys, held.own_values):
            return self._attend_in_one_pass(layer, query, key, value, scaling, window, softcap)
        shape, self.sized = self.shape, True
        rows, heads = shape.rows, key.shape[1]
        self._write(held.own_keys, key)
        self._write(held.own_values, value)
        q = query[0].transpose(0, 1).reshape(rows, heads, -1, query.shape[-1]) * scaling  # (N,K,R,d)
        prompt_keys = held.prompt_keys[: shape.prompts, :, : shape.width].flatten(0, 1)
        prompt_values = held.prompt_values[: shape.prompts, :, : shape.width].flatten(0, 1)
        own_keys = held.own_keys[:rows].flatten(0, 1)[:, : shape.reach]
        own_values = held.own_values[:rows].flatten(0, 1)[:, : shape.reach]
        to_prompt = torch.bmm(self._spread(q), prompt_keys.transpose(1, 2))
        to_own = _few_by_many(q.flatten(0, 1), own_keys)
        scores = torch.cat([self._gather(to_prompt, heads), to_own.unflatten(0, (rows, heads))], dim=-1)
        scores = _capped(scores, softcap)
        if (mask := self._mask(window, scores.dtype)) is not None:
            scores += mask
        probs = _softmax(scores)
        of_prompt = torch.bmm(self._spread(probs[..., : shape.width]), prompt_values)
        of_own = torch.bmm(probs[..., shape.width :].flatten(0, 1), own_values)
        out = self._gather(of_prompt, heads).reshape(of_own.shape) + of_own
        return out.view(1, rows, -1, out.shape[-1])


def _few_by_many(few: Tensor, many: Tensor) -> Tensor:
    """(n,R,d) by (n,T,d) -> (n,R,T)."""
    if few.dtype == torch.bfloat16 and few.device.type == "cpu":  # oneDNN: 3 times faster in this order, measured
        return torch.bmm(many, few.transpose(1, 2)).transpose(1, 2)
    return torch.bmm(few, many.transpose(1, 2))


def _capped(scores: Tensor, softcap: float | None) -> Tensor:
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


def _softmax(scores: Tensor) -> Tensor:
    """Over the last dimension; torch sums in fp32 whatever the scores' precision."""
    return torch.softmax(scores, dim=-1)
