"""The last lines of a sweep: which of its jobs are complete, and why the others are not."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from grpo_bench.config import run_dir
from grpo_bench.ending import kind, plainly
from grpo_bench.jobs import say
from grpo_bench.resume import is_complete, read
from grpo_bench.types import UserError

if TYPE_CHECKING:
    from grpo_bench.config import TrackerConfig
    from grpo_bench.preflight import Job, Plan


def summarise(plan: Plan, failed: Mapping[Path, str]) -> int:
    """Print the summary; exit code 0, or 1 unless every job is complete. ``failed``: why jobs failed, by folder.

    What lies on disk decides, but a job that failed before it could touch the record of a former run (resume=false)
    has failed.
    """
    reasons = {number: reason for number, job in enumerate(plan.jobs) if (reason := _why_not(job, failed)) is not None}
    studies = sorted({str(run_dir(job.config).parent) for job in plan.jobs if job.config.study.name is not None})
    if reasons:
        kinds = Counter(kind(reason) for reason in reasons.values())
        count = ", ".join(f"{number} {name}" for name, number in kinds.items())
        say(f"{len(plan.jobs) - len(reasons)} of {len(plan.jobs)} jobs are complete; not complete: {count}")
        for number, reason in reasons.items():
            cfg = plan.jobs[number].config
            say(f"  {cfg.row} seed={cfg.seed}: {reason}")
    for folder in studies:
        tracker = next(job.config.tracker for job in plan.jobs if str(run_dir(job.config).parent) == folder)
        if tracker.name == "wandb" and not reasons:
            _show(folder, tracker)
        else:
            say(f"table: python -m grpo_bench.table {folder}")
    if reasons:
        count = f"{len(reasons)} of {len(plan.jobs)} jobs"
        print(f"error: {count} are not complete; the same command continues them", file=sys.stderr)
    return int(bool(reasons))


def _why_not(job: Job, failed: Mapping[Path, str]) -> str | None:
    """Why a job of the sweep is not complete; None: it is."""
    folder = run_dir(job.config)
    if folder in failed:
        return failed[folder]
    try:
        if is_complete(job.config, folder):
            return None
    except UserError as e:
        return str(e)
    return plainly(str(read(folder / "state.json").get("reason") or "not run"))


def _show(folder: str, tracker: TrackerConfig) -> None:
    """The tables of a study whose runs are mirrored, made and sent beside them; the record does not depend on it."""
    where = [f"project={tracker.project}", f"mode={tracker.mode}"]
    where += [f"entity={tracker.entity}"] if tracker.entity else []
    for line in (["grpo_bench.table", folder], ["grpo_bench.publish", folder, *where]):
        done = subprocess.run([sys.executable, "-m", *line], capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            print(f"warning: python -m {' '.join(line)}: {reason}", file=sys.stderr)
            return
    say(f"tables in {folder}; {done.stdout.strip()}")
