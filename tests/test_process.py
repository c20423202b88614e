"""What a process sets before torch computes, and that a caller's own settings are spared."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from grpo_bench import heap, jobs, process

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
def system(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The interpreter's ``sys``, as ``python -m grpo_bench`` begins."""
    main = SimpleNamespace(__spec__=SimpleNamespace(name="grpo_bench.__main__"))
    argv = ["python", "-X", "dev", "-m", "grpo_bench", "algo=ppo"]
    made = SimpleNamespace(
        modules={"__main__": main}, gettrace=lambda: None, executable="/a/venv/bin/python", orig_argv=argv
    )
    monkeypatch.setattr(process, "sys", made)
    monkeypatch.setattr(process.threading, "active_count", lambda: 1)
    return made


@pytest.fixture
def begun(system: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What processes were put in this one's place."""
    found: list[tuple[Any, ...]] = []
    monkeypatch.setattr(process.os, "execve", lambda *args: found.append(args))
    monkeypatch.setattr(heap, "_glibc", lambda: True)
    monkeypatch.setattr(process.os, "environ", {"HOME": "/home/a"})
    return found


def test_a_process_starts_again_as_the_same_command(begun: list[tuple[Any, ...]]) -> None:
    """As the interpreter that it is, by its whole path: by name another environment's might be found."""
    process.start_again()
    argv = ["/a/venv/bin/python", "-X", "dev", "-m", "grpo_bench", "algo=ppo"]
    (program, given, environment), *more = begun
    assert (program, given, more) == ("/a/venv/bin/python", argv, [])
    told = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0", "GRPO_BENCH_BEGUN": str(os.getpid())}
    assert environment == process.os.environ | told


@pytest.mark.parametrize("name", ["grpo_bench.__main__", "grpo_bench.reward_training.__main__", None])
def test_by_module_and_by_the_installed_command(
    begun: list[tuple[Any, ...]], system: SimpleNamespace, name: str | None
) -> None:
    main = system.modules["__main__"]
    main.__spec__, main.__file__ = None if name is None else SimpleNamespace(name=name), "/a/venv/bin/grpo-bench"
    process.start_again()
    assert len(begun) == 1


@pytest.mark.parametrize("how", ["another program", "a shell", "traced", "threads", "torch", "begun"])
def test_not_where_more_than_the_command_would_begin_anew(
    begun: list[tuple[Any, ...]], system: SimpleNamespace, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "another program":
        system.modules["__main__"] = SimpleNamespace(__spec__=None, __file__="/a/host.py")
    elif how == "a shell":
        system.modules["__main__"] = SimpleNamespace(__spec__=None)
    elif how == "traced":
        system.gettrace = lambda: print
    elif how == "threads":
        monkeypatch.setattr(process.threading, "active_count", lambda: 2)
    elif how == "torch":
        system.modules["torch"] = None
    else:  # and what it was told then did not arrive
        process.os.environ["GRPO_BENCH_BEGUN"] = str(os.getpid())
    process.start_again()
    assert begun == []


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
    begun: list[tuple[Any, ...]], system: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    system.orig_argv = []  # embedded in another program
    process.start_again()
    system.orig_argv = ["python", "-m", "grpo_bench"]
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
    (tmp_path / "grpo-bench").write_text(
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
    line = [sys.executable, "grpo-bench", "a b", ""]
    for told, one in (({}, True), ({"GLIBC_TUNABLES": "glibc.malloc.tcache_count=7"}, False)):
        process = subprocess.Popen(
            line, cwd=tmp_path, env=environment | told, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        out, _ = process.communicate("typed\n")
        assert process.returncode == 0
        *rest, kept, joined = out.split()
        assert rest == [str(process.pid), str(tmp_path), "['a", "b',", "'']", "typed"]
        assert joined == str(one)
        assert one or kept == "False"  # a caller's own settings are left alone


def test_the_command_starts_again_before_it_imports_anything() -> None:
    line = (
        "import sys, grpo_bench.process as p\n"
        "p.start_again = lambda: print('again', 'hydra' in sys.modules)\n"
        "sys.argv = ['grpo-bench', '--cfg', 'job']\n"
        "from grpo_bench.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("again False\nconfig_version: 1\n")


def test_jobs_are_told_by_whatever_starts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_glibc", lambda: True)
    for name in BARE:
        monkeypatch.delenv(name, raising=False)
    assert jobs._environment({"A": "1"}).items() >= {"A": "1", **heap.AT_START}.items()
