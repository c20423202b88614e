"""Makes recorded runs again, each in a process of its own, in another folder."""

from __future__ import annotations

import copy
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from grpo_bench.config import Config, parse, run_dir
from grpo_bench.config_errors import ConfigError
from grpo_bench.files import disk_errors, write_json
from grpo_bench.jobs import duration, run_job
from grpo_bench.provenance import PATH_KEYS
from grpo_bench.records import Run
from grpo_bench.types import UserError

# where things lie and how work is split: what may be given anew without asking for another run
PLACES = tuple(key for key in PATH_KEYS if key != "results")
SPLITS = (
    *("device", "threads", "micro_batch_tokens", "rollout.batch_size", "rollout.cuda_graph", "task.verify_workers"),
    *("reward.model.device", "reward.model.batch_size"),
)
ALLOWED = PLACES + SPLITS


def config_of(run: Run, into: Path, given: dict[str, str]) -> Config:
    """The configuration of a record, to be run below ``into`` without a tracker.

    Raises UserError for a record without a readable configuration, for keys that would make it another run, and for
    paths that are not there: a record keeps the names of folders, not where they were.
    """
    data: dict[str, Any] = copy.deepcopy(run.config)
    if not data:
        raise UserError(f"{run.directory} has no config.yaml to run again from")
    for key, value in given.items():
        _put(data, key, value)
    for key in PLACES:
        _check_place(run, key, _at(data, key))
    data |= {"results": str(into), "resume": True, "export": False}
    data["tracker"] = {**(data.get("tracker") or {}), "name": "none"}
    try:
        return parse(data)
    except ConfigError as error:
        lines = "; ".join(error.lines)
        raise UserError(f"{run.run_id}: this version cannot read the recorded configuration: {lines}") from None


def seconds_of(runs: Sequence[Run]) -> float:
    """How long the runs took when they were recorded."""
    return sum(float((run.cost.get("seconds") or {}).get("total") or 0.0) for run in runs)


def again(run: Run, cfg: Config, label: str) -> str | None:
    """Run ``cfg``; progress and the last line go to stdout, what it prints to its folder. None, or why it failed.

    What was complete from an earlier attempt in the same folder is not run again.
    """
    folder = run_dir(cfg)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        plan = folder / "plan.json"
        write_json(plan, cfg.model_dump(mode="json", by_alias=True))
    return run_job(cfg, [sys.executable, "-m", "grpo_bench.reproduce.rerun", str(plan)], label)


def took(runs: Sequence[Run]) -> str:
    return f"{len(runs)} run{'s' * (len(runs) != 1)}, which took {duration(seconds_of(runs))} when recorded"


def _check_place(run: Run, key: str, value: Any) -> None:
    if not isinstance(value, str) or key in ("task.hub", "task.math500_hub", "model.id", "reward.model.id"):
        return
    path = value.rpartition(":")[0] or value if key == "reward.function" else value
    if not Path(path).expanduser().exists() and (key != "reward.function" or path.endswith(".py")):
        raise UserError(f"{run.run_id} needs {key}={path}, which is not here; say where it is: {key}=PATH")


def _at(data: dict[str, Any], key: str) -> Any:
    node: Any = data
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node


def _put(data: dict[str, Any], key: str, text: str) -> None:
    *parents, last = key.split(".")
    node = data
    for part in parents:
        node = node.setdefault(part, {})
    node[last] = yaml.safe_load(text)


def main() -> None:
    """One run, from the plan named on the command line; exit code 2 with one line for what a user can mend."""
    from grpo_bench.process import prepare_process

    prepare_process()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        import json

        from grpo_bench.run import run

        cfg = parse(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
        run(cfg, run_dir(cfg))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
