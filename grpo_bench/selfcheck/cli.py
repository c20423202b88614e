"""The command line of the checks: which algorithms, then a table of passes and one line for each failure."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TextIO

from grpo_bench.algos import ALGORITHMS
from grpo_bench.compose import compose, composing, expand, override_key
from grpo_bench.config import Config, parse
from grpo_bench.config_errors import ConfigError
from grpo_bench.selfcheck import CHECKS, Outcome, Subject, verdicts
from grpo_bench.selfcheck.variants import variants
from grpo_bench.types import UserError

HELP = """usage: python -m grpo_bench.selfcheck [algo=NAME ...] [algo.class=MODULE:CLASS] [KEY=VALUE ...]

Checks of an algorithm's mathematics on small batches, in seconds on a CPU. Without arguments: all algorithms.

  python -m grpo_bench.selfcheck                              all that are built in
  python -m grpo_bench.selfcheck algo=grpo,dapo               two of them
  python -m grpo_bench.selfcheck algo=grpo dialect=trl        with other knobs
  python -m grpo_bench.selfcheck algo=grpo settings=all       and with every knob changed in turn
  python -m grpo_bench.selfcheck algo.class=mine:Mine         your own with the knobs of conf/algo/grpo.yaml
  python -m grpo_bench.selfcheck --config-dir DIR algo=mine   your own with its DIR/algo/mine.yaml

Exit code: 0 all green, 1 when a check is red, 2 for bad usage.
The checks:
"""
MARKS = {"pass": "ok", "red": "RED", "n/a": "-", "undeclared": "?"}
COLOURS = {"pass": "32", "red": "1;31", "n/a": "90", "undeclared": "90"}  # green, bold red, grey
LEGEND = "ok: holds   RED: does not   -: not applicable   ?: the class declares nothing to hold it to"


@dataclass(frozen=True, slots=True)
class Request:
    """The command line, sorted."""

    overrides: list[str] = field(default_factory=list)
    config_dir: str | None = None
    all_settings: bool = False


def main(argv: list[str] | None = None, stream: TextIO | None = None) -> int:
    """Exit code 0 when all is green, 1 when a check is red, 2 with one line on stderr for bad usage."""
    words, out = sys.argv[1:] if argv is None else argv, stream or sys.stdout
    if any(word in ("-h", "--help") for word in words):
        print(HELP + "\n".join(f"  {check.name:<15}{check.says}" for check in CHECKS), file=out)
        return 0
    try:
        subjects = subjects_of(read_words(words))
    except ConfigError as error:
        print("error: " + "\n".join(error.lines), file=sys.stderr)
        return 2
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    started = time.monotonic()
    found = show_one(subjects[0], out) if len(subjects) == 1 else show_many(subjects, out)
    return conclude(found, time.monotonic() - started, out)


def read_words(words: Sequence[str]) -> Request:
    """``settings=all``, ``--config-dir DIR`` and overrides; ``algo=`` may be given several times."""
    rest, overrides, names = list(words), [], []
    config_dir, all_settings = None, False
    while rest:
        word = rest.pop(0)
        if word.partition("=")[0] == "--config-dir":
            config_dir = word.partition("=")[2] or (rest.pop(0) if rest else None)
            if config_dir is None:
                raise UserError("--config-dir needs a folder; give --config-dir DIR")
        elif word.startswith("settings="):
            if word != "settings=all":
                raise UserError(f"{word}: the only choice is settings=all")
            all_settings = True
        elif word.startswith("-") or "=" not in word:
            raise UserError(f"{word!r} is not KEY=VALUE; see python -m grpo_bench.selfcheck --help")
        elif word.startswith("algo="):
            names.append(word.removeprefix("algo="))
        else:
            overrides.append(word)
    if not names and not any(override_key(word) in ("arm", "algo.class") for word in overrides):
        names = list(ALGORITHMS)
    return Request([*(["algo=" + ",".join(names)] if names else []), *overrides], config_dir, all_settings)


def subjects_of(request: Request) -> list[Subject]:
    """What the command line names, composed and validated as for a run. Raises UserError."""
    found: list[Subject] = []
    yamls: dict[str, Config] = {}  # as they are, without what the command line changes
    with composing(request.config_dir):
        expansion = expand(request.overrides, "config", multirun=True)
        for job in expansion.jobs:
            cfg = _parsed(job)
            name = str(cfg.algo.name)
            if cfg.algo.path is None and name not in yamls:
                yamls[name] = cfg if job == [f"algo={name}"] else _parsed([f"algo={name}"])
            varying = [line for line in job if override_key(line) in expansion.varying]
            others = [line for line in varying if override_key(line) not in ("algo", "arm", "algo.class")]
            label = " ".join([str(cfg.algo.path or cfg.arm or cfg.algo.name), *others])
            found.append(Subject(label, cfg.algo, cfg.algo.path is not None or yamls[name].algo == cfg.algo))
            if request.all_settings:
                found += [Subject(f"{label} {knob}", algo, False) for knob, algo in variants(cfg).items()]
    return found


def _parsed(job: list[str]) -> Config:
    return parse(compose(["device=cpu", *(line for line in job if override_key(line) != "device")]))


def show_many(subjects: Sequence[Subject], out: TextIO) -> dict[str, dict[str, Outcome]]:
    """A table algorithm x check, a row as soon as it is known."""
    for number, check in enumerate(CHECKS, 1):
        print(f"{number:3} {check.name:<15}{check.says}", file=out)
    print(f"{LEGEND}\n", file=out)
    width = max(len(subject.label) for subject in subjects)
    print(" " * width + "".join(f"{number:4}" for number in range(1, len(CHECKS) + 1)), file=out)
    found = {}
    for subject in subjects:
        found[subject.label] = row = verdicts(subject)
        print(f"{subject.label:<{width}}" + "".join(_mark(o, 4, out) for o in row.values()), file=out, flush=True)
    return found


def show_one(subject: Subject, out: TextIO) -> dict[str, dict[str, Outcome]]:
    """A row per check, with why where one does not apply."""
    found = verdicts(subject)
    print(f"{subject.label}   {LEGEND}\n", file=out)
    for check in CHECKS:
        verdict = found[check.name]
        why = f" ({verdict.detail})" if verdict.status in ("n/a", "undeclared") else ""
        print(f"{_mark(verdict, 4, out)}  {check.name:<15}{check.says}{why}", file=out)
    return {subject.label: found}


def conclude(found: dict[str, dict[str, Outcome]], seconds: float, out: TextIO) -> int:
    """A line for each failure, notes, the sums; returns the exit code."""
    print(file=out)
    notes: dict[str, list[str]] = {}
    for label, row in found.items():
        for name, verdict in row.items():
            if verdict.status == "red":
                print(f"RED {label}, {name}: {verdict.detail}", file=out)
            elif verdict.status == "pass" and verdict.detail:
                notes.setdefault(f"{name}: {verdict.detail}", []).append(label)
    for note, labels in notes.items():
        print(f"note: {note} ({', '.join(labels)})", file=out)
    counts = {status: sum(v.status == status for row in found.values() for v in row.values()) for status in MARKS}
    print(
        f"{len(found)} algorithms x {len(CHECKS)} checks: {counts['pass']} hold, {counts['red']} red, "
        f"{counts['n/a']} not applicable, {counts['undeclared']} undeclared, in {seconds:.1f} s",
        file=out,
    )
    return 1 if counts["red"] else 0


def checks_table() -> str:
    """The checks as a Markdown table."""
    lines = [f"| {check.name} | {check.says} |" for check in CHECKS]
    return "\n".join(["| check | what holds |", "|---|---|", *lines])


def _mark(verdict: Outcome, width: int, out: TextIO) -> str:
    text = f"{MARKS[verdict.status]:>{width}}"
    return f"\x1b[{COLOURS[verdict.status]}m{text}\x1b[0m" if out.isatty() else text
