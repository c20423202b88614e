"""What this machine has for the jobs of a sweep: cores, memory, GPUs; found without importing torch."""

from __future__ import annotations

import contextlib
import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Machine:
    """What jobs share. ``gpus`` are named as ``CUDA_VISIBLE_DEVICES`` names them; sizes are in bytes."""

    cores: int
    memory: int
    gpus: tuple[str, ...] = ()
    gpu_memory: int = 0  # of the smallest GPU


def machine() -> Machine:
    """This machine, as far as this process may use it: affinity, container limits and hidden GPUs counted."""
    gpus, gpu_memory = _gpus()
    limits = [limit for limit, _ in _cgroup_memory()]
    return Machine(cores(), min([psutil.virtual_memory().total, *limits]), gpus, gpu_memory)


def cores() -> int:
    """CPU cores that this process may use: its affinity, and a container's quota rounded down (at least 1)."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _cgroups("cpu"):
        with contextlib.suppress(OSError, ValueError):
            if (folder / "cpu.max").is_file():
                quota, period = (folder / "cpu.max").read_text().split()[:2]
            else:
                quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if quota.strip() not in ("max", "-1"):
                found = min(found, int(quota) // int(period))
    return max(1, found)


def free_memory() -> int:
    """Bytes that a new process can take now without anybody being pushed out: of the machine, and of its container."""
    return min([psutil.virtual_memory().available, *(max(0, limit - used) for limit, used in _cgroup_memory())])


def resident(pid: int) -> tuple[int, int]:
    """(now, largest so far) resident bytes of a process; its children are in both as they are now. (0, 0): gone."""
    try:
        now = psutil.Process(pid).memory_info().rss
        children = sum(_own(child) for child in below(pid))
    except psutil.Error:
        return 0, 0
    peak = now
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        peak = max(now, *(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
    return now + children, peak + children


def _own(pid: int) -> int:
    """Resident bytes of a process that it does not share with others, as far as the system says."""
    try:
        memory = psutil.Process(pid).memory_info()
    except psutil.Error:
        return 0
    return int(memory.rss - getattr(memory, "shared", 0))


def below(pid: int) -> list[int]:
    """Processes below this one, from the kernel's own list: a search through all processes costs milliseconds."""
    found: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    except (OSError, ValueError):  # no such list in this kernel, or gone
        with contextlib.suppress(psutil.Error):
            return [child.pid for child in psutil.Process(pid).children(recursive=True)]
        return []
    return found + [deeper for child in found for deeper in below(child)]


def oom_kills() -> int | None:
    """How many processes the kernel has killed for lack of memory since it started; None where it does not say."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return None


def _gpus() -> tuple[tuple[str, ...], int]:
    from grpo_bench.device import cuda_available

    if not cuda_available():
        return (), 0
    driver = ctypes.CDLL("libcuda.so.1")
    count, sizes = ctypes.c_int(0), []
    driver.cuDeviceGetCount(ctypes.byref(count))
    for index in range(count.value):
        device, size = ctypes.c_int(0), ctypes.c_size_t(0)
        driver.cuDeviceGet(ctypes.byref(device), index)
        driver.cuDeviceTotalMem_v2(ctypes.byref(size), device)
        sizes.append(size.value)
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    names = named[: len(sizes)] or [str(index) for index in range(len(sizes))]
    return tuple(names), min(sizes, default=0)


def _cgroup_memory() -> list[tuple[int, int]]:
    """(limit, used without what the kernel can drop) of each container that this process is in and that has a limit."""
    found = []
    for folder in _cgroups("memory"):
        with contextlib.suppress(OSError, ValueError):
            if (folder / "memory.max").is_file():
                limit, used = (folder / "memory.max").read_text(), (folder / "memory.current").read_text()
                droppable = "inactive_file"
            else:
                limit = (folder / "memory.limit_in_bytes").read_text()
                used = (folder / "memory.usage_in_bytes").read_text()
                droppable = "total_inactive_file"
            if limit.strip() == "max" or int(limit) >= 1 << 60:  # version 1's word for no limit
                continue
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            found.append((int(limit), int(used) - int(stat.get(droppable, 0))))
    return found


def _cgroups(controller: str) -> list[Path]:
    """Folders of the control groups that this process is in, the innermost first."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, names, path = line.split(":", 2)
            if names and controller not in names.split(","):
                continue
            root = CGROUP / controller if names else CGROUP
            inner = root / path.strip("/")
            return [inner, *(p for p in inner.parents if p == root or root in p.parents)]
    return []
