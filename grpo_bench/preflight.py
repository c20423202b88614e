"""Preflight: every job of a command line is composed, parsed and checked before the first one starts."""

from __future__ import annotations

import functools
import importlib.util
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from grpo_bench import device
from grpo_bench.compose import Expansion, compose, composing, expand, override_key, varying_keys
from grpo_bench.config import Config, parse, plain, run_dir, run_id, warnings
from grpo_bench.config_errors import ConfigError, nearest
from grpo_bench.files import disk_errors, write_json
from grpo_bench.identity import study_dir
from grpo_bench.paths import conf_dir
from grpo_bench.provenance import PATH_KEYS, base_names
from grpo_bench.resume import standing
from grpo_bench.rewards import check as reward_check
from grpo_bench.tasks.data import local_files
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
        return Plan(_checked(expansion, name, config_dir, varying), varying, name, expansion.launcher)


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
    problems = _missing(config, elsewhere) + _overruled(overrides, data, config)
    arm = OmegaConf.select(composed, "hydra.runtime.choices.arm")
    if arm is not None and config.arm != arm:
        problems.append(f"arm={config.arm!r} in conf/arm/{arm}.yaml: it should be named as its file, arm: {arm}")
    if any(override_key(o) not in ("arm", "seed") for o in overrides):
        problems = _arm_problems(composed, config, config_dir, varying, alone) + problems
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


# ------------------------------------------------------------------ an arm is what its name says


def _arm_problems(
    composed: DictConfig, cfg: Config, config_dir: str | None, varying: list[str], alone: Any
) -> list[str]:
    """Differences to the arm's own values and group choices, composed alone; keys that the sweep varies may differ."""
    arm = OmegaConf.select(composed, "hydra.runtime.choices.arm")
    if arm is None:
        return []
    values, groups = _own(arm, config_dir)
    reference, problems = alone(arm), []
    for group in groups:
        mine, arms = (OmegaConf.select(c, f"hydra.runtime.choices.{group}") for c in (composed, reference))
        if mine != arms and group not in varying:
            problems.append(f"{group}={mine} contradicts arm={arm}, which is {group}={arms}; drop one of the two")
    if problems:  # its values are of another algorithm then
        return problems
    for key in values:
        if any(key == v or key.startswith(f"{v}.") or v.startswith(f"{key}.") for v in varying):
            continue
        mine, arms = OmegaConf.select(composed, key), OmegaConf.select(reference, key)
        if mine != arms and not _same_rule(composed, reference, key):
            problems.append(
                f"{key}={mine} contradicts arm={arm}, which has {key}={arms}; drop it, choose another arm, "
                f"or vary it in the sweep ({key}={arms},{mine})"
            )
    return problems


def _same_rule(one: DictConfig, other: DictConfig, key: str) -> bool:
    """Both take the value from elsewhere, by the same interpolation: algo.length of another task is no other arm."""
    parent, _, last = key.rpartition(".")
    nodes = [OmegaConf.select(cfg, parent) if parent else cfg for cfg in (one, other)]
    rules = []
    for node in nodes:
        if OmegaConf.is_interpolation(node, last):
            raw = OmegaConf.to_container(node, resolve=False)
            assert isinstance(raw, dict)
            rules.append(raw[last])
    return len(rules) == 2 and rules[0] == rules[1]


def _own(arm: str, config_dir: str | None) -> tuple[list[str], list[str]]:
    """Keys and groups that an arm's file sets, arms that it builds on included."""
    folders = [Path(config_dir)] if config_dir else []
    file = next(f for d in [*folders, conf_dir()] if (f := d / "arm" / f"{arm}.yaml").is_file())
    content = yaml.safe_load(file.read_text()) or {}
    values = list(_leaves({k: v for k, v in content.items() if k != "defaults"}))
    groups: list[str] = []
    for entry in content.get("defaults", []):
        if isinstance(entry, str) and entry != "_self_":
            more, choices = _own(entry, config_dir)
            values, groups = values + more, groups + choices
        elif isinstance(entry, dict):
            groups += [key.split()[-1].removeprefix("/") for key in entry]
    return values, groups


def _leaves(node: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


# ------------------------------------------------------------------ what the configuration points at


def _missing(cfg: Config, elsewhere: bool) -> list[str]:
    """What a run would stumble over after minutes: absent paths, packages, devices (of this machine), names."""
    problems = []
    for key, path in (
        ("task.path", cfg.task.path),
        ("task.math500_path", cfg.task.math500_path),
        ("model.path", cfg.model.path),
    ):
        if path is not None and not Path(path).expanduser().exists():
            problems.append(f"{key}={path}: there is no such file or folder")
    if not problems:
        try:
            local_files(cfg.task)
        except UserError as e:
            problems.append(str(e))
    problems += reward_check.missing(cfg)
    for key, where in (("device", cfg.device), ("reward.model.device", cfg.reward.model.device)):
        if where == "cuda" and not elsewhere and not device.cuda_available():
            problems.append(f"{key}=cuda: no CUDA device is visible to this torch; use {key}=cpu")
    needs = [("wandb", f"tracker={cfg.tracker.name}")] if cfg.tracker.name == "wandb" else []
    needs += [("tensorboard", "tracker=tensorboard")] if cfg.tracker.name == "tensorboard" else []
    needs += [("peft", "model.lora")] if cfg.model.lora is not None else []
    needs += [("gguf", "a GGUF file")] if str(cfg.model.path or "").endswith(".gguf") else []
    for package, what in needs:
        if importlib.util.find_spec(package) is None:
            problems.append(f"{what} needs the package {package}; pip install {package}")
    names = _arms_and_algorithms()
    for arm in dict.fromkeys(row.partition(" ")[0] for row in cfg.study.rows()):
        if arm not in names:
            problems.append(f"study: arm {arm!r} is not known{nearest(arm, names)}")
    return problems


def _arms_and_algorithms() -> list[str]:
    from hydra.core.global_hydra import GlobalHydra

    from grpo_bench.algos import ALGORITHMS

    return [*GlobalHydra.instance().config_loader().get_group_options("arm"), *ALGORITHMS]
