"""Where tests of the compiled kernels can run, and the kernels' switch put back after each of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from grpo_bench import kernels
from grpo_bench.kernels import products

needs_compiler = pytest.mark.skipif(not kernels.available(), reason="no C compiler: the forms in torch are used")
needs_tiles = pytest.mark.skipif(
    not products.multiplies(torch.zeros(1, 1)), reason="no AMX and no AVX512_BF16 on this processor"
)
needs_vectors = pytest.mark.skipif(
    not products.multiplies(torch.zeros(1, 1), torch.float32), reason="no AVX-512 on this processor"
)
PRODUCTS = [pytest.param(torch.float32, marks=needs_vectors), pytest.param(torch.bfloat16, marks=needs_tiles)]
needs_training_tiles = pytest.mark.skipif(
    not products.trains(torch.zeros(32, 32)), reason="no AMX and no AVX512_BF16 on this processor"
)


def packed(weight: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """``weight`` packed by itself."""
    return products.pack(weight, products.packed_room([weight.shape], dtype)[0])


@pytest.fixture(autouse=True)
def kernels_on() -> Iterator[None]:
    """For each test of a file that imports this: kernels on, then they and the threads as before."""
    allowed, threads = kernels._allowed, torch.get_num_threads()
    kernels.use(True)
    yield
    kernels.use(allowed)
    torch.set_num_threads(threads)


@pytest.fixture(params=[False, pytest.param(True, marks=needs_vectors)], ids=["torch's fp32", "own fp32"])
def own_fp32(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether training's products in fp32 are made here, on a processor of any vendor."""
    chosen: bool = request.param
    has = products._has_weight_gradient
    monkeypatch.setattr(products, "_has_weight_gradient", lambda t: chosen if t == torch.float32 else has(t))
    return chosen
