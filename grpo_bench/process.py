"""What a process that computes wants of its environment and its allocator, said before torch computes."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from pathlib import Path

from grpo_bench import heap

# Threads that spin for long while they wait make a shared machine many times slower; threads that sleep at once make
# small operations on a quiet one twice as slow. So they spin for some ten microseconds (GNU's OpenMP; measured).
SPINNING = {"GOMP_SPINCOUNT": "20000"}
# Where the heap is not in large pages, large tensors ask for some of their own: a page fault per 4 KiB took an eighth
# of a training step.
LARGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}

BEGUN = "GRPO_BENCH_BEGUN"  # environment: the process that started once more
SCRIPT = "grpo-bench"  # the command that an installation makes


def prepare_process() -> None:
    """Set the defaults that the caller has not set; torch must not have computed yet."""
    for name, value in (SPINNING if heap.keep() else SPINNING | LARGE_PAGES).items():
        os.environ.setdefault(name, value)


def start_again() -> None:
    """Put the same program in this process's place, with what the C library reads at its start and was not told.

    For a program's first lines: it begins anew, under the same number, as the same command. Nothing happens where the
    library was told, is another one, or was set up by the caller, nor where more than this program would begin anew:
    under a debugger, or in a process that others use; a system that refuses goes on as it is.
    """
    more = heap.at_start()
    begun = os.environ.get(BEGUN) == str(os.getpid())  # in vain: something takes the setting away
    if not more or begun or not _is_the_program():
        return
    with contextlib.suppress(OSError):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **more, BEGUN: str(os.getpid())})


def _is_the_program() -> bool:
    """Whether the process is this package's command and has nothing else in it yet."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)  # of python -m
    name = spec.name if spec is not None else Path(getattr(main, "__file__", None) or "").stem
    own = name.partition(".")[0] == "grpo_bench" or name == SCRIPT
    alone = threading.active_count() == 1 and sys.gettrace() is None and "torch" not in sys.modules
    return own and alone and bool(sys.executable) and len(sys.orig_argv) > 1
