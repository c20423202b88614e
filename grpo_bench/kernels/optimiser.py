"""The norm of gradients and AdamW on fp32 weights on a CPU: see ``optimiser.c``."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from grpo_bench import kernels
from grpo_bench.kernels import _library, _threads


def takes(tensors: Sequence[Tensor]) -> bool:
    """Whether these are dense, in fp32 and on a CPU whose kernels are used."""
    dense = all(x.device.type == "cpu" and x.dtype == torch.float32 and x.is_contiguous() for x in tensors)
    return dense and kernels.available()


def _addresses(tensors: list[Tensor]) -> Any:
    return array("q", [x.data_ptr() for x in tensors])


def _counts(tensors: list[Tensor]) -> Any:
    return array("q", [x.numel() for x in tensors])


def norm(grads: list[Tensor], others: Sequence[Tensor | None] | None = None) -> float:
    """The Euclidean norm of all of their elements; where there are ``others`` of their sizes these are added first, in
    place."""
    assert others is None or all(y is None or y.numel() == x.numel() for x, y in zip(grads, others, strict=True))
    library: Any = _library()
    places, counts = _addresses(grads), _counts(grads)
    added = array("q", [0 if y is None else y.data_ptr() for y in others or [None] * len(grads)])
    sizes = counts.buffer_info()[0], len(grads)
    sums = torch.empty(library.squared_sums(*sizes), dtype=torch.float64)
    both = places.buffer_info()[0], added.buffer_info()[0]
    total = library.squared_sum(*both, *sizes, sums.data_ptr(), _threads(sum(counts)))
    return math.sqrt(total)


def adamw(
    weights: list[Tensor], grads: list[Tensor], means: list[Tensor], squares: list[Tensor], scale: float, step: int,
    lr: float, betas: tuple[float, float], eps: float, decay: float,
) -> None:  # fmt: skip
    """The ``step``-th step, from 1, of ``torch.optim.AdamW`` with gradients times ``scale``; all in place."""
    assert all(a.numel() == b.numel() for xs in (grads, means, squares) for a, b in zip(weights, xs, strict=True))
    library: Any = _library()
    places = [_addresses(x) for x in (weights, grads, means, squares)]
    counts = _counts(weights)
    library.adamw(
        *(x.buffer_info()[0] for x in places), counts.buffer_info()[0], len(weights), scale, betas[0], 1 - betas[0],
        betas[1], 1 - betas[1], 1 - lr * decay, lr / (1 - betas[0] ** step), math.sqrt(1 - betas[1] ** step), eps,
        _threads(sum(counts)),
    )  # fmt: skip
