"""The C library's heap as steps use it: what one frees stays with the process, in large pages, and the next takes it.

Each step frees and takes the same hundreds of megabytes of activations. Given back to the system in between they are
cleared and mapped again page by page, a large part of a step (measured). Kept, they are only as good as the heap is in
one piece. torch asks for large pages tensor by tensor and lets each begin at a page of its own then: small objects that
live for long settle in the gaps before them, and what is freed between two of those serves no larger tensor. So the
heap asks for them as a whole, ahead of its use. SmolLM2's peak was 0.7 GB lower with that, and its updates took 1.7 to
1.8 s instead of 1.8 to 2.1 (one run of each).

Small objects that are gone divide it too: a thread keeps some of each size for itself (tcache), and what lies on both
sides of such a one does not become one piece again. Without these lists, of which the library hears only when a process
begins, a 3.2M Llama's steps in fp32 took 0.60 GB instead of 0.71 (in bfloat16 0.52 instead of 0.55), and no more time.
"""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from typing import Any

# of mallopt(3) in GNU's C library, and of madvise(2) on Linux
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
MADV_HUGEPAGE = 14
NEVER = -1  # as a threshold: the heap's end is not given back to the system
MAPPED = 2**30  # from this size on a tensor lies outside the heap, and goes back to the system when it is freed
MAPPED_AT_MOST = 2**25  # of versions before 2.35, and where the heap does not ask for large pages
ROOM = 3 * 2**29  # bytes that a step finds at the heap's end
UNMAPPED = 2**31 - 1  # a threshold above it, so that it is taken from the heap
OWN_SETTINGS = (  # a caller's
    "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES",
)  # fmt: skip
OWN_ARENAS = "MALLOC_ARENA_MAX"
AT_START = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}  # what the library reads only then


@dataclass
class _Heap:
    library: Any
    start: int  # of what is in large pages
    end: int  # when room was last made


_heap: _Heap | None = None  # None: it is left as it is


def keep() -> bool:
    """Let the process keep what it frees; whether tensors lie in a heap that asks for large pages.

    They do not where the C library is another one, or an old one, or the caller has set it up, nor where addresses are
    counted (``ulimit -v``): room would be taken from what the process may have.
    """
    global _heap
    if not _glibc() or _has_own_settings():
        return False
    try:
        library = ctypes.CDLL(None)
        library.mallopt.argtypes = [ctypes.c_int, ctypes.c_int]
        library.malloc.argtypes, library.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
        library.free.argtypes = [ctypes.c_void_p]
        library.sbrk.argtypes, library.sbrk.restype = [ctypes.c_ssize_t], ctypes.c_void_p
        library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        if not _own(library.malloc):
            return False
    except (OSError, AttributeError):
        return False
    if OWN_ARENAS not in os.environ:
        library.mallopt(M_ARENA_MAX, 1)  # other threads' tensors would lie outside the heap, mapped anew each time
    library.mallopt(M_TRIM_THRESHOLD, NEVER)
    if _limited() or not library.mallopt(M_MMAP_THRESHOLD, MAPPED):
        library.mallopt(M_MMAP_THRESHOLD, MAPPED_AT_MOST)
        return False
    _heap = _Heap(library, sys.maxsize, 0)
    make_room()  # for the weights
    return True


def at_start() -> dict[str, str]:
    """What the environment of a process that will ``keep`` has to say when it starts, and this one's did not.

    Nothing where the C library is another one, or the caller has set it up.
    """
    if not _glibc() or _has_own_settings():
        return {}
    return {name: value for name, value in AT_START.items() if not os.environ.get(name)}


def make_room() -> None:
    """Let the heap's end have addresses for a step, in large pages where the system has them; fills no memory.

    Nothing happens where ``keep`` was not called or did nothing, and little where the last room lasted.
    """
    if _heap is None or _heap.library.sbrk(0) == _heap.end:
        return
    library = _heap.library
    library.mallopt(M_MMAP_THRESHOLD, UNMAPPED)
    try:
        place = library.malloc(ROOM)
        library.free(place)
    finally:
        library.mallopt(M_MMAP_THRESHOLD, MAPPED)
    _heap.end = library.sbrk(0)
    if place is not None and place + ROOM <= _heap.end:  # else there is no room, or it is elsewhere
        page = os.sysconf("SC_PAGESIZE")
        _heap.start = min(_heap.start, -(-place // page) * page)
        library.madvise(_heap.start, _heap.end - _heap.start, MADV_HUGEPAGE)  # a system without them refuses


def _has_own_settings() -> bool:
    return any(os.environ.get(name) not in (None, "", AT_START.get(name)) for name in OWN_SETTINGS)


def _limited() -> bool:
    import resource  # of Unix

    limits = (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    return any(resource.getrlimit(limit)[0] != resource.RLIM_INFINITY for limit in limits)


def _own(function: Any) -> bool:
    """Whether it is the C library's: another allocator may have been put in its place."""
    of_library = getattr(ctypes.CDLL("libc.so.6"), "malloc")  # noqa: B009 (a function of its own, not the first's)
    return ctypes.cast(function, ctypes.c_void_p).value == ctypes.cast(of_library, ctypes.c_void_p).value


def _glibc() -> bool:
    """Whether the C library is GNU's, on Linux: the numbers that its functions take are its own."""
    try:
        return sys.platform.startswith("linux") and bool(os.confstr("CS_GNU_LIBC_VERSION"))
    except (AttributeError, OSError, ValueError):  # another system, or one that does not know the name
        return False
