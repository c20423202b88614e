"""Sweeps through a launcher of Hydra's that is not its own basic one: joblib, submitit (SLURM) or Ray.

Each of its workers runs one job at a time, in a child process as everywhere else, and says how it ended. Jobs that are
complete are not handed out.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from grpo_bench import jobs
from grpo_bench.compose import composing, override_key
from grpo_bench.config import parse, run_dir
from grpo_bench.needs import costs, need_of
from grpo_bench.resources import machine
from grpo_bench.resume import complete_line, standing

if TYPE_CHECKING:
    from grpo_bench.config import Config
    from grpo_bench.preflight import Job, Plan
SPARE = 1.25  # times the measured memory, asked of SLURM, which kills what takes more


def launch(plan: Plan, overrides: list[str], config_dir: str | None) -> dict[Path, str]:
    """Run the plan's jobs; why jobs failed, by folder, as far as their workers came to say so.

    ``overrides`` are the command line's. What the jobs ask for (threads, a GPU, memory that is known) is asked of the
    launcher where its own settings leave it open.
    """
    wanted: list[Job] = []
    for job in plan.jobs:
        if standing(job.config, run_dir(job.config)) == "complete":
            jobs.say(f"{label(job.config)} {complete_line(run_dir(job.config), job.config.export)}")
        else:
            wanted.append(job)
    if not wanted:
        return {}
    with composing(config_dir):
        hydra = GlobalHydra.instance().hydra
        assert isinstance(hydra, Hydra)
        config = hydra.compose_config(plan.name, overrides, run_mode=RunMode.MULTIRUN, with_log_configuration=False)
        ask(config, [job.config for job in wanted], plan.launcher)
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(config)),
            task_function=functools.partial(work, folder=os.getcwd(), config_dir=config_dir),
            config=config,
        )
        returns = launcher.launch([handed_out(job) for job in wanted], initial_job_idx=0)
    failed = {}
    for job, returned in zip(wanted, returns, strict=True):
        try:
            reason = returned.return_value
        except Exception as e:  # the worker's, before it came to its job
            reason = f"{type(e).__name__}: {e}"
            jobs.say(f"{label(job.config)} FAILED: {reason}")
        if reason is not None:
            failed[run_dir(job.config)] = reason
    return failed


def handed_out(job: Job) -> list[str]:
    """What a worker composes its job from: without Hydra's own keys, with the device that was checked here."""
    cfg = job.config
    left_out = ("hydra.", "hydra/", "device", "row")
    own = [o for o in job.overrides if not override_key(o).startswith(left_out)]
    return [*own, f"device={cfg.device}", f"row={jobs.quoted(str(cfg.row))}"]


def ask(config: DictConfig, wanted: Sequence[Config], launcher: str) -> None:
    """Put what the jobs take into the launcher's settings: the largest of each, where nothing is given."""
    here = machine()
    needs = [need_of(cfg, here) for cfg in wanted]
    threads = max((cfg.threads or 1 for cfg in wanted), default=1)
    gpus = 1 / max(cfg.jobs_per_gpu for cfg in wanted) if any(need.on_gpu for need in needs) else 0
    node = config.hydra.launcher
    with open_dict(node):
        if launcher == "ray":
            remote = node.ray.remote
            # more than Ray counts as the machine's would wait for ever
            memory = min(max(need.memory for need in needs), here.memory // 2)
            settings: dict[str, Any] = {"num_cpus": threads, "memory": memory}
            for key, value in (settings | ({"num_gpus": gpus} if gpus else {})).items():
                if OmegaConf.select(remote, key) is None:
                    remote[key] = value
        elif launcher == "submitit_slurm":
            if node.get("cpus_per_task") is None:
                node.cpus_per_task = threads
            known = [need.memory for cfg, need in zip(wanted, needs, strict=True) if costs(cfg)]
            if known and all(node.get(key) is None for key in ("mem_gb", "mem_per_cpu", "mem_per_gpu")):
                node.mem_gb = math.ceil(SPARE * max(known) / 1e9)
            if gpus and node.get("gpus_per_node") is None and node.get("gres") is None:
                node.gpus_per_node = 1


def label(cfg: Config) -> str:
    return f"{cfg.row} seed={cfg.seed}"


def work(composed: DictConfig, folder: str, config_dir: str | None) -> str | None:
    """In a launcher's worker: one job, in a child process; None, or why it failed."""
    os.chdir(folder)
    cfg = parse(composed)
    context = HydraConfig.get()
    os.environ.setdefault(jobs.SWEEP, json.dumps({"total": 0, "varying": []}))  # checked with all the others
    overrides = [o for o in context.overrides.task if override_key(o) != "row"]
    command = jobs.child_command(overrides, str(context.job.config_name), config_dir, str(cfg.row))
    run: Callable[[], str | None] = functools.partial(jobs.run_job, cfg, command, label(cfg))
    return jobs.one_job(run, label(cfg))
