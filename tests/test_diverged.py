"""A run that diverges ends early, is recorded as diverged with its last accuracy, and is not run again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from model_data import make
from test_run import SHORT

from grpo_bench.algos import ALGORITHMS
from grpo_bench.identity import run_dir
from grpo_bench.resume import standing
from grpo_bench.run import DIVERGED_AFTER, run
from grpo_bench.study.status import standing_of


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_stays_not_finite_ends_the_run(bad: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_BENCH_CACHE", str(tmp_path / "cache"))
    grpo = ALGORITHMS["grpo"]
    sound, calls = grpo.token_loss, []

    def token_loss(self: Any, logp: torch.Tensor, batch: Any, entropy: Any = None) -> torch.Tensor:
        calls.append(1)
        loss = sound(self, logp, batch, entropy)
        # not finite in the second step, and from the fourth on: one bad step alone is passed over
        return loss * bad if len(calls) == 2 or len(calls) >= 4 else loss

    monkeypatch.setattr(grpo, "token_loss", token_loss)
    cfg = make(*SHORT, f"results={tmp_path}", "algo=grpo", "budget.amount=512", "eval.every=0",
               "kl_coef=0.01", "epochs=1", "minibatches=1")  # fmt: skip
    directory = run_dir(cfg)
    result = run(cfg, directory)
    assert (result["status"], result["stability"]["diverged"]) == ("diverged", True)
    assert result["cost"]["steps"] == 3 + DIVERGED_AFTER  # of 32
    assert result["stability"]["nan_steps"] == 1 + DIVERGED_AFTER
    assert result["reason"] == "loss or gradient not finite in 5 steps in a row, the last being 8"
    assert result["eval"]["final"]["greedy"]["acc"] is not None
    state = json.loads((directory / "state.json").read_text())
    assert (state["status"], state["reason"]) == ("diverged", result["reason"])
    assert standing(cfg, directory) == "complete"  # what it came to is its result
    assert (standing_of(directory, "grpo", 0).state, standing_of(directory, "grpo", 0).reason) == (
        "diverged", result["reason"]
    )  # fmt: skip
