"""The untrained and the warm-started model, evaluated once per model, warm start and task, and shared by a study."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from filelock import FileLock

from grpo_bench.evaluate import EVAL_SEED, Row, summarise
from grpo_bench.files import disk_errors
from grpo_bench.metrics import finite

if TYPE_CHECKING:
    from grpo_bench.config import Config
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
        "verifier": version("math-verify") if cfg.task.answer == "math" else None,
        "seed": EVAL_SEED,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def baseline(
    study: Path, phase: Phase, key: str, cfg: Config, evaluate: Callable[[], list[Row]]
) -> tuple[str, dict[str, Any]]:
    """(folder name, summary) of the baseline under ``study``; ``evaluate`` is called only if nobody did before.

    ``baselines/<phase>-<key>/`` holds ``eval.jsonl.gz`` and ``result.json``; it appears whole or not at all.
    """
    root, name = study / "baselines", f"{phase}-{key}"
    with disk_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{name}.lock"):  # jobs of a sweep that start together wait for the first
            result = root / name / "result.json"
            if not result.is_file():
                rows = evaluate()
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
