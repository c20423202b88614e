"""``python -m grpo_bench.reproduce results/<study>-<task> [ROW|RUN ...]``: does the record come out again?"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo_bench.config import Config, config_hash, run_dir
from grpo_bench.files import disk_errors, write_json
from grpo_bench.records import Run, Study, load_run, load_study, read_json
from grpo_bench.reproduce import report
from grpo_bench.reproduce.check import Difference, prints, surroundings
from grpo_bench.reproduce.compare import Cell, Row, compare, contradiction, row_mean
from grpo_bench.reproduce.probe import probe
from grpo_bench.reproduce.rerun import ALLOWED, again, config_of, took
from grpo_bench.types import UserError

HELP = """usage: python -m grpo_bench.reproduce results/<study>-<task> [ROW|RUN ...|all] [seed=N,N] [check] [into=DIR]

Compares machine, versions, commit, data and model with what a study recorded, one line for each difference and whether
it can change results; then makes the named runs again, in a folder of their own, and says of each whether the new
result is identical (the same evaluation rows byte for byte), within its interval, or off.

  python -m grpo_bench.reproduce results/demo-arithmetic                    the comparison alone; nothing is run
  python -m grpo_bench.reproduce results/demo-arithmetic grpo_g8            all seeds of a row
  python -m grpo_bench.reproduce results/demo-arithmetic grpo_g8 seed=0     one cell
  python -m grpo_bench.reproduce results/demo-arithmetic all into=DIR       everything; the same command goes on with
                                                                            what is missing in DIR
ROW or RUN      a row as tables print it ("grpo_g8 kl_coef=0.04" in quotes), or the folder name of a run
check           the comparison alone, of the named runs
into=DIR        keep the new records there with reproduction.json; without it they go when nothing is off
KEY=VALUE       where things lie and how work is split, which a record leaves out: {places},
                {splits}
Exit code 0: identical or within its interval; 1: off, not judged for want of
an interval, or a run failed; 2: bad input.
"""


@dataclass(frozen=True)
class Arguments:
    """The command line, sorted."""

    folder: Path
    runs: list[Run]
    study: Study
    run: bool
    into: Path | None = None
    given: dict[str, str] = field(default_factory=dict)


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 identical or within, 1 off, not judged or failed, 2 bad input, 130 interrupted."""
    words = sys.argv[1:] if argv is None else argv
    if any(word in ("-h", "--help") for word in words):
        allowed = list(ALLOWED)
        print(HELP.format(places=", ".join(allowed[:4]), splits=", ".join(allowed[4:])), end="")
        return 0
    try:
        return reproduce(arguments(words))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; with into=DIR the same command goes on", file=sys.stderr)
        return 130


def arguments(words: list[str]) -> Arguments:
    """The command line, sorted; UserError for what cannot be meant."""
    if not words:
        raise UserError("no study folder given: python -m grpo_bench.reproduce results/<study>-<task>")
    folder, *rest = words
    study = load_study(Path(folder))
    known = [run for run in study.runs if run.status in ("complete", "diverged") and run.result]
    chosen: list[Run] = []
    seeds: set[int] | None = None
    flags: set[str] = set()
    given: dict[str, str] = {}
    into: Path | None = None
    for word in rest:
        named = [run for run in known if word in (run.run_id, run.row)]
        key, equals, value = word.partition("=")
        if named:
            chosen += [run for run in named if run not in chosen]
        elif word in ("all", "check"):
            flags.add(word)
        elif equals and key == "into" and value:
            into = Path(value)
        elif equals and key == "seed":
            seeds = _seeds(value)
        elif equals and key in ALLOWED:
            given[key] = value
        else:
            raise UserError(_unknown(word, study, known))
    if "all" in flags and chosen:
        raise UserError("all and a selection contradict each other; drop one of the two")
    run = bool(chosen or "all" in flags or seeds is not None) and "check" not in flags
    runs = [run for run in (chosen or known) if seeds is None or run.seed in seeds]
    if not runs:
        raise UserError(f"no finished run to reproduce in {folder}" + (" with that seed" if seeds is not None else ""))
    if into is not None and into.resolve() == Path(folder).resolve().parent:
        raise UserError(f"into={into} holds the records themselves; give another folder")
    return Arguments(Path(folder), runs, study, run, into, given)


def reproduce(given: Arguments) -> int:
    """Check, run again, compare and say; the exit code."""
    into = given.into or Path(tempfile.mkdtemp(prefix="grpo-bench-reproduce-"))
    keep = given.into is not None
    try:
        configs = {run.run_id: config_of(run, into.resolve(), given.given) for run in given.runs}
        checks = check(given.runs, configs)
        contradictions = [f"- {run.run_id}: {reason}\n" for run in given.runs if (reason := contradiction(run))]
        print("".join(contradictions), end="", flush=True)
        if not given.run:
            print(f"checked {took(given.runs)}; name a row or a run to make it again, or all")
            return 1 if contradictions else 0
        cells, rows = run_all(given, configs, checks)
        print()
        print(report.cells(cells, rows))
        print(report.verdict(cells))
        good = all(cell.word in ("identical", "within") for cell in cells)
        keep = keep or not good
        if keep:
            with disk_errors(into):
                into.mkdir(parents=True, exist_ok=True)
                every = [difference for found in checks.values() for difference in found]
                write_json(into / "reproduction.json", report.as_json(list(dict.fromkeys(every)), cells, rows))
            print(f"the new records and reproduction.json are in {into}")
        return 0 if good else 1
    finally:
        if not keep:
            shutil.rmtree(into, ignore_errors=True)


def check(runs: Sequence[Run], configs: dict[str, Config]) -> dict[str, list[Difference]]:
    """What differs between each record and here; printed once for all runs that share it."""
    distinct: dict[str, dict[str, Any]] = {}
    for run in runs:  # the stream of problems is a seed's own, model and data are the study's
        cfg = configs[run.run_id]
        distinct.setdefault(_source(cfg), cfg.model_dump(mode="json", by_alias=True))
    print(f"reading data and model of {len(distinct)} configuration{'s' * (len(distinct) != 1)}", file=sys.stderr)
    answer = probe(list(distinct.values()))
    here = answer["here"]
    source = dict(zip(distinct, answer["prints"], strict=True))
    out: dict[str, list[Difference]] = {}
    for run in runs:
        cfg = configs[run.run_id]
        threads = cfg.threads or (here.get("device") or {}).get("torch_threads")
        git = run.provenance.get("git") or {}
        found = surroundings(run, here, threads, changed_since(str(git.get("sha", ""))))
        found += prints(run, source[_source(cfg)], config_hash(cfg))
        found += _unlike(cfg, run)
        out[run.run_id] = found
    every = list(dict.fromkeys(difference for found in out.values() for difference in found))
    print(report.differences(every), end="")
    return out


def run_all(
    given: Arguments, configs: dict[str, Config], checks: dict[str, list[Difference]]
) -> tuple[list[Cell], list[Row]]:
    """Every chosen run again, and the rows' means."""
    print(f"running {took(given.runs)}", flush=True)
    cells: list[Cell] = []
    for number, run in enumerate(given.runs, 1):
        cfg = configs[run.run_id]
        label = f"#{number}/{len(given.runs)} {run.row} seed={run.seed}"
        if reason := again(run, cfg, label):
            cells.append(Cell(run, "failed", reason=reason))
            continue
        new = load_run(run_dir(cfg))
        row = [one for one in given.study.runs if one.row == run.row and one.result]
        same_start = _same_start(run, new)
        exact = same_start and not any(difference.changes for difference in checks[run.run_id])
        cells.append(compare(run, new, row, exact=exact))
    rows = []
    for name in dict.fromkeys(run.row for run in given.runs):
        members = [cell for cell in cells if cell.run.row == name]
        row = [one for one in given.study.runs if one.row == name and one.result]
        mean = row_mean(name, row, members)
        rows += [mean] if mean else []
    return cells, rows


def changed_since(sha: str) -> list[str] | None:
    """Files of grpo_bench/ and conf/ that differ between a commit and the working tree; None where git cannot tell."""
    if not sha or sha == "unknown":
        return None
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root), "diff", "--name-only", sha, "--", "grpo_bench", "conf"]
    untracked = ["git", "-C", str(root), "ls-files", "--others", "--exclude-standard", "--", "grpo_bench", "conf"]
    try:
        found = [subprocess.run(line, capture_output=True, text=True, timeout=30) for line in (command, untracked)]
    except (OSError, subprocess.TimeoutExpired):
        return None
    if any(done.returncode for done in found):
        return None
    return sorted(line for done in found for line in done.stdout.splitlines() if line)


def _unlike(cfg: Config, run: Run) -> list[Difference]:
    """What keeps a run from coming out bit by bit even where nothing differs."""
    found = []
    if cfg.budget.unit == "seconds":
        why = "a run ends at other samples on a machine of another speed or load"
        found.append(Difference("budget", "in seconds", "in seconds", True, why))
    if cfg.device == "cuda":
        found.append(Difference("device", "cuda", "cuda", True, "kernels of a GPU add in no fixed order"))
    attempts = read_json(run.directory / "provenance.json") if (run.directory / "provenance.json").is_file() else {}
    made = {_where(attempt) for attempt in attempts.get("attempts", [])}
    if len(made) > 1:
        why = "it was interrupted and went on with another commit, torch, processor or thread count"
        found.append(Difference("record", f"in {len(made)} surroundings", "in one", True, why))
    return found


def _where(attempt: dict[str, Any]) -> tuple[Any, ...]:
    git, device = attempt.get("git") or {}, attempt.get("device") or {}
    packages = attempt.get("packages") or {}
    threads = device.get("torch_threads")
    return git.get("sha"), packages.get("torch"), attempt.get("cpu"), threads, device.get("kernels")


def _same_start(run: Run, new: Run) -> bool:
    """Training began from the same weights: a warm start made elsewhere has other last bits."""
    before, now = (one.provenance.get("fingerprints") or {} for one in (run, new))
    if before.get("warmstart") != now.get("warmstart"):
        print(f"- warm start: recorded {before.get('warmstart')}, here {now.get('warmstart')}; can change results: "
              "training began from other weights")  # fmt: skip
        return False
    return True


def _source(cfg: Config) -> str:
    return repr((cfg.task, cfg.model, cfg.seed, cfg.device))


def _seeds(text: str) -> set[int]:
    try:
        return {int(part) for part in text.split(",")}
    except ValueError:
        raise UserError(f"seed={text}: give numbers, such as seed=0 or seed=0,1") from None


def _unknown(word: str, study: Study, known: list[Run]) -> str:
    from grpo_bench.config_errors import nearest

    key, equals, _ = word.partition("=")
    if equals and key.replace(".", "").replace("_", "").isalnum() and "." in key:
        return f"{key} would make it another run; what may be given is {', '.join(ALLOWED)}"
    unfinished = [run for run in study.runs if word in (run.run_id, run.row)]
    if unfinished:
        return f"{word} is not finished ({unfinished[0].status}); what is not recorded cannot be reproduced"
    names = list(dict.fromkeys([run.row for run in known] + [run.run_id for run in known]))
    return f"{word!r} is neither a row nor a run of {study.name}{nearest(word, names)}"


if __name__ == "__main__":
    # as an exception, so that a run that is being made again ends with what asked for it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
