"""Golden runs: rollout, reward, score, advantages and updates as a run makes them, in double precision."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from model_data import make

from grpo_bench.algos import ALGORITHMS
from grpo_bench.cost import Meter, Size
from grpo_bench.policy import make_models
from grpo_bench.rollout import make_engine
from grpo_bench.run import one_step
from grpo_bench.state import Parts, State
from grpo_bench.tasks.grading import Grade
from grpo_bench.tasks.overlap import Lazy
from grpo_bench.tiny import tiny_model, tiny_tokenizer
from grpo_bench.types import Problem
from grpo_bench.update import Learner

GOLDEN = Path(__file__).parent / "golden"
BY_CORRECTNESS = {"dapo", "raft"}  # they choose answers by it: there the reward is no other coin


class Numbered:
    """Problems whose prompts are numbers by rule: a new wording of a task moves no golden number."""

    def train_problem(self, index: int) -> Problem:
        return Problem(str(index), str(index), "1")

    def prompt_ids(self, problems: list[Problem], tokenizer: Any) -> list[list[int]]:
        return [[(37 * int(p.id) + 11 * k) % 500 + 1 for k in range(2 + int(p.id) % 5)] for p in problems]

    def prompt(self, problem: Problem, tokenizer: Any) -> str:
        return problem.question

    grades_aside = False

    def grading(self, problems: list[Problem]) -> Lazy:
        return Lazy(problems, self.grade)

    def grade(self, problems: list[Problem], texts: list[str]) -> list[Grade]:
        """Right or wrong by a coin that lies in the text, so that it does not hang on who asks, or when."""
        right = [bool(zlib.crc32(text.encode()) % 2) for text in texts]
        return [Grade(strict=yes, flexible=yes, extracted=None) for yes in right]


def settings(algo: str) -> list[str]:
    """Four updates per rollout, whatever the algorithm's own default; what it has of a critic learns and acts."""
    found = ALGORITHMS[algo]
    own = ["critic_lr=0.01"] if make(f"algo={algo}").algo.needs_critic else []
    own += ["algo.critic_warmup=1"] if "critic_warmup" in found.model_fields else []
    return [
        f"algo={algo}", f"reward={'correct' if algo in BY_CORRECTNESS else 'random'}", "samples_per_step=16",
        "group_size=4", "epochs=2", "minibatches=2", "lr=0.003", "task.max_new_tokens=8", "optim.warmup_updates=2",
        "kl_coef=0.1", *own,
    ]  # fmt: skip


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_ten_steps_give_the_losses_on_file(algo: str) -> None:
    """A change here moves numbers: justify it, then write the file anew with GRPO_BENCH_GOLDEN=write."""
    cfg = make(*settings(algo))
    assert cfg.model.tiny is not None
    model = tiny_model(cfg.model.tiny).double()
    model.generation_config.eos_token_id = list(range(0, 512, 8))  # an untrained model would never end an answer
    models = make_models(model, cfg.model, torch.float32, cfg.algo.needs_critic, True)
    if models.critic is not None:
        models.critic.double()
    parts = Parts(
        cfg, Numbered(), tiny_tokenizer(cfg.model.tiny), make_engine(cfg.rollout), models,
        Learner(cfg, cfg.algo, models), Meter(torch.device("cpu")), Size.of(model),
    )  # fmt: skip
    state, lines = State(), []
    for step in range(1, 11):
        state.step = step
        _, _, metrics = one_step(parts, state, step / 10)
        losses = [metrics.get("policy/loss", 0.0), *([metrics["value/loss"]] if models.critic is not None else [])]
        lines.append([float(step), *losses])
    file = GOLDEN / f"{algo}.txt"
    if os.environ.get("GRPO_BENCH_GOLDEN") == "write":
        GOLDEN.mkdir(exist_ok=True)
        file.write_text("".join(f"{int(step)} {' '.join(f'{x:.12e}' for x in losses)}\n" for step, *losses in lines))
    golden = [[float(x) for x in line.split()] for line in file.read_text().splitlines()]
    assert len({losses[0] for _, *losses in golden}) >= 9  # not a run in which nothing happens
    for got, want in zip(lines, golden, strict=True):
        assert got == pytest.approx(want, abs=1e-9), f"step {int(want[0])}"
