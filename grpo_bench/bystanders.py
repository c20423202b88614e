"""What else the machine did while a run ran: its seconds mean little without it.

Counted in seconds of single cores, by the system's own clocks: ``all`` that passed on the cores of the machine, and of
them ``stolen`` by a hypervisor for other guests and used by ``others`` than this process and its children.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

import psutil

from grpo_bench.resources import below


@dataclass(frozen=True, slots=True)
class Clocks:
    """Seconds of cores since the machine started (``own``: since this process did)."""

    all: float
    busy: float
    own: float
    stolen: float | None  # None: the system does not say


def clocks() -> Clocks | None:
    """As they stand now, None where the system hides them; a container sees the clocks of its whole machine."""
    try:
        now = psutil.cpu_times()._asdict()
    except (OSError, ValueError, IndexError):
        return None
    guests = now.get("guest", 0.0) + now.get("guest_nice", 0.0)  # counted in user and nice already
    everything = sum(now.values()) - guests
    stolen = now.get("steal")
    busy = everything - now["idle"] - now.get("iowait", 0.0) - (stolen or 0.0)
    return Clocks(everything, busy, _own(), stolen)


def _own() -> float:
    """Of this process and all below it; the system adds the seconds of those that ended to their parent's."""
    found = 0.0
    for process in (None, *below(psutil.Process().pid)):
        with contextlib.suppress(psutil.Error):  # ended meanwhile
            used = psutil.Process(process).cpu_times()
            found += used.user + used.system + used.children_user + used.children_system
    return found


class Bystanders:
    """Counts from ``begin`` on; a continued run adds to what its earlier parts counted."""

    def __init__(self) -> None:
        self._start: Clocks | None = None
        self._before: dict[str, float] = {}

    def begin(self, before: Mapping[str, float]) -> None:
        self._before, self._start = dict(before), clocks()

    def total(self) -> dict[str, float]:
        """``all``, ``others`` and, where the system says, ``stolen``; what earlier parts counted where it is hidden."""
        start, now = self._start, clocks()
        if start is None or now is None:
            return self._before
        passed = {"all": now.all - start.all, "others": max(0.0, now.busy - start.busy - (now.own - start.own))}
        if now.stolen is not None and start.stolen is not None:
            passed["stolen"] = max(0.0, now.stolen - start.stolen)
        return {name: self._before.get(name, 0.0) + value for name, value in passed.items()}


def shares(total: Mapping[str, float]) -> dict[str, float]:
    """``stolen`` and ``others`` as parts of all time of the cores; {} where the clocks stood still."""
    if not total.get("all", 0.0) > 0:
        return {}
    return {name: total[name] / total["all"] for name in ("stolen", "others") if name in total}
