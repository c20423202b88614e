"""Randomness of sampling, keyed by (seed, stream, step, draw, row, position) and never by batch layout.

However rows are batched, reordered or resumed, row i of a draw of step s at position t sees the same uniform number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

STREAMS = {"train": 1, "dev": 2, "test": 3, "shuffle": 4, "reward": 5, "branch": 6}


def generator(seed: int, stream: str, *counter: int) -> np.random.Generator:
    """A Philox generator (Salmon et al. 2011) at the place that (seed, stream, counter) names."""
    high = [0, *counter] if len(counter) < 4 else list(counter)
    high += [0] * (4 - len(high))
    return np.random.Generator(np.random.Philox(key=[seed, STREAMS[stream]], counter=high))


@dataclass(frozen=True, slots=True)
class Noise:
    """Uniform numbers in [0,1) for the rows of one rollout.

    ``draw`` tells the rollouts of one step apart. ``rows`` names the rows where their place in the rollout depends on
    what was sampled before: a row's numbers then stay its own.
    """

    seed: int
    stream: Literal["train", "dev", "test", "branch"]
    step: int = 0
    draw: int = 0
    rows: tuple[int, ...] | None = None

    def uniforms(self, row: int, length: int) -> np.ndarray:
        """(length,) float64 for the tokens of ``row``."""
        name = row if self.rows is None else self.rows[row]
        return generator(self.seed, self.stream, name, self.step, self.draw).random(length)
