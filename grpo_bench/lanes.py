"""Work on a processor side by side: each lane has its share of the threads, and waits for no other within an operation.

What lies between the operations of a small model, and what of them one thread does, keeps the other threads waiting;
so do two threads of one operation that are not equally fast. Two lanes of half the threads each do the same work on
halves of it, and meet at its end.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from typing import TypeVar

import torch

T = TypeVar("T")
LANES = 2  # more would need more copies of the gradients, and meet less balanced
LEAST_PARAMETERS = 2 * 10**6  # of a smaller model a lane's Python takes as long as what it computes


def count(device: torch.device) -> int:
    """Lanes that work on ``device`` is worth: 1 where it has no threads to share out."""
    threads = torch.get_num_threads()
    return LANES if device.type == "cpu" and threads >= LANES and threads % LANES == 0 else 1


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(LANES - 1, "lane")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # its threads are the parent's


def side_by_side(works: Sequence[Callable[[], T]]) -> list[T]:
    """What each of them returns, the first computed by this thread; all have ended when one's error is raised."""
    if len(works) <= 1:
        return [work() for work in works]
    threads = torch.get_num_threads()
    share = threads // len(works)

    def own(work: Callable[[], T]) -> T:
        torch.set_num_threads(share)  # a thread's own
        return work()

    others: list[Future[T]] = []
    found: list[T] = []
    try:
        try:
            torch.set_num_threads(share)
            others += [_pool().submit(own, work) for work in works[1:]]
            found.append(works[0]())
        finally:
            try:
                wait(others)
            finally:
                torch.set_num_threads(threads)
        while others:
            found.append(others.pop(0).result())
        return found
    finally:  # an error knows this frame: what lanes hold would live for as long as somebody holds the error
        others.clear()
        found = []
