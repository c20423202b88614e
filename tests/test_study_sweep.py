"""A sweep of twenty real runs in which one raises, one is killed and one runs out of memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SWEEP = """
defaults: [base, _self_, {arm: null}, {override /reward: function}]
study: {name: twenty, baseline: ppo_g8}
samples_per_step: 32
threads: 1
parallel: 2
optim: {warmup_updates: 1}
budget: {unit: samples, amount: 64}
eval: {every: 0, n: 8, test_n: 8, samples: 0, ks: [], pretrained: false}
checkpoint: {every: 1}
model: {warmstart: {steps: 3, batch_size: 32}}
task: {max_new_tokens: 16}
reward: {function: REWARD}
hydra: {sweeper: {params: {arm: "grpo_g8,ppo_g8", seed: range(10)}}}
"""
# The reward of the task; in the second step of three runs, as long as a file lies there, something else happens first.
REWARD = """
import os, resource, signal, sys
from pathlib import Path
import torch

def reward(rows):
    if Path(os.environ["TROUBLE"]).exists() and rows.step == 2 and "arm=grpo_g8" in sys.argv:
        if "seed=3" in sys.argv:
            raise RuntimeError("boom")
        if "seed=5" in sys.argv:
            os.kill(os.getpid(), signal.SIGKILL)
        if "seed=7" in sys.argv:  # the system gives this process a quarter of a GiB more, and no more
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            most = pages * resource.getpagesize() + (1 << 28)
            resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
            torch.ones(1 << 29)  # 2 GiB
    return [float(grade.strict) for grade in rows.grades]
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc and limits a process's memory")
def test_three_of_twenty_fail_and_only_they_run_again(tmp_path: Path) -> None:
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "reward.py").write_text(REWARD)
    (tmp_path / "trouble").write_text("")
    (tmp_path / "sweeps" / "twenty.yaml").write_text(SWEEP.replace("REWARD", f"{tmp_path}/reward.py:reward"))
    environment = {
        **os.environ, "PYTHONPATH": str(REPO), "TROUBLE": str(tmp_path / "trouble"),
        "GRPO_BENCH_CACHE": str(tmp_path / "cache"),
    }  # fmt: skip
    sweep = [sys.executable, "-m", "grpo_bench", "-m", "--config-dir", "sweeps", "--config-name", "twenty"]

    def call(*line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)

    done = call(*sweep)
    study = tmp_path / "results" / "twenty-arithmetic"
    assert done.returncode == 1, done.stdout + done.stderr
    assert len(list(study.glob("*-s*-*/result.json"))) == 17
    summary = done.stdout[done.stdout.index("17 of 20 jobs are complete") :].splitlines()
    assert summary[0].endswith("not complete: 1 error, 1 killed, 1 out of memory")
    assert summary[1].startswith("  grpo_g8 seed=3: ")
    assert "RuntimeError: boom" in summary[1]
    assert summary[2].startswith("  grpo_g8 seed=5: killed by SIGKILL")
    assert summary[3].startswith("  grpo_g8 seed=7: out of memory")

    status = call(sys.executable, "-m", "grpo_bench.study", "status", str(study), "--json")
    states = {(run["row"], run["seed"]): run["state"] for run in json.loads(status.stdout)}
    assert sorted(key for key, state in states.items() if state == "failed") == [("grpo_g8", s) for s in (3, 5, 7)]
    assert list(states.values()).count("complete") == 17

    before = {file: file.stat().st_mtime_ns for file in study.glob("*-s*-*/result.json")}
    (tmp_path / "trouble").unlink()
    done = call(*sweep)
    assert done.returncode == 0, done.stdout + done.stderr
    ran = [line for line in done.stdout.splitlines() if line.startswith("#") and " done " in line]
    assert sorted(line.split(" ", 1)[1].partition(" done")[0] for line in ran) == [
        "grpo_g8 seed=3", "grpo_g8 seed=5", "grpo_g8 seed=7"
    ]  # fmt: skip
    assert len(list(study.glob("*-s*-*/result.json"))) == 20
    assert all(file.stat().st_mtime_ns == stamp for file, stamp in before.items())
    # continued from the checkpoint of their first step
    attempts = json.loads((study / f"{failed(study, 3)}" / "provenance.json").read_text())["attempts"]
    assert [attempt["continued_from_step"] for attempt in attempts] == [None, 1]


def failed(study: Path, seed: int) -> str:
    return next(path.name for path in study.glob(f"grpo_g8-s{seed}-*"))


def test_a_plan_by_a_real_dry_step(tmp_path: Path) -> None:
    """What the plan says of a run is what the run then takes, within a factor: it is an estimate."""
    environment = {**os.environ, "PYTHONPATH": str(REPO), "GRPO_BENCH_CACHE": str(tmp_path / "cache")}
    small = [
        "threads=1", "samples_per_step=64", "budget.amount=256", "eval.every=2", "eval.n=32", "eval.test_n=64",
        "eval.samples=0", "eval.ks=[]", "eval.pretrained=false", "model.warmstart.steps=20", "checkpoint.every=2",
    ]  # fmt: skip

    def plan() -> str:
        line = [sys.executable, "-m", "grpo_bench.study", "plan", "demo", *small, "seed=0"]
        done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    first = plan()
    assert "dry step of ppo_tuned" in first
    assert "dry step of grpo_g8" in first
    assert "2 runs (2 rows) to results/demo-arithmetic: 0 complete, 2 to run" in first
    assert "the warm start took " in first
    assert "dry step" not in plan()  # remembered
    assert not (tmp_path / "results").exists()
    known = [json.loads(file.read_text())["dry"] for file in (tmp_path / "cache" / "costs").glob("*.json")]
    assert len(known) == 2
    for dry in known:
        assert dry["per_step"]["samples"] == 64
        assert dry["memory_bytes"] > 200_000_000  # torch alone takes as much
        assert dry["test_n"] == 64
        assert set(dry["baselines"]) == {"base"}
        assert 0 < dry["step_s"] < 60
