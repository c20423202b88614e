"""Checkpoints: named groups of tensors and a JSON state in one folder that is whole or absent.

``checkpoints/step-00000010/`` holds ``<group>.safetensors``, ``state.json`` and ``manifest.json`` (written last: sizes
and sha256 of the others, and where the jsonl files of the record stood). It is built under a temporary name and
renamed when it is durable. Nothing is ever pickled or unpickled. torch is imported when tensors are, not before.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_bench.files import disk_errors, remove_tree, sync_folder
from grpo_bench.types import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

_NAME = re.compile(r"step-(\d{8,})")
_GROUP = re.compile(r"[A-Za-z0-9_.-]+")


class DamagedError(Exception):
    """A checkpoint that is not what was written; the message says which file and how."""


@dataclass
class Checkpoint:
    """What a run continues from. ``tensors(group)`` reads one group onto the CPU, checked when it was opened."""

    step: int
    state: dict[str, Any]
    tensors: Callable[[str], dict[str, Tensor]]


def folder_of(root: Path, step: int) -> Path:
    return root / f"step-{step:08d}"


def steps_in(root: Path) -> list[int]:
    """Steps with a checkpoint folder, oldest first, intact or not."""
    if not root.is_dir():
        return []
    return sorted(int(m[1]) for p in root.iterdir() if p.is_dir() and (m := _NAME.fullmatch(p.name)))


def clean(root: Path) -> None:
    """Remove what a killed writer left behind."""
    for path in root.glob(".*.tmp"):
        shutil.rmtree(path)


def save(
    root: Path,
    step: int,
    tensors: dict[str, dict[str, Tensor]],
    state: dict[str, Any],
    extra: dict[str, Any],
    keep: int,
) -> None:
    """Write the checkpoint of ``step`` and drop all but the ``keep`` newest.

    ``extra`` goes into the manifest. Tensors that share all their memory (tied weights) are stored once. UserError
    when the disk is full; then the earlier checkpoints are untouched and no temporary file is left.
    """
    from safetensors.torch import save_file

    final = folder_of(root, step)
    work = final.with_name(f".{final.name}.tmp")
    try:
        with disk_errors(final):
            work.mkdir(parents=True)
            aliases = {}
            for group, named in tensors.items():
                if not _GROUP.fullmatch(group):
                    raise ValueError(f"group name {group!r} is not a file name")
                unique, aliases[group] = _untie(named)
                save_file(unique, work / f"{group}.safetensors")
            (work / "state.json").write_text(json.dumps(state), encoding="utf-8")
            files = {p.name: {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in sorted(work.iterdir())}
            body = {"step": step, "files": files, "aliases": aliases, **extra}
            manifest = work / "manifest.json"
            manifest.write_text(json.dumps({"manifest": body, "sha256": _canonical(body)}, indent=1), encoding="utf-8")
            for path in work.iterdir():
                _sync(path)
            sync_folder(work)
            if final.exists():
                remove_tree(final)
            os.replace(work, final)
            sync_folder(root)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    drop(root, [s for s in steps_in(root) if s <= step][:-keep])


def drop(root: Path, steps: list[int]) -> None:
    for step in steps:
        remove_tree(folder_of(root, step))


def load(root: Path, step: int) -> tuple[Checkpoint, dict[str, Any]]:
    """The checkpoint of ``step`` and its manifest; DamagedError unless every byte is as it was written."""
    folder = folder_of(root, step)
    manifest = _manifest(folder)
    if manifest["step"] != step:
        raise DamagedError(f"manifest.json is of step {manifest['step']}")
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise DamagedError(f"{name} is missing")
        if (size := path.stat().st_size) != expected["bytes"]:
            raise DamagedError(f"{name} has {size} bytes instead of {expected['bytes']}")
        if _sha256(path) != expected["sha256"]:
            raise DamagedError(f"{name} has changed since it was written (sha256 differs)")
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))

    def tensors(group: str) -> dict[str, Tensor]:
        from safetensors.torch import load_file

        if group not in manifest["aliases"]:
            raise KeyError(f"the checkpoint of step {step} has no tensors {group!r}: {', '.join(manifest['aliases'])}")
        named = load_file(folder / f"{group}.safetensors")
        return named | {name: named[source] for name, source in manifest["aliases"][group].items()}

    return Checkpoint(step, state, tensors), manifest


def newest(root: Path) -> Checkpoint:
    """The newest intact checkpoint under ``root``; UserError when there is none."""
    for step in reversed(steps_in(root)):
        try:
            return load(root, step)[0]
        except (DamagedError, OSError) as error:
            print(f"warning: damaged checkpoint {folder_of(root, step).name} is skipped: {error}", file=sys.stderr)
    raise UserError(f"{root} holds no intact checkpoint; give the folder of a run that has one")


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        outer = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        body, digest = outer["manifest"], outer["sha256"]
    except FileNotFoundError:
        raise DamagedError("manifest.json is missing") from None
    except (ValueError, KeyError, TypeError):  # ValueError: bad JSON, bad UTF-8
        raise DamagedError("manifest.json cannot be read") from None
    if digest != _canonical(body):
        raise DamagedError("manifest.json has changed since it was written (sha256 differs)")
    return body


def _untie(named: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Contiguous CPU tensors without repeats, and {repeated name: the name it is stored under}."""
    unique: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    storages: set[int] = set()
    for name, tensor in named.items():
        tensor = tensor.detach()
        key = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() and key in seen:
            aliases[name] = seen[key]
            continue
        seen[key] = name
        plain = tensor.cpu().contiguous()
        storage = plain.untyped_storage()
        if storage.data_ptr() in storages or storage.nbytes() != plain.numel() * plain.element_size():
            plain = plain.clone()  # a view of other memory: safetensors refuses tensors that overlap
        storages.add(plain.untyped_storage().data_ptr())
        unique[name] = plain
    return unique, aliases


def flatten_optimizer(state_dict: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split ``optimizer.state_dict()`` into tensors and JSON; :func:`restore_optimizer` is the exact inverse."""
    from torch import Tensor

    tensors: dict[str, Tensor] = {}

    def strip(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            tensors[path] = value
            return {"tensor": path}
        if isinstance(value, dict):
            return {"dict": [[k, strip(v, f"{path}.{k}")] for k, v in value.items()]}  # keys may be ints
        if isinstance(value, list | tuple):
            return {type(value).__name__: [strip(v, f"{path}.{i}") for i, v in enumerate(value)]}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(f"optimizer state {path} is a {type(value).__name__}: neither tensor nor JSON")

    return tensors, {key: strip(value, key) for key, value in state_dict.items()}


def restore_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor], json_state: dict[str, Any]) -> None:
    """Load what :func:`flatten_optimizer` gave into an optimizer over the same parameters, bit for bit.

    torch casts moments to their parameter's dtype, so parameters must have the dtype that they had (float32 masters).
    """

    def fill(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        (kind, content), *_ = value.items()
        if kind == "tensor":
            return tensors[content]
        if kind == "dict":
            return {k: fill(v) for k, v in content}
        return (tuple if kind == "tuple" else list)(fill(v) for v in content)

    optimizer.load_state_dict({key: fill(value) for key, value in json_state.items()})


def _canonical(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
