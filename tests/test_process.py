"""What a process sets before torch computes, and that a caller's own settings and other systems are spared."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from grpo_bench import process

OWN = (*process.ALLOCATOR, "GLIBC_TUNABLES")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What mallopt is asked for, with nothing set by the caller."""
    found: list[tuple[int, int]] = []
    for name in OWN:
        monkeypatch.delenv(name, raising=False)
    library = SimpleNamespace(mallopt=lambda what, value: found.append((what, value)))
    monkeypatch.setattr(process, "_glibc", lambda: True)
    monkeypatch.setattr(process.ctypes, "CDLL", lambda name: library)
    return found


def test_freed_memory_is_kept(asked: list[tuple[int, int]]) -> None:
    process._keep_freed_memory()
    # as malloc.h has them: M_MMAP_THRESHOLD -3, M_TRIM_THRESHOLD -1
    assert asked == [(-3, 32 * 1024 * 1024), (-1, 2_147_483_647)]


@pytest.mark.parametrize("name", OWN)
def test_what_the_caller_set_stays(asked: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    process._keep_freed_memory()
    assert asked == []


def test_another_c_library_is_not_asked(asked: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mallopt, where it has one, may mean something else by these numbers."""
    monkeypatch.setattr(process, "_glibc", lambda: False)
    process._keep_freed_memory()
    assert asked == []


@pytest.mark.parametrize("error", [ValueError, OSError, AttributeError])
def test_a_system_without_the_name_is_another(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    def refuse(name: str) -> str:
        raise error

    monkeypatch.setattr(process.os, "confstr", refuse)
    assert not process._glibc()


def test_without_mallopt_nothing_happens(asked: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process.ctypes, "CDLL", lambda name: SimpleNamespace())
    process._keep_freed_memory()

    def refuse(name: None) -> None:
        raise OSError

    monkeypatch.setattr(process.ctypes, "CDLL", refuse)
    process._keep_freed_memory()


def test_defaults_are_set_where_the_caller_set_none(
    asked: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process.os, "environ", {"GOMP_SPINCOUNT": "3"})
    process.prepare_process()
    assert process.os.environ == process.PROCESS_DEFAULTS | {"GOMP_SPINCOUNT": "3"}
    assert len(asked) == 2


FREED = """
import ctypes, sys, psutil
from grpo_bench.process import prepare_process
prepare_process()
c = ctypes.CDLL(None)
c.malloc.argtypes, c.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
c.free.argtypes = [ctypes.c_void_p]
blocks = [c.malloc(2**23) for _ in range(16)]
for block in blocks:
    ctypes.memset(block, 1, 2**23)
full = psutil.Process().memory_info().rss
for block in blocks:
    c.free(block)
print((full - psutil.Process().memory_info().rss) / 2**23)
"""


@pytest.mark.skipif(not process._glibc(), reason="another C library")
@pytest.mark.parametrize("kept", [True, False])
def test_sixteen_freed_blocks_of_eight_megabytes(kept: bool) -> None:
    """They stay with the process, or go where the caller's own setting says so."""
    env = {name: value for name, value in os.environ.items() if name not in OWN}
    if not kept:
        env["MALLOC_MMAP_THRESHOLD_"] = str(2**20)
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True, env=env)
    assert float(done.stdout) == pytest.approx(0 if kept else 16, abs=1)
