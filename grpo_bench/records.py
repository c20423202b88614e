"""Reads the records of a study back: every run of a results folder with its status, numbers and evaluation rows.

Nothing here needs torch. A run that is still being written is read as far as it got; a damaged record of a finished
one is an error that names the file, since a table made from half a record would be worse than none.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml

from grpo_bench.record_rows import METRICS, Scores, one_line, read_evaluations, read_json, read_jsonl, read_scores
from grpo_bench.types import UserError

__all__ = [
    "METRICS", "TRAINING", "Mode", "Run", "Scores", "Status", "Study",
    "load_run", "load_study", "read_evaluations", "read_json", "read_jsonl", "read_scores", "training_clock",
    "training_seconds",
]  # fmt: skip

Status = Literal["complete", "diverged", "failed", "running", "missing"]
Mode = Literal["greedy", "sampled"]
TRAINING = ("rollout", "reward", "score", "update")  # phases whose seconds a budget counts; evaluation is not charged
# a record is plain data that PyYAML wrote; its C reader takes a tenth of the time, which 70 runs feel
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SEED_LINE = re.compile(rb"^seed: (\d+)$", re.MULTILINE)
_RUN_ID = re.compile(r"^(?P<arm>.+)-s(?P<seed>\d+)-(?P<hash>[0-9a-f]+)$")


@dataclass(frozen=True)
class Run:
    """One run of a study; ``result`` is the content of result.json, None until it is complete."""

    directory: Path
    run_id: str
    arm: str
    row: str
    algo: str
    model: str
    seed: int
    config_hash: str
    status: Status
    reason: str
    config: dict[str, Any]
    result: dict[str, Any] | None

    @property
    def cost(self) -> dict[str, Any]:
        return (self.result or {}).get("cost") or {}

    @property
    def stability(self) -> dict[str, Any]:
        return (self.result or {}).get("stability") or {}

    @property
    def scored(self) -> bool:
        """It has an accuracy to stand in the table with: complete, or diverged after an evaluation."""
        return self.status in ("complete", "diverged") and bool(self.final.get("greedy"))

    @cached_property
    def scores(self) -> Scores | None:
        """Greedy scores of the final test, None where the run never came to it."""
        return read_scores(self.directory, "test")

    @cached_property
    def final(self) -> dict[str, dict[str, Any]]:
        """``eval.final`` of the record by mode. A run that diverged before its final test stands at its last
        accuracy, on dev if need be: ``split`` says which."""
        final = ((self.result or {}).get("eval") or {}).get("final") or {}
        if (final.get("greedy") or {}).get("acc") is not None:
            return {mode: {"split": "test", **final[mode]} for mode in ("greedy", "sampled") if final.get(mode)}
        if self.status != "diverged":
            return {}
        for split in ("test", "dev"):
            scores = self.scores if split == "test" else read_scores(self.directory, "dev")
            if scores is not None:
                means = {metric: float(values.mean()) for metric, values in scores.by.items()}
                return {"greedy": {"split": split, "n": len(scores.ids), **means}}
        return {}

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        return list(read_jsonl(self.directory / "metrics.jsonl"))

    @cached_property
    def timing(self) -> list[dict[str, Any]]:
        return list(read_jsonl(self.directory / "timing.jsonl"))

    @cached_property
    def _attempts(self) -> list[dict[str, Any]]:
        path = self.directory / "provenance.json"
        loaded = read_json(path) if path.is_file() else {}
        attempts = loaded.get("attempts") if isinstance(loaded, dict) else loaded
        if isinstance(attempts, list):
            return [dict(entry) for entry in attempts]
        return [dict(loaded)] if loaded else []

    @property
    def attempts(self) -> int:
        """How often the run was begun or continued."""
        return len(self._attempts)

    @property
    def started(self) -> str:
        """When the run was first begun, in UTC (ISO 8601); "" where its record does not say."""
        return str(self._attempts[0].get("started") or "") if self._attempts else ""

    @property
    def provenance(self) -> dict[str, Any]:
        """The newest attempt's entry of provenance.json; {} where there is none."""
        return self._attempts[-1] if self._attempts else {}

    def baseline_scores(self, which: str) -> Scores | None:
        """Greedy test scores of the untrained (``pretrained``) or warm-started (``base``) model this run began from."""
        name = ((self.result or {}).get("baselines") or {}).get(which)
        return read_scores(self.directory.parent / "baselines" / name, "test") if name else None


@dataclass(frozen=True)
class Study:
    """All runs of a results folder, those that its sweep expected but that never began included."""

    folder: Path
    runs: list[Run]
    jobs: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """``<study>-<task>``, also where the folder was given as "."."""
        return self.folder.resolve().name

    @property
    def configs(self) -> list[dict[str, Any]]:
        return [run.config for run in self.runs if run.config]


def load_study(folder: Path) -> Study:
    """Read ``results/<study>-<task>``. Raises UserError where the folder is absent or empty, no run has begun, or a
    record in it is damaged."""
    if not folder.is_dir():
        raise UserError(f"no study at {folder}: give a folder such as results/ppo_vs_grpo-gsm8k, made by a sweep")
    jobs = _jobs(folder)
    expected = {job["run_id"]: job for job in jobs}
    found = sorted(path for path in folder.iterdir() if path.is_dir() and _is_run(path))
    runs = [_load_run(path, expected.get(path.name, {})) for path in found]
    present = {run.run_id for run in runs} | {path.name for path in found}
    runs += [_missing(folder, job) for job in jobs if job["run_id"] not in present]
    if not runs:
        raise UserError(f"no runs in {folder}: a study folder holds one folder per run, each with a config.yaml")
    if all(run.status == "missing" for run in runs):
        raise UserError(f"no run in {folder} has begun ({len(runs)} expected): start the sweep first")
    order = {job["run_id"]: i for i, job in enumerate(jobs)}
    runs.sort(key=lambda run: (order.get(run.run_id, len(order)), run.row, run.seed))
    return Study(folder, runs, jobs)


def load_run(directory: Path) -> Run:
    """The record of one run, whatever its state. Raises UserError where the folder holds none or it is damaged."""
    if not directory.is_dir() or not _is_run(directory):
        raise UserError(f"no run at {directory}: a run's folder holds config.yaml, state.json and metrics.jsonl")
    return _load_run(directory, {})


def training_seconds(run: Run) -> float | None:
    """Seconds of training, evaluation and checkpoints left out; None where none were recorded."""
    return _trained(run.cost.get("seconds")) or None


def training_clock(run: Run) -> dict[int, float]:
    """The same by step, cumulative, 0 before the first; {} where no phase was timed."""
    total, clock = 0.0, {}
    for row in run.timing:
        total += _trained(row.get("seconds"))
        clock[int(row["step"])] = total
    return clock if total else {}


def _trained(seconds: Mapping[str, Any] | None) -> float:
    return sum(float((seconds or {}).get(phase) or 0.0) for phase in TRAINING)


def _is_run(path: Path) -> bool:
    return any((path / name).is_file() for name in ("config.yaml", "state.json", "result.json"))


def _jobs(folder: Path) -> list[dict[str, Any]]:
    path = folder / "jobs.json"
    if not path.is_file():
        return []
    content = read_json(path)
    jobs = content.get("jobs") if isinstance(content, dict) else None
    if not isinstance(jobs, list) or not all(isinstance(job, dict) and "run_id" in job for job in jobs):
        raise UserError(f'malformed {path}: it must be {{"jobs": [{{"run_id": …}}, …]}}; remove it and rerun the sweep')
    return jobs


def _load_run(path: Path, job: dict[str, Any]) -> Run:
    config = _config(path / "config.yaml")
    state = read_json(path / "state.json") if (path / "state.json").is_file() else {}
    result = read_json(path / "result.json") if (path / "result.json").is_file() else None
    if not isinstance(state, dict) or not (result is None or isinstance(result, dict)):
        raise UserError(f"malformed record in {path}: state.json and result.json are objects; remove the folder, rerun")
    status, reason = _status(state, result)
    if status == "complete":
        _check(result or {}, path / "result.json")
    named = result or {}
    match = _RUN_ID.match(path.name)
    arm = named.get("arm") or job.get("arm") or config.get("arm") or (match["arm"] if match else path.name)
    algo = named.get("algo") or (config.get("algo") or {}).get("name") or "?"
    return Run(
        directory=path,
        run_id=path.name,
        arm=arm,
        row=named.get("row") or job.get("row") or config.get("row") or arm,
        algo=algo,
        model=named.get("model") or (config.get("model") or {}).get("name") or "?",
        seed=_seed(named, job, config, match),
        config_hash=named.get("config_hash") or (match["hash"] if match else ""),
        status=status,
        reason=reason,
        config=config,
        result=result,
    )


def _status(state: dict[str, Any], result: dict[str, Any] | None) -> tuple[Status, str]:
    said, reason = state.get("status", ""), state.get("reason") or ""
    if result is not None:  # written last: its presence means complete, whatever a kill left in state.json
        diverged = "diverged" in (said, result.get("status")) or (result.get("stability") or {}).get("diverged")
        return ("diverged" if diverged else "complete"), reason
    if said == "diverged":
        return "diverged", reason or "no reason recorded"
    if said == "failed":
        code = state.get("exit_code")
        return "failed", (reason or "no reason recorded") + (f" (exit code {code})" if code is not None else "")
    if said == "complete":
        return "failed", "state.json says complete, but result.json is missing: run it again"
    step = state.get("step")
    return "running", f"at step {step}" if step is not None else "just begun"


def _check(result: dict[str, Any], path: Path) -> None:
    """A finished record has the parts that every table needs."""
    final = (result.get("eval") or {}).get("final") or {}
    lacking = [key for key in ("cost", "stability", "seed", "model") if key not in result]
    greedy = final.get("greedy") if isinstance(final, dict) else None
    lacking += ["eval.final.greedy"] if not isinstance(greedy, dict) else [k for k in METRICS if greedy.get(k) is None]
    if lacking:
        raise UserError(f"malformed {path}: it lacks {', '.join(lacking)}; remove the folder and rerun")


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        loaded = _parsed(path.read_bytes())
    except (yaml.YAMLError, OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {one_line(error)}; remove the folder and rerun") from None
    if not isinstance(loaded, dict):
        raise UserError(f"malformed {path}: it must hold the run's config; remove the folder and rerun")
    return {str(key): value for key, value in loaded.items()}


def _parsed(text: bytes) -> Any:
    """Configurations of a row differ in their seed alone, and parsing each took about a fifth of building tables."""
    seeds = _SEED_LINE.findall(text)
    if len(seeds) != 1:
        return yaml.load(text, _YAML)
    loaded = copy.deepcopy(_parsed_once(_SEED_LINE.sub(b"seed: 0", text)))
    if isinstance(loaded, dict):
        loaded["seed"] = int(seeds[0])
    return loaded


@lru_cache(maxsize=256)
def _parsed_once(text: bytes) -> Any:
    return yaml.load(text, _YAML)


def _missing(folder: Path, job: dict[str, Any]) -> Run:
    run_id = str(job["run_id"])
    match = _RUN_ID.match(run_id)
    arm = str(job.get("arm") or (match["arm"] if match else run_id))
    return Run(
        directory=folder / run_id,
        run_id=run_id,
        arm=arm,
        row=str(job.get("row") or arm),
        algo="?",
        model="?",
        seed=_seed(job, match),
        config_hash=match["hash"] if match else "",
        status="missing",
        reason="never begun",
        config={},
        result=None,
    )


def _seed(*sources: Mapping[str, Any] | re.Match[str] | None) -> int:
    for source in sources:
        found = source["seed"] if isinstance(source, re.Match) else (source or {}).get("seed")
        if found is not None:
            return int(found)
    return 0
