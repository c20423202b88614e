"""The failed runs of a study once more, and only those."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace

from grpo_bench.config import run_dir
from grpo_bench.jobs import SWEEP, child_command, say
from grpo_bench.pool import Pool
from grpo_bench.study.select import Selected
from grpo_bench.study.status import standing_of
from grpo_bench.summary import summarise


def retry(selected: Selected, overrides: list[str]) -> int:
    """Run what failed, was interrupted or whose process is gone: continued from its checkpoint where it has one.

    Exit code 0, or 1 unless all of them are complete afterwards.
    """
    plan = selected.plan
    failed = [
        job
        for job in plan.jobs
        if standing_of(run_dir(job.config), str(job.config.row), job.config.seed).state == "failed"
    ]
    if not failed:
        say(f"none of {len(plan.jobs)} runs has failed")
        return 0
    again = replace(plan, jobs=failed)
    say(f"{len(failed)} of {len(plan.jobs)} runs failed and are run again")
    again.open_results()
    os.environ[SWEEP] = json.dumps({"total": len(failed), "varying": plan.varying})
    if plan.launcher != "basic":
        from grpo_bench.launch import launch

        return summarise(again, launch(again, overrides, selected.config_dir))
    from grpo_bench.cli import terminate

    signal.signal(signal.SIGTERM, terminate)
    pool = Pool()
    try:
        for number, job in enumerate(failed, 1):
            label = f"#{number}/{len(failed)} {job.config.row} seed={job.config.seed}"
            command = child_command(job.overrides, plan.name, selected.config_dir, str(job.config.row))
            pool.start(job.config, command, label)
        pool.wait()
    finally:
        pool.stop()
    return summarise(again, pool.failed)
