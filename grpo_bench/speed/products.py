"""A practical floor: the time of exactly a step's linear layers, same shapes, same weights, nothing between them.

Products of attention are left out; what is left is what every implementation of the model has to multiply. As the
fastest of the ways that this program has: a decode step's with packed weights, those of one input as one, where it
samples so, and the gradients of weights by its own product, where it trains so.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from grpo_bench.kernels import products
from grpo_bench.policy.linear import SIBLINGS
from grpo_bench.rollout.packed_linear import packs
from grpo_bench.speed.machine import best_seconds


def _weights(model: Any, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """(out, in) weights of the trunk's linear layers and of the head, in ``dtype``."""
    head = model.get_output_embeddings()
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    trunk = [m.weight.detach().to(dtype) for m in linear if m is not head]
    return trunk, [head.weight.detach().to(dtype)]


def _together(model: Any, dtype: torch.dtype) -> list[Tensor]:
    """The trunk's weights, those of layers of one input as one."""
    head, out, seen = model.get_output_embeddings(), list[Tensor](), set[int]()
    for module in model.modules():
        for names in SIBLINGS:
            layers = [getattr(module, name, None) for name in names]
            if all(isinstance(layer, nn.Linear) for layer in layers):
                out.append(torch.cat([layer.weight.detach().to(dtype) for layer in layers]))  # type: ignore[union-attr]
                seen |= {id(layer) for layer in layers}
        if isinstance(module, nn.Linear) and module is not head and id(module) not in seen:
            out.append(module.weight.detach().to(dtype))
    return out


def _captured(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """As a CUDA graph, so that launching is not what is timed."""
    if device.type != "cuda":
        return work
    work()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


@torch.no_grad()
def decode_step(model: Any, rows: int, dtype: torch.dtype) -> Callable[[], None]:
    """One decode step's products, the fastest way: ``rows`` tokens through every linear layer and the head."""
    trunk, head = _weights(model, dtype)
    device = head[0].device
    inputs = {w.shape[1]: torch.randn(rows, w.shape[1], dtype=dtype, device=device) for w in trunk + head}

    def work() -> None:
        for w in trunk + head:
            nn.functional.linear(inputs[w.shape[1]], w)

    if not packs(model, dtype):
        return _captured(work, device)
    few = _together(model, dtype) + head
    rooms = products.packed_room([w.shape for w in few], dtype)
    packed = [(products.pack(w, room), *w.shape) for w, room in zip(few, rooms, strict=True)]

    def packed_work() -> None:
        for w, columns, depth in packed:
            products.multiply(inputs[depth], w, columns)

    return _fastest([work, packed_work], device)


@torch.no_grad()
def update(
    model: Any, tokens: int, headed: int, micro_batch: int, chunk: int, dtype: torch.dtype
) -> Callable[[], None]:
    """An update's products, the fastest way: forward, and backward to inputs and weights, for ``tokens`` tokens.

    The trunk takes at most ``micro_batch`` tokens at once, the head ``chunk`` of the ``headed`` ones.
    """
    trunk, head = _weights(model, dtype)
    device = head[0].device
    of_trunk = _passes(trunk, tokens, micro_batch, dtype, device)
    of_head = _passes(head, headed, chunk, dtype, device)

    def work() -> None:
        of_trunk()
        of_head()

    return work


def _passes(
    weights: list[Tensor], tokens: int, most: int, dtype: torch.dtype, device: torch.device
) -> Callable[[], None]:
    parts = max(-(-tokens // max(most, 1)), 1)
    count = -(-tokens // parts)
    widths = {n for w in weights for n in w.shape}
    data = {n: torch.randn(count, n, dtype=dtype, device=device) for n in widths}

    def once(own: bool) -> None:
        for w in weights:
            x, gradient = data[w.shape[1]], data[w.shape[0]]
            nn.functional.linear(x, w)
            torch.mm(gradient, w)
            if own:
                products.weight_gradient(gradient, x)
            else:
                torch.mm(gradient.t(), x)

    ways = [False, True] if dtype == torch.bfloat16 and products.trains(torch.empty(1, 1, device=device)) else [False]
    fastest = _fastest([functools.partial(once, own) for own in ways], device)

    def work() -> None:
        for _ in range(parts):
            fastest()

    return work


def _fastest(ways: list[Callable[[], None]], device: torch.device) -> Callable[[], None]:
    return ways[0] if len(ways) == 1 else min(ways, key=lambda way: best_seconds(way, device))
