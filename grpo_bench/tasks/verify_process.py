"""One process of math-verify as its parent sees it: a question at a time, a verdict or what became of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from grpo_bench.tasks.verify_worker import WALL_FACTOR
from grpo_bench.types import UserError

Outcome = Literal["done", "timeout", "error"]

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


class VerifyProcess:
    """One worker process (verify_worker.py) and the request it is at."""

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

    def hang_up(self) -> None:
        """No request comes any more; a process without one ends by itself."""
        self.requests.close()

    def close(self) -> None:
        self.hang_up()
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
