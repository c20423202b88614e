"""The embedded task: chains of + and − on small numbers as short word problems. Endless, seeded, no download.

Splits are disjoint by the sequence of operands and operators, not by text: a hash of the sequence decides.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from grpo_bench.tasks import Task
from grpo_bench.tasks.draws import Draws
from grpo_bench.types import Problem, UserError

if TYPE_CHECKING:
    from grpo_bench.config import ArithmeticConfig, TaskConfig

TEST, DEV = 1000, 512  # problems drawn for test and dev
SHARES = {"test": 10, "dev": 5}  # of 100 hash buckets of sequences; the rest is train

TRIES = 10_000  # draws before settings are found to leave nothing to draw

NAMES = ("Ann", "Ben", "Cara", "Dan", "Eva", "Finn", "Gus", "Hana", "Ivan", "Joy")
THINGS = ("apples", "books", "coins", "eggs", "pens", "shells", "stamps", "cards")
START = "{name} has {n} {things}"  # short sentences: on a laptop most of the time would go into reading prompts
GAIN = (", gets {n}", ", finds {n}", ", buys {n}")
LOSS = (", loses {n}", ", sells {n}", ", gives away {n}")
ASK = ". How many {things} now?"

Chain = tuple[int, ...]  # first number, then signed operands: (7, 5, -3) is 7 + 5 - 3


def vocabulary() -> Iterator[str]:
    """Every phrase of the task, for the embedded tokenizer: what it has seen often becomes one token."""
    for _ in range(50):
        for name in NAMES:
            for things in THINGS:
                yield START.format(name=name, n=1, things=things) + ASK.format(things=things)
            for phrase in GAIN + LOSS:
                yield phrase.format(n=1)
        for number in range(100):
            yield f" {number} + {number} - {number} = {number} ; #### {number}\nAnswer:"


def split_of(chain: Chain) -> str:
    """train, dev or test, by a hash of the sequence of operands and operators."""
    bucket = int.from_bytes(hashlib.blake2b(repr(chain).encode(), digest_size=8).digest(), "big") % 100
    if bucket < SHARES["test"]:
        return "test"
    return "dev" if bucket < SHARES["test"] + SHARES["dev"] else "train"


def draw_chain(rng: Draws, cfg: ArithmeticConfig) -> Chain:
    """A chain whose every intermediate result lies in ``cfg.results``; UserError when hardly any does."""
    low, high = cfg.results
    smallest, largest = cfg.operands
    for _ in range(TRIES):
        chain = [rng.integers(smallest, largest + 1)]
        total = chain[0]
        for _ in range(rng.integers(cfg.steps[0], cfg.steps[1] + 1)):
            operand = rng.integers(smallest, largest + 1) * (1 if rng.random() < 0.5 else -1)
            total += operand
            chain.append(operand)
            if not low <= total <= high:
                break
        else:
            if low <= chain[0] <= high:
                return tuple(chain)
    raise UserError(
        f"task.arithmetic: {TRIES:,} chains drawn and none stays within results={list(cfg.results)}; "
        "widen results or give fewer steps"
    )


def word_problem(id: str, chain: Chain, rng: Draws) -> Problem:
    """The chain as text, with its worked solution ``7 + 5 = 12 ; 12 - 3 = 9 #### 9``."""
    name, things = NAMES[rng.integers(len(NAMES))], THINGS[rng.integers(len(THINGS))]
    question = START.format(name=name, n=chain[0], things=things)
    lines, total = [], chain[0]
    for operand in chain[1:]:
        phrases = GAIN if operand > 0 else LOSS
        question += phrases[rng.integers(len(phrases))].format(n=abs(operand))
        lines.append(f"{total} {'+' if operand > 0 else '-'} {abs(operand)} = {total + operand}")
        total += operand
    question += ASK.format(things=things)
    solution = " ; ".join(lines) + f" #### {total}"
    return Problem(id, question, str(total), solution, {"steps": len(chain) - 1, "chain": list(chain)})


class ArithmeticTask(Task):
    """Problems are made on demand; ``arithmetic/test/3`` is always the same one for the same settings."""

    def __init__(self, cfg: TaskConfig, seed: int) -> None:
        super().__init__(cfg, seed)
        assert cfg.arithmetic is not None
        self.settings = cfg.arithmetic
        (low, high), (few, many) = cfg.arithmetic.operands, cfg.arithmetic.steps
        bottom, top = cfg.arithmetic.results
        ordered = 1 <= low <= high and 1 <= few <= many
        if not ordered or bottom < 0 or top - bottom < high or low > top or high < bottom:
            raise UserError(
                "task.arithmetic: operands and steps are [smallest, largest] with 1 <= smallest <= largest, and "
                "results [low, high] must start at 0 or more, span at least the largest operand and contain an operand"
            )
        rule = {
            "name": "arithmetic",
            "version": cfg.version,
            **cfg.arithmetic.model_dump(),
            "prompt": cfg.prompt.model_dump(),
        }
        self.fingerprint = hashlib.sha256(json.dumps(rule, sort_keys=True).encode()).hexdigest()[:16]
        stream = f"{self.fingerprint} endless philox seed={seed}"
        self.prompt_stream_hash = hashlib.sha256(stream.encode()).hexdigest()[:16]
        self._fixed: dict[str, list[Problem]] = {}

    def _rng(self, purpose: str, seed: int, index: int) -> Draws:
        key = hashlib.blake2b(f"{purpose} {seed} {index}".encode(), digest_size=16).digest()
        return Draws(int.from_bytes(key, "big"))

    def draw(self, index: int, seed: int, purpose: str) -> Problem:
        rng = self._rng(purpose, seed, index)
        for _ in range(TRIES):
            chain = draw_chain(rng, self.settings)
            if split_of(chain) == "train":
                return word_problem(f"arithmetic/{purpose}-{seed}/{index}", chain, rng)
        raise self._too_few("train")

    def _too_few(self, split: str) -> UserError:
        return UserError(
            f"task.arithmetic: these settings have too few different chains, none of them for {split}; "
            "widen steps, operands or results"
        )

    def _split(self, split: str, size: int) -> list[Problem]:
        if split not in self._fixed:
            problems: list[Problem] = []
            seen: set[Chain] = set()
            rng = self._rng(split, 0, 0)
            tries = 0
            while len(problems) < size and tries < 200 * size:
                tries += 1
                chain = draw_chain(rng, self.settings)
                if split_of(chain) == split and chain not in seen:
                    seen.add(chain)
                    problems.append(word_problem(f"arithmetic/{split}/{len(problems)}", chain, rng))
            if not problems:
                raise self._too_few(split)
            if len(problems) < size:
                self.notes.append(f"{split}: these settings have only {len(problems)} different chains, not {size}")
            self._fixed[split] = problems
        return self._fixed[split]

    def dev(self, n: int) -> list[Problem]:
        return self._split("dev", DEV)[:n]

    def test(self, n: int | None) -> list[Problem]:
        return self._split("test", TEST)[:n]

    def problem(self, id: str) -> Problem:
        match id.split("/"):
            case ["arithmetic", ("dev" | "test") as split, index] if index.isdigit():
                problems = self.dev(DEV) if split == "dev" else self.test(None)
                if int(index) < len(problems):
                    return problems[int(index)]
            case ["arithmetic", stream, index] if index.isdigit() and stream.rpartition("-")[2].isdigit():
                purpose, _, seed = stream.rpartition("-")
                if purpose:
                    return self.draw(int(index), int(seed), purpose)
        raise UserError(
            f"no problem {id!r} in task arithmetic; ids look like arithmetic/test/3 or arithmetic/train-0/17"
        )
