"""Randomness of sampling, keyed by (seed, stream, step, row, position) and never by batch layout.

However rows are batched, reordered or resumed, row i of step s at position t sees the same uniform number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

STREAMS = {"train": 1, "dev": 2, "test": 3, "shuffle": 4, "reward": 5}


def generator(seed: int, stream: str, *counter: int) -> np.random.Generator:
    """A Philox generator (Salmon et al. 2011) at the place that (seed, stream, counter) names."""
    high = [0, *counter] if len(counter) < 4 else list(counter)
    high += [0] * (4 - len(high))
    return np.random.Generator(np.random.Philox(key=[seed, STREAMS[stream]], counter=high))


@dataclass(frozen=True, slots=True)
class Noise:
    """Uniform numbers in [0,1) for the rows of one rollout."""

    seed: int
    stream: Literal["train", "dev", "test"]
    step: int = 0

    def uniforms(self, row: int, length: int) -> np.ndarray:
        """(length,) float64 for the tokens of ``row``."""
        return generator(self.seed, self.stream, row, self.step).random(length)
