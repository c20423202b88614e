"""Whole runs: what they leave, equal seeds give equal bytes, and a killed run ends like an unbroken one."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import study_builder
import torch
from filelock import FileLock
from model_data import SMALL, make
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from grpo_bench import baselines
from grpo_bench.config import parse
from grpo_bench.identity import run_dir
from grpo_bench.kernels import products
from grpo_bench.run import run

REPO = Path(__file__).resolve().parent.parent
SHORT = (
    *SMALL,
    "threads=1",
    "model.warmstart.steps=4",
    "model.warmstart.batch_size=8",
    "samples_per_step=16",
    "group_size=4",
    "budget.amount=64",
    "task.max_new_tokens=8",
    "eval.every=2",
    "eval.n=4",
    "eval.test_n=6",
    "eval.samples=2",
    "eval.ks=[1,2]",
    "checkpoint.every=1",
)
TIMES = {"seconds", "machine", "peak_memory_bytes"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_BENCH_CACHE", str(tmp_path / "cache"))


def go(tmp_path: Path, *overrides: str) -> tuple[Path, dict[str, Any]]:
    cfg = make(*SHORT, f"results={tmp_path / 'results'}", *overrides)
    directory = run_dir(cfg)
    return directory, run(cfg, directory)


def lines(path: Path) -> list[dict[str, Any]]:
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    return [json.loads(line) for line in text.splitlines()]


def timeless(result: dict[str, Any]) -> dict[str, Any]:
    """result.json without what a clock wrote, and without the commit, which may move between two calls."""
    cost = {k: v for k, v in result["cost"].items() if k not in TIMES}
    return {**{k: v for k, v in result.items() if k != "git_sha"}, "cost": cost}


@pytest.mark.parametrize("name", ["grpo", "ppo"])
@pytest.mark.parametrize("updates", [("epochs=1", "minibatches=1"), ("epochs=2", "minibatches=2")])
def test_a_run_leaves_a_whole_record(tmp_path: Path, name: str, updates: tuple[str, ...]) -> None:
    directory, result = go(tmp_path, f"algo={name}", "group_size=4", *updates, "budget.amount=32")
    count = 2 * int(updates[0][-1]) * int(updates[1][-1])
    assert result["status"] == "complete"
    assert (result["cost"]["steps"], result["cost"]["samples"], result["cost"]["updates"]) == (2, 32, count)
    assert result["cost"]["prompts"] == 8
    steps = lines(directory / "metrics.jsonl")
    assert [row["step"] for row in steps] == [0, 1, 2]  # 0: dev before training
    assert [name for name in steps[0] if name.startswith("eval/dev/greedy/acc")]
    assert "reward/mean" not in steps[0]
    rows = lines(directory / "eval.jsonl.gz")
    assert len([r for r in rows if r["split"] == "test"]) == 6 * 3  # one greedy and two sampled answers each
    assert len([r for r in rows if r["split"] == "dev"]) == 4 * 3 * 2  # before training and after step 2
    assert {"pretrained", "base", "final"} <= result["eval"].keys()
    assert all(0 <= share <= 1 for share in result["cost"].get("machine", {}).values())
    parameters = result["cost"]["parameters"]
    assert (parameters["critic"] > 0) == (name == "ppo")
    assert parameters["reference"] == parameters["policy"]  # kl_coef 0.04, to the reference
    held = result["cost"]["memory"]
    assert (held["policy"], held["critic"]) == (4 * parameters["policy"], 4 * parameters["critic"])
    assert held["gradients"] == held["policy"] + held["critic"]
    assert (held["sampler"] > 0) == products.multiplies(torch.zeros(1, 1), torch.float32)  # packed beside the weights
    seconds = result["cost"]["seconds"]
    parts = seconds["parts"]
    assert 0 < parts["reference"] + parts["old_logp"] + parts["values"] < seconds["score"]
    assert 0 < parts["actor"] + parts["critic"] < seconds["update"]
    assert (parts["critic"] > 0, parts["values"] > 0) == (name == "ppo", name == "ppo")
    assert result["cost"]["micro_batch_tokens"] == 4096  # the default of a CPU
    assert not list(directory.glob(".*.tmp"))


@pytest.mark.parametrize(
    "overrides",
    [
        ("algo=ppo", "model.critic=shared", "kl_coef=0"),
        ("algo=ppo", "algo.kl.place=reward", "algo.kl.estimator=k1", "algo.critic_warmup=1"),
        ("algo=grpo", "algo.kl.to=old", "algo.kl.control=adaptive", "target_kl=0.01"),
        ("algo=grpo", "algo.ratio=sequence", "mask_truncated=true", "rollout=hf"),
        ("algo=grpo", "algo.surrogate=logprob", "algo.entropy_coef=0.01", "optim.schedule=cosine"),
        ("algo=grpo", "model.lora={r: 2, alpha: 4, targets: null}"),
        ("algo=grpo", "reward=random", "budget.unit=updates", "budget.amount=5"),
        ("algo=grpo", "budget.unit=tokens", "budget.amount=200", "samples_per_step=null", "prompts_per_step=2"),
    ],
)
def test_the_choices_of_a_run(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    if any("lora" in word for word in overrides):
        pytest.importorskip("peft")
    base = [o for o in SHORT if not o.startswith("samples_per_step") or "prompts_per_step=2" not in overrides]
    cfg = make(*base, "group_size=4", f"results={tmp_path / 'results'}", *overrides)
    result = run(cfg, run_dir(cfg))
    assert result["status"] == "complete"
    assert result["stability"]["nan_steps"] == 0
    unit = {"tokens": "generated_tokens"}.get(cfg.budget.unit, cfg.budget.unit)
    assert result["cost"][unit] >= cfg.budget.amount


def test_equal_seeds_give_equal_bytes_and_other_seeds_do_not(tmp_path: Path) -> None:
    first, one = go(tmp_path / "a", "algo=ppo", "group_size=4")
    second, two = go(tmp_path / "b", "algo=ppo", "group_size=4")
    for name in ("metrics.jsonl", "samples.jsonl", "eval.jsonl.gz"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert timeless(one) == timeless(two)
    other, _ = go(tmp_path / "a", "algo=ppo", "group_size=4", "seed=1")
    assert (first / "samples.jsonl").read_bytes() != (other / "samples.jsonl").read_bytes()


def test_baselines_and_warm_start_are_shared(tmp_path: Path) -> None:
    _, one = go(tmp_path, "algo=grpo", "budget.amount=16")
    _, two = go(tmp_path, "algo=ppo", "group_size=4", "seed=3", "budget.amount=16")
    assert one["baselines"] == two["baselines"]
    assert one["eval"]["base"] == two["eval"]["base"]
    assert len(list((tmp_path / "cache" / "warmstart").glob("*.safetensors"))) == 1


def test_nobody_waits_for_a_baseline_that_another_job_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run begins without it, and sees to it at its end: makes the model anew where the other one did not finish."""
    _, alone = go(tmp_path / "alone", "algo=grpo", "budget.amount=16")
    taken = baselines.baseline

    def others(*args: Any, wait: bool = True) -> Any:
        return taken(*args, wait=wait) if wait else None

    monkeypatch.setattr(baselines, "baseline", others)
    _, late = go(tmp_path / "late", "algo=grpo", "budget.amount=16")
    assert late["eval"] == alone["eval"]
    assert late["baselines"] == alone["baselines"]


def test_a_baseline_being_measured_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "baselines").mkdir()
    rows: list[Any] = study_builder.rows([1, 0], step=0)
    with FileLock(tmp_path / "baselines" / ".base-0.lock"):
        assert baselines.baseline(tmp_path, "base", "0", make(), lambda: rows, wait=False) is None
    found = baselines.baseline(tmp_path, "base", "0", make(), lambda: rows, wait=False)
    assert found is not None
    assert found == baselines.baseline(tmp_path, "base", "0", make(), lambda: [], wait=True)


def test_a_longer_budget_extends_a_finished_run(tmp_path: Path) -> None:
    directory, short = go(tmp_path, "budget.amount=32")
    extended, long = go(tmp_path, "budget.amount=64")
    assert extended == directory
    assert (short["cost"]["samples"], long["cost"]["samples"]) == (32, 64)
    both = [one["cost"]["seconds"]["parts"]["actor"] for one in (short, long)]
    assert 0 < both[0] < both[1]  # a continued run goes on counting
    assert short["cost"]["memory"] == long["cost"]["memory"]
    assert json.loads((directory / "result-32.json").read_text()) == short
    whole, fresh = go(tmp_path / "fresh", "budget.amount=64")
    assert (directory / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert long["eval"]["final"] == fresh["eval"]["final"]


def test_the_export_is_the_trained_policy(tmp_path: Path) -> None:
    directory, _ = go(tmp_path, "export=true", "budget.amount=16")
    exported = AutoModelForCausalLM.from_pretrained(directory / "export", use_safetensors=True).state_dict()
    newest = sorted((directory / "checkpoints").glob("step-*"))[-1]
    trained = load_file(newest / "policy.safetensors")
    for name, tensor in trained.items():
        assert torch.equal(exported[name.removeprefix("model.").removeprefix("_")], tensor), name


def kill_at(step: int, process: subprocess.Popen[bytes], directory: Path) -> None:
    """kill -9 as soon as the record holds ``step`` lines."""
    deadline = time.monotonic() + 240
    metrics = directory / "metrics.jsonl"
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.is_file() and metrics.read_bytes().count(b"\n") >= step:
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize(
    ("arm", "steps"),
    [
        ("ppo_g8", (3,)),
        pytest.param("ppo_g8", (1, 3, 4, 6), marks=pytest.mark.slow),
        pytest.param("grpo_g8", (1, 3, 4, 6), marks=pytest.mark.slow),
        pytest.param("dapo", (1, 3), marks=pytest.mark.slow),
        pytest.param("vineppo", (1, 3), marks=pytest.mark.slow),
    ],
)
def test_killed_runs_end_like_unbroken_ones(tmp_path: Path, arm: str, steps: tuple[int, ...]) -> None:
    fewer = ("algo.max_refills=1",) if arm == "dapo" else ()  # nothing is right here, so that each step draws twice
    settings = (f"arm={arm}", *fewer, "minibatches=2", "checkpoint.every=2", "budget.amount=96")
    own = tuple(o for o in SHORT if not o.startswith("group_size"))
    env = {**os.environ, "GRPO_BENCH_CACHE": str(tmp_path / "cache")}
    whole = [sys.executable, "-m", "grpo_bench", *own, f"results={tmp_path / 'whole'}", *settings]
    subprocess.run(whole, check=True, cwd=REPO, env=env)
    broken = [sys.executable, "-m", "grpo_bench", *own, f"results={tmp_path / 'broken'}", *settings]
    cfg = make(*own, *settings, f"results={tmp_path / 'broken'}")
    directory = run_dir(parse(cfg.model_dump(mode="json")))
    for step in steps:
        kill_at(step, subprocess.Popen(broken, cwd=REPO, env=env), directory)
    subprocess.run(broken, check=True, cwd=REPO, env=env)
    reference = tmp_path / "whole" / "adhoc" / directory.name
    for name in ("metrics.jsonl", "samples.jsonl", "eval.jsonl.gz"):
        assert (directory / name).read_bytes() == (reference / name).read_bytes(), name
    one, two = (json.loads((d / "result.json").read_text()) for d in (directory, reference))
    assert timeless(one) == timeless(two)
    for group in ("policy", "policy_optimizer"):
        newest = sorted((directory / "checkpoints").glob("step-*"))[-1].name
        mine, its = (d / "checkpoints" / newest / f"{group}.safetensors" for d in (directory, reference))
        assert mine.read_bytes() == its.read_bytes()


@pytest.mark.slow
def test_the_reward_rises_on_the_embedded_task(tmp_path: Path) -> None:
    """The embedded default at a quarter of its budget: sampled accuracy on dev rises well above its error."""
    cfg = make(
        "model.tiny.hidden_size=128", "model.tiny.layers=3", "model.tiny.heads=4", "model.tiny.kv_heads=4",
        "model.tiny.intermediate_size=352", "arm=grpo_g8", "epochs=1", "minibatches=1", "kl_coef=0",
        "samples_per_step=128", "budget.amount=2560", f"results={tmp_path}", "eval.samples=1", "eval.ks=[1]",
    )  # fmt: skip
    final = run(cfg, run_dir(cfg))["eval"]
    assert final["final"]["sampled"]["acc"] > final["base"]["sampled"]["acc"] + 0.05


@pytest.mark.gpu
def test_a_whole_run_on_a_gpu(tmp_path: Path) -> None:
    """bf16 compute, fp32 master weights, a reference and a critic; then the same again gives the same accuracy keys."""
    for arm in ("ppo_g8", "grpo_g8"):
        own = [o for o in SHORT if not o.startswith(("device", "group_size", "threads"))]
        cfg = make(*own, "device=cuda", f"arm={arm}", f"results={tmp_path}")
        assert cfg.model.dtype == "bfloat16"
        directory = run_dir(cfg)
        result = run(cfg, directory)
        assert result["status"] == "complete"
        assert result["stability"]["nan_steps"] == 0
        newest = sorted((directory / "checkpoints").glob("step-*"))[-1]
        assert {t.dtype for t in load_file(newest / "policy.safetensors").values()} == {torch.float32}
        first = lines(directory / "metrics.jsonl")[1]
        assert first["kl/ref_k3_token"] == 0.0  # policy and reference compute the same before the first update
