"""Random numbers one at a time, as numpy's ``Generator`` draws them and several times faster.

A scalar call of numpy takes microseconds, and the embedded task draws half a million numbers before a run has begun.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

BLOCK = 32  # words fetched from numpy at once: about what one problem takes
BLOCKS = 64  # times as many from the second fetch on: what takes more takes many
PER_COUNT = 4  # words that Philox makes of one value of its counter

_BITS = np.random.Philox(key=0)  # put to each place by itself: a new one asks the system for entropy, which is slow
_LOCK = threading.Lock()


def _words(key: int, place: int, count: int) -> list[int]:
    """Words ``place`` and following, a multiple of ``PER_COUNT``, of the stream of a 128-bit key."""
    state: Any = {
        "bit_generator": "Philox",
        "state": {"counter": (place // PER_COUNT, 0, 0, 0), "key": (key & (1 << 64) - 1, key >> 64)},
        "buffer": (0, 0, 0, 0), "buffer_pos": PER_COUNT, "has_uint32": 0, "uinteger": 0,
    }  # fmt: skip
    with _LOCK:
        _BITS.state = state
        return _BITS.random_raw(count).tolist()


class Draws:
    """``numpy.random.Generator(numpy.random.Philox(key=key))``, of which it gives the very numbers.

    ``integers`` by Lemire's method on 32 bits (arXiv:1805.10941), two to a word of the bit generator; ``random`` from
    the upper 53 bits of a word of its own.
    """

    def __init__(self, key: int) -> None:
        self._key, self._place = key, BLOCK
        self._next = iter(_words(key, 0, BLOCK)).__next__
        self._half: int | None = None  # of a word whose other half is used

    def _word(self) -> int:
        try:
            return self._next()
        except StopIteration:
            self._next = iter(_words(self._key, self._place, BLOCK * BLOCKS)).__next__
            self._place += BLOCK * BLOCKS
            return self._next()

    def _bits32(self) -> int:
        if self._half is not None:
            half, self._half = self._half, None
            return half
        word = self._word()
        self._half = word >> 32
        return word & 0xFFFFFFFF

    def integers(self, low: int, high: int | None = None) -> int:
        """Uniform in [low, high), in [0, low) without ``high``; the width is below 2³²."""
        if high is None:
            low, high = 0, low
        width = high - low
        if not 0 < width < 1 << 32:
            raise ValueError(f"[{low}, {high}) holds no number, or too many")
        if width == 1:
            return low
        product = self._bits32() * width
        if product & 0xFFFFFFFF < width:
            least = (0x1_0000_0000 - width) % width
            while product & 0xFFFFFFFF < least:
                product = self._bits32() * width
        return low + (product >> 32)

    def random(self) -> float:
        """Uniform in [0, 1)."""
        return (self._word() >> 11) * 2.0**-53
