"""What a process that computes wants of its environment and its allocator, said before torch computes."""

from __future__ import annotations

import os

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
