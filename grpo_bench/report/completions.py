"""Answers to look at: the same problems under every row, seed and evaluation, and training samples with their rewards.

Which problems a page carries is decided by a hash of their ids, so that no one's answers choose them, and how many by
the caps below, which the page states.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo_bench.records import Run
from grpo_bench.report.questions import Asked, questions
from grpo_bench.series.answers import Lines
from grpo_bench.table.compare import Comparison

ANSWERS = 8_000  # of a kind on a page
CHARS = 2_000_000  # characters of them; they compress to a tenth
PROBLEMS = 100  # of a kind: more cannot be looked at
KINDS = {"test": "problems of the final test", "dev": "dev problems", "train": "recorded training problems"}
COLUMNS = ("problem", "row", "seed", "step", "kind", "mode", "right", "finished", "length", "reward", "text")


@dataclass
class Answers:
    """Columns of equal length, one entry an answer; ``problem``, ``row``, ``kind`` and ``text`` are indices."""

    rows: list[str]
    problems: list[Asked] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    columns: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in COLUMNS})
    notes: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        return len(self.columns["text"])

    def as_data(self) -> dict[str, Any]:
        """What the page's browser of answers reads."""
        problems = [{"id": one.id, "question": one.question, "gold": one.gold} for one in self.problems]
        return {"rows": self.rows, "kinds": list(KINDS), "problems": problems, "texts": self.texts} | self.columns


@dataclass(frozen=True)
class _Source:
    """One model whose answers were recorded: a run, or (without a seed) a model before RL."""

    row: str
    seed: int | None
    run: Run | None
    evaluated: Lines
    trained: Lines

    def lines(self, kind: str) -> tuple[Lines, str | None]:
        return (self.trained, None) if kind == "train" else (self.evaluated, kind)


def completions(c: Comparison, data: Path | None = None) -> Answers:
    """The answers that the page of a study carries, with questions where the task's data are at hand.

    ``data`` is a folder of the task's data set that takes the place of the recorded one.
    """
    sources = _sources(c)
    found = Answers(list(dict.fromkeys(source.row for source in sources)))
    place = {row: i for i, row in enumerate(found.rows)}
    texts: dict[str, int] = {}
    problems: dict[str, int] = {}
    for number, (kind, words) in enumerate(KINDS.items()):
        wanted, known = _problems(sources, kind)
        taken, answers, chars = 0, 0, 0
        for id, several in wanted.items():
            if answers + several > ANSWERS or chars > CHARS:
                break
            for source in sources:
                lines, split = source.lines(kind)
                for row in lines.rows(split, id):
                    text = str(row.get("response") or "")
                    chars += len(text) if text not in texts else 0
                    values: list[Any] = [problems.setdefault(id, len(problems)), place[source.row], source.seed]
                    values += [row.get("step"), number, row.get("mode"), bool(row.get("correct"))]
                    values += [bool(row.get("finished", True)), row.get("length"), _reward(source, row)]
                    values.append(texts.setdefault(text, len(texts)))
                    for name, value in zip(COLUMNS, values, strict=True):
                        found.columns[name].append(value)
            taken, answers = taken + 1, answers + several
        if wanted:
            found.notes.append(_said(words, taken, known, answers, kind))
    found.texts = list(texts)
    found.problems, more = questions(c, list(problems), data)
    found.notes += more
    return found


def _said(words: str, taken: int, total: int, answers: int, kind: str) -> str:
    if taken == total:
        return f"{answers:,} answers to all {total:,} {words}."
    how = "those that most rows met first" if kind == "train" else "chosen by a hash of their ids"
    return f"{answers:,} answers to {taken:,} of {total:,} {words}, {how}."


def _sources(c: Comparison) -> list[_Source]:
    """The models before RL once each, then every run that began."""
    before: dict[Path, _Source] = {}
    labels = {(reference.model, reference.which): reference.label for reference in c.references}
    for run in c.study.runs:
        for which in ("pretrained", "base"):
            if name := ((run.result or {}).get("baselines") or {}).get(which):
                directory = run.directory.parent / "baselines" / name
                if directory not in before:
                    before[directory] = _source(labels.get((run.model, which), which), None, None, directory)
    runs = [(arm.label, run) for arm in c.arms for run in arm.runs if run.status != "missing"]
    return [*before.values(), *[_source(label, run.seed, run, run.directory) for label, run in runs]]


def _source(row: str, seed: int | None, run: Run | None, directory: Path) -> _Source:
    evaluated = Lines(directory, "eval.jsonl", _hash, PROBLEMS)
    return _Source(row, seed, run, evaluated, Lines(directory, "samples.jsonl"))


def _problems(sources: Sequence[_Source], kind: str) -> tuple[dict[str, int], int]:
    """{problem: its answers} in the order in which they are taken, by a hash (of training: those that most rows met
    first), and how many problems there are."""
    total: Counter[str] = Counter()
    met: dict[str, set[str]] = {}
    every: set[str] = set()
    for source in sources:
        lines, split = source.lines(kind)
        every |= lines.ids(split)
        for id, several in lines.counts(split).items():
            total[id] += several
            met.setdefault(id, set()).add(source.row)
    rank = {id: (-len(met[id]) if kind == "train" else 0, _hash(id)) for id in total}
    return {id: total[id] for id in sorted(total, key=lambda id: rank[id])[:PROBLEMS]}, len(every)


def _hash(id: str) -> bytes:
    return hashlib.blake2b(id.encode(), digest_size=8).digest()


def _reward(source: _Source, row: dict[str, Any]) -> float | None:
    """As recorded for training samples; of evaluations only where the rule is correctness alone, and so known."""
    if row.get("reward") is not None:
        return float(f"{row['reward']:.5g}")
    rule = (source.run.config if source.run else {}).get("reward") or {}
    if set(rule.get("parts") or {}) == {"correct"} and rule.get("normalise") == "none":
        return float(rule["parts"]["correct"]) * bool(row.get("correct"))
    return None
