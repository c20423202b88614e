"""Rows of a batch without padding and with each prompt once: what the faster forward of scoring and update computes.

Tokens stand in one row of N: the prompts of the groups, then fillers where ``pack`` adds some, then the completions,
each without its last token, since no state is needed after it. Everything in a model but attention looks at one token
at a time and does not care; attention is the plan's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from grpo_bench import kernels
from grpo_bench.kernels.attention import Sequences
from grpo_bench.policy import flash_attention, packed_attention
from grpo_bench.policy.flash_attention import Segments
from grpo_bench.policy.shared_prompt import attend


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the tokens of some sequences stand in a padded grid, and back."""

    tokens: Tensor  # (rows·width,) which token stands there; any where there is none
    places: Tensor  # (tokens,) where it stands
    width: int
    trivial: bool  # each token stands at its own number

    @staticmethod
    def of(rows: Tensor, lengths: Tensor, count: int) -> Grid:
        """Sequences of these lengths, one after the other, each in its row of ``count``."""
        width = int(lengths.max()) if len(lengths) else 0
        within = ragged_range(lengths)
        places = torch.repeat_interleave(rows, lengths) * width + within
        tokens = torch.zeros(count * width, dtype=torch.long, device=lengths.device)
        own = torch.arange(len(places), device=lengths.device)
        tokens[places] = own
        return Grid(tokens, places, width, len(own) == len(tokens) and bool((places == own).all()))


def ragged_range(lengths: Tensor) -> Tensor:
    """0..n−1 for each length n, one after the other."""
    ends = lengths.cumsum(0)
    return torch.arange(int(lengths.sum()), device=lengths.device) - torch.repeat_interleave(ends - lengths, lengths)


class _ToGrid(torch.autograd.Function):
    """(tokens,...) to their places; padding holds some token or other, and its gradient is not looked at."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: Grid) -> Tensor:
        ctx.grid = grid
        return x.index_select(0, grid.tokens)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        return grads[0].index_select(0, ctx.grid.places), None


class _FromGrid(torch.autograd.Function):
    """The way back; padding's gradient is zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: Grid) -> Tensor:
        ctx.grid, ctx.shape = grid, x.shape
        return x.index_select(0, grid.places)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        return grads[0].new_zeros(ctx.shape).index_copy_(0, ctx.grid.places, grads[0]), None


class _States(torch.autograd.Function):
    """(N,h) -> (n,h): states that predict tokens; the first tokens of a group's members share the prompt's last."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, packed: Packed) -> Tensor:
        ctx.packed, ctx.shape = packed, hidden.shape
        return hidden.index_select(0, packed.states)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        packed: Packed = ctx.packed
        grad = grads[0]
        out = grad.new_empty(ctx.shape)
        prompts = len(packed.ids) - len(packed.predicts)
        out[:prompts] = 0
        out[:prompts].index_add_(0, packed.states[packed.firsts], grad[packed.firsts])
        torch.index_select(grad, 0, packed.predicts, out=out[prompts:])
        return out, None


@dataclass(frozen=True)
class Packed:
    """One forward's tokens; see the legend of shapes in ``shared_prompt``.

    ``states`` (n,) says which token's state predicts each of the n targets (row by row), ``firsts`` (b,) which targets
    are the first of their rows, ``predicts`` (N − prompt tokens,) which target each completion's token predicts.
    """

    ids: Tensor  # (N,)
    positions: Tensor  # (N,)
    states: Tensor
    firsts: Tensor
    predicts: Tensor
    prompts: Grid  # P x S
    own: Grid  # P·M x T
    lengths: Tensor  # (P,) of the prompts, fillers among them
    members: int  # M
    sequences: Sequences | None  # None where the tokens are not on the CPU
    segments: Segments | None  # None where they are
    biases: dict[Any, Tensor] = field(default_factory=dict)

    def states_of(self, hidden: Tensor) -> Tensor:
        """(N,h) -> (n,h)."""
        out: Tensor = _States.apply(hidden, self)
        return out

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        """See ``Plan``."""
        P, M, K, d = len(self.lengths), self.members, key.shape[1], query.shape[-1]
        r, count = query.shape[1] // K, len(self.prompts.places)
        device = query.device.type
        if torch.is_autocast_enabled(device):  # where rotary embeddings left queries and keys in fp32
            low = torch.get_autocast_dtype(device)
            key, value = key.to(low), value.to(low)
            if self._scales(query, key, value, low, window, softcap):  # in fp32
                query = query.to(low)
            else:
                query, scaling = (query * scaling).to(low), 1.0
            with torch.autocast(device, enabled=False):
                return self.attend(layer, query, key, value, scaling, window, softcap)
        if self.sequences is not None and query.dtype == key.dtype and self._compiled(key, value, softcap):
            return packed_attention.attend(query, key, value, self.sequences, scaling, window)
        if self.segments is not None and self._flashes(query, key, value, query.dtype, window, softcap):
            return flash_attention.attend(query, key, value, self.segments, scaling)
        q, k, v = (x[0].transpose(0, 1) for x in (query * scaling if scaling != 1 else query, key, value))  # (N,·,d)

        def grid(x: Tensor, where: Grid, rows: int) -> Tensor:  # -> (P, rows, width, heads, d)
            if not where.trivial:
                x = _ToGrid.apply(x, where)
            return x.reshape(P, rows, where.width, *x.shape[1:])

        def back(x: Tensor, where: Grid) -> Tensor:  # (P,K,rows,r,width,d) -> (tokens,H,d)
            x = x.permute(0, 2, 4, 1, 3, 5).reshape(-1, K * r, d)
            return x if where.trivial else _FromGrid.apply(x, where)

        def parts(x: tuple[Tensor, Tensor, Tensor], where: Grid, rows: int) -> tuple[Tensor, Tensor, Tensor]:
            a, b, c = (grid(y, where, rows) for y in x)
            a = a.unflatten(3, (K, r)).permute(0, 3, 1, 4, 2, 5).contiguous()
            return a, b.permute(0, 3, 1, 2, 4).contiguous(), c.permute(0, 3, 1, 2, 4).contiguous()

        qp, kp, vp = parts((q[:count], k[:count], v[:count]), self.prompts, 1)
        seen = self._bias("prompt", query, window)
        out = back(attend(qp, None, (kp, vp), seen, softcap), self.prompts)
        if self.own.width:
            qo, ko, vo = parts((q[count:], k[count:], v[count:]), self.own, M)
            seen = self._bias("own", query, window)
            own = attend(qo, (kp[:, :, 0], vp[:, :, 0]), (ko, vo), seen, softcap)
            out = torch.cat([out, back(own, self.own)])
        return out[None]

    def _compiled(self, key: Tensor, value: Tensor, softcap: float | None) -> bool:
        """Whether the kernels attend to these; values narrower than keys, as in latent attention, they do not know."""
        on_cpu = self.sequences is not None and kernels.available()
        return softcap is None and key.shape == value.shape and on_cpu and kernels.take(key, value)

    def _flashes(
        self, query: Tensor, key: Tensor, value: Tensor, dtype: torch.dtype, window: int | None, softcap: float | None
    ) -> bool:
        """Whether flash attention attends to these in ``dtype``."""
        if softcap is not None or self.segments is None or key.dtype != dtype or value.dtype != dtype:
            return False
        return flash_attention.takes(query, key, value, dtype, window, self.segments)

    def _scales(
        self, query: Tensor, key: Tensor, value: Tensor, dtype: torch.dtype, window: int | None, softcap: float | None
    ) -> bool:
        """Whether what attends to these in ``dtype`` scales the scores itself."""
        return self._compiled(key, value, softcap) or self._flashes(query, key, value, dtype, window, softcap)

    def _bias(self, part: str, like: Tensor, window: int | None) -> Tensor:
        """(P or 1, T, S+T) for completions, (1,S,S) for prompts: made once for all layers."""
        key = (part, window, like.dtype)
        if key not in self.biases:
            S, T = self.prompts.width, self.own.width
            at = torch.arange(S, device=like.device)
            if part == "prompt":
                seen = _causal(at[None, :, None], at[None, None], window)
            else:
                t = torch.arange(T, device=like.device)
                lengths = self.lengths[:, None, None]
                where = lengths + t[None, :, None]
                prompt = _causal(where, at[None, None], window) & (at[None, None] < lengths)
                own = _causal(where, lengths + t[None, None], window)
                seen = torch.cat([prompt, own], dim=-1)
                if bool((seen == seen[:1]).all()):
                    seen = seen[:1]
            bias = torch.zeros(seen.shape, dtype=like.dtype, device=like.device)
            self.biases[key] = bias.masked_fill_(~seen, -torch.inf)
        return self.biases[key]


def _causal(query: Tensor, key: Tensor, window: int | None) -> Tensor:
    """Which positions a token may look at."""
    seen = key <= query
    return seen if window is None else seen & (query - key < window)


def filler(tokens: int) -> int:
    """Tokens to add so that few counts occur: up to a multiple of the power of two within a 64th of them, so that at
    most one in 64 is added."""
    return -tokens % (1 << max((tokens // 64).bit_length() - 1, 0))


def pack(prompts: list[Tensor], group: Tensor, completions: Tensor, lengths: Tensor, rounded: bool = False) -> Packed:
    """Pack completions of known prompts.

    Args:
        prompts: token ids of the P prompts.
        group: (b,) which prompt each row has.
        completions: (b,T) token ids, ``lengths`` (b,) of which count.
        rounded: add prompts that no row continues, with as many tokens as ``filler`` says; nothing looks at their
            states.
    """
    device = group.device
    if rounded:
        own = sum(len(p) for p in prompts) + int((lengths - 1).clamp(min=0).sum())
        longest, more = max((len(p) for p in prompts), default=0), filler(own)
        for start in range(0, more, max(longest, 1)):  # positions beyond the prompts' a model may not have
            prompts = [*prompts, max(prompts, key=len)[:1].expand(min(longest, more - start))]
    P = len(prompts)
    sizes = torch.tensor([len(p) for p in prompts], device=device)
    starts = sizes.cumsum(0) - sizes
    counts = torch.bincount(group, minlength=P)
    members = int(counts.max())
    order = torch.argsort(group, stable=True)
    rank = torch.empty_like(group)
    rank[order] = ragged_range(counts)
    inner = (lengths - 1).clamp(min=0)  # a completion's last token predicts nothing
    t = torch.arange(completions.shape[1], device=device)[None]
    ids = torch.cat([*prompts, completions[t < inner[:, None]]])
    positions = torch.cat([ragged_range(sizes), torch.repeat_interleave(sizes[group], inner) + ragged_range(inner)])
    flat = lengths.cumsum(0) - lengths  # of each row's first target
    within = ragged_range(lengths)
    base = int(sizes.sum()) + inner.cumsum(0) - inner
    states = torch.repeat_interleave(base, lengths) + within - 1
    live = lengths > 0
    firsts = flat[live]
    states[firsts] = (starts + sizes - 1)[group[live]]
    predicts = torch.repeat_interleave(flat, inner) + ragged_range(inner) + 1
    on_cpu = device.type == "cpu"
    sequences = Sequences.of(sizes, group, inner) if on_cpu else None
    segments = None if on_cpu else Segments.of(sizes, group, inner)
    return Packed(
        ids, positions, states, firsts, predicts,
        Grid.of(torch.arange(P, device=device), sizes, P), Grid.of(group * members + rank, inner, P * members),
        sizes, members, sequences, segments,
    )  # fmt: skip
