"""The process in which math-verify runs: started by verifier.py by path, speaks JSON lines, imports nothing of ours.

What a model wrote may ask for any amount of time and memory, also inside one call into C where no Python code runs.
So the limits are the kernel's: a timer of CPU time and one of wall-clock time whose signals kill, and a bound on the
address space. This process imports and warms up math-verify once and keeps a fork of itself at work: a comparison
kills at most the fork, and the next fork stands within milliseconds. It ends when its input does.

Request ``{"id", "kind": "expression" | "text", "gold", "answer"}``, reply ``{"id", "outcome", "equal", "found"}`` with
outcome ``done``, ``timeout`` or ``error``. First line: ``{"ready": true}`` or ``{"failed": reason}``.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import mmap
import os
import resource
import signal
import struct
import sys
from typing import Any

RECYCLE = 500  # comparisons per fork: its caches stay small, and the bound on memory stays a bound per comparison
# Wall-clock limit per CPU limit. What computes is stopped by the CPU limit; this one is for what waits, and wide, for a
# busy machine must not turn right answers into wrong ones.
WALL_FACTOR = 20.0
ENDED, RECYCLED = 0, 3  # exit codes of a fork

WARM_UP = (
    r"\frac{1}{2}", r"0.5", r"\sqrt{3}", r"(1, 2)", r"[1, \infty)", r"x^2 + 2x - 1", r"\{1, 2\}", r"3 + 4i", r"x = 5",
    r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\text{yes}", r"50\%", r"90^\circ", r"1 < x \le 2", r"\frac{\pi}{6}",
)  # fmt: skip

_REFUSED = ("os.exec", "os.fork", "os.kill", "os.posix_spawn", "os.spawn", "os.startfile", "os.system", "os.putenv",
            "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
            "os.chown", "pty.", "shutil.", "socket.", "subprocess.", "urllib.", "webbrowser.")  # fmt: skip


def _refuse(event: str, args: tuple[Any, ...]) -> None:
    """Audit hook: math needs no processes, no network and no writing, so whatever asks for them is refused."""
    if event.startswith(_REFUSED):
        raise PermissionError(event)
    if event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        raise PermissionError("open for writing")


def compare(kind: str, gold: str, answer: str) -> tuple[bool, str | None]:
    """Whether ``answer`` equals ``gold``, and the text of the expression that was compared (``text`` only)."""
    from math_verify import LatexExtractionConfig, parse, verify

    boxed = [LatexExtractionConfig(boxed_match_priority=0)]
    want = parse(f"\\boxed{{{gold}}}", boxed, parsing_timeout=None)
    if kind == "expression":
        got = parse(f"\\boxed{{{answer}}}", boxed, parsing_timeout=None)
    else:
        got = parse(answer, parsing_timeout=None)
    found = next((str(item) for item in reversed(got) if isinstance(item, str)), None)
    equal = verify(want, got, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=True)
    return equal, found


def serve(requests: int, replies: int, current: mmap.mmap, seconds: float, memory: int) -> int:
    """One fork's life: answer requests until the input ends or it is time to be replaced; returns the exit code."""
    _limit(resource.RLIMIT_AS, memory)
    _limit(resource.RLIMIT_CORE, 0)
    sys.addaudithook(_refuse)
    for _ in range(RECYCLE):
        line = _read_line(requests)
        if not line:
            return ENDED
        request = json.loads(line)
        current[:8] = struct.pack("q", request["id"])
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_REAL, WALL_FACTOR * seconds)
        reply: dict[str, Any] = {"id": request["id"], "outcome": "done", "equal": False, "found": None}
        try:
            reply["equal"], reply["found"] = compare(request["kind"], request["gold"], request["answer"])
        except Exception:  # whatever an expression makes the library raise: a wrong answer, counted
            reply["outcome"] = "error"
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        current[:8] = struct.pack("q", 0)
        _write_line(replies, reply)
    return RECYCLED


def supervise(requests: int, replies: int, seconds: float, memory: int) -> None:
    """Keep one fork at work; when it dies over a request, say so and start the next."""
    current = mmap.mmap(-1, 8)  # shared with the fork: the id of the request in hand, 0 for none
    while True:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = serve(requests, replies, current, seconds, memory)
            finally:
                os._exit(code)
        status = os.waitpid(pid, 0)[1]
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == ENDED:
            return
        in_hand = struct.unpack("q", current[:8])[0]
        if in_hand:
            overrun = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGALRM)
            outcome = "timeout" if overrun else "error"
            current[:8] = struct.pack("q", 0)
            _write_line(replies, {"id": in_hand, "outcome": outcome, "equal": False, "found": None})


def _limit(what: int, amount: int) -> None:
    with contextlib.suppress(ValueError, OSError):  # not every system can bound the address space
        resource.setrlimit(what, (amount, amount))


def _read_line(fd: int) -> bytes:
    """One line; requests come one at a time, so nothing beyond it is ever read. Empty at the end of the input."""
    chunks = []
    while chunk := os.read(fd, 65536):
        chunks.append(chunk)
        if chunk.endswith(b"\n"):
            return b"".join(chunks)
    return b""


def _write_line(fd: int, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(fd, data) :]


def main(seconds: float, memory: int) -> None:
    replies = os.dup(1)  # what libraries print must not get between the replies
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    logging.disable(logging.CRITICAL)
    try:
        for expression in WARM_UP:
            compare("expression", expression, expression)
            compare("text", expression, f"The answer is ${expression}$.")
    except ImportError as error:
        _write_line(replies, {"failed": str(error)})
        return
    gc.collect()
    gc.freeze()  # the forks share this memory as long as nobody counts references in it
    _write_line(replies, {"ready": True})
    supervise(0, replies, seconds, memory)


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
