"""Mathematical equivalence through math-verify, in processes that can be stopped.

Sympy may take any time and memory over an expression that a model wrote, and the library's own limit is an alarm
signal that works in the main thread only. Here each comparison runs in a worker process whose limits the kernel
enforces (verify_worker.py), whatever thread asks; what overruns them is wrong, counted, and costs no more than its
limit. Workers are plain subprocesses that import neither torch nor this package.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from grpo_bench.tasks.latex import decide, has_expression, spelled_out
from grpo_bench.tasks.verify_worker import WALL_FACTOR
from grpo_bench.types import UserError

Outcome = Literal["done", "timeout", "error"]

MAX_TEXT = 20_000
"""Characters of a response that are searched for its last expression, counted from its end."""
CACHE_SIZE = 50_000
"""Verdicts remembered; an entry takes a few hundred bytes."""
MEMORY_BYTES = 2 << 30
"""Address space of a worker."""
_START_SECONDS = 120.0
_GRACE_SECONDS = 10.0  # beyond a worker's own wall-clock limit, before it is taken for lost


@dataclass(frozen=True, slots=True)
class Verdict:
    """``equal``: the same value; never true unless ``outcome`` is done. ``found``: the expression found in a text."""

    equal: bool
    outcome: Outcome = "done"
    found: str | None = None


class Verifier:
    """Compares answers with gold answers; a context manager, usable from any thread (one call at a time).

    ``seconds`` is the limit of one comparison in CPU time, so that a busy machine does not change verdicts (time spent
    waiting ends at ``WALL_FACTOR`` times as much); ``workers`` the number of processes, 0 for one per core, at
    most 8. Processes start with the first comparison that needs one. ``verifier_timeouts`` and ``verifier_errors``
    count verdicts given since the start, repeated ones included, so that they do not depend on what is cached.
    """

    def __init__(self, seconds: float = 5.0, workers: int = 0) -> None:
        if seconds <= 0:
            raise ValueError(f"seconds must be positive, not {seconds}")
        self.seconds = seconds
        self.workers = workers or min(8, _cores())
        self.verifier_timeouts = 0
        self.verifier_errors = 0
        self._running: list[_Worker] = []
        self._cache: OrderedDict[bytes, Verdict] = OrderedDict()
        self._lock = threading.Lock()

    def __enter__(self) -> Verifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the processes; a later comparison starts new ones."""
        with self._lock:
            for worker in self._running:
                worker.close()
            self._running.clear()

    def equivalent(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        r"""Whether each (gold, answer) is one value, both as the content of a ``\boxed{}``.

        Spelling decides where it can (latex.py); an empty gold answer equals nothing.
        """
        known = {
            i: Verdict(equal) for i, (gold, answer) in enumerate(pairs) if (equal := decide(gold, answer)) is not None
        }
        return self._verdicts("expression", pairs, known)

    def find(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Whether the last expression that math-verify finds in the text equals gold, for each (gold, text).

        It looks for "final answer is ..." and boxes first, then for "answer: ...", then for the last formula or number.
        """
        pairs = [(gold, text[-MAX_TEXT:]) for gold, text in pairs]
        known = {
            i: Verdict(False) for i, (gold, text) in enumerate(pairs) if not gold.strip() or not has_expression(text)
        }
        verdicts = self._verdicts("text", pairs, known)
        return [
            # spelling tells for what it finds but cannot parse (43_5, 5:30 p.m.)
            Verdict(True, "done", verdict.found) if verdict.found and decide(gold, verdict.found) else verdict
            for (gold, _), verdict in zip(pairs, verdicts, strict=True)
        ]

    def _verdicts(self, kind: str, pairs: Sequence[tuple[str, str]], known: dict[int, Verdict]) -> list[Verdict]:
        keys = {i: _key(kind, *pair) for i, pair in enumerate(pairs) if i not in known}
        with self._lock:
            verdicts = {key: self._cache[key] for key in keys.values() if key in self._cache}
            asked = {key: pairs[i] for i, key in keys.items() if key not in verdicts}
            verdicts |= self._ask(kind, asked)
            for key, verdict in verdicts.items():
                self._cache[key] = verdict
                self._cache.move_to_end(key)
            while len(self._cache) > CACHE_SIZE:
                self._cache.popitem(last=False)
            answers = [known[i] if i in known else verdicts[keys[i]] for i in range(len(pairs))]
            self.verifier_timeouts += sum(verdict.outcome == "timeout" for verdict in answers)
            self.verifier_errors += sum(verdict.outcome == "error" for verdict in answers)
        return answers

    def _ask(self, kind: str, asked: dict[bytes, tuple[str, str]]) -> dict[bytes, Verdict]:
        """Spread the comparisons over the workers, one at a time each."""
        if not asked:
            return {}
        while len(self._running) < min(self.workers, len(asked)):
            self._running.append(_Worker(self.seconds))
        waiting = deque(asked.items())
        verdicts: dict[bytes, Verdict] = {}
        with selectors.DefaultSelector() as selector:
            idle, busy = list(self._running), dict[_Worker, bytes]()
            while waiting or busy:
                while waiting and idle:
                    worker, (key, (gold, answer)) = idle.pop(), waiting.popleft()
                    worker.send(kind, spelled_out(gold), answer if kind == "text" else spelled_out(answer))
                    selector.register(worker.replies, selectors.EVENT_READ, worker)
                    busy[worker] = key
                selector.select(timeout=max(0.0, min(worker.deadline for worker in busy) - time.monotonic()))
                for worker in [*busy]:
                    verdict = worker.receive()
                    if verdict is not None:
                        selector.unregister(worker.replies)
                        verdicts[busy.pop(worker)] = verdict
                        worker.revive()
                        idle.append(worker)
        return verdicts


class _Worker:
    """One worker process and the request it is at."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.request = 0
        self.deadline = 0.0
        self._start()

    def _start(self) -> None:
        script = Path(__file__).with_name("verify_worker.py")
        self.process = subprocess.Popen(
            # -P: the script's folder must not be searched for modules, its math.py would hide the standard one
            [sys.executable, "-P", str(script), str(self.seconds), str(MEMORY_BYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            # sympy orders by hash in places: verdicts must not depend on the process
            env=os.environ | {"PYTHONHASHSEED": "0"},
            start_new_session=True,  # an interrupt at the terminal is for the run, which then closes its workers
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.requests, self.replies = self.process.stdin, self.process.stdout
        os.set_blocking(self.replies.fileno(), False)
        self._buffer = b""
        self.lost = False
        self.started = False
        self.deadline = time.monotonic() + _START_SECONDS

    def send(self, kind: str, gold: str, answer: str) -> None:
        self.request += 1
        wait = WALL_FACTOR * self.seconds + _GRACE_SECONDS
        self.deadline = time.monotonic() + wait + (0 if self.started else _START_SECONDS)
        data = json.dumps({"id": self.request, "kind": kind, "gold": gold, "answer": answer}).encode() + b"\n"
        with contextlib.suppress(BrokenPipeError):  # receive() finds the process ended
            while data:
                data = data[self.requests.write(data) or 0 :]

    def receive(self) -> Verdict | None:
        """The verdict on the request in hand; None while there is none. A process that is lost gives an error."""
        while (chunk := self.replies.read(65536)) is not None:  # None: nothing more for now
            if not chunk:
                self.lost = True
                break
            self._buffer += chunk
        while b"\n" in self._buffer:
            line, _, self._buffer = self._buffer.partition(b"\n")
            reply: dict[str, Any] = json.loads(line)
            if "failed" in reply:
                raise UserError(
                    f"math-verify cannot be loaded ({reply['failed']}); pip install 'math-verify[antlr4_9_3]'"
                )
            if "ready" in reply:
                self.started = True
            elif reply["id"] == self.request:
                return Verdict(reply["equal"], reply["outcome"], reply["found"])
        if self.lost and not self.started:
            raise UserError(f"a verifier process ended while starting (exit code {self.process.wait()}); "
                            "check with: python -c 'import math_verify'")  # fmt: skip
        if self.lost or time.monotonic() > self.deadline:
            overdue = not self.lost
            self.lost = True
            return Verdict(False, "timeout" if overdue else "error")
        return None

    def revive(self) -> None:
        if self.lost:
            self.close()
            self._start()

    def close(self) -> None:
        self.requests.close()
        if self.lost or not self._ended():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)  # its fork too, which may be at work
        self.process.wait()
        self.replies.close()

    def _ended(self) -> bool:
        """Whether the process goes by itself now that its input has ended, as it does unless it is at work."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=1)
            return True
        return False


def _key(kind: str, gold: str, answer: str) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in (kind, gold, answer):
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
