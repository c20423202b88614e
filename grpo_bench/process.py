"""What a process that computes wants of its environment and its allocator, said before torch computes."""

from __future__ import annotations

import contextlib
import os
import sys

from grpo_bench import heap

# Threads that spin for long while they wait make a shared machine many times slower; threads that sleep at once make
# small operations on a quiet one twice as slow. So they spin for some ten microseconds (GNU's OpenMP; measured).
SPINNING = {"GOMP_SPINCOUNT": "20000"}
# Where the heap is not in large pages, large tensors ask for some of their own: a page fault per 4 KiB took an eighth
# of a training step.
LARGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}


def prepare_process() -> None:
    """Set the defaults that the caller has not set; torch must not have computed yet."""
    for name, value in (SPINNING if heap.keep() else SPINNING | LARGE_PAGES).items():
        os.environ.setdefault(name, value)


def start_again() -> None:
    """Put the same program in this process's place, with what the C library reads at its start and was not told.

    For a program's first lines: it begins anew, under the same number, as the same command. Nothing happens where the
    library was told, is another one, or was set up by the caller; a system that refuses goes on as it is.
    """
    more = heap.at_start()
    if more and sys.executable and len(sys.orig_argv) > 1:
        with contextlib.suppress(OSError):
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **more})
