"""Jobs of a sweep side by side on one machine, as many as its cores, its memory and its GPUs take."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from grpo_bench import jobs
from grpo_bench.config import run_dir
from grpo_bench.needs import costs_file, need_of
from grpo_bench.resources import Machine, free_memory, machine
from grpo_bench.resume import standing
from grpo_bench.room import Need, Place, Room
from grpo_bench.types import UserError

if TYPE_CHECKING:
    from grpo_bench.config import Config

LOOK_SECONDS = 1.0  # between two looks at free memory while a job waits for it
PATIENCE_SECONDS = 60.0  # of a waiting job, until a line says what it waits for


@dataclass(eq=False, slots=True)
class _Job:
    cfg: Config
    command: list[str]
    label: str
    need: Need
    costs: Path  # what is known of its need, shared by the seeds of its row
    memory: jobs.Memory
    place: Place | None = None


class Pool:
    """Runs the jobs of a sweep: one after another (``parallel: 1``), else each in a thread that waits for its child.

    A job waits until there is room for it (see ``Room``); one whose measured memory this machine has not is not
    started, and has failed. ``found`` and ``free`` say what the machine has and how many bytes of it are free.
    """

    def __init__(self, found: Callable[[], Machine] = machine, free: Callable[[], int] = free_memory) -> None:
        self.failed: dict[Path, str] = {}  # folders of the jobs that did, and why
        self._found, self._free = found, free
        self._room: Room | None = None
        self._queue: list[_Job] = []
        self._running: dict[_Job, threading.Thread] = {}
        self._broken: list[BaseException] = []
        self._changed = threading.Condition()

    def start(self, cfg: Config, command: list[str], label: str) -> None:
        """Run the job now (``parallel: 1``), else as soon as there is room for it."""
        if cfg.parallel == 1 or _is_complete(cfg):  # to say so takes no room
            self._ended(cfg, jobs.one_job(lambda: jobs.run_job(cfg, command, label), label))
            return
        if self._room is None:
            self._room = Room(self._found(), cfg.parallel, cfg.jobs_per_gpu)
        need = need_of(cfg, self._room.machine)
        with self._changed:
            self._queue.append(_Job(cfg, command, label, need, costs_file(cfg), jobs.Memory()))
            self._refuse()
            self._admit()

    def wait(self) -> None:
        """Until all jobs have ended; whatever ends the parent meanwhile ends them first."""
        try:
            said = time.monotonic()
            with self._changed:
                while (self._queue or self._running) and not self._broken:
                    self._admit()
                    if self._queue or self._running:  # only memory comes free without a job's end
                        idle = not self._queue or (self._room is not None and self._room.full)
                        self._changed.wait(None if idle else LOOK_SECONDS)
                    if self._running:
                        said = time.monotonic()
                    elif self._queue and time.monotonic() - said > PATIENCE_SECONDS:
                        said, first = time.monotonic(), self._queue[0]
                        jobs.say(f"{first.label} waits for {first.need.memory / 1e9:.1f} GB of memory to be free")
                if self._broken:
                    raise self._broken[0]
        finally:
            self.stop()

    def stop(self) -> None:
        """End the jobs that run and start no other; nothing to do when all have ended."""
        with self._changed:
            self._queue.clear()
            threads = list(self._running.values())
        if threads:
            jobs.STOPPING.set()  # before the children are counted: one that is being started right now sees it
            children = list(jobs.CHILDREN)
            for child in children:
                child.terminate()
            deadline = time.monotonic() + jobs.GRACE_SECONDS
            for child in children:
                try:
                    child.wait(timeout=max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    child.kill()
            for thread in threads:
                thread.join()
        self._room = None
        jobs.NURSERY.close()
        jobs.STOPPING.clear()

    def _refuse(self) -> None:
        """Take out the jobs that need more than the machine has."""
        assert self._room is not None
        for job in list(self._queue):
            if (reason := self._room.never(job.need)) is not None:
                self._queue.remove(job)
                jobs.say(f"{job.label} FAILED: {reason}")
                self._ended(job.cfg, reason)

    def _admit(self) -> None:
        """Start what there is room for, in the order of the sweep; a large job does not hold up a small one."""
        assert self._room is not None
        for job in list(self._queue):
            if self._room.full:
                return
            # what runs may still grow to what it needs
            promised = sum(max(0, other.need.memory - other.memory.now) for other in self._running)
            job.place = self._room.enter(job.need, self._free() - promised)
            if job.place is None:
                continue
            self._queue.remove(job)
            thread = threading.Thread(target=self._run, args=(job,), name=job.label)
            self._running[job] = thread
            thread.start()

    def _run(self, job: _Job) -> None:
        assert job.place is not None
        gpu = {} if job.place.gpu is None else {"CUDA_VISIBLE_DEVICES": job.place.gpu}

        def work() -> str | None:
            return jobs.run_job(job.cfg, job.command, job.label, gpu, job.memory)

        try:
            if not jobs.STOPPING.is_set():
                self._ended(job.cfg, jobs.one_job(work, job.label))
        except BaseException as e:
            self._broken.append(e)
        finally:
            with self._changed:
                if self._room is not None:
                    self._room.leave(job.place)
                    fresh = need_of(job.cfg, self._room.machine)  # measured by now
                    for other in self._queue:
                        other.need = fresh if other.costs == job.costs else other.need
                    self._refuse()
                del self._running[job]
                self._changed.notify_all()

    def _ended(self, cfg: Config, reason: str | None) -> None:
        if reason is not None:
            self.failed[run_dir(cfg)] = reason


def _is_complete(cfg: Config) -> bool:
    try:
        return standing(cfg, run_dir(cfg)) == "complete"
    except UserError:  # the job itself says so
        return False
