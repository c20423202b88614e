"""Which jobs of a sweep may run side by side on one machine."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from grpo_bench.resources import Machine

RESERVE = 0.05  # of the machine's memory, left to everybody else


@dataclass(frozen=True, slots=True)
class Need:
    """What a job takes: cores; bytes of memory and of a GPU's memory (0: none, or not known)."""

    cores: int
    memory: int
    on_gpu: bool = False
    gpu_memory: int = 0


@dataclass(frozen=True, eq=False, slots=True)
class Place:
    """Where a job runs; ``gpu`` is None on a CPU."""

    need: Need
    gpu: str | None


class Room:
    """The places of one machine.

    At most ``parallel`` jobs; ``auto``: as many as have a core for each of their threads. Either way a job enters only
    if its memory is free and, on a GPU, if fewer than ``per_gpu`` jobs are on one.
    """

    def __init__(self, machine: Machine, parallel: int | Literal["auto"], per_gpu: int = 1) -> None:
        self.machine, self.parallel, self.per_gpu = machine, parallel, per_gpu
        self.inside: list[Place] = []

    @property
    def full(self) -> bool:
        """No job enters whatever it needs."""
        return isinstance(self.parallel, int) and len(self.inside) >= self.parallel

    def enter(self, need: Need, free: int) -> Place | None:
        """A place for the job, None as long as there is none; ``free`` are bytes that no job inside will want."""
        if self.full:
            return None
        cores = sum(place.need.cores for place in self.inside) + need.cores
        if self.parallel == "auto" and self.inside and cores > self.machine.cores:
            return None
        if need.memory > free - int(RESERVE * self.machine.memory):
            return None
        gpu = None
        if need.on_gpu and self.machine.gpus:
            gpu = self._gpu(need)
            if gpu is None:
                return None
        place = Place(need, gpu)
        self.inside.append(place)
        return place

    def leave(self, place: Place) -> None:
        self.inside.remove(place)

    def never(self, need: Need) -> str | None:
        """Why a job cannot run here even alone; None: it can."""
        room = (1 - RESERVE) * self.machine.memory
        if need.memory > room:
            return _does_not_fit("memory", need.memory, room)
        if need.on_gpu and self.machine.gpus and need.gpu_memory > self.machine.gpu_memory:
            return _does_not_fit("GPU memory", need.gpu_memory, self.machine.gpu_memory)
        return None

    def _gpu(self, need: Need) -> str | None:
        jobs = Counter(place.gpu for place in self.inside)
        taken: Counter[str | None] = Counter()
        for place in self.inside:
            taken[place.gpu] += place.need.gpu_memory
        room = max(self.machine.gpu_memory, need.gpu_memory)
        open_ = [gpu for gpu in self.machine.gpus if jobs[gpu] < self.per_gpu and taken[gpu] + need.gpu_memory <= room]
        return min(open_, key=lambda gpu: jobs[gpu], default=None)


def _does_not_fit(what: str, need: float, room: float) -> str:
    return (
        f"not started: it needs {need / 1e9:.1f} GB of {what}, and {room / 1e9:.1f} GB can be had here; "
        "lower rollout.batch_size or micro_batch_tokens, or start it all the same with parallel=1"
    )
