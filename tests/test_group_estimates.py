"""What a group says against what 64 completions say: worked by hand, and the file that the command writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from grpo_bench.advantage_error import main
from grpo_bench.group_estimates import advantage_error, advantages, expected_zero_signal, summary, zero_signal

LONE = torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)


def test_advantages_of_groups_and_of_all() -> None:
    assert advantages(LONE, 2, "center").tolist() == [[0.5, -0.5, 0.0, 0.0]]
    assert advantages(LONE, 4, "center").tolist() == [[0.75, -0.25, -0.25, -0.25]]
    small = advantages(LONE, 2, "zscore")[0].tolist()
    assert small == pytest.approx([1.0, -1.0, 0.0, 0.0], abs=1e-7)
    large = advantages(LONE, 4, "zscore")[0].tolist()  # σ = sqrt(3)/4
    assert large == pytest.approx([3**0.5, -(3**-0.5), -(3**-0.5), -(3**-0.5)], abs=1e-6)


def test_error_by_hand() -> None:
    # center: errors -1/4, -1/4, 1/4, 1/4
    assert advantage_error(LONE, 2, "center")["rmse"] == pytest.approx(0.25, abs=1e-12)
    # z-score: 1 - 1.7321, -1 + 0.5774, 0.5774, 0.5774: squares 0.5359, 0.1786, 1/3, 1/3; their mean 0.34530
    found = advantage_error(LONE, 2, "zscore")
    assert found["rmse"] == pytest.approx(0.58763, abs=1e-5)
    # correlation: sums of products 1.7321 + 0.5774 = 2.3094, of squares 2 and 4, both means 0: 2.3094 / sqrt(8)
    assert found["correlation"] == pytest.approx(0.81650, abs=1e-5)


def test_the_whole_group_has_no_error_and_flat_ones_no_correlation() -> None:
    rewards = torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
    found = advantage_error(rewards, 4, "zscore")
    assert found["rmse"] == 0.0
    assert found["correlation"] == pytest.approx(1.0)
    flat = advantage_error(torch.ones(3, 4), 2, "center")
    assert (flat["rmse"], flat["correlation"], flat["correlation_interval"]) == (0.0, None, None)


def test_error_falls_as_independent_rewards_say() -> None:
    """r − μ_G against r − μ_64 differ by μ_64 − μ_G: variance p(1 − p)(1/G − 1/64)."""
    rewards = (torch.rand(4000, 64, generator=torch.Generator().manual_seed(0)) < 0.3).double()
    for size in (4, 8, 16, 32):
        expected = (0.21 * (1 / size - 1 / 64)) ** 0.5
        found = advantage_error(rewards, size, "center")
        assert found["rmse"] == pytest.approx(expected, rel=0.02)
        assert found["rmse_interval"][0] < found["rmse"] < found["rmse_interval"][1]


def test_zero_signal_by_hand() -> None:
    assert zero_signal(LONE, 2).tolist() == [0.5]  # (1,0) has a signal, (0,0) has none
    found = expected_zero_signal(torch.tensor([1]), 4, 2)
    assert found["unbiased"] == pytest.approx(0.5)  # (C(1,2) + C(3,2)) / C(4,2) = 3/6
    assert found["formula"] == found["at_mean"] == pytest.approx(0.625)  # 1/16 + 9/16
    two = expected_zero_signal(torch.tensor([0, 4]), 4, 2)  # one never, one always right
    assert (two["formula"], two["at_mean"]) == (1.0, 0.5)  # Jensen: never below the formula at the mean


def test_observed_zero_signal_is_what_the_unbiased_formula_expects() -> None:
    p = torch.linspace(0.02, 0.98, 3000)[:, None]
    right = torch.rand(3000, 64, generator=torch.Generator().manual_seed(1)) < p
    for entry in summary(right.double(), right, (2, 4, 8, 16, 32)):
        expected = entry["zero_signal_expected"]
        assert entry["zero_signal"] == pytest.approx(expected["unbiased"], abs=0.01)
        assert expected["formula"] >= expected["unbiased"]  # p is estimated, and the formula is convex in it
        assert expected["at_mean"] <= expected["formula"]
        assert entry["groups"] == 3000 * 64 // entry["group_size"]


def test_the_command_writes_what_its_docstring_says(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRPO_BENCH_CACHE", str(tmp_path / "cache"))
    sweeps = str(Path(__file__).resolve().parent.parent / "sweeps")
    small = ["model.warmstart.steps=0", "task.max_new_tokens=4", "device=cpu", f"results={tmp_path}", "problems=3"]
    assert main(["--config-dir", sweeps, "--config-name", "group_size", *small]) == 0
    file = tmp_path / "group_size-arithmetic" / "advantage_error.json"
    assert capsys.readouterr().out.strip() == str(file)
    found = json.loads(file.read_text())
    assert (found["problems"], found["reference_group"], found["completions"]) == (3, 64, 192)
    assert found["policy"] == "pretrained"
    assert len(found["correct"]) == 3
    assert [entry["group_size"] for entry in found["groups"]] == [2, 4, 8, 16, 32]
    assert found["accuracy"] == pytest.approx(sum(found["correct"]) / 192)


def test_bad_input_is_one_line(capsys: pytest.CaptureFixture) -> None:
    assert main(["problems=one"]) == 2
    assert capsys.readouterr().err == "error: problems=one should be a number of at least 2\n"
    assert main(["gruop_size=4"]) == 2
    assert "did you mean 'group_size'" in capsys.readouterr().err
