"""A practical floor: the time of exactly a step's linear layers, same shapes, same weights, nothing between them.

Products of attention are left out; what is left is what every implementation of the model has to multiply. In each of
the ways that this program has: a decode step's with packed weights, those of one input as one, played from a tape or
not; in an update the gradients of weights in bfloat16, or all products in fp32, by its own; in bfloat16 those of one
input as one, or not; all threads on one product after the other, or lanes that share out the work. The fastest counts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from grpo_bench.kernels import products
from grpo_bench.lanes import side_by_side
from grpo_bench.policy.linear import SIBLINGS
from grpo_bench.rollout.packed_linear import packs
from grpo_bench.rollout.tape import Tape
from grpo_bench.speed.machine import best_seconds, seconds

SLOWER = 1.3  # times the fastest way's shortest time: a way that takes longer is not timed again

Way = Callable[[int], None]  # does the work so many times
Layers = list[list[Tensor]]  # (out, in) weights of the layers of one input, in a list for each input


def _layers(model: Any, dtype: torch.dtype) -> tuple[Layers, Tensor]:
    """The trunk's linear layers and the head, in ``dtype``."""
    head, out, seen = model.get_output_embeddings(), Layers(), set[int]()
    for module in model.modules():
        for names in SIBLINGS:
            layers: list[Any] = [getattr(module, name, None) for name in names]
            if all(isinstance(layer, nn.Linear) for layer in layers):
                out.append([layer.weight.detach().to(dtype) for layer in layers])
                seen |= {id(layer) for layer in layers}
        if isinstance(module, nn.Linear) and module is not head and id(module) not in seen:
            out.append([module.weight.detach().to(dtype)])
    return out, head.weight.detach().to(dtype)


class Alone:
    """Some work in several ways, timed again and again: the fastest is what counts each time."""

    def __init__(self, ways: list[Way], device: torch.device) -> None:
        self._device = device
        self._found = {way: best_seconds(partial(way, 1), device) for way in ways}

    @torch.no_grad()
    def seconds(self, times: int = 1) -> float:
        """Seconds that so many of it take now."""
        near = [way for way, least in self._found.items() if least <= SLOWER * self.best]
        return min(seconds(partial(way, times), self._device) for way in near)

    @property
    def best(self) -> float:
        """The shortest time of one."""
        return min(self._found.values())


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
def decode_step(model: Any, rows: int, dtype: torch.dtype, lanes: int = 1) -> Alone:
    """One decode step's products: ``rows`` tokens through every linear layer and the head."""
    trunk, head = _layers(model, dtype)
    layers = [*trunk, [head]]
    weights, device = list(chain.from_iterable(layers)), head.device
    inputs = {w.shape[1]: torch.randn(rows, w.shape[1], dtype=dtype, device=device) for w in weights}

    def plain() -> None:
        for w in weights:
            nn.functional.linear(inputs[w.shape[1]], w)

    ways: list[Way] = [partial(_repeat, _captured(plain, device))]
    if packs(model, dtype):
        whole = [torch.cat(some) for some in layers]
        rooms = products.packed_room([w.shape for w in whole], dtype)
        packed = [(products.pack(w, room), *w.shape) for w, room in zip(whole, rooms, strict=True)]

        plays = dict[tuple[int, int], Callable[[], Tensor]]()

        def multiply(lane: int, of: int) -> Tensor:
            part = slice(rows * lane // of, rows * (lane + 1) // of)
            made = [products.multiply(inputs[depth][part], w, columns) for w, columns, depth in packed]
            return made[-1]

        def play(lane: int, of: int) -> None:  # all of them by one call, as rollouts make them
            if (lane, of) not in plays:  # by the lane itself, which has threads of its own
                plays[lane, of] = _played(partial(multiply, lane, of))
            plays[lane, of]()

        ways += [partial(_in_lanes, way, count) for way in (multiply, play) for count in {1, lanes}]
    return Alone(ways, device)


@torch.no_grad()
def update(model: Any, sizes: dict[int, tuple[int, int, int]], dtype: torch.dtype) -> Alone:
    """An update's products, forward, and backward to inputs and weights.

    ``sizes``, by the number of lanes: micro-batches of each, their tokens, and how many of these the head takes.
    """
    trunk, head = _layers(model, dtype)
    device = head.device
    trunks = [(trunk, False)]
    own = products.trains(torch.empty(products.NARROW, products.NARROW, device=device), dtype)
    if own and dtype == torch.float32:
        trunks.append((trunk, True))
    elif own:  # its layers of one input by themselves, and as one
        trunks += [(trunk, True), ([[torch.cat(layers)] if len(layers) > 1 else layers for layers in trunk], True)]
    widths = {n for layers, _ in trunks for w in [*chain.from_iterable(layers), head] for n in w.shape}
    ways: list[Way] = []
    for lanes, (parts, tokens, headed) in sizes.items():
        data = [
            {(m, n): torch.randn(m, n, dtype=dtype, device=device) for m in {tokens, headed} for n in widths}
            for _ in range(lanes)
        ]
        for inputs, kernel in trunks:

            def multiply(
                lane: int,
                of: int,
                data: Any = data,
                inputs: Layers = inputs,
                kernel: bool = kernel,
                sizes: Any = (parts, tokens, headed),
            ) -> None:
                parts, tokens, headed = sizes
                for _ in range(parts):
                    for layers in inputs:
                        _train(layers, data[lane], tokens, kernel)
                    _train([head], data[lane], headed, kernel)

            ways.append(partial(_in_lanes, multiply, lanes))
    return Alone(ways, device)


def _train(layers: list[Tensor], data: dict[tuple[int, int], Tensor], rows: int, kernel: bool) -> None:
    """Layers of one input, as ``policy.linear`` and ``policy.decoder_layer`` have them."""
    x, grads = data[rows, layers[0].shape[1]], [data[rows, w.shape[0]] for w in layers]
    if kernel and x.dtype == torch.float32:
        for w, grad in zip(layers, grads, strict=True):
            products.linear(x, w)
            products.input_gradient(grad, w)
        products.weight_gradients(grads, x)
        return
    for w in layers:
        nn.functional.linear(x, w)
    total = grads[0] @ layers[0]
    for w, grad in zip(layers[1:], grads[1:], strict=True):
        if kernel:
            torch.addmm(total, grad, w, out=total)
        else:
            torch.mm(grad, w)
    if kernel:
        products.weight_gradients(grads, x)
    else:
        for grad in grads:
            torch.mm(grad.t(), x)


def _played(work: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The same from a tape; ``work`` itself where it cannot be recorded, as the tape would then do nothing."""
    tape = Tape(work)
    return work if tape.refused is not None else tape.play


def _repeat(work: Callable[[], None], times: int) -> None:
    for _ in range(times):
        work()


def _in_lanes(work: Callable[[int, int], Any], lanes: int, times: int) -> None:
    """``work`` of each lane, ``times`` times; they meet at the end."""
    side_by_side([partial(_repeat, torch.no_grad()(partial(work, lane, lanes)), times) for lane in range(lanes)])
