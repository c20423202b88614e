"""Decode steps captured as CUDA graphs: hundreds of small kernels are launched as one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from grpo_bench.rollout.plans import Shape

if TYPE_CHECKING:
    from grpo_bench.rollout.decode import Decoder

WARM_UPS = 2  # libraries choose and allocate in their first calls, which may not be captured


class CapturedSteps:
    """A decoder's steps by shape: the first of a shape is captured, the others are replays of it.

    What a graph reads and writes are the decoder's tensors, in their places; so it stays valid while these and the
    model's parameters are changed in place only.
    """

    def __init__(self) -> None:
        self._graphs: dict[Shape, torch.cuda.CUDAGraph] = {}
        self._pool: Any = None  # one for all: only one of the graphs runs at a time

    def __call__(self, decoder: Decoder, shape: Shape) -> None:
        """Do the step of this shape of ``decoder``, always the same one."""
        if shape not in self._graphs:
            self._graphs[shape] = self._capture(decoder, shape)
        self._graphs[shape].replay()

    def _capture(self, decoder: Decoder, shape: Shape) -> torch.cuda.CUDAGraph:
        moved = (decoder.tokens, decoder.counts, decoder.running)
        before = [x.clone() for x in moved]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                decoder.step(shape)
        torch.cuda.current_stream().wait_stream(side)
        for x, was in zip(moved, before, strict=True):  # all else that the steps wrote is written again
            x.copy_(was)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            decoder.step(shape)
        self._pool = self._pool or graph.pool()
        return graph
