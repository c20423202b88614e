"""``python -m grpo_bench.grade task=NAME file=responses.jsonl``: score saved responses by a task's answer rule.

Rows are ``{response, gold}`` or ``{response, id}``; each comes back, in order, with ``strict``, ``flexible`` and
``extracted`` added. The rule, its limits and where ids are looked up come from ``conf/task/`` as in training.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pydantic import ValidationError

from grpo_bench.compose import compose, composing, override_key
from grpo_bench.config import TaskConfig
from grpo_bench.config_errors import ConfigError, describe, key_paths, nearest
from grpo_bench.files import write_atomic
from grpo_bench.stats import wilson
from grpo_bench.tasks import Task, load_task
from grpo_bench.tasks.data import BadRow, Row, read_files, text_field
from grpo_bench.tasks.grading import Grade, gold_gsm8k, grade, last_boxed
from grpo_bench.tasks.verifier import Verifier
from grpo_bench.types import UserError

HELP = """usage: python -m grpo_bench.grade task=gsm8k|math|arithmetic|custom file=responses.jsonl [out=graded.jsonl]
                                  [task.KEY=VALUE ...]

Rows: {"response": ..., "gold": ...} or {"response": ..., "id": "gsm8k/test/17"}; ids are looked up in the task
(task.path=FOLDER: its data). gold: a number or an expression, or a worked solution that ends in "#### n" or \\boxed{}.
Adds strict, flexible and extracted to each row; rows go to out= or to stdout, a summary to stderr. Rows of a record
(file=RUN/eval.jsonl.gz) have grades already: the summary says how many are others now.
"""
NAMED = 5  # bad rows named in one error line


@dataclass(frozen=True, slots=True)
class Arguments:
    """The command line, sorted."""

    file: Path
    out: Path | None
    task: list[str] = field(default_factory=list)  # overrides of the task, in the user's order


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on stderr for bad input."""
    words = sys.argv[1:] if argv is None else argv
    if not words or any(word in ("-h", "--help") for word in words):
        print(HELP, end="")
        return 0
    try:
        arguments = parse_arguments(words)
        cfg = compose_task(arguments.task)
        rows = read_files([arguments.file])
        if not rows:
            raise UserError(f"{arguments.file}: no rows")
        if arguments.out is not None:
            check_out(arguments.out)
        grades, counts = grade_rows(cfg, rows)
        write(rows, grades, arguments.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(summary(grades, counts) + moved(rows, grades), file=sys.stderr)
    return 0


def parse_arguments(words: Sequence[str]) -> Arguments:
    """``file=``, ``out=``, ``task=`` and ``task.KEY=``; anything else is refused with the nearest name."""
    known = ["file", "out", "task", *key_paths(TaskConfig, "task.")]
    given: dict[str, str] = {}
    overrides = []
    for word in words:
        key, equals, value = word.partition("=")
        name = override_key(word)
        if not equals or not value:
            raise UserError(f"{word!r} is not KEY=VALUE; see python -m grpo_bench.grade --help")
        if key in ("file", "out"):
            if key in given:
                raise UserError(f"{key}= is given twice")
            given[key] = value
        elif name == "task" and "," in value:
            raise UserError(f"{word}: one task at a time")
        elif name == "task" or name in known or name.rpartition(".")[0] in known[3:]:
            overrides.append(word)
        else:
            advice = nearest(name, known) or "; give file=, out=, task= and task.KEY="
            raise UserError(f"unknown option {key!r}{advice}")
    if "file" not in given:
        raise UserError("no file=; give file=responses.jsonl with one row {response, gold} or {response, id} per line")
    if not any(override_key(word) == "task" for word in overrides):
        raise UserError("no task=; give task=gsm8k, task=math, task=arithmetic or task=custom")
    return Arguments(Path(given["file"]), Path(given["out"]) if "out" in given else None, overrides)


def check_out(out: Path) -> None:
    """Refuse a place that cannot be written to before the work is done, not after it."""
    if out.is_dir():
        raise UserError(f"out={out} is a folder; give a file in it")
    if not out.absolute().parent.is_dir():
        raise UserError(f"out={out}: there is no folder {out.parent}")


def compose_task(overrides: list[str]) -> TaskConfig:
    """The task's node of the configuration that these overrides compose, validated."""
    with composing():
        cfg = compose(overrides)
    node = OmegaConf.to_container(cfg["task"], resolve=True) if isinstance(cfg["task"], DictConfig) else cfg["task"]
    try:
        return TaskConfig.model_validate(node)
    except ValidationError as error:
        raise ConfigError(describe(error, None, prefix=("task",))) from None


def grade_rows(cfg: TaskConfig, rows: Sequence[Row]) -> tuple[list[Grade], dict[str, int]]:
    """A grade per row, and how many comparisons were stopped or failed; raises UserError that names bad rows."""
    # the task's data are read only when an id has to be looked up
    task = (
        load_task(cfg, seed=0) if any(row.values.get("gold") is None and "id" in row.values for row in rows) else None
    )
    golds, responses, bad = [], [], []
    for row in rows:
        try:
            responses.append(response_of(row))
            golds.append(gold_of(row, cfg.answer, task))
        except BadRow as error:
            bad.append(f"{row.where}: {error}")
    if bad:
        more = f"; and {len(bad) - NAMED} more bad rows" if len(bad) > NAMED else ""
        raise UserError("; ".join(bad[:NAMED]) + more)
    with Verifier(cfg.verify_seconds, cfg.verify_workers) as verifier:
        grades = grade(cfg.answer, golds, responses, verifier)
        return grades, {"timeouts": verifier.verifier_timeouts, "errors": verifier.verifier_errors}


def response_of(row: Row) -> str:
    """The row's response: any string, an empty one too."""
    response = row.values.get("response")
    if not isinstance(response, str):
        raise BadRow(f"field 'response' must be a string, not {type(response).__name__}")
    return response


def gold_of(row: Row, rule: str, task: Task | None) -> str:
    """The row's gold answer, or that of the problem with its id; raises BadRow."""
    gold = row.values.get("gold")
    if gold is None:
        if "id" not in row.values:
            raise BadRow("neither 'gold' nor 'id'; a row is {response, gold} or {response, id}")
        assert task is not None
        try:
            return task.problem(str(row.values["id"])).answer
        except UserError as error:
            raise BadRow(str(error)) from error
    text = str(gold) if isinstance(gold, int | float) and not isinstance(gold, bool) else text_field(row, "gold")
    if rule == "gsm8k":
        try:
            return gold_gsm8k(text)
        except UserError as error:
            raise BadRow(str(error)) from error
    boxed = last_boxed(text)
    if boxed == "":
        raise BadRow("field 'gold' has an empty \\boxed{}")
    return text if boxed is None else boxed


def write(rows: Sequence[Row], grades: Sequence[Grade], out: Path | None) -> None:
    """The rows with their grades as jsonl, whole or not at all where it is a file."""
    lines = [json.dumps(graded(row.values, grade)) + "\n" for row, grade in zip(rows, grades, strict=True)]
    if out is None:
        sys.stdout.write("".join(lines))
        sys.stdout.flush()
    else:
        write_atomic(out, "".join(lines).encode())


def graded(values: dict[str, Any], grade: Grade) -> dict[str, Any]:
    """A row with its grade; an earlier grade in it is replaced."""
    return values | {"strict": grade.strict, "flexible": grade.flexible, "extracted": grade.extracted}


def summary(grades: Sequence[Grade], counts: dict[str, int]) -> str:
    """One line: how many, how many right by either rule with Wilson's 95 % interval, how many without an answer."""
    n = len(grades)
    parts = [f"n={n}"]
    for rule in ("strict", "flexible"):
        right = sum(getattr(grade, rule) for grade in grades)
        low, high = wilson(right, n)
        parts.append(f"{rule} {right}/{n} = {100 * right / n:.1f} % [{100 * low:.1f}, {100 * high:.1f}]")
    parts.append(f"unparseable {sum(grade.extracted is None for grade in grades)}")
    parts += [f"verifier {name} {count}" for name, count in counts.items() if count]
    return ", ".join(parts) + " (Wilson 95 %)"


def moved(rows: Sequence[Row], grades: Sequence[Grade]) -> str:
    """How many rows that came with a grade, such as those of a record, have another now; "" where none came so."""
    before = [(row.values, grade) for row, grade in zip(rows, grades, strict=True) if "strict" in row.values]
    if not before:
        return ""
    keys = ("strict", "flexible", "extracted")
    other = sum(any(values.get(key) != getattr(grade, key) for key in keys) for values, grade in before)
    return f"; graded otherwise before: {other} of {len(before)}"


if __name__ == "__main__":
    sys.exit(main())
