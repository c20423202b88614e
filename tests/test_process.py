"""What a process sets before torch computes, and that a caller's own settings are spared."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from grpo_bench import heap, process

BARE = [*heap.OWN_SETTINGS, heap.OWN_ARENAS]


@pytest.mark.parametrize("kept", [True, False])
def test_defaults_are_set_where_the_caller_set_none(kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors ask for large pages themselves where the heap does not."""
    monkeypatch.setattr(process.os, "environ", {"GOMP_SPINCOUNT": "3"})
    monkeypatch.setattr(process.heap, "keep", lambda: kept)
    process.prepare_process()
    assert process.os.environ == {"GOMP_SPINCOUNT": "3"} | ({} if kept else {"THP_MEM_ALLOC_ENABLE": "1"})


def test_a_callers_large_pages_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process.os, "environ", {"THP_MEM_ALLOC_ENABLE": "0"})
    monkeypatch.setattr(process.heap, "keep", lambda: False)
    process.prepare_process()
    assert process.os.environ == {"THP_MEM_ALLOC_ENABLE": "0", "GOMP_SPINCOUNT": "20000"}


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What processes were put in this one's place."""
    found: list[tuple[Any, ...]] = []
    monkeypatch.setattr(process.os, "execve", lambda *args: found.append(args))
    monkeypatch.setattr(process.sys, "orig_argv", ["python", "-X", "dev", "-m", "grpo_bench", "algo=ppo"])
    monkeypatch.setattr(process.sys, "executable", "/a/venv/bin/python")
    monkeypatch.setattr(heap, "_glibc", lambda: True)
    monkeypatch.setattr(process.os, "environ", {"HOME": "/home/a"})
    return found


def test_a_process_starts_again_as_the_same_command(begun: list[tuple[Any, ...]]) -> None:
    """As the interpreter that it is, by its whole path: by name another environment's might be found."""
    process.start_again()
    argv = ["/a/venv/bin/python", "-X", "dev", "-m", "grpo_bench", "algo=ppo"]
    (program, given, environment), *more = begun
    assert (program, given, more) == ("/a/venv/bin/python", argv, [])
    assert environment == {**process.os.environ, "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}


@pytest.mark.parametrize(
    "setting",
    [
        {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"},  # it did
        {"GLIBC_TUNABLES": "glibc.malloc.check=1"},
        {"MALLOC_TRIM_THRESHOLD_": "1"},
    ],
)
def test_once_and_not_where_the_caller_set_the_heap_up(
    begun: list[tuple[Any, ...]], setting: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process.os, "environ", setting)
    process.start_again()
    assert begun == []


def test_not_with_another_c_library_nor_without_a_command(
    begun: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process.sys, "orig_argv", [])  # embedded in another program
    process.start_again()
    monkeypatch.setattr(process.sys, "orig_argv", ["python", "-m", "grpo_bench"])
    monkeypatch.setattr(heap, "_glibc", lambda: False)
    process.start_again()
    assert begun == []


def test_a_system_that_refuses_goes_on(begun: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(process.os, "execve", refuse)
    process.start_again()


@pytest.mark.skipif(not heap._glibc(), reason="another C library")
def test_it_is_one_process_with_the_same_input_folder_and_arguments(tmp_path: Path) -> None:
    """What the library reads at its start it has read: two pieces side by side that were freed are one."""
    (tmp_path / "program.py").write_text(
        """
import ctypes, os, sys
from grpo_bench.process import start_again
start_again()
from grpo_bench import heap
library = ctypes.CDLL(None)
library.malloc.argtypes, library.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
library.free.argtypes = [ctypes.c_void_p]
pieces = [library.malloc(1000) for _ in range(64)]
first = next(a for a, b, c in zip(pieces, pieces[1:], pieces[2:]) if b - a == c - b == 1008)
library.free(first), library.free(first + 1008)
size = ctypes.c_size_t.from_address(first - 8).value // 16 * 16  # with flags in its last bits
print(os.getpid(), os.getcwd(), sys.argv[1:], input(), heap.keep(), size >= 2 * 1008)
"""
    )
    environment = {name: value for name, value in os.environ.items() if name not in BARE}
    line = [sys.executable, "program.py", "a b", ""]
    for told, one in (({}, True), ({"GLIBC_TUNABLES": "glibc.malloc.tcache_count=7"}, False)):
        process = subprocess.Popen(
            line, cwd=tmp_path, env=environment | told, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        out, _ = process.communicate("typed\n")
        assert process.returncode == 0
        kept = out.split()[-2]
        assert out.split() == [str(process.pid), str(tmp_path), "['a", "b',", "'']", "typed", kept, str(one)]
        assert kept == "False" or one  # a caller's own settings are left alone
