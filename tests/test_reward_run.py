"""Whole runs with shaped rewards: every part recorded, a reward model's cost apart and across interruptions."""

from __future__ import annotations

from pathlib import Path

import pytest
from reward_data import saved
from test_run import go, lines

from grpo_bench.rewards import model

SCORED = ("reward=model", "reward.parts={model:1,correct:1}", "eval.every=0")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_BENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def scorer(tmp_path: Path) -> Path:
    return saved(tmp_path / "scorer")


def test_every_part_is_recorded_and_correctness_apart(tmp_path: Path) -> None:
    directory, result = go(tmp_path, "reward=shaped", "reward.normalise=before", "budget.amount=32", "eval.every=0")
    assert "reward_model" not in result["cost"]
    for line in lines(directory / "metrics.jsonl"):
        assert {"reward/correct", "reward/correct/mean", "reward/format/mean", "reward/repetition/mean"} <= line.keys()
        assert line["reward/mean"] == pytest.approx(0, abs=1e-6)  # each part centred in its groups
        assert line["reward/correct"] == line["reward/correct/mean"]
    row = lines(directory / "samples.jsonl")[0]
    assert {"correct", "reward", "reward/correct", "reward/format", "reward/repetition"} <= row.keys()


def test_a_reward_models_cost_survives_an_interruption(tmp_path: Path, scorer: Path) -> None:
    more = (*SCORED, f"reward.model.path={scorer}")
    go(tmp_path, *more, "budget.amount=32")
    model._load.cache_clear()  # as in another process
    directory, extended = go(tmp_path, *more, "budget.amount=64")
    _, whole = go(tmp_path / "fresh", *more, "budget.amount=64")
    for key in ("tokens", "flops", "completions", "cut", "parameters", "weight_bytes"):
        assert extended["cost"]["reward_model"][key] == whole["cost"]["reward_model"][key], key
    assert whole["cost"]["reward_model"]["completions"] == 64
    assert 0 < whole["cost"]["reward_model"]["seconds"] < whole["cost"]["seconds"]["reward"]
    assert all(line["time/reward_model_s"] > 0 for line in lines(directory / "timing.jsonl"))
    _, rule = go(tmp_path / "rule", "eval.every=0", "budget.amount=64")
    assert whole["cost"]["flops"] > rule["cost"]["flops"]


def test_branches_and_greedy_answers_are_scored_and_counted_too(tmp_path: Path, scorer: Path) -> None:
    more = (*SCORED, f"reward.model.path={scorer}", "algo=remax", "group_size=1", "budget.amount=32")
    _, result = go(tmp_path, *more)
    assert result["cost"]["reward_model"]["completions"] == result["cost"]["samples"]
    assert result["cost"]["extra_samples"] == result["cost"]["samples"] / 2
