"""What this machine can do at most: bytes read per second and matrix FLOPs per second, measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from grpo_bench.kernels import products

SQUARES = {"cpu": (1024, 2048, 3072), "cuda": (4096, 8192)}
READ_BYTES = {"cpu": 2**29, "cuda": 2**31}  # many times what a cache holds


def best_seconds(work: Callable[[], Any], device: torch.device, least: float = 0.4) -> float:
    """Shortest of repeated runs of ``work``, for ``least`` seconds and three times at the least."""
    runs: list[float] = []
    work()
    end = time.perf_counter() + least
    while len(runs) < 3 or time.perf_counter() < end:
        runs.append(seconds(work, device))
    return min(runs)


def seconds(work: Callable[[], Any], device: torch.device, times: int = 1) -> float:
    """Seconds that ``times`` runs of ``work`` take."""
    wait(device)
    start = time.perf_counter()
    for _ in range(times):
        work()
    wait(device)
    return time.perf_counter() - start


def wait(device: torch.device) -> None:
    """Until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of the best large square product, the library's with its default accumulation or this program's own."""
    best = 0.0
    for n in SQUARES[device.type]:
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        out = torch.empty(n, n, device=device, dtype=dtype)

        def product(a: Tensor = a, b: Tensor = b, out: Tensor = out) -> None:
            torch.mm(a, b, out=out)

        ways: list[Callable[[], Any]] = [product]
        if products.multiplies(b, dtype):
            packed = products.pack(b, products.packed_room([b.shape], dtype)[0])

            def own(a: Tensor = a, packed: Tensor = packed, n: int = n) -> None:
                products.multiply(a, packed, n)

            ways.append(own)
        best = max(best, *(2.0 * n**3 / best_seconds(way, device) for way in ways))
    return best


def bandwidth(device: torch.device) -> float:
    """B/s of memory, the better of reading (a sum) and copying (read and written)."""
    count = READ_BYTES[device.type] // 4
    source = torch.ones(count, device=device)
    reading = 4 * count / best_seconds(source.sum, device)
    target = torch.empty_like(source)
    return max(reading, 8 * count / best_seconds(lambda: target.copy_(source), device))


def measure(dtypes: list[str], device: torch.device) -> dict[str, Any]:
    """``{"bandwidth": B/s, "rates": {dtype: FLOP/s}}`` of the device with torch's threads as they are."""
    return {
        "bandwidth": bandwidth(device),
        "rates": {name: matrix_rate(getattr(torch, name), device) for name in dtypes},
    }
