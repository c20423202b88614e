"""How rows of a batch reach the models: packed, or padded where a model takes no plans. Algorithms see (B,T) only."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from grpo_bench.policy.packed import Packed, pack
from grpo_bench.types import Batch


@dataclass(frozen=True)
class Layout:
    """Some rows of a batch as the models read them.

    ``targets`` (n,) are the completion tokens, row by row; ``mask`` (b,T) is the batch's, on the same rows.
    """

    tokens: Tensor  # (b,S), prompts padded on the left, completions on the right
    prompt_lengths: Tensor  # (b,)
    group_ids: Tensor  # (b,)
    mask: Tensor
    targets: Tensor

    @property
    def _width(self) -> int:
        return self.tokens.shape[1] - self.mask.shape[1]

    @cached_property
    def packed(self) -> Packed:
        """Without padding, each prompt once, in the order of the rows. ValueError where rows of a group have different
        prompts."""
        return self._pack(False)

    @cached_property
    def rounded(self) -> Packed:
        """The same with a filler behind the prompts, see ``pack``."""
        return self._pack(True)

    def _pack(self, rounded: bool) -> Packed:
        found, group = torch.unique(self.group_ids, return_inverse=True)
        first = torch.full_like(found, len(group)).scatter_reduce_(
            0, group, torch.arange(len(group), device=group.device), "amin"
        )
        first, order = first.sort()
        group = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))[group]
        width = self._width
        inside = torch.arange(width, device=group.device)[None] >= width - self.prompt_lengths[:, None]
        prompt_tokens = self.tokens[:, :width] * inside
        if not torch.equal(prompt_tokens, prompt_tokens[first][group]):
            raise ValueError("rows of one group have different prompts")
        prompts = [
            self.tokens[row, width - length : width]
            for row, length in zip(first.tolist(), self.prompt_lengths[first].tolist(), strict=True)
        ]
        return pack(prompts, group, self.tokens[:, width:], self.mask.sum(1).long(), rounded)

    def forget(self) -> None:
        """Let go what attention made for all layers of one forward and backward pass: masks as large as scores."""
        for name in ("packed", "rounded"):
            if name in vars(self):
                getattr(self, name).biases.clear()

    @cached_property
    def padded(self) -> tuple[Tensor, Tensor]:
        """(b,L) ids from the left edge, and flat indices (n,) into b·L of the states that predict the targets.

        A causal model needs no attention mask then, and positions start at 0 for every row.
        """
        width, device = self._width, self.tokens.device
        longest = int((self.prompt_lengths + self.mask.sum(1).long()).max())
        columns = torch.arange(longest, device=device)[None, :] + (width - self.prompt_lengths)[:, None]
        ids = self.tokens.gather(1, columns.clamp(max=self.tokens.shape[1] - 1))
        t = torch.arange(self.mask.shape[1], device=device)[None, :]
        first = torch.arange(len(self.mask), device=device)[:, None] * longest + self.prompt_lengths[:, None] - 1
        return ids, (first + t)[self.mask.bool()]


def layout(batch: Batch, rows: Tensor) -> Layout:
    """The rows' prompts and masked tokens."""
    mask, tokens = batch.mask[rows], batch.tokens[rows]
    width = tokens.shape[1] - mask.shape[1]
    prompts = batch.prompt_lengths[rows] if batch.prompt_lengths is not None else torch.full_like(rows, width)
    return Layout(tokens, prompts, batch.group_ids[rows], mask, tokens[:, width:][mask.bool()])


def spread(flat: Tensor, mask: Tensor) -> Tensor:
    """(n,) values of the masked tokens, row by row -> (b,T), zero outside the mask."""
    out = torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device)
    return out.masked_scatter(mask.bool(), flat)
