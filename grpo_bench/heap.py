"""The C library's heap as steps use it: what one frees stays with the process, in large pages, and the next takes it.

Each step frees and takes the same hundreds of megabytes of activations. Given back to the system in between they are
cleared and mapped again page by page, a large part of a step (measured). Kept, they are only as good as the heap is in
one piece: tensors that begin at a page of their own leave a gap before each, where small objects settle that live for
long, and what is freed between two of those serves no larger one. So tensors do not ask for large pages themselves
(torch lays them out by pages then); the whole heap does, ahead of its use. SmolLM2's peak was
0.7 GB lower and its updates took 1.7 to 1.8 s instead of 1.8 to 2.1 (one run of each).
"""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from typing import Any

# of mallopt(3) in GNU's C library, and of madvise(2) on Linux
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
MMAP_MAX = 65536  # its default
MADV_HUGEPAGE = 14
KEPT = 2**31 - 1  # bytes at the heap's end that stay with the process when they are free
MAPPED = 2**30  # from this size on a tensor lies outside the heap, and goes back to the system when it is freed
MAPPED_AT_MOST = 2**25  # of versions before 2.35
ROOM = 3 * 2**29  # bytes that a step finds at the heap's end; more than ``KEPT`` would be given back at once
OWN_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")  # the caller's environment


@dataclass
class _Heap:
    library: Any
    end: int = 0  # when room was last made


_heap: _Heap | None = None  # None: it is left as it is


def keep() -> bool:
    """Let the process keep what it frees; False where the C library is another one, or the caller has set it up."""
    global _heap
    if not _glibc() or any(name in os.environ for name in OWN_SETTINGS):
        return False
    try:
        library = ctypes.CDLL(None)
        library.mallopt(M_TRIM_THRESHOLD, KEPT)
        if not library.mallopt(M_MMAP_THRESHOLD, MAPPED):
            library.mallopt(M_MMAP_THRESHOLD, MAPPED_AT_MOST)
        library.malloc.argtypes, library.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
        library.free.argtypes = [ctypes.c_void_p]
        library.sbrk.argtypes, library.sbrk.restype = [ctypes.c_ssize_t], ctypes.c_void_p
        library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    except (OSError, AttributeError):  # another allocator may have been put in its place
        return False
    _heap = _Heap(library)
    return True


def make_room() -> None:
    """Let the heap's end have addresses for a step, in large pages where the system has them; takes no memory.

    Nothing happens where ``keep`` was not called or did nothing, and little where the last room lasted.
    """
    if _heap is None or _heap.library.sbrk(0) == _heap.end:
        return
    library = _heap.library
    library.mallopt(M_MMAP_MAX, 0)  # so much would be mapped otherwise
    place = library.malloc(ROOM)
    library.free(place)
    library.mallopt(M_MMAP_MAX, MMAP_MAX)
    end = library.sbrk(0) or 0
    if place is None or place + ROOM > end:  # no room, or none there
        _heap.end = end
        return
    first = min(_heap.end or place, place)  # with what was added since
    first += -first % os.sysconf("SC_PAGESIZE")
    library.madvise(first, end - first, MADV_HUGEPAGE)  # a system without them refuses
    _heap.end = end


def _glibc() -> bool:
    """Whether the C library is GNU's, on Linux: the numbers that its functions take are its own."""
    try:
        return sys.platform.startswith("linux") and bool(os.confstr("CS_GNU_LIBC_VERSION"))
    except (AttributeError, OSError, ValueError):  # another system, or one that does not know the name
        return False
