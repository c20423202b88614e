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

from filelock import FileLock, Timeout

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
    study: Path, phase: Phase, key: str, cfg: Config, measure: Callable[[], list[Row]], wait: bool = True
) -> tuple[str, dict[str, Any]] | None:
    """(folder name, summary) of the baseline under ``study``; ``measure`` is called only if nobody did before.

    ``baselines/<phase>-<key>/`` holds ``eval.jsonl.gz`` and ``result.json``; it appears whole or not at all. Without
    ``wait`` None where another process is measuring it.
    """
    root, name = study / "baselines", f"{phase}-{key}"
    with disk_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / f".{name}.lock")
        try:
            held = lock.acquire(blocking=wait)
        except Timeout:
            return None
        with held:
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


class Baselines:
    """A run's: folders and summaries by phase, and fingerprints of the weights (model, warmstart).

    Jobs of a sweep that start together find one of them measuring. The others do not wait for it: they begin, and look
    again when they have ended.
    """

    def __init__(
        self, cfg: Config, study: Path, task: Task, policy: Policy, tokenizer: Any, engine: Engine, console: Console
    ) -> None:
        """Warm-start ``policy`` in place, and see to the evaluations before and after it under ``study``."""
        self.cfg, self.study, self.task, self.tokenizer, self.engine = cfg, study, task, tokenizer, engine
        self.console, self._setting = console, (str(policy.dtype), policy.device.type)
        self.folders: dict[str, str] = {}
        self.summaries: dict[str, Any] = {}
        self._later: dict[Phase, str] = {}  # being measured by another process
        pretrained = model_fingerprint(policy.model)
        key = warmstart_key(cfg, task, pretrained, policy.dtype)
        if cfg.eval.pretrained or not key:
            self._measure("pretrained", pretrained, policy)
        if key:
            self._warm_start(policy, key)
            key = model_fingerprint(policy.model)  # the weights themselves: another machine trains them to other bits
            self._measure("base", key, policy)
        self.prints = {"model": pretrained, "warmstart": key}

    def _warm_start(self, policy: Policy, key: str) -> None:
        def progress(done: int, total: int) -> None:
            self.console.phase("warm start", done, total)

        warm_start(self.cfg, self.task, policy, self.tokenizer, key, progress)

    def _measure(self, phase: Phase, weights: str, policy: Policy | None) -> None:
        """``policy``: the one to measure now; None makes it anew, and waits for who is measuring it."""
        cfg, task = self.cfg, self.task

        def rows() -> list[Row]:
            self.console.note(f"evaluating the {phase} model on test, once for all runs of this study")
            return evaluate(
                cfg, task, policy or self._again(phase), self.tokenizer, self.engine, task.test(cfg.eval.test_n),
                "test", 0, cfg.eval.samples, progress=self.console.evaluation,
            )  # fmt: skip

        key = baseline_key(cfg, task, weights, *self._setting)
        found = baseline(self.study, phase, key, cfg, rows, wait=policy is None)
        if found is None:
            self._later[phase] = weights
        else:
            self.folders[phase], self.summaries[phase] = found

    def _again(self, phase: Phase) -> Policy:
        """The model of a phase: this run's has been trained since, and who was measuring it did not finish."""
        from grpo_bench.policy import Policy, choose_device, compute_dtype, load_model

        device = choose_device(self.cfg)
        model = load_model(self.cfg.model, device)
        policy = Policy(model, compute_dtype(self.cfg.model.dtype, device))
        if phase == "base":
            pretrained = model_fingerprint(model)
            self._warm_start(policy, warmstart_key(self.cfg, self.task, pretrained, policy.dtype))
        return policy

    def finish(self) -> None:
        """See to those that another process was measuring; fills ``folders`` and ``summaries``."""
        for phase, weights in self._later.items():
            self.console.note(f"seeing to the {phase} model's test, which another run of this study began")
            self._measure(phase, weights, None)
        self._later = {}
        if "base" not in self.folders:  # without a warm start they are one model
            self.folders["base"], self.summaries["base"] = self.folders["pretrained"], self.summaries["pretrained"]
