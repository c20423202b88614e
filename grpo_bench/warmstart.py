"""Supervised warm start on the task's demonstrations, cached by content and shared by every arm and seed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock
from torch import nn

from grpo_bench import kernels
from grpo_bench.files import disk_errors, write_atomic
from grpo_bench.optimiser import Optimiser
from grpo_bench.paths import cache_dir
from grpo_bench.policy import Policy, choose_device, layout, memory_errors
from grpo_bench.policy.score import micro_batch_tokens, micro_batches
from grpo_bench.resources import cores
from grpo_bench.rollout.finish import end_tokens
from grpo_bench.tasks import Task
from grpo_bench.types import Batch
from grpo_bench.update import descend

if TYPE_CHECKING:
    from grpo_bench.config import Config, OptimConfig

WARMUP = 20  # updates of rising learning rate
VERSION = 3  # of what this file does to weights; part of the cache's key
MOST_THREADS = 4  # chosen; two were measured: 1.6 times as fast as one


def threads() -> int:
    """Threads of a warm start: the jobs of a sweep that begin together wait for the one that trains, and leave theirs.

    So they depend on the machine, and the warm-started weights not on how many threads a job has.
    """
    return min(cores(), MOST_THREADS)


@contextlib.contextmanager
def _all_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads())
    try:
        yield
    finally:
        torch.set_num_threads(before)


def model_fingerprint(model: nn.Module) -> str:
    """Hash of all weights, names included."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def warmstart_key(cfg: Config, task: Task, pretrained: str, dtype: torch.dtype) -> str:
    """Everything the warm-started weights depend on; "" without a warm start."""
    if cfg.model.warmstart.steps == 0:
        return ""
    content = {
        "version": VERSION,
        "model": pretrained,
        "task": task.fingerprint,
        "demonstrations": cfg.task.demonstrations,
        "max_prompt_tokens": cfg.task.max_prompt_tokens,
        "warmstart": cfg.model.warmstart.model_dump(mode="json"),
        "dtype": str(dtype),
        "torch": torch.__version__,
        "kernels": kernels.fingerprint(on_gpu=choose_device(cfg).type == "cuda"),  # they round as they will
        "threads": threads(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def warm_start(
    cfg: Config, task: Task, policy: Policy, tokenizer: Any, key: str, progress: Callable[[int, int], None]
) -> bool:
    """Train ``policy`` in place, or load the weights that an equal warm start left; returns whether it was trained.

    Loss: mean negative log-likelihood of the response's tokens, the end token included; learning rate linear to 0.
    ``progress(done, total)`` is called after each update. A damaged cache file is trained anew.
    """
    from safetensors.torch import load_model, save_model

    folder = cache_dir() / "warmstart"
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        path, digest = folder / f"{key}.safetensors", folder / f"{key}.sha256"
        with FileLock(folder / f"{key}.lock"):  # of several jobs one trains, the others wait and load
            if path.is_file() and digest.is_file() and digest.read_bytes() == _sha256(path):
                load_model(policy.model, path, device=str(policy.device))
                return False
            with _all_threads():
                _train(cfg, task, policy, tokenizer, progress)
            part = path.with_suffix(f".{os.getpid()}.part")
            try:
                save_model(policy.model, str(part))
                write_atomic(digest, _sha256(part))
                os.replace(part, path)
            finally:
                part.unlink(missing_ok=True)
    return True


def _sha256(path: Path) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest().encode()


@memory_errors()
def _train(cfg: Config, task: Task, policy: Policy, tokenizer: Any, progress: Callable[[int, int], None]) -> None:
    warm = cfg.model.warmstart
    # nothing of the arm's own settings: all arms start from one model
    optim: OptimConfig = cfg.optim.model_copy(
        update={
            "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0, "grad_clip": 1.0,
            "schedule": "linear", "warmup_updates": WARMUP,
        }
    )  # fmt: skip
    optimiser = Optimiser([(policy.parameters(), warm.lr)], optim)
    tokens = micro_batch_tokens(policy, None)
    pairs = task.demonstrations(warm.steps * warm.batch_size, warm.seed)
    prompts = task.prompt_ids([problem for problem, _ in pairs], tokenizer)
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else min(end_tokens(tokenizer, policy))
    answers = [[*ids, end] for ids in tokenizer([text for _, text in pairs], add_special_tokens=False)["input_ids"]]
    for step in range(warm.steps):
        part = slice(step * warm.batch_size, (step + 1) * warm.batch_size)
        batch = _demonstration_batch(prompts[part], answers[part], policy.device)
        total = float(batch.mask.sum())

        def losses(batch: Batch = batch, total: float = total) -> Any:
            every = torch.arange(len(batch.mask), device=policy.device)
            for rows in micro_batches(batch, every, tokens, policy.takes_plans):
                yield -policy.logp(layout(batch, rows), 1.0)[0].sum() / total

        descend(optimiser, losses(), progress=step / warm.steps)
        progress(step + 1, warm.steps)


def _demonstration_batch(prompts: list[list[int]], answers: list[list[int]], device: torch.device) -> Batch:
    from grpo_bench.collect import make_batch
    from grpo_bench.types import Rollouts

    count = len(prompts)
    rollouts = Rollouts(prompts, answers, [""] * count, [True] * count, 1)
    return make_batch(rollouts, [0.0] * count, [False] * count, device)
