"""What a study will run, how long it takes and how much memory: from its records, or from a dry step of each row."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, Literal

from grpo_bench.config import config_hash, run_dir
from grpo_bench.identity import study_dir
from grpo_bench.jobs import duration
from grpo_bench.needs import costs, need_of, same_machine
from grpo_bench.resources import Machine, free_memory
from grpo_bench.resume import read
from grpo_bench.room import Need, Place, Room
from grpo_bench.study.status import Standing, columns, standing_of

if TYPE_CHECKING:
    from grpo_bench.config import Config
    from grpo_bench.preflight import Job
    from grpo_bench.study.select import Selected

Measure = Literal["missing", "never", "again"]
GB = 1e9


@dataclass(frozen=True, slots=True)
class Cost:
    """One run from its beginning: seconds; ``known``: from where."""

    seconds: float | None
    known: str


@dataclass(slots=True)
class Row:
    """Runs of a study that differ in their seed alone."""

    name: str
    jobs: list[Job]
    standings: list[Standing]
    cost: Cost
    need: Need
    dry: dict[str, Any] = field(default_factory=dict)

    def count(self, *states: str) -> int:
        return sum(s.state in states for s in self.standings)

    @property
    def todo(self) -> list[tuple[Job, Standing]]:
        pairs = zip(self.jobs, self.standings, strict=True)
        return [(job, s) for job, s in pairs if s.state in ("failed", "to run")]


def rows_of(selected: Selected, measure: Measure, tell: Callable[[str], None], here: Machine) -> list[Row]:
    """The rows of a study with what is known of each; ``tell`` hears of each dry step that is made.

    ``measure``: a dry step for the rows of which nothing is known and something is to be run, for none, or for all.
    """
    groups: dict[tuple[str, str], list[Job]] = {}
    for job in selected.plan.jobs:
        groups.setdefault((str(study_dir(job.config)), str(job.config.row)), []).append(job)
    rows = []
    for (_, name), jobs in groups.items():
        cfg = jobs[0].config
        standings = [standing_of(run_dir(job.config), name, job.config.seed, job.config.budget.amount) for job in jobs]
        open_ = any(s.state in ("failed", "to run") for s in standings)
        dry = costs(cfg).get("dry") or {}
        seconds = None if measure == "again" else _recorded(cfg)
        if measure == "again" or (measure == "missing" and open_ and seconds is None and not dry):
            from grpo_bench.study import dry as dry_step

            tell(f"dry step of {name}")
            dry = dry_step.measure(cfg)
        if seconds is not None:
            cost = Cost(seconds, "its records")
        elif dry:
            count = f"{dry['steps']} steps" if dry["steps"] > 1 else "1 step"
            cost = Cost(run_seconds(cfg, dry), f"a dry run of {count}")
        else:
            cost = Cost(None, "nothing")
        rows.append(Row(name, jobs, standings, cost, need_of(cfg, here), dry))
    return rows


def _recorded(cfg: Config) -> float | None:
    """Mean seconds of the row's finished runs on a machine like this one, brought to this budget; None without any."""
    found = []
    for file in run_dir(cfg).parent.glob(f"{cfg.name}-s*-{config_hash(cfg)}/result.json"):
        result = read(file)
        attempts = read(file.with_name("provenance.json")).get("attempts") or [{}]
        seconds = ((result.get("cost") or {}).get("seconds") or {}).get("total")
        amount = (result.get("budget") or {}).get("amount")
        if seconds and amount and result.get("status") == "complete" and same_machine(attempts[-1]):
            found.append(seconds * cfg.budget.amount / amount)
    return mean(found) if found else None


def run_seconds(cfg: Config, dry: dict[str, Any]) -> float:
    """Seconds of a whole run by its dry step: setup, steps, evaluations on dev and test, checkpoints."""
    steps = total_steps(cfg, dry)
    each = (1 + cfg.eval.samples) * dry["completion_s"]
    looks = 1 + steps // cfg.eval.every if cfg.eval.every else 0
    saved = math.ceil(steps / cfg.checkpoint.every) if cfg.checkpoint.every else 0
    evaluation = each * (looks * cfg.eval.n + dry["test_n"])
    return float(dry["setup_s"] + steps * dry["step_s"] + evaluation + saved * dry["checkpoint_s"])


def total_steps(cfg: Config, dry: dict[str, Any]) -> int:
    """Steps until the budget is reached, by what a step of the dry run took of it."""
    unit, amount = cfg.budget.unit, cfg.budget.amount
    per_step = dry["step_s"] if unit == "seconds" else dry["per_step"][unit]
    return max(1, math.ceil(amount / per_step - 1e-9)) if per_step else 1


def shared_seconds(rows: Sequence[Row]) -> float:
    """Seconds of the evaluations before RL that the study shares and does not have yet: once per model and warm start.

    The pretrained model of a warm start seldom ends its answers: its time is that of answers at full length.
    """
    todo: dict[Path, float] = {}
    for row in rows:
        if not row.dry or not row.todo:
            continue
        cfg = row.jobs[0].config
        for phase, name in row.dry["baselines"].items():
            folder = study_dir(cfg) / "baselines" / name
            seconds = (1 + cfg.eval.samples) * row.dry["completion_s"] * row.dry["test_n"]
            if phase == "pretrained" and row.dry["warm_started"]:
                seconds *= cfg.task.max_new_tokens / max(row.dry["answer_tokens"] or 1.0, 1.0)
            if not (folder / "result.json").is_file():
                todo[folder] = seconds
    return sum(todo.values())


def work(rows: Sequence[Row]) -> list[tuple[Need, float]]:
    """(need, seconds) of every run that is to be done, row by row; continued ones from where they are."""
    found = []
    for row in rows:
        for job, standing in row.todo:
            if row.cost.seconds is not None:
                left = 1 - _share(job.config, standing, row.dry)
                found.append((row.need, row.cost.seconds * left))
    return found


def _share(cfg: Config, standing: Standing, dry: dict[str, Any]) -> float:
    """The part of a broken run that its checkpoint holds."""
    if not standing.step or not cfg.resume:
        return 0.0
    if dry:
        return min(1.0, standing.step / total_steps(cfg, dry))
    from grpo_bench.config_checks import total_steps as planned

    steps = planned(cfg)
    return min(1.0, standing.step / steps) if steps else 0.0


def makespan(jobs: Sequence[tuple[Need, float]], room: Room, free: int) -> float:
    """Seconds until all jobs have ended when they enter as a sweep lets them, ``free`` bytes of memory being there.

    Jobs that never fit are left out. Nothing is added for jobs that slow each other down.
    """
    waiting = [job for job in jobs if room.never(job[0]) is None]
    clock, number = 0.0, itertools.count()
    ends: list[tuple[float, int, Place]] = []  # by their seconds
    while waiting or ends:
        for job in list(waiting):
            taken = sum(place.need.memory for place in room.inside)
            place = room.enter(job[0], free - taken)
            if place is None and not room.inside:  # alone it fits, as soon as others leave their memory
                place = room.enter(job[0], room.machine.memory)
            if place is not None:
                waiting.remove(job)
                heapq.heappush(ends, (clock + job[1], next(number), place))
        if not ends:
            break
        clock, _, place = heapq.heappop(ends)
        room.leave(place)
    return clock


def render(selected: Selected, rows: Sequence[Row], here: Machine, free: int | None = None) -> str:
    """The plan in words."""
    plan = selected.plan
    todo = [pair for row in rows for pair in row.todo]
    continued = sum(bool(s.step) and job.config.resume for job, s in todo)
    done = sum(row.count("complete", "diverged") for row in rows)
    running = sum(row.count("running") for row in rows)
    where = " and ".join(map(str, selected.folders))
    head = f"{len(plan.jobs)} runs ({len(rows)} rows) to {where}: {done} complete, {len(todo)} to run"
    head += f" ({continued} of them continued)" if continued else ""
    head += f", {running} running now" if running else ""
    table = [["row", "runs", "complete", "continued", "new", "a run", "memory", "known from"]]
    for row in rows:
        more = sum(bool(s.step) and job.config.resume for job, s in row.todo)
        seconds = duration(row.cost.seconds) if row.cost.seconds is not None else "?"
        table.append(
            [
                row.name, str(len(row.jobs)), str(row.count("complete", "diverged")), str(more),
                str(len(row.todo) - more), seconds, f"{row.need.memory / GB:.1f} GB", row.cost.known,
            ]
        )  # fmt: skip
    lines = [head, "", *columns(table), ""]
    if not todo:
        return "\n".join([*lines, "nothing is left to run"])
    first = plan.jobs[0].config
    jobs, shared = work(rows), shared_seconds(rows)
    total = sum(seconds for _, seconds in jobs)
    unknown = len(todo) - len(jobs)
    room = Room(here, first.parallel, first.jobs_per_gpu)
    time = f"time: {duration(total + shared)} of work"
    if plan.launcher != "basic":
        time += f" on a machine like this one; hydra/launcher={plan.launcher} says how much of it is done at once"
    elif first.parallel != 1:
        spare = free_memory() if free is None else free
        time += f", about {duration(makespan(jobs, room, spare) + shared)} with parallel={first.parallel}"
    lines.append(time + (f"; {unknown} runs of unknown time are not in it" if unknown else ""))
    if shared:
        lines.append(f"  of it {duration(shared)} for the models before RL, evaluated once")
    made = max((row.dry.get("warm_start_s", 0.0) for row in rows), default=0.0)
    if made:
        lines.append(f"  the warm start took {duration(made)} when it was made; it is cached, and no part of the time")
    most = max(row.need.memory for row in rows if row.todo)
    lines.append(f"memory: at most {most / GB:.1f} GB a run, of {here.memory / GB:.1f} GB; cores: {here.cores}")
    if here.gpus:
        lines[-1] += f"; GPUs: {len(here.gpus)} of {here.gpu_memory / GB:.0f} GB, {first.jobs_per_gpu} job(s) on each"
    for row in rows:
        if (reason := room.never(row.need)) is not None and row.todo and first.parallel != 1:
            lines.append(f"warning: {row.name}: {reason}")
    return "\n".join(lines)
