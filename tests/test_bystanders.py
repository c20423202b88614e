"""What else a machine did while a run ran: by the clocks of its system, summed over a run's parts, said in a note."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import study_builder

from grpo_bench import bystanders
from grpo_bench.bystanders import Bystanders, shares
from grpo_bench.table import build

Linux = namedtuple("Linux", "user nice system idle iowait irq softirq steal guest guest_nice")
Mac = namedtuple("Mac", "user nice system idle")


def fake(monkeypatch: pytest.MonkeyPatch, *seen: tuple[Any, float]) -> None:
    """``psutil`` sees these clocks of the machine and seconds of this process, one after the other."""
    machine, own = iter([a for a, _ in seen]), iter([b for _, b in seen])
    monkeypatch.setattr(bystanders.psutil, "cpu_times", lambda: next(machine))
    monkeypatch.setattr(bystanders, "_own", lambda: next(own))


def test_shares_are_of_all_time_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    # 2 cores for 100 s. Used: 90 user (20 of them a guest's, which Linux counts twice), 10 nice, 20 system, 2 + 3 in
    # interrupts: 125. Ours: 65, so others 60. Idle 40 and waiting 5 are nobody's; 30 stolen. 125 + 45 + 30 = 200.
    before = Linux(1000, 10, 100, 5000, 50, 1, 2, 7, 300, 0)
    after = Linux(1090, 20, 120, 5040, 55, 3, 5, 37, 320, 0)
    fake(monkeypatch, (before, 4.0), (after, 69.0))
    seen = Bystanders()
    seen.begin({})
    total = seen.total()
    assert total == {"all": 200.0, "others": 60.0, "stolen": 30.0}
    assert shares(total) == {"others": 0.3, "stolen": 0.15}


def test_parts_of_a_continued_run_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    zero = Linux(*[0] * 10)
    fake(monkeypatch, (zero, 0.0), (zero._replace(user=10, idle=85, steal=5), 10.0))
    seen = Bystanders()
    seen.begin({"all": 300.0, "others": 100.0, "stolen": 35.0})
    assert shares(seen.total()) == {"others": 0.25, "stolen": 0.1}  # 100 and 40 of 400


def test_where_the_system_says_less(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Bystanders().total() == {}  # never begun
    fake(monkeypatch, (Mac(0, 0, 0, 0), 0.0), (Mac(50, 0, 0, 50), 20.0))
    seen = Bystanders()
    seen.begin({})
    assert shares(seen.total()) == {"others": 0.3}  # no word on what a host took
    fake(monkeypatch, (Mac(5, 0, 0, 5), 0.0), (Mac(5, 0, 0, 5), 0.0))
    seen.begin({})
    assert shares(seen.total()) == {}  # clocks that stand still

    def hidden() -> None:
        raise PermissionError

    monkeypatch.setattr(bystanders.psutil, "cpu_times", hidden)
    seen.begin({"all": 10.0, "others": 1.0})
    assert seen.total() == {"all": 10.0, "others": 1.0}


def test_others_are_never_less_than_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clocks of a machine and of a process tick apart."""
    fake(monkeypatch, (Mac(0, 0, 0, 0), 0.0), (Mac(9.9, 0, 0, 0), 10.0))
    seen = Bystanders()
    seen.begin({})
    assert seen.total()["others"] == 0.0


def test_children_are_no_bystanders() -> None:
    """One that has ended and one that works still."""
    busy = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True)\ntime.sleep(60)"
    before = bystanders._own()
    subprocess.run([sys.executable, "-c", busy.rpartition("\n")[0]], check=True, stdout=subprocess.DEVNULL)
    with subprocess.Popen([sys.executable, "-c", busy], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert bystanders._own() - before >= 0.9  # twice 0.5, by a clock of hundredths
        child.kill()


@pytest.mark.skipif(not psutil.LINUX, reason="asks this machine's own clocks")
def test_this_machine_says_what_it_did() -> None:
    seen = Bystanders()
    seen.begin({})
    time.sleep(0.1)
    found = shares(seen.total())
    assert found
    assert all(0 <= share <= 1 for share in found.values())


# ------------------------------------------------------------------ the note


def study(folder: Path, *machines: dict[str, float] | None) -> Any:
    for seed, machine in enumerate(machines):
        run = study_builder.write_run(folder, "grpo_g8", seed, [1, 0], base=[0, 0])
        result = json.loads((run / "result.json").read_text())
        result["cost"] |= {"machine": machine} if machine else {}
        (run / "result.json").write_text(json.dumps(result))
    sheets = {sheet.name: sheet for sheet in build(folder).sheets}
    return SimpleNamespace(said=[note for note in sheets["cost"].notes if note.startswith("Seconds depend")])


def test_a_note_says_how_loaded_the_machine_was(tmp_path: Path) -> None:
    loads = [{"others": o, "stolen": s} for o, s in ((0.40, 0.0), (0.48, 0.09), (0.502, 0.314))]
    assert study(tmp_path / "all-arithmetic", *loads).said == [
        "Seconds depend on what else the machine does. While these runs ran, other processes used 48 % [40, 50] of its "
        "cores (jobs of this sweep among them) and its host took 9 % [0, 31] for other guests: medians of runs, with "
        "the least and the most."
    ]
    (partly,) = study(tmp_path / "some-arithmetic", {"others": 0.25}, None).said
    assert "While these runs ran (recorded by 1 of 2), other processes used 25 % [25, 25] of its cores" in partly
    assert "host" not in partly
    assert study(tmp_path / "old-arithmetic", None, None).said == []
