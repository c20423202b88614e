"""``python -m grpo_bench.study plan|status|retry STUDY [KEY=VALUE ...]``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from grpo_bench.config_errors import ConfigError
from grpo_bench.types import UserError

HELP = """STUDY is the name of a sweep (sweeps/STUDY.yaml) or a results folder (results/STUDY-TASK).

  plan    what would run, how long it takes and how much memory; a row of which nothing is known makes a dry step first
  status  what is complete, running, failed, diverged, why, and the time that is left; from the records alone
  retry   run the failed runs again, and only those

KEY=VALUE are overrides as the sweep takes them. A dry step is a real one at the row's own settings, in a process of its
own, with a part of the evaluations; it makes the warm start too, which the runs then find. What it found is kept under
$GRPO_BENCH_CACHE, for this machine."""


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0; 1 when a retried run failed again; 2 for bad input, in one line; 130 for Ctrl-C."""
    args = _arguments(sys.argv[1:] if argv is None else argv)
    try:
        return _do(args)
    except UserError as error:
        print("error: " + "\n".join(error.lines if isinstance(error, ConfigError) else [str(error)]), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command continues it", file=sys.stderr)
        return 130


def _do(args: argparse.Namespace) -> int:
    from grpo_bench.study import status
    from grpo_bench.study.select import is_folder, listed, select

    if bad := [word for word in args.overrides if "=" not in word]:
        raise UserError(f"{' '.join(bad)}: overrides are written KEY=VALUE")
    if args.what == "status" and is_folder(args.study) and not args.overrides:
        folder = Path(args.study)
        runs = status.of_folder(folder, listed(folder))
        print(status.as_json(runs) if args.json else status.render(str(folder), runs))
        return 0
    selected = select(args.study, args.overrides, args.config_dir)
    if args.what == "status":
        from grpo_bench.config import run_dir

        found = [
            status.standing_of(run_dir(job.config), str(job.config.row), job.config.seed, job.config.budget.amount)
            for job in selected.plan.jobs
        ]
        title = " and ".join(map(str, selected.folders))
        print(status.as_json(found) if args.json else status.render(title, found))
        return 0
    if args.what == "retry":
        from grpo_bench.study.retry import retry

        return retry(selected, args.overrides)
    from grpo_bench.resources import machine
    from grpo_bench.study import plan

    here = machine()
    rows = plan.rows_of(selected, args.measure, lambda line: print(line, file=sys.stderr, flush=True), here)
    for line in selected.plan.warnings():
        print(f"warning: {line}", file=sys.stderr)
    print(plan.render(selected, rows, here))
    return 0


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m grpo_bench.study", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("plan", "status", "retry"))
    parser.add_argument("study", metavar="STUDY")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--config-dir", metavar="DIR", help="where the sweep file lies; default: sweeps/")
    parser.add_argument(
        "--measure", choices=("missing", "never", "again"), default="missing",
        help="plan: dry steps for the rows of which nothing is known (default), for none, or for all",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="status: one object per run")
    return parser.parse_args(argv)
