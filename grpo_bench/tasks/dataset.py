"""What tasks made of a data set share: splits without leaks, filters, the order of the stream, lookups.

Nothing here depends on a path: the fingerprint is over contents. Which problems are held out for dev, which a limit
keeps and which come first in the test order is decided by a hash of the problem's text, so that every seed and
algorithm sees the same, a longer list begins with the shorter one, and the first n are an unbiased sample.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from grpo_bench.tasks import Task
from grpo_bench.types import Problem, UserError

if TYPE_CHECKING:
    from grpo_bench.config import TaskConfig

DEV_LARGEST = 512
DEV_SHARE = 10  # one in so many training problems, at most
NAMED = 20  # ids named in one note
BOUNDARY = 16  # tokens that a question may change in the text around it
ORDER_RULE = "philox-argsort-1"  # part of prompt_stream_hash: changes when the order of the stream does


@dataclass(frozen=True, slots=True)
class Splits:
    """All problems as read. ``held_out`` is neither trained nor evaluated on, yet keeps its ids and its overlaps."""

    train: list[Problem]
    test: list[Problem]
    held_out: list[Problem] = field(default_factory=list)


class DatasetTask(Task):
    """A task whose problems are rows of a data set; a subclass gives ``read``.

    Training problems go through, in this order: those without a gold answer, duplicates and overlaps with the test data
    are dropped; filters; the dev slice
    (a tenth, at most 512) is set aside; the limit. Filters and the limit are for training problems (dev is a slice of
    those): the test split stays whole, so that its accuracy means the same under every filter.

    ``dropped`` maps the id of every problem that was taken out of train to the reason; ``notes`` counts them by
    reason and names them.
    """

    def __init__(self, cfg: TaskConfig, seed: int) -> None:
        super().__init__(cfg, seed)
        self.dropped: dict[str, str] = {}
        splits = self.read()
        everything = [*splits.train, *splits.test, *splits.held_out]
        self._by_id = {problem.id: problem for problem in everything}
        self.fingerprint = fingerprint(cfg, splits)
        self._test = by_hash(splits.test)
        unanswerable = [problem.id for problem in splits.test if not problem.answer]
        if unanswerable:
            self.notes.append(f"{len(unanswerable)} test problems have an empty gold answer: {name_ids(unanswerable)}")
        train = self._without_leaks(splits)
        train = by_hash(self._filtered(train))
        if len(train) < 2:
            raise UserError(f"{cfg.name}: {len(train)} training problem left; dev and train need one each")
        dev = min(DEV_LARGEST, max(1, len(train) // DEV_SHARE))
        self._dev = train[:dev]
        self._train = train[dev:][: cfg.filters.limit]
        self._hash_stream()

    @abstractmethod
    def read(self) -> Splits:
        """Read and check the data of ``cfg``; raises UserError. May add to ``notes``."""

    @property
    def train_size(self) -> int:
        """Training problems of one pass."""
        return len(self._train)

    def draw(self, index: int, seed: int, purpose: str) -> Problem:
        passes, position = divmod(index, len(self._train))
        return self._train[pass_order(len(self._train), seed, passes, purpose)[position]]

    def dev(self, n: int) -> list[Problem]:
        return self._dev[:n]

    def test(self, n: int | None) -> list[Problem]:
        return self._test[:n]

    def problem(self, id: str) -> Problem:
        try:
            return self._by_id[id]
        except KeyError:
            example = next(iter(self._by_id))
            raise UserError(f"task {self.cfg.name} has no problem {id!r}; ids look like {example!r}") from None

    def problems(self) -> list[Problem]:
        """Every problem as read, dropped ones too, in no particular order."""
        return list(self._by_id.values())

    def fit(self, tokenizer: Any) -> None:
        """Drop train and dev problems whose prompt is longer than ``max_prompt_tokens``; name test prompts that are.

        Test problems are always kept, whole: dropping them would change what the accuracy is of.
        """
        limit = self.cfg.max_prompt_tokens
        lengths = self._long_prompts(tokenizer)
        self._drop([p.id for p in (*self._train, *self._dev) if p.id in lengths], f"prompt longer than {limit} tokens")
        for what, problems in (("training", self._train), ("dev", self._dev)):
            if all(problem.id in lengths for problem in problems):
                shortest = min(lengths[problem.id] for problem in problems)
                raise UserError(
                    f"every {what} prompt is longer than task.max_prompt_tokens={limit}; "
                    f"the shortest has {shortest} tokens"
                )
        self._train = [problem for problem in self._train if problem.id not in lengths]
        self._dev = [problem for problem in self._dev if problem.id not in lengths]
        kept = [problem.id for problem in self._test if problem.id in lengths]
        if kept:
            self.notes.append(f"kept {len(kept)} test prompts longer than {limit} tokens, whole: {name_ids(kept)}")
        self._hash_stream()

    def _long_prompts(self, tokenizer: Any) -> dict[str, int]:
        """Prompts above ``max_prompt_tokens``: problem id -> tokens.

        A question adds at most one token per byte to the prompt of an empty one, so that most prompts, and all their
        few-shot examples, need not be tokenized to be known as short.
        """
        limit = self.cfg.max_prompt_tokens
        (empty,) = self.prompt_ids([Problem("", "", "")], tokenizer)
        room = limit - len(empty) - BOUNDARY
        open_ = [p for p in (*self._train, *self._dev, *self._test) if len(p.question.encode()) > room]
        lengths = {p.id: len(ids) for p, ids in zip(open_, self.prompt_ids(open_, tokenizer), strict=True)}
        return {id: length for id, length in lengths.items() if length > limit}

    def _without_leaks(self, splits: Splits) -> list[Problem]:
        first: dict[str, str] = {}
        evaluated = {normalise(problem.question): problem.id for problem in (*splits.held_out, *splits.test)}
        train, duplicates, overlaps = [], {}, {}
        self._drop([problem.id for problem in splits.train if not problem.answer], "gold answer is empty")
        for problem in splits.train:
            if not problem.answer:
                continue
            key = normalise(problem.question)
            if key in evaluated:
                overlaps[problem.id] = evaluated[key]
            elif key in first:
                duplicates[problem.id] = first[key]
            else:
                first[key] = problem.id
                train.append(problem)
        for pairs, reason in ((duplicates, "duplicate within train"), (overlaps, "also in the test data")):
            self._drop(list(pairs), reason, [f"{id} (= {twin})" for id, twin in pairs.items()])
        return train

    def _filtered(self, train: list[Problem]) -> list[Problem]:
        for name in ("steps", "level", "subject"):
            wanted = getattr(self.cfg.filters, name)
            if wanted is None:
                continue
            there = sorted({problem.meta[name] for problem in train if problem.meta.get(name) is not None})
            unknown = [value for value in wanted if value not in there]
            if unknown or not wanted:
                what = f"no training problem has {name} {', '.join(map(str, unknown))}" if unknown else "an empty list"
                raise UserError(f"task.filters.{name}: {what}; there are {', '.join(map(str, there)) or 'none'}")
            train = [problem for problem in train if problem.meta[name] in wanted]
            if not train:
                raise UserError(f"task.filters leave no training problem: none of those left has {name} in {wanted}")
        return train

    def _drop(self, ids: list[str], reason: str, named: list[str] | None = None) -> None:
        if ids:
            self.dropped |= dict.fromkeys(ids, reason)
            self.notes.append(f"dropped {len(ids)} from train, {reason}: {name_ids(named or ids)}")

    def _hash_stream(self) -> None:
        digest = hashlib.sha256(f"{self.fingerprint} {self.seed} {ORDER_RULE}".encode())
        for problem in self._train:
            digest.update(problem.id.encode() + b"\0")
        self.prompt_stream_hash = digest.hexdigest()


@lru_cache(maxsize=16)
def pass_order(n: int, seed: int, passes: int, purpose: str) -> np.ndarray:
    """The (n,) positions of one pass over n problems: a shuffle keyed by (seed, pass, purpose) and nothing else.

    Sorted by raw words of a counter-based generator, whose stream numpy guarantees between versions (unlike that of
    ``permutation``).
    """
    key = int.from_bytes(hashlib.blake2b(f"{purpose} {seed} {passes}".encode(), digest_size=16).digest(), "big")
    return np.argsort(np.random.Philox(key=key).random_raw(n), kind="stable")


def normalise(text: str) -> str:
    """What two problems are compared by: their text without case and white space."""
    return "".join(text.casefold().split())


def text_hash(problem: Problem) -> bytes:
    """Fixed pseudo-random key of a problem's text (case and white space aside)."""
    return hashlib.sha256(normalise(problem.question).encode()).digest()


def by_hash(problems: Iterable[Problem]) -> list[Problem]:
    """In an order fixed by the texts; equal texts by id."""
    return sorted(problems, key=lambda problem: (text_hash(problem), problem.id))


def fingerprint(cfg: TaskConfig, splits: Splits) -> str:
    """sha256 over the contents of all splits and over what of the config decides what is asked, and how."""
    decisive = {"name", "version", "split", "eval_split", "filters", "prompt", "answer"}
    settings = cfg.model_dump(mode="json", include=decisive)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, problems in (("train", splits.train), ("test", splits.test), ("held_out", splits.held_out)):
        digest.update(f"\n{name} {len(problems)}\n".encode())
        for problem in problems:
            digest.update(json.dumps([problem.id, problem.question, problem.answer, problem.solution]).encode())
    return digest.hexdigest()


def check_count(what: str, found: int, expected: int) -> list[str]:
    """A note when a published split has another number of rows than it should."""
    return [] if found == expected else [f"{what} has {found:,} rows; the published one has {expected:,}"]


def name_ids(ids: Sequence[str]) -> str:
    """The ids in one line, the first of many."""
    more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
    return ", ".join(ids[:NAMED]) + more
