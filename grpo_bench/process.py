"""What a process that computes wants of its environment and its allocator, said before torch computes."""

from __future__ import annotations

import ctypes
import os

# Threads that spin for long while they wait make a shared machine many times slower; threads that sleep at once make
# small operations on a quiet one twice as slow. So they spin for some ten microseconds (GNU's OpenMP; measured).
# Pages of 2 MiB for large tensors: a page fault per 4 KiB took an eighth of a training step.
PROCESS_DEFAULTS = {"GOMP_SPINCOUNT": "20000", "THP_MEM_ALLOC_ENABLE": "1"}
# of mallopt(3) in GNU's C library
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT = 2**31 - 1  # bytes of freed memory that stay with the process
MAPPED = 32 << 20  # from this size on memory is given back to the system when it is freed, as by default in the end
ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": str(KEPT), "MALLOC_MMAP_THRESHOLD_": str(MAPPED)}  # the same, of a new process


def prepare_process() -> None:
    """Set the defaults that the caller has not set; torch must not have computed yet."""
    for name, value in PROCESS_DEFAULTS.items():
        os.environ.setdefault(name, value)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Each step frees and takes the same hundreds of megabytes of activations. Given back to the system in between they
    are cleared and mapped again, page by page: a step of PPO in bfloat16 with a critic of its own took 11.8 s with that
    and 7.6 s without (one run of each, on a machine with other work)."""
    if not _glibc() or any(name in os.environ for name in (*ALLOCATOR, "GLIBC_TUNABLES")):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another allocator may have been put in its place
        return
    mallopt(M_MMAP_THRESHOLD, MAPPED)
    mallopt(M_TRIM_THRESHOLD, KEPT)


def _glibc() -> bool:
    """Whether the C library is GNU's: the numbers that its mallopt takes are its own."""
    try:
        return bool(os.confstr("CS_GNU_LIBC_VERSION"))
    except (AttributeError, OSError, ValueError):  # another system, or one that does not know the name
        return False
