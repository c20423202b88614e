"""What the problems of a page ask: joined from the task by id, since records hold no question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from grpo_bench.config import TaskConfig
from grpo_bench.table.compare import Comparison
from grpo_bench.tasks import Task, load_task
from grpo_bench.types import UserError


@dataclass(frozen=True, slots=True)
class Asked:
    """A problem; ``question`` and ``gold`` are None where the task's data are not at hand."""

    id: str
    question: str | None = None
    gold: str | None = None


def questions(c: Comparison, ids: Sequence[str], data: Path | None) -> tuple[list[Asked], list[str]]:
    """The problems with these ids in their order, and what a reader must know where their questions are missing."""
    try:
        task = _task(c, data)
    except UserError as error:
        return [Asked(id) for id in ids], [f"Questions are not shown: {error}."]
    try:
        found = [_asked(task, id) for id in ids]
    finally:
        task.close()
    unknown = sum(one.question is None for one in found)
    return found, [f"{unknown} ids are unknown to the task as it is now."] if unknown else []


def _asked(task: Task, id: str) -> Asked:
    try:
        problem = task.problem(id)
    except UserError:
        return Asked(id)
    return Asked(id, problem.question, problem.answer)


def _task(c: Comparison, data: Path | None) -> Task:
    """The task of the study's runs; UserError where its data are not here or are others than the runs'."""
    run = next((run for run in c.study.runs if run.config.get("task")), None)
    if run is None:
        raise UserError("no run says which task it had")
    try:
        cfg = TaskConfig.model_validate(run.config["task"])
    except ValidationError:
        raise UserError("the task's settings in the records are of another version") from None
    if cfg.name != "arithmetic":
        path = data or (Path(cfg.path) if cfg.path else None)
        if path is None or not path.exists():
            raise UserError("the task's data are not on this machine; data=FOLDER says where they are")
        beside = cfg.math500_path if data is None else None
        cfg = cfg.model_copy(update={"path": str(path), "hub": None, "math500_path": beside})
    task = load_task(cfg, run.seed)
    recorded = (run.provenance.get("fingerprints") or {}).get("data")
    if recorded and recorded != task.fingerprint:
        raise UserError("the task's data or version are not those that the runs had")
    return task
