"""Which jobs run side by side: cores, memory and GPUs; and how long that takes. All by hand."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from grpo_bench import jobs, needs, resources
from grpo_bench.pool import Pool
from grpo_bench.preflight import preflight
from grpo_bench.resources import Machine
from grpo_bench.room import Need, Room
from grpo_bench.study.plan import makespan

GB = 10**9
GO = threading.Event()
FOUR = Machine(cores=4, memory=100 * GB)
TWO_GPUS = Machine(cores=8, memory=100 * GB, gpus=("0", "GPU-b"), gpu_memory=80 * GB)


def test_auto_gives_each_thread_a_core() -> None:
    room = Room(FOUR, "auto")
    places = [room.enter(Need(2, GB), 90 * GB) for _ in range(3)]
    assert [p is not None for p in places] == [True, True, False]
    assert places[0] is not None
    room.leave(places[0])
    assert room.enter(Need(3, GB), 90 * GB) is None  # 2 + 3 > 4
    assert room.enter(Need(1, GB), 90 * GB) is not None
    alone = Room(FOUR, "auto")
    assert alone.enter(Need(64, GB), 90 * GB) is not None  # more than there are: by itself it runs


def test_a_number_is_the_users() -> None:
    room = Room(FOUR, 3)
    places = [room.enter(Need(4, GB), 90 * GB) for _ in range(4)]
    assert [p is not None for p in places] == [True, True, True, False]


@pytest.mark.parametrize("parallel", [8, "auto"])
def test_a_job_waits_for_memory(parallel: Any) -> None:
    room = Room(FOUR, parallel)
    assert room.enter(Need(1, 40 * GB), 44 * GB) is None  # a twentieth of 100 GB is left to others
    assert room.enter(Need(1, 40 * GB), 45 * GB) is not None
    assert room.never(Need(1, 95 * GB)) is None
    assert room.never(Need(1, 96 * GB)) == (
        "not started: it needs 96.0 GB of memory, and 95.0 GB can be had here; lower rollout.batch_size or "
        "micro_batch_tokens, or start it all the same with parallel=1"
    )


def test_one_job_on_each_gpu_unless_told_otherwise() -> None:
    need = Need(1, GB, on_gpu=True)
    room = Room(TWO_GPUS, "auto")
    places = [room.enter(need, 90 * GB) for _ in range(3)]
    assert [p and p.gpu for p in places] == ["0", "GPU-b", None]
    assert room.enter(Need(1, GB), 90 * GB) is not None  # one on the CPU beside them
    two = Room(TWO_GPUS, "auto", per_gpu=2)
    assert [p and p.gpu for p in (two.enter(need, 90 * GB) for _ in range(5))] == ["0", "GPU-b", "0", "GPU-b", None]
    large = Room(TWO_GPUS, "auto", per_gpu=2)
    half = Need(1, GB, on_gpu=True, gpu_memory=50 * GB)
    assert [p and p.gpu for p in (large.enter(half, 90 * GB) for _ in range(3))] == ["0", "GPU-b", None]  # 100 > 80
    assert "90.0 GB of GPU memory" in str(room.never(Need(1, GB, on_gpu=True, gpu_memory=90 * GB)))


def test_makespan() -> None:
    one = Need(1, GB)
    # 4 places: 10 10 10 10, then 5 at t=10 -> 15
    assert makespan([(one, 10.0)] * 4 + [(one, 5.0)], Room(FOUR, 4), 90 * GB) == 15
    # two cores each: two at a time, 10 10 | 10
    assert makespan([(Need(2, GB), 10.0)] * 3, Room(FOUR, "auto"), 90 * GB) == 20
    # memory: one of 60 GB at a time, the small one beside the first
    assert makespan([(Need(1, 60 * GB), 10.0)] * 2 + [(one, 4.0)], Room(FOUR, 4), 90 * GB) == 20
    assert makespan([(Need(1, 99 * GB), 10.0)], Room(FOUR, 4), 90 * GB) == 0  # never started
    assert makespan([], Room(FOUR, 4), 90 * GB) == 0


@pytest.fixture
def fake_jobs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str | None]:
    """The GPU of each job that was run; none of them ends before ``GO`` is set."""
    gpus: list[str | None] = []
    monkeypatch.setenv("GRPO_BENCH_CACHE", str(tmp_path / "cache"))
    GO.clear()

    def job(cfg: Any, command: list[str], label: str, environment: Any = None, memory: Any = None) -> None:
        gpus.append((environment or {}).get("CUDA_VISIBLE_DEVICES"))
        if cfg.parallel != 1:
            assert GO.wait(60)

    monkeypatch.setattr(jobs, "run_job", job)
    return gpus


def run_pool(tmp_path: Path, machine: Machine, free: int, *overrides: str) -> tuple[Pool, int]:
    """A pool after six jobs, and how many of them ran side by side at first."""
    plan = preflight([f"results={tmp_path}", "seed=range(6)", "threads=1", *overrides], multirun=True)
    pool = Pool(lambda: machine, lambda: free)
    for planned in plan.jobs:
        pool.start(planned.config, [], f"seed={planned.config.seed}")
    inside = len(pool._room.inside) if pool._room is not None else 0
    GO.set()
    pool.wait()
    return pool, inside


def test_the_pool_keeps_to_the_machine(tmp_path: Path, fake_jobs: list[str | None]) -> None:
    pool, inside = run_pool(tmp_path, FOUR, 90 * GB, "parallel=auto")
    assert (pool.failed, inside, fake_jobs) == ({}, 4, [None] * 6)
    cfg = preflight(["threads=1"]).jobs[0].config
    needs.remember(cfg, memory=30 * GB)
    GO.clear()
    assert run_pool(tmp_path, FOUR, 70 * GB, "parallel=auto")[1] == 2  # 65 GB to be had: two of 30
    assert len(fake_jobs) == 12


def test_a_job_that_never_fits_is_not_started(
    tmp_path: Path, fake_jobs: list[str | None], capsys: pytest.CaptureFixture[str]
) -> None:
    needs.remember(preflight(["threads=1"]).jobs[0].config, memory=120 * GB)
    pool, _ = run_pool(tmp_path, FOUR, 90 * GB, "parallel=2")
    assert len(pool.failed) == 6
    assert fake_jobs == []
    assert "seed=0 FAILED: not started: it needs 120.0 GB of memory" in capsys.readouterr().out
    assert run_pool(tmp_path, FOUR, 90 * GB, "parallel=1")[0].failed == {}  # told otherwise
    assert len(fake_jobs) == 6


def test_needs_are_measured_then_estimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_BENCH_CACHE", str(tmp_path))
    cfg = preflight(["arm=ppo", "threads=3"]).jobs[0].config
    estimated = needs.need_of(cfg, FOUR)
    # policy and critic with gradients and moments, 4 + 4, and a reference, of 0.6M parameters in 4 bytes
    assert estimated.memory == needs.PROCESS + 4 * 9 * needs.parameters(cfg)
    assert estimated.cores == 3
    needs.remember(cfg, memory=7 * GB)
    needs.remember(cfg, memory=5 * GB)  # the largest counts
    needs.remember(cfg, dry={"memory_bytes": 6 * GB})
    assert needs.need_of(cfg, FOUR).memory == 7 * GB
    other = preflight(["arm=ppo", "threads=3", "seed=7", "budget.amount=512"]).jobs[0].config
    assert needs.need_of(other, FOUR).memory == 7 * GB  # of the row
    assert needs.need_of(preflight(["arm=ppo", "threads=2"]).jobs[0].config, FOUR).memory == estimated.memory
    assert needs.need_of(preflight(["arm=ppo"]).jobs[0].config, FOUR).cores == 4  # threads=null takes all


def test_parameters_are_counted_without_loading() -> None:
    from grpo_bench.policy import load_model

    cfg = preflight([]).jobs[0].config
    loaded = sum(p.numel() for p in load_model(cfg.model, __import__("torch").device("cpu")).parameters())
    assert needs.parameters(cfg) == pytest.approx(loaded, rel=0.01)  # norms are left out


def test_limits_of_a_container_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {
        "memory.max": "2000000000", "memory.current": "1500000000", "memory.stat": "anon 1\ninactive_file 400000000",
        "cpu.max": "150000 100000",
    }.items():  # fmt: skip
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(resources, "_cgroups", lambda controller: [tmp_path])
    assert resources.machine().memory == min(2 * GB, resources.psutil.virtual_memory().total)
    assert resources.free_memory() == 900_000_000  # 2.0 - (1.5 - 0.4) GB
    assert resources.cores() == 1
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert resources._cgroup_memory() == []
