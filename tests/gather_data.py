"""A step's parts with everything given: problems, completions, a tokenizer whose words are characters."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from model_data import make

from grpo_bench.config import Config
from grpo_bench.cost import Meter, Size
from grpo_bench.rollout import Noise, Sampling
from grpo_bench.tasks.grading import Grade
from grpo_bench.tasks.overlap import Lazy
from grpo_bench.types import Problem, Rollouts

CPU = torch.device("cpu")
END = 0
SIZE = Size(trunk=10, head=5, layers=1, width=1)


class Characters:
    """One token per character; 0 ends an answer and is not shown."""

    eos_token_id = END

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return "".join(chr(i) for i in ids if i != END)

    def batch_decode(self, rows: list[list[int]], skip_special_tokens: bool) -> list[str]:
        return [self.decode(ids, skip_special_tokens) for ids in rows]


class Given:
    """Problem i asks "i?"; an answer is right where it is the problem's answer, word for word."""

    def __init__(self, answers: list[str]) -> None:
        self.answers = answers

    def train_problem(self, index: int) -> Problem:
        return Problem(str(index), f"{index}?", self.answers[index % len(self.answers)])

    def prompt_ids(self, problems: list[Problem], tokenizer: Any) -> list[list[int]]:
        return [[ord(c) for c in p.question] for p in problems]

    def prompt(self, problem: Problem, tokenizer: Any) -> str:
        return problem.question

    def grade(self, problems: list[Problem], texts: list[str]) -> list[Grade]:
        right = [problem.answer == text for problem, text in zip(problems, texts, strict=True)]
        return [Grade(ok, ok, text, True) for ok, text in zip(right, texts, strict=True)]

    def grading(self, problems: list[Problem]) -> Lazy:
        return Lazy(problems, self.grade)


class Script:
    """An engine whose calls are answered from a list, each with texts; "$" ends an answer, one without is cut."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.calls: list[tuple[list[str], int, Sampling, Noise]] = []

    def generate(
        self, policy: Any, tokenizer: Any, prompt_ids: list[list[int]], group_size: int, sampling: Sampling,
        noise: Noise, progress: Any = None, ended: Any = None,
    ) -> Rollouts:  # fmt: skip
        shown = ["".join(map(chr, ids)) for ids in prompt_ids]
        self.calls.append((shown, group_size, sampling, noise))
        texts = self.answers.pop(0)
        assert len(texts) == len(prompt_ids) * group_size
        ids = [[END if c == "$" else ord(c) for c in text] for text in texts]
        finished = [text.endswith("$") for text in texts]
        return Rollouts(prompt_ids, ids, [t.rstrip("$") for t in texts], finished, group_size)


def parts_of(engine: Script, algo: Any, *overrides: str, answers: list[str]) -> Any:
    """Parts of a step under this algorithm; its rewards are 1 for a right answer that ended by itself, else 0."""
    cfg: Config = make("epochs=1", "minibatches=1", *overrides)
    net = SimpleNamespace(config=SimpleNamespace(eos_token_id=END))
    return SimpleNamespace(
        cfg=cfg.model_copy(update={"algo": algo}),
        task=Given(answers),
        tokenizer=Characters(),
        engine=engine,
        models=SimpleNamespace(policy=SimpleNamespace(model=net, device=CPU)),
        meter=Meter(CPU),
        size=SIZE,
    )
