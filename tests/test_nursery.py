"""A job's process that is forked is in all that shows like one that was started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from grpo_bench.nursery import Hatchling, Nursery

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="jobs are forked on Linux alone")
WAIT = 120.0  # for what comes in a second unless the machine is very busy

# Stands in for the command line: says where and what it is, and ends as it is told.
FAKE = """
import sys, types
def main():
    import atexit, json, os, signal, time
    atexit.register(lambda: print("bye", flush=True))
    print(json.dumps({"argv": sys.argv, "folder": os.getcwd(), "word": os.environ.get("WORD"), "pid": os.getpid(),
                      "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
                      "terminate": signal.getsignal(signal.SIGTERM) is signal.SIG_DFL,
                      "loaded": "grpo_bench.run" in sys.modules, "stdin": sys.stdin.read()}), flush=True)
    print("to stderr", file=sys.stderr)
    how = sys.argv[1]
    if how == "sleep":
        time.sleep(600)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "raise":
        raise RuntimeError("boom")
    sys.exit(int(how))
sys.modules["grpo_bench.cli"] = types.ModuleType("grpo_bench.cli")
sys.modules["grpo_bench.cli"].main = main
for name in ("run", "tiny"):
    sys.modules["grpo_bench." + name] = types.ModuleType("grpo_bench." + name)
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "sitecustomize.py").write_text(FAKE)
    root = Path(__file__).resolve().parent.parent
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(root)])}


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    one = Nursery()
    yield one
    one.close()


def start(nursery: Nursery, environment: dict[str, str], log: Path, *argv: str) -> Hatchling:
    with open(log, "ab") as file:
        return nursery.start(argv, file, environment)


def said(log: Path) -> dict[str, Any]:
    return json.loads(log.read_text().splitlines()[0])


def test_command_line_folder_environment_output_and_exit_codes(
    nursery: Nursery, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "a.log"
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    first = start(nursery, {**environment, "WORD": "ü\udc80"}, log, "0", "x=[1, 2]")
    assert first.wait(WAIT) == 0
    got = said(log)
    assert [Path(got["argv"][0]).name, *got["argv"][1:]] == ["__main__.py", "0", "x=[1, 2]"]
    assert got["folder"] == str(tmp_path / "there")
    assert got["word"] == "ü\udc80"
    assert got["pid"] == first.pid != os.getpid()
    assert got["interrupt"] == (signal.getsignal(signal.SIGINT) is not signal.SIG_IGN)  # as this process has it
    assert got["terminate"]
    assert got["loaded"]
    assert got["stdin"] == ""
    assert log.read_text().splitlines()[1:] == ["to stderr", "bye"]  # an end like any other's
    # the next one, and ends of all kinds
    for argument, code in (("2", 2), ("kill", -signal.SIGKILL), ("raise", 1)):
        other = start(nursery, environment, tmp_path / f"{argument}.log", argument)
        assert other.wait(WAIT) == code
        assert other.poll() == code
    assert "RuntimeError: boom" in (tmp_path / "raise.log").read_text()


def test_jobs_side_by_side_and_their_ends(nursery: Nursery, environment: dict[str, str], tmp_path: Path) -> None:
    jobs = [start(nursery, environment, tmp_path / f"{i}.log", "sleep") for i in range(3)]
    with pytest.raises(subprocess.TimeoutExpired):
        jobs[0].wait(0.01)
    assert jobs[0].poll() is None
    jobs[1].kill()
    assert jobs[1].wait(WAIT) == -signal.SIGKILL
    jobs[0].terminate()
    assert jobs[0].wait(WAIT) == -signal.SIGTERM
    assert jobs[2].poll() is None  # whatever becomes of the others
    jobs[2].terminate()
    assert jobs[2].wait(WAIT) == -signal.SIGTERM
    jobs[2].terminate()  # harmless
    assert len({job.pid for job in jobs}) == 3


def test_jobs_do_not_outlive_the_nursery(nursery: Nursery, environment: dict[str, str], tmp_path: Path) -> None:
    job = start(nursery, environment, tmp_path / "a.log", "sleep")
    while not (tmp_path / "a.log").exists() or not (tmp_path / "a.log").read_text():
        time.sleep(0.01)
    assert nursery._process is not None
    nursery._process.kill()
    assert job.wait(WAIT) == -signal.SIGTERM
    pid = said(tmp_path / "a.log")["pid"]
    while Path(f"/proc/{pid}").exists() and "State:\tZ" not in Path(f"/proc/{pid}/status").read_text():
        time.sleep(0.01)
    again = start(nursery, environment, tmp_path / "b.log", "0")  # a new one for the next
    assert again.wait(WAIT) == 0


def test_modules_that_cannot_be_imported_are_the_jobs_matter(
    nursery: Nursery, environment: dict[str, str], tmp_path: Path
) -> None:
    with open(tmp_path / "sitecustomize.py", "a") as file:
        file.write("\nsys.modules['grpo_bench.run'] = None\n")  # an import of it fails
    job = start(nursery, environment, tmp_path / "a.log", "3")
    assert job.wait(WAIT) == 3
    assert said(tmp_path / "a.log")["loaded"]


def test_closing_one_that_never_began() -> None:
    nursery = Nursery()
    nursery.close()
    nursery.close()


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def test_compilers_end_with_the_sweep(tmp_path: Path) -> None:
    """They work while the nursery imports; a sweep that ends meanwhile leaves neither processes nor files."""
    slow = tmp_path / "cc"
    slow.write_text("#!/bin/sh\nsleep 60\n")
    slow.chmod(0o755)
    cache = tmp_path / "grpo_bench" / "kernels"
    nursery = Nursery()
    nursery._begin({**os.environ, "CC": str(slow), "XDG_CACHE_HOME": str(tmp_path), "GRPO_BENCH_KERNELS": "1"})
    assert nursery._compiling is not None
    group, deadline = nursery._compiling.pid, time.monotonic() + 60
    while not any(path.is_dir() for path in cache.glob("*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert any(path.is_dir() for path in cache.glob("*"))  # at work
    nursery.close()
    left = [p for p in psutil.process_iter(["status"]) if p.info["status"] != "zombie" and _group(p.pid) == group]
    assert left == []
    assert [path for path in cache.glob("*") if path.is_dir()] == []
