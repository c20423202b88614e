"""Memory that stays where it is without being held: what recorded steps point to, between two rollouts."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterable
from functools import cache
from typing import Any

from torch import Tensor

MADV_DONTNEED = 4  # of Linux


@cache
def _madvise() -> Any:
    """The C library's function; None where it would mean something else."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        function = ctypes.CDLL(None, use_errno=True).madvise
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function


def can_give_back() -> bool:
    """Whether ``give_back`` does anything on this system."""
    return _madvise() is not None


def give_back(tensors: Iterable[Tensor]) -> bool:
    """Give whole pages of these CPU tensors to the system, which puts zeros there when they are next used.

    They are dense, and nobody reads them before they are written again. Those that lie side by side go as one: a page
    that stays between them would break a large page up. False where the system refused some (locked memory): these are
    as they were.
    """
    runs: list[list[int]] = []
    for x in sorted(tensors, key=Tensor.data_ptr):
        assert x.is_contiguous()
        assert x.device.type == "cpu"
        if runs and x.data_ptr() <= runs[-1][1]:
            runs[-1][1] = max(runs[-1][1], x.data_ptr() + x.nbytes)
        else:
            runs.append([x.data_ptr(), x.data_ptr() + x.nbytes])
    page, done = mmap.PAGESIZE, True
    for start, end in runs:
        first, last = -(-start // page) * page, end // page * page
        if first < last:
            done &= _madvise()(first, last - first, MADV_DONTNEED) == 0
    return done
