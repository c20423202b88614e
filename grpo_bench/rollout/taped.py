"""A decoder's steps on a processor, recorded and played: which are alike, and whether what is played is right."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from grpo_bench.rollout.plans import Shape
from grpo_bench.rollout.tape import Tape

if TYPE_CHECKING:
    from grpo_bench.rollout.decode import Decoder

PLAIN_STEPS = 8  # alike before one is recorded: to record costs what some eight played steps save (measured)
MANY_STEPS = 32  # where so many may follow, a rollout's first step is recorded
TAPE_BYTES = 2**25  # of what recorded steps of other sizes may hold beside the latest


class TapedSteps:
    """A decoder's steps on a processor: of many alike, one is recorded and those behind it are played.

    Alike are steps of as many rows: all else is read from tensors, and weights change in place. Only the compiled
    attention does that. The first that is played of a size is also computed: a model with operations that no recording
    sees (values read into Python, code that is not torch's) is found there, and computed step by step from then on.
    """

    def __init__(self) -> None:
        self._steps: dict[int, int] = defaultdict(int)  # by rows, computed so far
        self._tapes: dict[int, Tape] = {}  # the one used last at the end
        self._last = 0  # its rows
        self._first: int | None = None  # rows of this rollout's first step
        self._proven: set[int] = set()
        self._weights: list[Any] = []  # where those lie that were recorded, and what it was that buffers held
        self.allowed = True

    def begin(self, model: nn.Module) -> None:
        """A rollout begins: what was recorded of weights that were elsewhere is no longer of use."""
        self._first = None
        weights: list[Any] = [x.data_ptr() for x in model.parameters()]
        weights += [(x.data_ptr(), x._version) for x in model.buffers()]
        if weights != self._weights:
            self._forget()
            self._weights = weights

    def _forget(self) -> None:
        self._tapes.clear()
        self._steps.clear()
        self._proven.clear()

    def size_bytes(self) -> int:
        """Memory that recorded steps hold."""
        return sum(tape.size_bytes for tape in self._tapes.values())

    def memory(self) -> list[Tensor]:
        """That memory; a step writes it before it reads it."""
        return [block for tape in self._tapes.values() for block in tape.memory]

    def __call__(self, decoder: Decoder, shape: Shape) -> None:
        rows = shape.rows
        self._first = self._first or rows
        if rows in self._proven:
            if rows != self._last:
                self._tapes[rows] = self._tapes.pop(rows)
                self._last = rows
            self._tapes[rows].play()
        elif rows in self._tapes:
            self._prove(rows, decoder, shape)
        else:
            self._steps[rows] += 1
            many = rows == self._first and decoder.sampling.max_new_tokens - decoder.now >= MANY_STEPS
            if self.allowed and (many or self._steps[rows] >= PLAIN_STEPS) and not decoder.sized:
                self._record(decoder, shape)
            else:
                decoder.step(shape)

    def _record(self, decoder: Decoder, shape: Shape) -> None:
        before = _moved(decoder)
        try:
            tape = Tape(lambda: decoder.step(shape))
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError, AttributeError, TypeError):  # what no recording can hold
            self.allowed = False
            _put_back(decoder, before)
            decoder.step(shape)
            return
        self.allowed = tape.refused is None and not decoder.sized
        if self.allowed:
            self._tapes[shape.rows] = tape
            while len(self._tapes) > 1 and self.size_bytes() - tape.size_bytes > TAPE_BYTES:
                oldest = next(iter(self._tapes))
                del self._tapes[oldest]
                self._proven.discard(oldest)
                self._steps[oldest] = 0

    def _prove(self, rows: int, decoder: Decoder, shape: Shape) -> None:
        before = _moved(decoder)
        held = decoder.rows[: len(decoder.held)]
        written = [decoder.out, decoder.logps]
        played = [self._tapes[rows].play().clone(), *_moved(decoder), *(x.index_select(0, held) for x in written)]
        _put_back(decoder, before)
        logits = decoder.step(shape)  # writes the same places again
        computed = [logits, *_moved(decoder), *(x.index_select(0, held) for x in written)]
        if all(map(torch.equal, played, computed)):
            self._proven.add(rows)
        else:
            self.allowed = False
            self._forget()


def _moved(decoder: Decoder) -> list[Tensor]:
    """Copies of what a step goes on from."""
    return [x.clone() for x in (decoder.tokens, decoder.counts, decoder.running)]


def _put_back(decoder: Decoder, before: list[Tensor]) -> None:
    for x, was in zip((decoder.tokens, decoder.counts, decoder.running), before, strict=True):
        x.copy_(was)
