"""Preflight: every job of a command line is composed, parsed and checked before the first one starts."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from grpo_bench.arm_check import arm_problems
from grpo_bench.compose import Expansion, compose, composing, expand, override_key, varying_keys
from grpo_bench.config import Config, parse, plain, run_dir, run_id, warnings
from grpo_bench.config_errors import ConfigError
from grpo_bench.files import disk_errors, write_json
from grpo_bench.identity import study_dir
from grpo_bench.missing import missing
from grpo_bench.provenance import PATH_KEYS, base_names
from grpo_bench.resume import standing
from grpo_bench.study_check import study_problems
from grpo_bench.types import UserError

Composed = tuple[DictConfig, dict[str, Any]]  # as composed, and as plain data

SHOWN = 8  # bad jobs that are written out
ELSEWHERE = ("submitit_slurm", "ray", "ray_aws")  # launchers whose jobs may run on other machines


@dataclass(frozen=True, slots=True)
class Job:
    overrides: list[str]
    config: Config
    parsed: Config  # its row as it was given, not as a sweep names it


def preflight(
    overrides: list[str],
    name: str = "config",
    config_dir: str | None = None,
    multirun: bool = False,
    varying: Sequence[str] = (),
) -> Plan:
    """All jobs, checked. ``varying`` are keys of the sweep that a single job is part of.

    Raises UserError for a command line that means nothing, ``ConfigError`` with the report to print when any job
    cannot run.
    """
    with composing(config_dir):
        try:
            expansion = expand(overrides, name, multirun)
        except ConfigError as e:
            raise ConfigError(_report({tuple(e.lines): [overrides]}, 1)) from None
        varying = [*expansion.varying, *varying]
        jobs = _checked(expansion, name, config_dir, varying)
        # a job of a sweep file by itself has the row that the sweep gives it
        if not multirun and expansion.varying and "row" not in map(override_key, overrides):
            jobs = [replace(job, parsed=job.config) for job in jobs]
        return Plan(jobs, varying, name, expansion.launcher)


def again(lines: list[list[str]], name: str, config_dir: str | None = None) -> Plan:
    """The plan of jobs whose overrides are known one by one, as a study's ``jobs.json`` has them. Raises as
    ``preflight``."""
    with composing(config_dir):
        expansion = Expansion(lines, varying_keys(lines))
        return Plan(_checked(expansion, name, config_dir, expansion.varying), expansion.varying, name)


def _checked(expansion: Expansion, name: str, config_dir: str | None, varying: list[str]) -> list[Job]:
    jobs: list[Job] = []
    bad: dict[tuple[str, ...], list[list[str]]] = {}  # problems -> jobs that have them
    alone = functools.cache(lambda arm: compose([f"arm={arm}"], name))
    first: dict[tuple[str, ...], Composed] = {}  # compositions by their overrides, seeds apart
    if expansion.composed is not None:
        first[tuple(expansion.jobs[0])] = expansion.composed, plain(expansion.composed)
    for line in expansion.jobs:
        try:
            jobs.append(_job(line, name, config_dir, varying, alone, first, expansion.launcher in ELSEWHERE))
        except ConfigError as e:
            bad.setdefault(tuple(e.lines), []).append(line)
        except UserError as e:
            bad.setdefault((str(e),), []).append(line)
    if bad:
        raise ConfigError(_report(bad, len(expansion.jobs)))
    if shared := _shared_folders(jobs):
        raise ConfigError(shared)
    return jobs


def prepared(overrides: list[str], name: str, config_dir: str | None) -> Plan:
    """A job of a sweep that has checked it with all the others: it is composed and parsed, and that is all."""
    with composing(config_dir):
        config = parse(compose(overrides, name))
    return Plan([Job(overrides, config, config)], [], name)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a command line will run."""

    jobs: list[Job]
    varying: list[str]  # keys that differ between the jobs
    name: str = "config"  # of the primary configuration
    launcher: str = "basic"  # Hydra's, that starts them

    def warnings(self) -> list[str]:
        """Warnings of all jobs, each once, with the rows that it concerns unless it concerns all."""
        found: dict[str, list[str]] = {}
        for job in self.jobs:
            for line in warnings(job.config):
                rows = found.setdefault(line, [])
                if job.config.row not in rows:
                    rows.append(str(job.config.row))
        if self.launcher in ELSEWHERE and any(job.config.device == "cpu" for job in self.jobs):
            found[
                f"hydra/launcher={self.launcher}: device=auto was resolved on this machine, to cpu; give device=cuda "
                "for jobs that run on GPUs elsewhere"
            ] = list({str(job.config.row) for job in self.jobs})
        total = len({job.config.row for job in self.jobs})
        return [line if len(rows) == total else f"{', '.join(rows)}: {line}" for line, rows in found.items()]

    def open_results(self) -> None:
        """Create the folders that records go to; UserError when they cannot be written."""
        for folder in sorted({study_dir(job.config) for job in self.jobs}):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder):
                    pass
            except OSError as e:
                reason = e.strerror
                raise UserError(f"{folder} cannot be written ({reason}); choose another folder: results=...") from None

    def write_jobs(self) -> None:
        """Add these runs to the ``jobs.json`` of their study: a table names what is missing by it."""
        folders: dict[Path, list[dict[str, Any]]] = {}
        for job in self.jobs:
            cfg = job.config
            if cfg.study.name is not None:
                entry = {"run_id": run_id(cfg), "arm": cfg.name, "row": cfg.row, "seed": cfg.seed}
                entry |= {"sweep": self.name, "overrides": base_names(job.overrides)}
                folders.setdefault(study_dir(cfg), []).append(entry)
        for folder, entries in folders.items():
            file = folder / "jobs.json"
            new = {entry["run_id"] for entry in entries}
            try:
                before = json.loads(file.read_text(encoding="utf-8"))["jobs"] if file.is_file() else []
                kept = [entry for entry in before if entry["run_id"] not in new]
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    f"{file} cannot be read; delete it, this command writes it anew (it lists what a table waits for)"
                ) from None
            with disk_errors(file):
                write_json(file, {"jobs": kept + entries})


def row_name(config: Config, overrides: list[str], varying: list[str]) -> str:
    """The row of a table that a job belongs to: its arm and the overrides that vary, seeds apart."""
    named = {"arm", "seed"} | ({"algo"} if config.arm is None else set())
    shown = [o for o in overrides if override_key(o) in set(varying) - named]
    # a task has a folder of its own, its variants have not: task=gsm8k_long is the row's "long"
    variants = {o: o.partition("=")[2].removeprefix(config.task.name).lstrip("_") for o in shown if o[:5] == "task="}
    words = [base_names(o) if override_key(o) in PATH_KEYS else variants.get(o, o) for o in shown]
    return " ".join([config.name, *filter(None, words)])


def _job(
    overrides: list[str],
    name: str,
    config_dir: str | None,
    varying: list[str],
    alone: Any,
    first: dict[tuple[str, ...], Composed],
    elsewhere: bool,
) -> Job:
    composed, data = _composed(overrides, name, first)
    config = parse(data)
    problems = missing(config, elsewhere) + _overruled(overrides, data, config) + study_problems(config.study)
    arm = OmegaConf.select(composed, "hydra.runtime.choices.arm")
    if arm is not None and config.arm != arm:
        problems.append(f"arm={config.arm!r} in conf/arm/{arm}.yaml: it should be named as its file, arm: {arm}")
    if any(override_key(o) not in ("arm", "seed") for o in overrides):
        problems = arm_problems(composed, config, config_dir, varying, alone) + problems
    if problems:
        raise ConfigError(problems)
    standing(config, run_dir(config))
    return Job(overrides, config.model_copy(update={"row": row_name(config, overrides, varying)}), config)


def _overruled(overrides: list[str], data: dict[str, Any], cfg: Config) -> list[str]:
    """Knobs given by hand at their YAML's value, which a dialect replaces as it would one that nobody gave."""
    from grpo_bench.algos.dialects import at, dialects_of, leaves  # here, since it costs torch

    typed = {override_key(line) for line in overrides}
    return [
        f"dialect={cfg.dialect} sets algo.{knob}={value}, and algo.{knob}={at(data['algo'], path)} contradicts it; "
        "drop one of the two"
        for path, value in leaves(dialects_of(type(cfg.algo), cfg.algo.name)[cfg.dialect])
        if f"algo.{(knob := '.'.join(path))}" in typed and at(data["algo"], path) != value
    ]


def _composed(overrides: list[str], name: str, first: dict[tuple[str, ...], Composed]) -> Composed:
    """The composition and its plain data; composed once for jobs that differ in their seed alone, since it takes a
    fifth of a second."""
    seed = [o.partition("=")[2] for o in overrides if override_key(o) == "seed"]
    rest = tuple(o for o in overrides if override_key(o) != "seed")
    if tuple(overrides) in first:
        return first[tuple(overrides)]
    if rest in first and len(seed) == 1 and seed[0].isdecimal():
        composed, data = first[rest]
        return composed, {**data, "seed": int(seed[0])}
    composed = compose(overrides, name)
    data = plain(composed)
    if "${seed}" not in OmegaConf.to_yaml(composed):
        first[rest] = composed, data
    return composed, data


def _shared_folders(jobs: list[Job]) -> list[str]:
    """One line for the jobs of a sweep that are one run: the second would take over the first's record."""
    folders: dict[Path, list[Job]] = {}
    for job in jobs:
        folders.setdefault(run_dir(job.config), []).append(job)
    same = [group for group in folders.values() if len(group) > 1]
    if not same:
        return []
    keys: dict[str, None] = {}  # in the order of the command line
    for group in same:
        for line in group[0].overrides:
            key = override_key(line)
            values = [[o for o in job.overrides if override_key(o) == key] for job in group]
            if any(v != values[0] for v in values):
                keys[key] = None
    head = f"{sum(map(len, same))} of {len(jobs)} jobs would write the same {len(same)} run folder(s)"
    if not keys:
        return [f"{head}: a value is given twice; give each value once"]
    names = ", ".join(keys)
    return [f"{head}: they differ in {names} alone, and not in what makes a run its own; give one value of {names}"]


def _report(bad: dict[tuple[str, ...], list[list[str]]], total: int) -> list[str]:
    count = sum(map(len, bad.values()))
    lines = [f"{count} of {total} runs have a bad config; nothing was started"]
    for problems, jobs in list(bad.items())[:SHOWN]:
        others = f" and {len(jobs) - 1} more" if len(jobs) > 1 else ""
        lines += [f"  [{' '.join(jobs[0]) or 'defaults'}]{others}", *(f"    {line}" for line in problems)]
    if len(bad) > SHOWN:
        lines.append(f"  and {sum(map(len, list(bad.values())[SHOWN:]))} more")
    return lines
