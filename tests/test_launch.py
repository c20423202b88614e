"""Hydra's other launchers through the same entry point: what they are given, and jobs through those that are here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_cli import FAKE_RUN

from grpo_bench import launch
from grpo_bench.config_errors import ConfigError
from grpo_bench.preflight import preflight

REPO = Path(__file__).resolve().parent.parent
SWEEP = ["arm=grpo_g8", "group_size=8,2,4", "study.name=iso", "threads=1"]


@pytest.fixture
def fake(tmp_path: Path) -> dict[str, str]:
    """Environment in which every Python process has the fake run of test_cli.py."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(FAKE_RUN)
    paths = [str(tmp_path / "site"), str(REPO), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "GRPO_BENCH_CACHE": str(tmp_path / "cache")}


def through(launcher: str, tmp_path: Path, fake: dict[str, str], *more: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "grpo_bench", "-m", *SWEEP, "results=out", f"hydra/launcher={launcher}", *more]
    return subprocess.run(line, cwd=tmp_path, env=fake, capture_output=True, text=True, timeout=280)


def outcome(tmp_path: Path, done: subprocess.CompletedProcess[str]) -> None:
    """One job of three is complete; one was refused, one was killed, and the summary says so."""
    assert done.returncode == 1, done.stdout + done.stderr
    summary = done.stdout[done.stdout.index("1 of 3 jobs are complete; not complete: ") :]
    assert "  grpo_g8 group_size=2 seed=0: the data are not there; give task.path=..." in summary
    assert "  grpo_g8 group_size=4 seed=0: killed by SIGKILL" in summary
    study = tmp_path / "out" / "iso-arithmetic"
    rows = [json.loads(file.read_text())["row"] for file in study.glob("*/result.json")]
    assert rows == ["grpo_g8 group_size=8"]
    assert {path.name for path in tmp_path.iterdir()} <= {"out", "site", "cache"}  # nothing is left elsewhere


def test_a_launcher_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, extra in (("ray", "ray"), ("submitit_slurm", "slurm"), ("joblib", "joblib")):
        if launcher_is_here(name):
            continue
        with pytest.raises(ConfigError) as error:
            preflight(["seed=0,1", f"hydra/launcher={name}"], multirun=True)
        assert f"hydra/launcher={name} is not installed; pip install 'grpo-bench[{extra}]'" in error.value.lines[-1]


def launcher_is_here(name: str) -> bool:
    try:
        preflight(["seed=0,1", f"hydra/launcher={name}"], multirun=True)
    except ConfigError:
        return False
    return True


def test_what_a_worker_is_given(tmp_path: Path) -> None:
    plan = preflight([*SWEEP, f"results={tmp_path}", "hydra.verbose=false"], multirun=True)
    assert plan.launcher == "basic"
    assert sorted(launch.handed_out(plan.jobs[1])) == [
        "arm=grpo_g8", "device=cpu", "group_size=2", f"results={tmp_path}", "row='grpo_g8 group_size=2'",
        "study.name=iso", "threads=1",
    ]  # fmt: skip


def composed(launcher: str, *overrides: str) -> tuple[Any, Any]:
    """The plan of a sweep and its configuration as the launcher would be made from it."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    from grpo_bench.compose import composing

    line = [*SWEEP, f"hydra/launcher={launcher}", *overrides]
    plan = preflight(line, multirun=True)
    with composing():
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        config = hydra.compose_config("config", line, run_mode=RunMode.MULTIRUN, with_log_configuration=False)
        launch.ask(config, [job.config for job in plan.jobs], plan.launcher)
    return plan, config.hydra.launcher


def test_slurm_composes() -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    plan, node = composed("submitit_slurm", "device=cuda", "hydra.launcher.partition=gpu", "threads=6")
    assert plan.launcher == "submitit_slurm"
    assert {job.config.device for job in plan.jobs} == {"cuda"}  # of the cluster: there is none here
    assert (node._target_.rpartition(".")[2], node.partition) == ("SlurmLauncher", "gpu")
    assert (node.cpus_per_task, node.gpus_per_node) == (6, 1)
    _, node = composed("submitit_slurm", "device=cpu", "hydra.launcher.cpus_per_task=3")
    assert (node.cpus_per_task, node.gpus_per_node) == (3, None)
    auto, _ = composed("submitit_slurm")
    assert any("device=auto was resolved on this machine" in line for line in auto.warnings())


def test_ray_is_asked_for_what_jobs_take() -> None:
    pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    plan, node = composed("ray", "device=cuda", "threads=2", "jobs_per_gpu=2")
    assert plan.launcher == "ray"
    assert (node.ray.remote.num_cpus, node.ray.remote.num_gpus) == (2, 0.5)
    assert node.ray.remote.memory > 1 << 30
    _, node = composed("ray", "device=cpu", "+hydra.launcher.ray.remote.num_cpus=5")
    assert node.ray.remote.num_cpus == 5
    assert "num_gpus" not in node.ray.remote


@pytest.mark.slow
def test_jobs_through_joblib(tmp_path: Path, fake: dict[str, str]) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    outcome(tmp_path, through("joblib", tmp_path, fake, "hydra.launcher.n_jobs=2"))
    again = through("joblib", tmp_path, fake, "hydra.launcher.n_jobs=2")
    assert "grpo_g8 group_size=8 seed=0 complete before, skipped" in again.stdout


@pytest.mark.slow
def test_jobs_through_submitit(tmp_path: Path, fake: dict[str, str]) -> None:
    """The plugin that serves SLURM, with its executor for one machine."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    outcome(tmp_path, through("submitit_local", tmp_path, fake))


@pytest.mark.slow
def test_jobs_through_ray(tmp_path: Path, fake: dict[str, str]) -> None:
    pytest.importorskip("ray")
    pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    outcome(tmp_path, through("ray", tmp_path, fake, "+hydra.launcher.ray.init.num_cpus=2"))
