"""The command line: preflight of all jobs, then one run, or a sweep with one child process per job.

The parent of a sweep imports no torch: bad configurations are refused in a second, and no memory is held beside the
jobs.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from argparse import Namespace
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from grpo_bench.config import Config, parse, run_dir, run_id
from grpo_bench.config_checks import total_steps, updates_per_step
from grpo_bench.config_errors import ConfigError
from grpo_bench.jobs import SWEEP, child_command, expect, one_job, outcome, say
from grpo_bench.paths import conf_dir, sweeps_dir
from grpo_bench.pool import Pool
from grpo_bench.preflight import Plan, preflight, prepared, row_name
from grpo_bench.process import prepare_process
from grpo_bench.resume import complete_line, standing
from grpo_bench.summary import summarise
from grpo_bench.types import UserError

_JOBS = Pool()
HELP = """usage: python -m grpo_bench [-m] [KEY=VALUE ...]

Train a language model with a reinforcement learning algorithm on mathematics, and record what it learns at what cost.
Without arguments: GRPO on the embedded task and model, no download.

  python -m grpo_bench algo=grpo group_size=16                          one run
  python -m grpo_bench algo=ppo task=gsm8k model=qwen2.5-0.5b           one run on real data
  python -m grpo_bench -m arm=ppo,grpo_g8,grpo_g16 'seed=range(5)'      a sweep: arms x seeds
  python -m grpo_bench -m --config-dir sweeps --config-name ppo_vs_grpo a published comparison
  python -m grpo_bench.table results/STUDY-TASK                         its tables and figures

  -m                    run every combination of the values given as a,b or range(n)
  --cfg job             show what would run, resolved and validated, and run nothing
  --config-dir DIR      a folder of your own with configurations beside conf/
  --config-name NAME    a sweep file in it
  --hydra-help          more on the syntax

Groups (GROUP=NAME):
{groups}

Any key can be set (KEY=VALUE, or NODE.KEY=VALUE); those most often set:
  seed  group_size  samples_per_step | prompts_per_step  budget.unit  budget.amount  lr  kl_coef  epochs  minibatches
  study.name  task.path  model.path  model.id  eval.every  device  resume  results
Meaning and defaults: {conf}
"""


def main() -> None:
    """Exit codes: 0; 1 when a job of a sweep failed; 2 for bad input, in one line; 130 for Ctrl-C, 143 for SIGTERM."""
    # +arm= and +experiment= are how Hydra's documentation adds a group that is null by default
    sys.argv = [re.sub(r"^\+(arm|experiment)=", r"\1=", a) for a in sys.argv]
    # from an installed package, outside a checkout, sweeps are the package's own
    ours = sweeps_dir()
    if "sweeps" in sys.argv and ours is not None and not Path("sweeps").is_dir():
        sys.argv = [
            str(ours) if a == "sweeps" and b in ("--config-dir", "-cd") else a for b, a in pairwise(["", *sys.argv])
        ]
    args = get_args_parser().parse_args()
    prepare_process()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # an error that is ours shows where it happened
    try:
        _main(args)
    except UserError as e:
        _refuse(e)
    except KeyboardInterrupt:
        print("interrupted; the same command continues it", file=sys.stderr)
        sys.exit(130)


def _main(args: Namespace) -> None:
    if args.help:
        print(HELP.format(groups=_groups(), conf=conf_dir()))
        return
    if args.hydra_help or args.info or args.shell_completion or args.cfg in ("hydra", "all"):
        _entry()
        return
    if args.config_path or args.experimental_rerun:
        raise UserError("--config-path and --experimental-rerun are not supported; use --config-dir and --config-name")
    if args.cfg is not None:
        _show(args)
        return
    plan = _preflight(args)
    for line in plan.warnings():
        print(f"warning: {line}", file=sys.stderr)
    plan.open_results()
    if args.multirun:
        plan.write_jobs()
        os.environ[SWEEP] = json.dumps({"total": len(plan.jobs), "varying": plan.varying})
        say(f"{len(plan.jobs)} jobs to {' and '.join(sorted({str(run_dir(j.config).parent) for j in plan.jobs}))}")
        if any(job.config.study.name is None for job in plan.jobs):
            print("note: give study.name=... to make a table of these runs", file=sys.stderr)
    signal.signal(signal.SIGTERM, terminate)
    if not args.multirun and not _asks_hydra(args.overrides):
        _run(plan.jobs[0].parsed)
        return
    if args.multirun and plan.launcher != "basic":
        from grpo_bench.launch import launch

        sys.exit(summarise(plan, launch(plan, args.overrides, args.config_dir)))
    try:
        if args.multirun:
            expect(job.config for job in plan.jobs)
        _entry()
        _JOBS.wait()
    finally:
        _JOBS.stop()
    if args.multirun:
        sys.exit(summarise(plan, _JOBS.failed))


def _asks_hydra(overrides: list[str]) -> bool:
    """Whether Hydra must start the job itself: for settings of its own, which composing again does not need."""
    ours = ("hydra.mode=RUN", "hydra.searchpath=")
    return any(o.lstrip("+~").startswith(("hydra.", "hydra/")) and not o.startswith(ours) for o in overrides)


def _preflight(args: Namespace) -> Plan:
    if SWEEP in os.environ and "hydra.mode=RUN" in args.overrides:
        return prepared(args.overrides, args.config_name or "config", args.config_dir)
    varying = json.loads(os.environ.get(SWEEP, "{}")).get("varying", [])
    return preflight(args.overrides, args.config_name or "config", args.config_dir, args.multirun, varying)


def terminate(*_: Any) -> NoReturn:
    """SIGTERM as an exception: children are stopped and records closed on its way out."""
    sys.exit(143)


def _refuse(error: UserError) -> NoReturn:
    lines = error.lines if isinstance(error, ConfigError) else [str(error)]
    print("error: " + "\n".join(lines), file=sys.stderr)
    sys.exit(2)


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def _entry(composed: DictConfig) -> None:
    """One job, called by Hydra: of a sweep in a child process, else here."""
    cfg = parse(composed)
    context = HydraConfig.get()
    if context.mode != RunMode.MULTIRUN:
        try:
            _run(cfg)
        except UserError as e:  # here, since Hydra prints a traceback of what leaves its task
            _refuse(e)
        return
    sweep = json.loads(os.environ[SWEEP])
    overrides = list(context.overrides.task)
    cfg = cfg.model_copy(update={"row": row_name(cfg, overrides, sweep["varying"])})
    label = f"#{int(context.job.num) + 1}/{sweep['total']} {cfg.row} seed={cfg.seed}"
    if not cfg.isolate:
        _run_here(cfg, label)
        return
    config_dir = next((s.path for s in context.runtime.config_sources if s.provider == "command-line"), None)
    hydras = [o for o in context.overrides.hydra if o.startswith("hydra.searchpath=")]
    name = str(context.job.config_name)
    _JOBS.start(cfg, child_command(overrides + hydras, name, config_dir, str(cfg.row)), label)


def _run(cfg: Config) -> dict[str, Any] | None:
    """One run in this process; None where it was complete before."""
    directory = run_dir(cfg)
    if standing(cfg, directory) == "complete":
        say(complete_line(directory, cfg.export))
        return None
    from grpo_bench.run import run

    return run(cfg, directory)


def _run_here(cfg: Config, label: str) -> None:
    """One job of a sweep with ``isolate=false``: its error ends it alone, its crash ends them all."""

    def job() -> None:
        result = _run(cfg)
        if result is not None:
            say(f"{label} done {outcome(result)}")

    reason = one_job(job, label)
    if reason is not None:
        _JOBS.failed[run_dir(cfg)] = reason


def _show(args: Namespace) -> None:
    """``--cfg job``: the jobs as they would be recorded."""
    plan = _preflight(args)
    for number, job in enumerate(plan.jobs, 1):
        if len(plan.jobs) > 1:
            print(f"--- # {number}/{len(plan.jobs)} {run_id(job.config)}")
        content = job.config.model_dump(mode="json")
        print(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120), end="")
        print("\n".join(f"# {line}" for line in _implied(job.config)))
    for line in plan.warnings():
        print(f"warning: {line}", file=sys.stderr)


def _implied(cfg: Config) -> list[str]:
    """What follows from a configuration and is no key of it."""
    steps = total_steps(cfg)
    per_step = updates_per_step(cfg)
    lines = [
        f"prompts per step: {cfg.prompts}; completions per step: {cfg.samples}",
        f"updates per step: {per_step} ({cfg.epochs} epochs x {cfg.minibatches} minibatches)",
    ]
    if steps is None:
        return [*lines, f"steps: as many as {cfg.budget.amount:g} {cfg.budget.unit} allow"]
    return [*lines, f"steps for {cfg.budget.amount:g} {cfg.budget.unit}: {steps}; updates: {steps * per_step}"]


def _groups() -> str:
    lines = []
    for folder in sorted(d for d in conf_dir().iterdir() if d.is_dir() and d.name not in ("tuned", "hydra")):
        names = sorted(f.stem for f in folder.glob("*.yaml"))
        lines.append(f"  {folder.name:<12}{', '.join(names)}")
    sweeps = sweeps_dir()
    if sweeps is not None:
        lines.append(f"  {'(sweeps/)':<12}{', '.join(sorted(f.stem for f in sweeps.glob('*.yaml')))}")
    return "\n".join(lines)
