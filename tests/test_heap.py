"""The heap that a process keeps: what the C library is asked, that freed memory stays, and that room is only room."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from grpo_bench import heap


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What mallopt is asked for, with nothing set by the caller; it takes all."""
    found: list[tuple[int, int]] = []
    _with_library(monkeypatch, lambda what, value: found.append((what, value)) or 1)  # type: ignore[func-returns-value]
    return found


def _with_library(monkeypatch: pytest.MonkeyPatch, mallopt: Any) -> None:
    for name in (*heap.OWN_SETTINGS, heap.OWN_ARENAS):
        monkeypatch.delenv(name, raising=False)
    others = {name: SimpleNamespace() for name in ("malloc", "free", "madvise")}
    others["sbrk"] = lambda more: 0  # where the heap is taken to end: no room is made
    monkeypatch.setattr(heap, "_glibc", lambda: True)
    monkeypatch.setattr(heap, "_own", lambda function: True)
    monkeypatch.setattr(heap, "_limited", lambda: False)
    monkeypatch.setattr(heap, "_heap", None)
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt, **others))


def test_freed_memory_is_kept(asked: list[tuple[int, int]]) -> None:
    assert heap.keep()
    # as malloc.h has them: M_ARENA_MAX -8, M_TRIM_THRESHOLD -1, M_MMAP_THRESHOLD -3; mallopt(3): -1 disables trimming
    assert asked == [(-8, 1), (-1, -1), (-3, 1024 * 1024 * 1024)]


def test_a_callers_number_of_arenas_stays(asked: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert heap.keep()
    assert asked == [(-1, -1), (-3, 1024 * 1024 * 1024)]


def test_an_older_library_maps_from_32_megabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    found = dict[int, int]()

    def mallopt(what: int, value: int) -> int:
        if what == -3 and value > 2**25:
            return 0
        found[what] = value
        return 1

    _with_library(monkeypatch, mallopt)
    assert not heap.keep()  # larger tensors are to ask for large pages themselves
    assert found == {-8: 1, -1: -1, -3: 33_554_432}
    heap.make_room()
    assert heap._heap is None


def test_where_addresses_are_counted_none_are_taken_ahead(
    asked: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heap, "_limited", lambda: True)
    assert not heap.keep()
    assert asked == [(-8, 1), (-1, -1), (-3, 33_554_432)]
    assert heap._heap is None


LIMITED = """
import resource
print(int(heap._heap is not None), int(heap._limited()))
for limit in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
    before = resource.getrlimit(limit)
    resource.setrlimit(limit, (2**40, before[1]))
    print(int(heap._limited()))
    resource.setrlimit(limit, before)
"""


@pytest.mark.skipif(not heap._glibc() or heap._limited(), reason="another C library, or limits")
def test_limits_that_count_addresses() -> None:
    assert _printed(LIMITED) == [1, 0, 1, 1]


@pytest.mark.parametrize("name", heap.OWN_SETTINGS)
def test_what_the_caller_set_stays(asked: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    assert not heap.keep()
    heap.make_room()
    assert asked == []


def test_another_allocator_is_not_asked(asked: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_own", lambda function: False)
    assert not heap.keep()
    assert asked == []


@pytest.mark.skipif(not heap._glibc(), reason="another C library")
def test_whose_malloc_it_is() -> None:
    library = heap.ctypes.CDLL(None)
    assert heap._own(library.malloc)
    assert not heap._own(library.calloc)


def test_another_c_library_is_not_asked(asked: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mallopt, where it has one, may mean something else by these numbers."""
    monkeypatch.setattr(heap, "_glibc", lambda: False)
    assert not heap.keep()
    assert asked == []


@pytest.mark.parametrize("error", [ValueError, OSError, AttributeError])
def test_a_system_without_the_name_is_another(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    def refuse(name: str) -> str:
        raise error

    monkeypatch.setattr(heap.os, "confstr", refuse)
    assert not heap._glibc()


def test_what_a_process_is_told_at_its_start_is_not_the_callers(
    asked: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert heap.at_start() == {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0")
    assert heap.at_start() == {}
    assert heap.keep()
    monkeypatch.setattr(heap, "_glibc", lambda: False)
    monkeypatch.delenv("GLIBC_TUNABLES")
    assert heap.at_start() == {}


def test_without_mallopt_nothing_happens(asked: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(what: int, value: int) -> int:
        raise AssertionError

    for names in ((), ("mallopt",), ("mallopt", "malloc", "free", "sbrk")):  # all are looked up before one is called
        found = SimpleNamespace(**dict.fromkeys(names, nothing))
        monkeypatch.setattr(heap.ctypes, "CDLL", lambda name, found=found: found)
        assert not heap.keep()

    def refuse(name: None) -> None:
        raise OSError

    monkeypatch.setattr(heap.ctypes, "CDLL", refuse)
    assert not heap.keep()


def _printed(program: str, **settings: str) -> list[float]:
    """What a fresh process prints, one number a line, with these settings of the caller."""
    env = {name: value for name, value in os.environ.items() if name not in heap.OWN_SETTINGS}
    run = [sys.executable, "-c", PREAMBLE + program]
    done = subprocess.run(run, capture_output=True, text=True, check=True, env=env | settings)
    return [float(line) for line in done.stdout.split()]


PREAMBLE = """
import ctypes, psutil
from grpo_bench import heap
heap.keep()
c = ctypes.CDLL(None)
c.malloc.argtypes, c.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
c.free.argtypes = [ctypes.c_void_p]
c.sbrk.argtypes, c.sbrk.restype = [ctypes.c_ssize_t], ctypes.c_void_p
def rss(): return psutil.Process().memory_info().rss
"""

FREED = """
blocks = [c.malloc(2**23) for _ in range(16)]
for block in blocks:
    ctypes.memset(block, 1, 2**23)
full = rss()
for block in blocks:
    c.free(block)
print((full - rss()) / 2**23)
"""


@pytest.mark.skipif(not heap._glibc(), reason="another C library")
@pytest.mark.parametrize("kept", [True, False])
def test_sixteen_freed_blocks_of_eight_megabytes(kept: bool) -> None:
    """They stay with the process, or go where the caller's own setting says so."""
    [gone] = _printed(FREED, **({} if kept else {"MALLOC_MMAP_THRESHOLD_": str(2**20)}))
    assert gone == pytest.approx(0 if kept else 16, abs=1)


ROOM = """
heap._heap.end = 0
block = c.malloc(2**28)
before, start = rss(), c.sbrk(0)
heap.make_room()
end = c.sbrk(0)
print((end - start) / 2**28)  # what the block took of the first room
print((rss() - before) / 2**20)
heap.make_room()
print(c.sbrk(0) - end)
c.free(block)
block = c.malloc(2**29)
print(int(0 < block < end))
ctypes.memset(block, 1, 2**29)
c.free(block)
large = 0
for line in open("/proc/self/smaps"):
    first = line.split()[0]
    if not first.endswith(":"):
        inside = int(first.split("-")[0], 16) <= block + 2**20 < int(first.split("-")[1], 16)
    elif first == "VmFlags:" and inside:
        large = int("hg" in line.split())
print(large)
print((rss() - before) / 2**29)
"""


@pytest.mark.skipif(not heap._glibc() or heap._limited(), reason="another C library, or limits")
def test_room_is_made_once_takes_no_memory_and_is_in_large_pages() -> None:
    grown, taken, again, within, large, kept = _printed(ROOM)
    assert grown == pytest.approx(1, abs=0.05)
    assert taken < 8  # megabytes
    assert kept == pytest.approx(1, abs=0.05)
    assert again == 0
    assert within == 1
    assert large == os.path.exists("/sys/kernel/mm/transparent_hugepage")


TRIMMED = """
live = c.malloc(3 * 2**28)
ctypes.memset(live, 1, 3 * 2**28)
heap.make_room()
more = c.malloc(2**29)
ctypes.memset(more, 1, 2**29)
full, end = rss(), c.sbrk(0)
c.free(more)
c.free(live)
print((full - rss()) / 2**20)
print(end - c.sbrk(0))
"""


@pytest.mark.skipif(not heap._glibc() or heap._limited(), reason="another C library, or limits")
def test_a_heap_that_is_all_free_stays() -> None:
    gone, moved = _printed(TRIMMED)
    assert gone < 8  # megabytes
    assert moved == 0


NO_MORE = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 2**28,) * 2)
heap._heap.end, end = 0, c.sbrk(0)
block = c.malloc(2**27)  # of the first room
heap.make_room()
print(c.sbrk(0) - end)
print(int(block > 0) + int(c.malloc(2**27) > 0))
"""


@pytest.mark.skipif(not heap._glibc() or heap._limited(), reason="another C library, or limits")
def test_a_process_that_may_have_no_more_goes_on() -> None:
    grown, works = _printed(NO_MORE)
    assert grown <= 2**28
    assert works == 2
