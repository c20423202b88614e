"""A rollout on a processor in lanes: which prompts each of them samples, and what they found handed to one thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import closing
from functools import partial
from queue import SimpleQueue

import torch

from grpo_bench import kernels, lanes
from grpo_bench.policy import Policy
from grpo_bench.policy.replica import remembers
from grpo_bench.rollout import Sampling

# Measured on 2 cores, in turns with one lane: 256 rows of a Llama of 3.2M parameters took 0.84 (bfloat16) and 0.92 of
# its time, 128 rows 0.93 and 0.97, 64 rows 1.05 to 1.1: lanes wait for each other's Python, and a step of few rows is
# little else. Where others use the cores too, 256 rows took 0.4 of it: no lane waits for a thread that waits itself.
LANE_ROWS = 64  # of a lane at once
LANE_PARAMETERS = lanes.LEAST_PARAMETERS  # of the model
LANE_BYTES = 2**26  # of its weights at most: each lane reads all of them
EVEN = 0.9  # of the largest share's work, the smallest one's: the other lanes wait for the largest at the end

Found = tuple[list[int], list[list[int]], list[list[float]]]  # rows that ended, their tokens and log-probs
Steps = Generator[Found, None, None]


def shares(
    sampled: Policy, prompts: list[list[int]], group_size: int, sampling: Sampling, rows: int
) -> list[list[int]]:
    """Numbers of the prompts that each lane samples, of a model of which ``rows`` at once are; one share: no lanes."""
    whole = [list(range(len(prompts)))]
    count = lanes.count(sampled.device)
    if count == 1 or rows // count < LANE_ROWS or not worth_lanes(sampled):
        return whole
    found, work = split([len(p) + group_size * sampling.limit(i) for i, p in enumerate(prompts)], count)
    return found if min(work) >= EVEN * max(work) else whole


def worth_lanes(sampled: Policy) -> bool:
    """Whether a model is sampled sooner in lanes, where there are rows enough, and may be."""
    weights = list(sampled.model.parameters())
    if sum(p.numel() for p in weights) < LANE_PARAMETERS or sum(p.nbytes for p in weights) > LANE_BYTES:
        return False
    if not kernels.take(weights[0]):
        return False
    return not remembers(sampled.model)  # lanes have it in common


def split(work: list[int], count: int) -> tuple[list[list[int]], list[int]]:
    """Shares of as many items each, as near as that goes, and of nearly the same work; and the work of each.

    How many items a share has is the same for the next work: what is recorded of so many rows serves again.
    """
    found: list[list[int]] = [[] for _ in range(count)]
    sums = [0] * count
    sizes = [len(work) // count + (i < len(work) % count) for i in range(count)]
    for item in sorted(range(len(work)), key=lambda i: (-work[i], i)):
        share = min((i for i in range(count) if len(found[i]) < sizes[i]), key=lambda i: (sums[i], i))
        found[share].append(item)
        sums[share] += work[item]
    return [sorted(items) for items in found], sums


def in_lanes(steps: list[Steps], tell: Callable[[int, Found], None]) -> None:
    """Take all steps of each lane; ``tell`` is given the lane and what it found, soon, by the calling thread.

    An error in one lane, or in ``tell``, ends the others at their next step.
    """
    queue: SimpleQueue[tuple[int, Found] | None] = SimpleQueue()  # None: a lane ended
    over = threading.Event()
    left = len(steps) - 1

    def hand_on(wait: bool) -> None:
        nonlocal left
        while left and (wait or not queue.empty()):
            if (one := queue.get()) is None:
                left -= 1
            else:
                tell(*one)

    def first() -> None:
        try:
            with closing(steps[0]):
                for found in steps[0]:
                    if found[0]:
                        tell(0, found)
                    hand_on(wait=False)
                    if over.is_set():
                        return
            hand_on(wait=True)
        except BaseException:
            over.set()
            raise

    @torch.no_grad()  # a thread's own
    def other(lane: int) -> None:
        try:
            with closing(steps[lane]):
                for found in steps[lane]:
                    if over.is_set():
                        return
                    if found[0]:
                        queue.put((lane, found))
        except BaseException:
            over.set()
            raise
        finally:
            queue.put(None)

    works: list[Callable[[], None]] = [first, *(partial(other, lane) for lane in range(1, len(steps)))]
    lanes.side_by_side(works)
