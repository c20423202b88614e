"""Processes for the jobs of a sweep that need not import anything: forks of one that has imported everything.

Importing torch and transformers takes longer than a small job's training. The nursery is one process that does it once
and forks itself for each job. It computes nothing, so that a job finds libraries as freshly loaded as in a process of
its own; what it forks is such a process in all else: command line, environment, folder, output, exit code, signals.
A job that is killed, or kills its process, touches neither the nursery nor the others.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

MODULES = ("grpo_bench.cli", "grpo_bench.run", "grpo_bench.tiny")  # with them all that a run on a CPU imports


class Hatchling:
    """A job's process as its sweep sees it; what is used of ``subprocess.Popen``, under its names."""

    def __init__(self, args: Sequence[str], news: int) -> None:
        self.args = list(args)
        self.returncode: int | None = None
        self.pid = 0
        self._news = news
        self._heard = b""
        self._lock = threading.Lock()  # the job's own thread waits, the sweep's may wait too when it stops

    def __del__(self) -> None:
        os.close(self._news)

    def poll(self) -> int | None:
        """Exit code, minus the signal's number for one that was killed; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; ``subprocess.TimeoutExpired`` when there is none after ``timeout`` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.returncode is None:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._news], [], [], left)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            self._hear()
        return self.returncode

    def _hear(self) -> None:
        with self._lock:
            if self.returncode is not None or not select.select([self._news], [], [], 0)[0]:
                return
            data = os.read(self._news, 64)
            self._heard += data
            *lines, _ = self._heard.split(b"\n")
            if lines:
                self.pid = int(lines[0])
            if len(lines) > 1:
                self.returncode = int(lines[1])
            elif not data:  # the nursery is gone, and its forks with it
                self.returncode = -signal.SIGTERM

    def send_signal(self, number: signal.Signals) -> None:
        while not self.pid and self.returncode is None:  # it is being forked right now
            select.select([self._news], [], [])
            self._hear()
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Nursery:
    """Starts jobs; its own process starts with the first of them."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._orders: socket.socket | None = None
        self._compiling: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def warm(self, environment: dict[str, str]) -> None:
        """Let its imports begin before the first job is known in full."""
        with self._lock, contextlib.suppress(OSError):
            if self._process is None:
                self._begin(environment)

    def start(self, argv: Sequence[str], log: IO[bytes], environment: dict[str, str]) -> Hatchling:
        """``python -m grpo_bench *argv`` in this folder, with this environment; all that it prints goes to ``log``."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._begin(environment)
            assert self._orders is not None
            order = json.dumps({"argv": list(argv), "environment": environment, "folder": os.getcwd()}).encode()
            news, tell = os.pipe()
            try:
                self._orders.sendall(len(order).to_bytes(8, "big"))
                socket.send_fds(self._orders, [order[:1]], [log.fileno(), tell])
                self._orders.sendall(order[1:])
            except BaseException:
                os.close(news)
                raise
            finally:
                os.close(tell)
        return Hatchling(argv, news)

    def _begin(self, environment: dict[str, str]) -> None:
        """Importing keeps one core busy; kernels that were not compiled yet are compiled on others meanwhile."""
        if self._compiling is None and environment.get("GRPO_BENCH_KERNELS", "1") != "0":
            self._compiling = subprocess.Popen(
                [sys.executable, "-P", str(Path(__file__).with_name("kernels") / "build.py")],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment,
                start_new_session=True,
            )  # fmt: skip
        if self._orders is not None:  # of one that is gone
            self._orders.close()
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "grpo_bench.nursery", str(theirs.fileno())],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment,
                pass_fds=[theirs.fileno()],
            )  # fmt: skip
        self._orders = ours

    def close(self) -> None:
        """No more jobs; one that still runs is terminated."""
        with self._lock:
            if self._orders is not None:
                self._orders.close()
            if self._process is not None:
                self._process.kill()  # it may be at its imports, and has nothing to put in order
                self._process.wait()
            self._process, self._orders = None, None
            if self._compiling is not None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._compiling.pid, signal.SIGTERM)  # the compilers too
                self._compiling.wait()
                self._compiling = None


# ------------------------------------------------------------------ in the nursery's own process


@dataclass(frozen=True, slots=True)
class Order:
    argv: list[str]
    environment: dict[str, str]
    folder: str
    log: int
    tell: int


def prepare() -> None:
    """Import what jobs need; what cannot be imported fails in the job, which says so in its own log."""
    gc.disable()
    for name in MODULES:
        with contextlib.suppress(Exception):
            __import__(name)
    with contextlib.suppress(Exception):
        from grpo_bench import provenance

        provenance.git()  # remembered: a job's record names the code that is loaded now
    gc.enable()
    gc.freeze()  # a fork shares this memory as long as nobody looks for garbage in it


def serve(orders: socket.socket) -> Order | None:
    """Fork for each order. Returns the order in the fork that is to carry it out, None when no more will come."""
    waker, wake = socket.socketpair()
    waker.setblocking(False)
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: dict[int, int] = {}  # process -> where its end is told
    while True:
        ready, _, _ = select.select([orders, waker], [], [])
        if waker in ready:
            with contextlib.suppress(BlockingIOError):
                waker.recv(4096)
            _bury(running)
        if orders in ready:
            order = _receive(orders)
            if order is None:
                return None
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                for end in (orders, waker, wake):
                    end.close()
                for tell in (*running.values(), order.tell):
                    os.close(tell)
                return order
            os.close(order.log)
            _tell(order.tell, pid)
            running[pid] = order.tell


def _bury(running: dict[int, int]) -> None:
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        tell = running.pop(pid)
        _tell(tell, os.waitstatus_to_exitcode(status))
        os.close(tell)


def _tell(where: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody listens any more
        os.write(where, b"%d\n" % number)


def _receive(orders: socket.socket) -> Order | None:
    size = _exactly(orders, 8)
    if size is None:
        return None
    first, files, _, _ = socket.recv_fds(orders, 1, 2)
    rest = _exactly(orders, int.from_bytes(size, "big") - 1)
    if rest is None or len(files) != 2:
        return None
    return Order(**json.loads(first + rest), log=files[0], tell=files[1])


def _exactly(orders: socket.socket, size: int) -> bytes | None:
    data = b""
    while len(data) < size:
        chunk = orders.recv(size - len(data))
        if not chunk:
            return None
        data += chunk
    return data


def become(order: Order, handlers: dict[signal.Signals, Any]) -> None:
    """The process that the order asks for, up to its first line of code."""
    from grpo_bench.jobs import die_with_parent

    for number, handler in handlers.items():
        signal.signal(number, handler)
    die_with_parent()
    for place in (1, 2):
        os.dup2(order.log, place)
    os.close(order.log)
    os.environ.clear()
    os.environ.update(order.environment)
    os.chdir(order.folder)
    sys.argv = [str(Path(__file__).with_name("__main__.py")), *order.argv]


def main() -> None:
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)
    handlers = {number: signal.getsignal(number) for number in signals}
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the sweep, which then closes the nursery
    orders = socket.socket(fileno=int(sys.argv[1]))
    prepare()
    order = serve(orders)
    if order is not None:
        become(order, handlers)
        from grpo_bench.cli import main

        main()


if __name__ == "__main__":
    main()
