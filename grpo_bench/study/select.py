"""Which runs a study is: from its sweep file, or from the list of jobs in its results folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from grpo_bench.compose import override_key
from grpo_bench.config import run_id
from grpo_bench.config_errors import nearest
from grpo_bench.identity import study_dir
from grpo_bench.paths import sweeps_dir
from grpo_bench.preflight import Job, Plan, again, preflight
from grpo_bench.types import UserError


@dataclass(frozen=True, slots=True)
class Selected:
    """Jobs of a study, checked as a sweep's are, and where their configuration lies."""

    plan: Plan
    config_dir: str | None

    @property
    def folders(self) -> list[Path]:
        """Results folders of the jobs, in their order."""
        return list(dict.fromkeys(study_dir(job.config) for job in self.plan.jobs))


def is_folder(study: str) -> bool:
    """Whether a study was given by its results folder, and not by the name of its sweep."""
    return Path(study, "jobs.json").is_file() or "/" in study


def select(study: str, overrides: list[str], config_dir: str | None = None) -> Selected:
    """The jobs of a sweep (``sweeps/<study>.yaml``, or in ``config_dir``) with ``overrides``, or of a results folder.

    Raises UserError for a study that there is not, ``ConfigError`` for jobs that cannot run.
    """
    if is_folder(study):
        return _of_folder(Path(study), overrides, config_dir)
    where = _where(study, config_dir)
    return Selected(preflight(overrides, study, where, multirun=True), where)


def listed(folder: Path) -> list[dict[str, Any]]:
    """The jobs that sweeps wrote into a folder's ``jobs.json``; UserError where there are none."""
    file = folder / "jobs.json"
    try:
        jobs = json.loads(file.read_text(encoding="utf-8"))["jobs"]
    except FileNotFoundError:
        raise UserError(f"no {file}: give a results folder that a sweep wrote, or the name of a sweep") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{file} cannot be read; restore it, or run the sweep again, which writes it anew") from None
    if not jobs:
        raise UserError(f"{file} lists no jobs; run the sweep")
    return list(jobs)


def _where(name: str, config_dir: str | None) -> str:
    folder = config_dir or sweeps_dir()
    if folder is None:
        raise UserError("there is no folder sweeps/ here; give one with --config-dir")
    if not (Path(folder) / f"{name}.yaml").is_file():
        known = sorted(file.stem for file in Path(folder).glob("*.yaml"))
        raise UserError(f"no study {name!r}: no {name}.yaml in {folder}{nearest(name, known)}")
    return str(folder)


def _of_folder(folder: Path, overrides: list[str], config_dir: str | None) -> Selected:
    """The listed jobs, composed again; their identity must come out as it was."""
    if any("," in o.partition("=")[2] and "[" not in o for o in overrides):
        raise UserError("a results folder has its jobs already; give the name of the sweep to vary something")
    entries = listed(folder)
    known = {str(entry["sweep"]) for entry in entries if entry.get("sweep")}
    name = known.pop() if len(known) == 1 else folder.resolve().name.rpartition("-")[0]
    if known:
        raise UserError(f"{folder} holds the jobs of several sweeps; give the name of one of them")
    where = _where(name, config_dir) if name != "config" else config_dir
    given = {override_key(o) for o in overrides} | {"results"}
    lines = []
    for entry in entries:
        own = [o for o in entry["overrides"] if override_key(o) not in given and not o.startswith(("hydra.", "hydra/"))]
        lines.append([*own, f"results={folder.parent}", *overrides])
    plan = again(lines, name, where)
    jobs = []
    for entry, job in zip(entries, plan.jobs, strict=True):
        config = job.config.model_copy(update={"row": entry.get("row")})
        if run_id(config) != entry["run_id"] or study_dir(config).resolve() != folder.resolve():
            raise UserError(
                f"{entry['run_id']} would now be {study_dir(config).name}/{run_id(config)}: settings differ from those "
                "it ran with; give them again (KEY=VALUE; paths are not recorded), or give the name of its sweep"
            )
        jobs.append(Job(job.overrides, config, job.parsed))
    return Selected(replace(plan, jobs=jobs), where)
