"""One contender in its own process: ``python -m grpo_bench.speed.child SPEC.json`` measures it and writes a JSON file.

The specification names the contender, its precision and the run's overrides; the result holds each step's seconds by
phase, the largest memory, and the modules that were imported (an idle process imports the same).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo_bench import heap
from grpo_bench.process import LARGE_PAGES, prepare_process

PHASES = ("rollout", "reward", "score", "update")


@dataclass(frozen=True)
class Spec:
    """What a child is asked to do."""

    contender: str
    dtype: str
    overrides: list[str] = field(default_factory=list)
    prompts: int = 1
    group_size: int = 1
    tokens: int = 1
    prompt_tokens: int | None = None
    warmup: int = 1
    steps: int = 1
    threads: int | None = None
    options: list[str] = field(default_factory=list)  # after "+" in a contender's name
    floors: bool = False
    modules: list[str] = field(default_factory=list)
    folder: str = ""  # for what a contender passes to another
    curves: dict[str, Any] = field(default_factory=dict)
    turns: bool = False  # stops itself before each step, until it is its turn


def wait_for_turn(spec: Spec) -> None:
    """Stop this process until the one that started it lets it go on; others have their steps meanwhile."""
    if spec.turns:
        os.kill(os.getpid(), signal.SIGSTOP)


class Clock:
    """Seconds of each step by phase, for contenders whose own code runs the loop.

    ``step`` is called when a step ends; the first ``warmup`` steps are not kept, and memory counts from their end.
    """

    def __init__(self, meter: Any, spec: Spec) -> None:
        self.meter, self.spec, self.warmup = meter, spec, spec.warmup
        self.steps: list[dict[str, Any]] = []
        self.seen = 0
        self._phases: dict[str, float] = defaultdict(float)
        self._inside = False
        self._start = time.perf_counter()

    def begin(self) -> None:
        """A step starts, when it is its turn."""
        wait_for_turn(self.spec)
        heap.make_room()  # as this project's steps do
        self._phases.clear()
        self._start = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time spent here is ``name``'s; a phase within a phase counts with the outer one."""
        if self._inside:
            yield
            return
        self._inside = True
        start = time.perf_counter()
        try:
            yield
            self._wait()
        finally:
            self._inside = False
            self._phases[name] += time.perf_counter() - start

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, its time counted as ``name``'s."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return function(*args, **kwargs)

        return timed

    def end(self, **counts: Any) -> None:
        """The step that began ends; what no phase claimed is the update's."""
        self._wait()
        seconds = time.perf_counter() - self._start
        phases = {name: self._phases.get(name, 0.0) for name in PHASES}
        phases["update"] += max(seconds - sum(phases.values()), 0.0)
        self.seen += 1
        if self.seen > self.warmup:
            self.steps.append({"seconds": seconds, "phases": phases, **counts})
        elif self.seen == self.warmup:
            self.meter.forget_peak()

    def _wait(self) -> None:
        if self.meter.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.meter.device)


def main(argv: list[str] | None = None) -> int:
    """Measure what the file says; the result goes to the file beside it, an error's line to stderr."""
    place = Path((sys.argv[1:] if argv is None else argv)[0])
    _die_with_parent()
    spec = Spec(**json.loads(place.read_text(encoding="utf-8")))
    if "continuous" in (spec.contender.removeprefix("decode-"), *spec.options):
        os.environ |= LARGE_PAGES  # it generates in a thread of its own, to which the heap is no use
    prepare_process()  # as this project's runs have it, and the same for every contender
    if spec.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(spec.threads)
    result = _contender(spec)(spec)
    result["imported"] = sorted(name for name in sys.modules if not name.startswith("__"))
    place.with_suffix(".out.json").write_text(json.dumps(result), encoding="utf-8")
    return 0


def _contender(spec: Spec) -> Callable[[Spec], dict[str, Any]]:
    name = spec.contender
    if name == "idle":
        return idle
    module, function = {
        "machine": ("machine_child", "run"),
        "device": ("machine_child", "run"),
        "curves": ("curves", "run"),
        "prepare": ("trl_ppo", "prepare"),
        "trl": ("trl_grpo", "run"),
        "trl-pure": ("trl_grpo", "run"),
        "trl-ppo": ("trl_ppo", "run"),
        "decode-native": ("decode", "run"),
        "decode-hf": ("decode", "run"),
        "decode-continuous": ("decode", "run"),
    }.get(name, ("ours", "run"))
    return getattr(importlib.import_module(f"grpo_bench.speed.{module}"), function)


def idle(spec: Spec) -> dict[str, Any]:
    """Bytes that a process holds which has imported the same and done nothing."""
    for name in spec.modules:
        with contextlib.suppress(BaseException):  # modules that only a running program can import
            importlib.import_module(name)
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    return {"bytes": resident()}


def resident() -> int:
    """Bytes of this process's memory that are in use now; 0 where the system does not say."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return 0


def _die_with_parent() -> None:
    """Linux ends this process when the benchmark ends, however that happens."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    sys.exit(main())
