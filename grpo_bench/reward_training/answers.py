"""Right and wrong answers to learn from: sampled from the policy, labelled by the task's own verifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from grpo_bench.collect import sampling_of
from grpo_bench.rewards import Scored
from grpo_bench.rollout import Engine, Noise
from grpo_bench.tasks import Task
from grpo_bench.tasks.dataset import normalise
from grpo_bench.types import Problem, UserError

if TYPE_CHECKING:
    from grpo_bench.config import Config
    from grpo_bench.policy import Policy

HELD_OUT = 5  # one in so many problems
PURPOSE = "reward_model"  # a stream of training problems of its own
TRIES = 50  # draws per problem wanted, before a task has no more


def draw(task: Task, count: int, seed: int) -> tuple[list[Problem], list[Problem]]:
    """``count`` different training problems, a fifth of them held out: those to train on, those to measure on.

    Problems are the same where their worked solution is (their question, where there is none): the embedded task
    tells one sum in many words, and a classifier would be measured on what it has learnt by heart. Raises UserError
    where the task has fewer.
    """
    found: dict[str, Problem] = {}
    for index in range(TRIES * count):
        problem = task.draw(index, seed, PURPOSE)
        found.setdefault(normalise(problem.solution or problem.question), problem)
        if len(found) == count:
            problems = list(found.values())
            held_out = max(count // HELD_OUT, 1)
            return problems[held_out:], problems[:held_out]
    raise UserError(
        f"problems={count}, but only {len(found)} different training problems were found in {TRIES * count} draws; "
        "give fewer"
    )


def sample(
    cfg: Config,
    task: Task,
    policy: Policy,
    tokenizer: Any,
    engine: Engine,
    problems: list[Problem],
    samples: int,
    draw: int,
    progress: Callable[[int], None] | None = None,
) -> Scored:
    """``samples`` answers of each problem, drawn as a run draws them, with their grades: ``right`` are the labels.

    ``draw`` tells calls apart. ``progress`` is called with the number of answers that have ended.
    """
    prompts = task.prompt_ids(problems, tokenizer)
    noise = Noise(cfg.seed, "train", 0, draw)  # step 0: a run's first is 1
    out = engine.generate(policy, tokenizer, prompts, samples, sampling_of(cfg), noise, progress)
    rows = [problem for problem in problems for _ in range(samples)]
    return Scored(
        problems=rows,
        prompts=[task.prompt(problem, tokenizer) for problem in rows],
        responses=out.texts,
        grades=task.grade(rows, out.texts),
        finished=out.finished,
        seed=cfg.seed,
        step=0,
        token_ids=out.completion_ids,
        max_new_tokens=cfg.task.max_new_tokens,
        group_size=samples,
        draw=draw,
    )


def check(rows: Scored) -> None:
    """UserError unless there are right and wrong answers: else nothing can be told apart."""
    right, total = sum(rows.right), len(rows.right)
    if right in (0, total):
        what, why = ("none", "too weak") if right == 0 else ("every one", "too strong")
        raise UserError(
            f"{what} of the {total:,} answers to train on is right: this model is {why} for this task to learn a "
            "reward from; give more problems= and samples=, another model= or another task="
        )
