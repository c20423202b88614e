"""How rows of a batch reach the models: prompt, completion, padding, from the left edge.

A causal model needs no attention mask then, and positions start at 0 for every row. Algorithms see (B,T) only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_bench.types import Batch


@dataclass(frozen=True, slots=True)
class Layout:
    """Some rows of a batch as the models read them: ids (b,L) padded on the right, and where completions stand.

    ``positions`` (N,) are flat indices into (b·L) of the states that predict the N completion tokens ``targets`` (N,),
    row by row; ``mask`` (b,T) is the batch's, on the same rows.
    """

    ids: Tensor
    positions: Tensor
    targets: Tensor
    mask: Tensor


def layout(batch: Batch, rows: Tensor) -> Layout:
    """The rows' prompts and masked tokens, moved to the left edge and cut to the longest of them."""
    mask = batch.mask[rows]
    tokens = batch.tokens[rows]
    width = tokens.shape[1] - mask.shape[1]
    device = tokens.device
    prompts = batch.prompt_lengths[rows] if batch.prompt_lengths is not None else torch.full_like(rows, width)
    lengths = mask.sum(1).long()
    longest = int((prompts + lengths).max())
    columns = torch.arange(longest, device=device)[None, :] + (width - prompts)[:, None]
    ids = tokens.gather(1, columns.clamp(max=tokens.shape[1] - 1))
    on = mask.bool()
    t = torch.arange(mask.shape[1], device=device)[None, :]
    first = torch.arange(len(rows), device=device)[:, None] * longest + prompts[:, None] - 1
    return Layout(ids, (first + t)[on], tokens[:, width:][on], mask)


def spread(flat: Tensor, mask: Tensor) -> Tensor:
    """(N,) values of the masked tokens, row by row -> (b,T), zero outside the mask."""
    out = torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device)
    return out.masked_scatter(mask.bool(), flat)
