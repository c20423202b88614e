"""The untrained and the warm-started model, evaluated once per model, warm start and task, and shared by a study."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from filelock import FileLock

from grpo_bench.evaluate import EVAL_SEED, Row, evaluate, summarise
from grpo_bench.files import disk_errors
from grpo_bench.metrics import finite
from grpo_bench.tasks.grader import grader
from grpo_bench.warmstart import model_fingerprint, warm_start, warmstart_key

if TYPE_CHECKING:
    from grpo_bench.config import Config
    from grpo_bench.console import Console
    from grpo_bench.policy import Policy
    from grpo_bench.rollout import Engine
    from grpo_bench.tasks import Task

Phase = Literal["pretrained", "base"]


def baseline_key(cfg: Config, task: Task, weights: str, dtype: str, device: str) -> str:
    """8 hex digits over all that the evaluation of fixed weights depends on."""
    content = {
        "weights": weights,
        "task": task.fingerprint,
        "eval_split": cfg.task.eval_split,
        "max_new_tokens": cfg.task.max_new_tokens,
        "stop": cfg.task.stop,
        "eval": cfg.eval.model_dump(mode="json", include={"test_n", "samples", "temperature", "ks"}),
        "engine": cfg.rollout.engine,
        "dtype": dtype,
        "device": device,
        "answer": cfg.task.answer,
        "grader": grader(cfg.task.answer),
        "seed": EVAL_SEED,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def baseline(
    study: Path, phase: Phase, key: str, cfg: Config, measure: Callable[[], list[Row]]
) -> tuple[str, dict[str, Any]]:
    """(folder name, summary) of the baseline under ``study``; ``measure`` is called only if nobody did before.

    ``baselines/<phase>-<key>/`` holds ``eval.jsonl.gz`` and ``result.json``; it appears whole or not at all.
    """
    root, name = study / "baselines", f"{phase}-{key}"
    with disk_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{name}.lock"):  # jobs of a sweep that start together wait for the first
            result = root / name / "result.json"
            if not result.is_file():
                rows = measure()
                content = {
                    "phase": phase,
                    "model": cfg.model.name,
                    "task": cfg.task.name,
                    "task_version": cfg.task.version,
                    "eval": finite(summarise(rows, cfg.eval.ks, cfg.task.answer)),
                }
                work = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=root))
                try:
                    lines = "".join(json.dumps(finite(row), ensure_ascii=False) + "\n" for row in rows)
                    (work / "eval.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
                    (work / "result.json").write_text(json.dumps(content, indent=1) + "\n")
                    work.chmod(0o755)
                    shutil.rmtree(root / name, ignore_errors=True)
                    os.replace(work, root / name)
                except BaseException:
                    shutil.rmtree(work, ignore_errors=True)
                    raise
            return name, json.loads(result.read_text())["eval"]


def prepare(
    cfg: Config, study: Path, task: Task, policy: Policy, tokenizer: Any, engine: Engine, console: Console
) -> tuple[dict[str, str], dict[str, Any], dict[str, str]]:
    """Warm-start ``policy`` in place and see to the evaluations before and after it under ``study``.

    Returns their folders and summaries by phase, and fingerprints of the weights (model, warmstart).
    """

    def measure(phase: Phase, weights: str) -> None:
        def rows() -> list[Row]:
            console.note(f"evaluating the {phase} model on test, once for all runs of this study")
            test = task.test(cfg.eval.test_n)
            progress = console.evaluation
            return evaluate(cfg, task, policy, tokenizer, engine, test, "test", 0, cfg.eval.samples, progress=progress)

        key = baseline_key(cfg, task, weights, str(policy.dtype), policy.device.type)
        folders[phase], summaries[phase] = baseline(study, phase, key, cfg, rows)

    folders: dict[str, str] = {}
    summaries: dict[str, Any] = {}
    pretrained = model_fingerprint(policy.model)
    key = warmstart_key(cfg, task, pretrained, policy.dtype)
    if cfg.eval.pretrained:
        measure("pretrained", pretrained)
    if key:
        warm_start(cfg, task, policy, tokenizer, key, lambda done, total: console.phase("warm start", done, total))
        key = model_fingerprint(policy.model)  # the weights themselves: another machine trains them to other bits
        measure("base", key)
    else:  # without a warm start they are one model
        if not cfg.eval.pretrained:
            measure("pretrained", pretrained)
        folders["base"], summaries["base"] = folders["pretrained"], summaries["pretrained"]
    return folders, summaries, {"model": pretrained, "warmstart": key}
