"""What a run needs of this machine: measured by dry steps and by the sweeps that ran here, remembered, else estimated.

One JSON file per configuration under ``$GRPO_BENCH_CACHE/costs``: its key is the run's hash (seed and budget apart),
the settings that change cost without changing results, and the machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from filelock import FileLock

from grpo_bench.files import write_json
from grpo_bench.identity import config_hash, run_dir
from grpo_bench.paths import cache_dir
from grpo_bench.resources import Machine, cores
from grpo_bench.resume import read
from grpo_bench.room import Need

if TYPE_CHECKING:
    from grpo_bench.config import Config

PROCESS = 800 << 20  # bytes of a process that has torch and transformers loaded
GPU_PROCESS = 3 << 30  # and of one that drives a GPU


def costs_file(cfg: Config) -> Path:
    """Where this machine keeps what a run of ``cfg`` costs; the file need not exist."""
    split = {
        "threads": cfg.threads,
        "device": cfg.device,
        "micro_batch_tokens": cfg.micro_batch_tokens,
        "rollout_batch_size": cfg.rollout.batch_size,
        "gradient_checkpointing": cfg.model.gradient_checkpointing,
        "cuda_graph": cfg.rollout.cuda_graph,
    }
    content = {"run": config_hash(cfg), "split": split, "machine": _machine(), "torch": version("torch")}
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    return cache_dir() / "costs" / f"{key}.json"


def costs(cfg: Config) -> dict[str, Any]:
    """What is remembered of ``cfg``: ``dry`` (see study/dry.py) and ``memory`` (largest resident bytes); {} for
    nothing."""
    return read(costs_file(cfg))


def remember(cfg: Config, **found: Any) -> None:
    """Add to what is known; ``memory`` only grows."""
    file = costs_file(cfg)
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):
        known = read(file)
        if "memory" in found:
            found["memory"] = max(found["memory"], known.get("memory", 0))
        if not found.items() <= known.items():
            write_json(file, known | found)


def need_of(cfg: Config, machine: Machine) -> Need:
    """What a job of ``cfg`` takes. Memory is what was measured here, else what its record says, else an estimate."""
    on_gpu = "cuda" in (cfg.device, cfg.reward.model.device if cfg.reward.model.path or cfg.reward.model.id else "")
    known = costs(cfg)
    dry = known.get("dry") or {}
    memory = max(known.get("memory", 0), dry.get("memory_bytes", 0)) or max(recorded(cfg), estimate(cfg))
    threads = cfg.threads or (1 if on_gpu else machine.cores)
    return Need(min(threads, machine.cores), int(memory), on_gpu, int(dry.get("gpu_memory_bytes", 0)))


def recorded(cfg: Config) -> int:
    """Largest memory that the study's finished runs of this row wrote down: while training alone; 0: none."""
    if cfg.device == "cuda":  # there it is the GPU's
        return 0
    folder = run_dir(cfg)
    runs = folder.parent.glob(f"{cfg.name}-s*-{config_hash(cfg)}/result.json")
    return int(max((read(file).get("cost", {}).get("peak_memory_bytes") or 0 for file in runs), default=0))


def estimate(cfg: Config) -> int:
    """Bytes of memory that a run takes at least: its process and, on a CPU, its networks in float32."""
    if cfg.device == "cuda":
        return GPU_PROCESS
    networks = 4 + (4 if cfg.algo.needs_critic else 0) + bool(cfg.algo.needs_reference)  # weights, gradients, moments
    return PROCESS + 4 * parameters(cfg) * networks


def parameters(cfg: Config) -> int:
    """Of the policy, without loading it: from the embedded model's sizes, else from weights on disk; 0: not known."""
    tiny = cfg.model.tiny
    if tiny is not None:
        shares = 2 + 2 * tiny.kv_heads / tiny.heads  # query and output, key and value
        layer = shares * tiny.hidden_size**2 + 3 * tiny.hidden_size * tiny.intermediate_size
        return int(tiny.layers * layer + tiny.vocab_size * tiny.hidden_size)
    path = Path(cfg.model.path or "").expanduser()
    if cfg.model.path is None or not path.exists():
        return 0
    files = [path] if path.is_file() else [*path.glob("*.safetensors")] or [*path.glob("pytorch_model*.bin")]
    return sum(os.path.getsize(file) for file in files) // 2  # most are published in 16 bits


@cache
def _machine() -> dict[str, Any]:
    from grpo_bench.provenance import cpu_name

    return {"cpu": cpu_name(), "cores": cores(), "memory": psutil.virtual_memory().total, "system": platform.system()}


def same_machine(provenance: dict[str, Any]) -> bool:
    """Whether a recorded run was made on a machine like this one, by its processor and its cores."""
    from grpo_bench.provenance import cpu_name

    return provenance.get("cpu") == cpu_name() and provenance.get("cpu_count") == os.cpu_count()
