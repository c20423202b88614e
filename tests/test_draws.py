"""The embedded task's random numbers are numpy's own."""

from __future__ import annotations

import random

import numpy as np
import pytest

from grpo_bench.tasks.draws import BLOCK, BLOCKS, Draws

WIDTHS = (1, 2, 3, 5, 8, 10, 1000, 2**31 + 1, 3 * 2**30, 2**32 - 1)  # the wide ones are drawn again often


@pytest.mark.parametrize("key", [0, 1, 2**64 - 1, 2**64, 0x0123456789ABCDEF_FEDCBA9876543210, 2**128 - 1])
def test_the_numbers_of_numpy(key: int) -> None:
    ours, theirs = Draws(key), np.random.Generator(np.random.Philox(key=key))
    other = Draws(key + 1 & 2**128 - 1)  # streams do not disturb one another
    order = random.Random(key)
    for _ in range(3 * BLOCK * BLOCKS):  # over the borders of what is fetched at once
        other.random()
        if order.random() < 0.3:
            assert ours.random() == theirs.random()
        else:
            low, width = order.randrange(-5, 6), order.choice(WIDTHS)
            assert ours.integers(low, low + width) == int(theirs.integers(low, low + width))
    assert ours.integers(7) == int(theirs.integers(7))


@pytest.mark.parametrize(("low", "high"), [(3, 3), (3, 2), (0, 2**32)])
def test_no_number_in_an_empty_range(low: int, high: int) -> None:
    with pytest.raises(ValueError, match="holds no number, or too many"):
        Draws(0).integers(low, high)
