"""Why a job of a sweep ended, in words: an error, a signal, or memory that ran out."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any, Literal

from filelock import FileLock, Timeout

from grpo_bench.files import write_json
from grpo_bench.resume import read
from grpo_bench.types import UserError

if TYPE_CHECKING:
    from pathlib import Path

Kind = Literal["out of memory", "killed", "interrupted", "error"]
NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "memoryerror")
TAIL = 1 << 16  # bytes of a log that are looked at


def reason_of(
    directory: Path, code: int, before: dict[str, Any], kernel_kills: int | None, stopped: bool = False
) -> str:
    """Why a child ended with ``code`` (minus the signal's number where one killed it), also put into ``state.json``.

    ``before`` is what ``state.json`` said when the child began: a reason that was there already is of another attempt.
    ``kernel_kills`` counts processes that the kernel killed for lack of memory meanwhile; None where it does not say.
    ``stopped``: the sweep was ending its jobs.
    """
    state = read(directory / "state.json")
    written = state != before and state.get("status") in ("failed", "diverged") and state.get("reason")
    if code == -signal.SIGTERM and stopped:  # before it could say so itself
        reason = "interrupted"
    elif code < 0:
        reason = _signal(-code, kernel_kills)
    elif written:
        return plainly(str(state["reason"]))
    else:
        reason = plainly(_last_error(directory / "stdout.log") or f"exit code {code}")
    state = {**state, "status": "failed", "reason": reason, "exit_code": code}
    if _held(directory):  # by another process, which is why this one ended: the record is of a run that lives
        return reason
    try:
        write_json(directory / "state.json", state)
    except (UserError, OSError) as e:  # the disk that ended the job, often; its reason must not be masked
        reason += f" ({e})"
    return reason


def _held(directory: Path) -> bool:
    lock = directory / "checkpoints" / "lock"
    if not lock.is_file():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


def plainly(reason: str) -> str:
    """The reason, with memory that ran out named as such: allocators have words of their own for it."""
    low = reason.lower()
    if any(word in low for word in NO_MEMORY) and not low.startswith("out of memory"):
        return f"out of memory: {reason}"
    return reason


def kind(reason: str) -> Kind:
    """What sort of end a reason tells of."""
    if reason.startswith("out of memory"):
        return "out of memory"
    if reason.startswith("killed by"):
        return "killed"
    return "interrupted" if reason.startswith("interrupted") else "error"


def _signal(number: int, kernel_kills: int | None) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    if number != signal.SIGKILL:
        return f"killed by {name}"
    if kernel_kills:  # the counter is the whole machine's, hence "most likely"
        return f"out of memory: killed by {name}, most likely by the kernel, which ran out of memory meanwhile"
    if kernel_kills == 0:
        return f"killed by {name} (kill -9); the kernel killed nothing for lack of memory meanwhile"
    return f"killed by {name}: by kill -9, or by the system for lack of memory"


def _last_error(log: Path) -> str:
    """The last line that names an error in what a child printed."""
    lines = [line.strip() for line in tail(log).splitlines() if line.strip()]
    named = [line for line in lines if line.startswith("error: ") or "Error" in line.split(":")[0]]
    return (named or lines or [""])[-1].removeprefix("error: ")


def tail(file: Path, size: int = TAIL) -> str:
    """The last bytes of a file as text; empty when it is absent."""
    try:
        with open(file, "rb") as f:
            f.seek(max(0, f.seek(0, 2) - size))
            return f.read().decode(errors="replace")
    except OSError:
        return ""
