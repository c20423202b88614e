"""What ``device: auto`` and ``dtype: auto`` stand for, found without importing torch."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from pathlib import Path


@functools.cache
def cuda_available() -> bool:
    """A CUDA device is visible and the installed torch was built for CUDA.

    Asks the driver, as torch would: the process that starts the jobs of a sweep can then name their device (and the
    dtype that is part of a run's identity) without paying for torch and without holding the GPU.
    """
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None or not any((Path(torch.origin).parent / "lib").glob("*torch_cuda.*")):
        return False
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def resolve_device(device: str) -> str:
    """auto -> cuda where there is one, else cpu."""
    return ("cuda" if cuda_available() else "cpu") if device == "auto" else device


def resolve_dtype(dtype: str, device: str) -> str:
    """auto -> bfloat16 on cuda, float32 on the CPU (dtype of compute; master weights are float32 always)."""
    return ("bfloat16" if device == "cuda" else "float32") if dtype == "auto" else dtype
