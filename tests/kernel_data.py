"""Where tests of the compiled kernels can run, and the kernels' switch put back after each of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from grpo_bench import kernels

needs_compiler = pytest.mark.skipif(not kernels.available(), reason="no C compiler: the forms in torch are used")
needs_tiles = pytest.mark.skipif(not kernels.multiplies(torch.zeros(1, 1)), reason="no AMX on this processor")
needs_training_tiles = pytest.mark.skipif(not kernels.trains(torch.zeros(32, 32)), reason="no AMX on this processor")


@pytest.fixture(autouse=True)
def kernels_on() -> Iterator[None]:
    """For each test of a file that imports this: kernels on, then they and the threads as before."""
    allowed, threads = kernels._allowed, torch.get_num_threads()
    kernels.use(True)
    yield
    kernels.use(allowed)
    torch.set_num_threads(threads)
