"""What a process that computes wants of its environment; read when torch is imported, so set before."""

from __future__ import annotations

import os

# Threads that spin for long while they wait make a shared machine many times slower; threads that sleep at once make
# small operations on a quiet one twice as slow. So they spin for some ten microseconds (GNU's OpenMP; measured).
# Pages of 2 MiB for large tensors: a page fault per 4 KiB took an eighth of a training step.
PROCESS_DEFAULTS = {"GOMP_SPINCOUNT": "20000", "THP_MEM_ALLOC_ENABLE": "1"}


def prepare_process() -> None:
    """Set the defaults that the caller has not set; torch must not have been imported yet."""
    for name, value in PROCESS_DEFAULTS.items():
        os.environ.setdefault(name, value)
