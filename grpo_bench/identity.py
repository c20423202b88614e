"""Which run a configuration is: its hash, its name and its folder."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_bench.types import UserError

if TYPE_CHECKING:
    from grpo_bench.config import Config

# What may differ between two runs of one row, or differ on the way to one result: who asked, where it ran, how work
# was split, how long it went on, what was measured beside. Everything else is identity, the dtype that a device implies
# included.
NOT_IDENTITY = (
    "seed", "study", "arm", "row", "experiment", "tracker", "results", "device", "threads", "micro_batch_tokens",
    "measure_kl", "checkpoint", "resume", "isolate", "parallel", "jobs_per_gpu",
    "export", "budget.amount", "rollout.batch_size", "rollout.cuda_graph", "task.verify_workers",
    "model.gradient_checkpointing", "reward.model.device", "reward.model.batch_size",
)  # fmt: skip
# of a model's folder, what loading reads: not a README, a log or an optimizer's state that lies beside it
MODEL_FILES = (
    "config.json", "generation_config.json", "adapter_config.json", "*.safetensors", "*.safetensors.index.json",
    "pytorch_model*.bin", "pytorch_model.bin.index.json", "*.py",
    "tokenizer*", "vocab*", "merges.txt", "*.model", "special_tokens_map.json", "added_tokens.json", "chat_template*",
)  # fmt: skip
WHOLE = 64 << 20  # bytes up to which a file is hashed whole
CHUNK = 1 << 20


def config_hash(cfg: Config) -> str:
    """8 hex digits over all fields that differ from the schema's defaults, ``config_version`` included.

    A field that gets a default later ("as before") leaves old hashes alone. Paths count by the content behind them.
    """
    data = cfg.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    for key in NOT_IDENTITY:
        *parents, last = key.split(".")
        node = functools.reduce(lambda d, k: d.get(k, {}), parents, data)
        node.pop(last, None)
    _by_content(cfg, data)
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:8]


def _by_content(cfg: Config, data: dict[str, Any]) -> None:
    """Replace the paths in a dumped configuration by what is read there: the files of the task's splits (MATH-500
    beside MATH included, though no key names it), config, tokenizer and weights of the model and of a reward model,
    and the file of a reward function and of an algorithm from outside the checkout."""
    from grpo_bench.tasks.data import local_files  # here, so that reading the schema does not cost the tasks

    task, model = data.get("task", {}), data.get("model", {})
    try:
        read = local_files(cfg.task)
    except UserError:  # not loadable, which preflight says; the hash is still one
        read = {}
    for key in ("path", "math500_path"):
        if key in read:
            task[key] = _digest(read[key], named=task.get(key) is None or Path(task[key]).expanduser().is_dir())
        elif task.get(key) is not None:
            task[key] = fingerprint(task[key])
    reward = data.get("reward", {})
    for node in (model, reward.get("model", {})):
        if node.get("path") is not None:
            node["path"] = fingerprint(node["path"], MODEL_FILES)
    if reward.get("model") == {}:  # nothing but what is no identity
        del reward["model"]
    for node, key in ((reward, "function"), (data.get("algo", {}), "class")):
        if node.get(key) is not None:
            from grpo_bench.rewards.function import file_of

            file = file_of(node[key])
            if file is not None:  # helpers that it imports are not seen
                node[key] = f"{fingerprint(file)}:{node[key].rpartition(':')[2]}"


def run_id(cfg: Config) -> str:
    """``<arm or algo>-s<seed>-<hash>``."""
    return f"{cfg.name}-s{cfg.seed}-{config_hash(cfg)}"


def study_dir(cfg: Config) -> Path:
    """``results/<study>-<task>``, or ``results/adhoc`` for runs outside a study."""
    return Path(cfg.results) / (f"{cfg.study.name}-{cfg.task.name}" if cfg.study.name else "adhoc")


def run_dir(cfg: Config) -> Path:
    """The folder of a run's record; the same configuration always has the same one."""
    return study_dir(cfg) / run_id(cfg)


def fingerprint(path: str | Path, patterns: tuple[str, ...] = ("*",)) -> str:
    """16 hex digits over the contents of a file, or over names and contents of a folder's files that match one of
    ``patterns`` (all of them where none does); the folder's place is left out.

    Files above 64 MiB count by their size and 16 chunks of 1 MiB spread over them: weights that were trained differ
    everywhere. A path that does not exist counts by its last name.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        return _digest([path], named=not path.is_file())
    files = sorted(file for file in path.iterdir() if file.is_file())
    return _digest([f for f in files if any(f.match(pattern) for pattern in patterns)] or files, named=True)


def _digest(files: list[Path], named: bool) -> str:
    digest = hashlib.sha256()
    for file in files:
        if named:
            digest.update(file.name.encode())
        if file.is_file():
            stat = file.stat()
            digest.update(_file_digest(str(file.resolve()), stat.st_size, stat.st_mtime_ns))
    return digest.hexdigest()[:16]


@functools.lru_cache(maxsize=256)
def _file_digest(file: str, size: int, mtime_ns: int) -> bytes:
    digest = hashlib.sha256(str(size).encode())
    with open(file, "rb") as f:
        if size <= WHOLE:
            digest.update(f.read())
        else:
            for i in range(16):
                f.seek(i * (size - CHUNK) // 15)
                digest.update(f.read(CHUNK))
    return digest.digest()
