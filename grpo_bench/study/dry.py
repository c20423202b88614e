"""The dry step: what a run costs on this machine, measured on a short real one at its own settings, and remembered.

A process of its own makes the warm start (which the study's runs then find in the cache), runs the real loop for
``TRAIN_SECONDS`` of training, and evaluates a part of dev and test. Nothing of it touches the study's records.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_bench.ending import plainly, tail
from grpo_bench.jobs import Memory, die_with_parent
from grpo_bench.needs import remember
from grpo_bench.types import UserError

if TYPE_CHECKING:
    from grpo_bench.config import Config

TRAIN_SECONDS = 3.0  # of training, and at least one step
COMPLETIONS = 256  # evaluated of each split, at most
LOOK_SECONDS = 0.1  # between two looks at memory


def measure(cfg: Config) -> dict[str, Any]:
    """Make the dry step of ``cfg`` and remember what it found (see ``_found``); UserError when it fails."""
    with tempfile.TemporaryDirectory(prefix="grpo_bench-dry-") as folder:
        spec, log = Path(folder, "spec.json"), Path(folder, "log")
        spec.write_text(json.dumps(cfg.model_dump(mode="json", by_alias=True)), encoding="utf-8")
        memory = Memory()
        with open(log, "wb") as out:
            child = subprocess.Popen(
                [sys.executable, "-m", "grpo_bench.study.dry", folder],
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent if sys.platform == "linux" else None,
            )  # fmt: skip
            try:
                while child.poll() is None:
                    memory.look(child.pid)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        child.wait(LOOK_SECONDS)
            finally:
                if child.poll() is None:
                    child.kill()
                    child.wait()
        if child.returncode != 0:
            lines = [line for line in tail(log).splitlines() if line.strip()]
            last = plainly((lines or [f"exit code {child.returncode}"])[-1].removeprefix("error: "))
            raise UserError(f"the dry step of {cfg.row} failed: {last}")
        found: dict[str, Any] = json.loads(Path(folder, "found.json").read_text(encoding="utf-8"))
    found["memory_bytes"] = memory.peak
    remember(cfg, dry=found)
    return found


# ------------------------------------------------------------------ in the dry step's own process


def short(cfg: Config, results: str) -> Config:
    """The run, cut short: the same steps and completions, few of them, a record elsewhere, the policy not frozen."""
    problems = max(1, COMPLETIONS // (1 + cfg.eval.samples))
    at_most = {"n": min(cfg.eval.n, problems), "test_n": min(cfg.eval.test_n or problems, problems)}
    algo = cfg.algo
    if getattr(algo, "critic_warmup", 0):  # steps in which the policy waits are cheaper than the others
        algo = algo.model_copy(update={"critic_warmup": 0})
    every = 1 << 30  # dev at the beginning alone
    return cfg.model_copy(
        update={
            "algo": algo,
            "study": cfg.study.model_copy(update={"name": "dry"}),
            "budget": cfg.budget.model_copy(update={"unit": "seconds", "amount": TRAIN_SECONDS}),
            "eval": cfg.eval.model_copy(update={**at_most, "every": cfg.eval.every and every, "pretrained": False}),
            "checkpoint": cfg.checkpoint.model_copy(update={"every": cfg.checkpoint.every and every}),
            "tracker": cfg.tracker.model_copy(update={"name": "none", "completions": 0}),
            "export": False,
            "resume": False,
            "results": results,
        }
    )


def main(folder: str) -> None:
    from grpo_bench.config import parse, run_dir
    from grpo_bench.process import prepare_process

    began = time.time()
    prepare_process()
    cfg = parse(json.loads(Path(folder, "spec.json").read_text(encoding="utf-8")))
    from grpo_bench.run import run

    with _gpu_memory(cfg) as gpu:
        before = _before(cfg)
        ready = time.time()
        result = run(small := short(cfg, folder), run_dir(small))
        whole = time.time() - ready
    found = _found(cfg, small, result, run_dir(small), whole) | before["found"]
    found["gpu_memory_bytes"] = gpu[0]
    found["setup_s"] += ready - began - before["seconds"]  # imports, once more
    Path(folder, "found.json").write_text(json.dumps(found), encoding="utf-8")


def _before(cfg: Config) -> dict[str, Any]:
    """The warm start, made now unless it is cached, and the names of the evaluations that the study shares."""
    import torch

    from grpo_bench.baselines import baseline_key
    from grpo_bench.policy import Policy, choose_device, compute_dtype, load_model, load_tokenizer
    from grpo_bench.tasks import load_task
    from grpo_bench.warmstart import model_fingerprint, warm_start, warmstart_key

    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    start = time.time()
    device = choose_device(cfg)
    task = load_task(cfg.task, cfg.seed)
    try:
        tokenizer = load_tokenizer(cfg.model)
        task.fit(tokenizer)
        policy = Policy(load_model(cfg.model, device), compute_dtype(cfg.model.dtype, device))
        pretrained = model_fingerprint(policy.model)
        weights = {"pretrained": pretrained} if cfg.eval.pretrained else {}
        seconds = 0.0
        if key := warmstart_key(cfg, task, pretrained, policy.dtype):
            clock = time.time()
            made = warm_start(cfg, task, policy, tokenizer, key, lambda done, total: None)
            seconds = time.time() - clock if made else 0.0
            weights["base"] = model_fingerprint(policy.model)
        elif not weights:
            weights = {"pretrained": pretrained}
        names = {
            phase: f"{phase}-{baseline_key(cfg, task, print_, str(policy.dtype), policy.device.type)}"
            for phase, print_ in weights.items()
        }
        test = len(task.test(cfg.eval.test_n))
    finally:
        task.close()
    return {
        "found": {"baselines": names, "test_n": test, "warm_start_s": seconds, "warm_started": bool(key)},
        "seconds": time.time() - start,
    }


def _found(cfg: Config, small: Config, result: dict[str, Any], directory: Path, whole: float) -> dict[str, Any]:
    """Seconds of a step (the first one left out where there are others), of an evaluated completion, of a checkpoint
    and of what comes before; how much of each unit of a budget a step takes; tokens of an answer."""
    lines = [json.loads(line) for line in (directory / "timing.jsonl").read_text().splitlines()]
    steps = [line["time/step_s"] for line in lines if line["step"] > 0]
    cost = result["cost"]
    seconds = cost["seconds"]
    each = 1 + cfg.eval.samples
    evaluated = each * ((small.eval.n if small.eval.every else 0) + (small.eval.test_n or 0))
    completion = seconds["eval"] / max(evaluated, 1)
    timed = sum(value for name, value in seconds.items() if name not in ("total", "parts"))  # parts are in the others
    updates = cost["updates"] + cost["warmup_updates"] + cost["empty_updates"]
    shared = completion * each * (small.eval.test_n or 0)  # one baseline, evaluated outside of the run's own clocks
    return {
        "steps": len(steps),
        "step_s": sum(steps[1:] or steps) / len(steps[1:] or steps),
        "completion_s": completion,
        "checkpoint_s": max(0.0, seconds["total"] - timed),
        "setup_s": max(0.0, whole - seconds["total"] - shared),
        "per_step": {
            "samples": cost["samples"] / len(steps),
            "tokens": cost["generated_tokens"] / len(steps),
            "updates": updates / len(steps),
            "flops": cost["flops"] / len(steps),
        },
        "answer_tokens": result["eval"]["final"]["greedy"]["len_mean"],
    }


@contextlib.contextmanager
def _gpu_memory(cfg: Config) -> Iterator[list[int]]:
    """Bytes of the GPU's memory that were taken at most meanwhile, in a list of one; 0 on a CPU."""
    peak = [0]
    if cfg.device != "cuda":
        yield peak
        return
    import torch

    def taken() -> int:
        free, total = torch.cuda.mem_get_info()
        return total - free

    before, ended = taken(), threading.Event()

    def look() -> None:
        while not ended.wait(LOOK_SECONDS):
            peak[0] = max(peak[0], taken() - before)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
