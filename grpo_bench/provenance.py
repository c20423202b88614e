"""Where a result came from: code, versions, machine, data and model, without anything private.

No environment dump, no user or host name, no absolute path: a path is recorded by its last part.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from grpo_bench.tasks.grader import LIBRARIES

PACKAGES = (
    *("torch", "transformers", "tokenizers", "safetensors", "datasets", "peft", "numpy", "scipy"),
    *("hydra-core", "omegaconf", "pydantic", *LIBRARIES["math"], "wandb", "tensorboard"),
)
# keys of the configuration that hold a path, or may (a hub's name never begins with / or ~)
PATH_KEYS = (
    *("results", "task.path", "task.math500_path", "task.hub", "task.math500_hub", "model.path", "model.id"),
    *("reward.model.path", "reward.model.id", "reward.function"),
)
DIFF_LIMIT = 100_000  # bytes of a dirty tree's diff that are kept; its sha256 is of the whole

_PACKAGE = Path(__file__).resolve().parent
_ROOT = r"(?:~|/|[A-Za-z]:[\\/])"
_ANYWHERE = re.compile(rf"(?<![\w.~/\\:-]){_ROOT}[^\s'\",\]\[(){{}}]*")
_WHOLE = re.compile(rf"{_ROOT}[^\n]*")


def base_names(value: Any, *, whole: bool = False) -> Any:
    """``value`` with absolute and home paths in its strings cut to their last part.

    ``task.path=/data/gsm8k`` becomes ``task.path=gsm8k``; relative paths, URLs and prose stay. ``whole``: only strings
    that are a path from end to end, for values of keys that hold paths.
    """
    if isinstance(value, str):
        if whole:
            match = _WHOLE.fullmatch(value)
            return _last_part(match) if match else value
        return _ANYWHERE.sub(_last_part, value)
    if isinstance(value, dict):
        return {k: base_names(v, whole=whole) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [base_names(v, whole=whole) for v in value]
    return value


def without_places(config: dict[str, Any]) -> dict[str, Any]:
    """A dumped configuration with the paths in it cut to their last part: a record must not tell where its author
    keeps things. Only keys that hold paths are touched; a prompt or a stop string may well contain slashes.
    """
    out = dict(config)
    for key in PATH_KEYS:
        _cut(out, key.split("."))
    return out


def _cut(node: dict[str, Any], keys: list[str]) -> None:
    """Cut the path at ``keys``, where there is one; dicts on the way are copied, not changed."""
    first, *rest = keys
    if not rest and first in node:
        node[first] = base_names(node[first], whole=True)
    elif rest and isinstance(node.get(first), dict):
        node[first] = dict(node[first])
        _cut(node[first], rest)


def _last_part(match: re.Match[str]) -> str:
    parts = [p for p in re.split(r"[\\/]", match[0]) if p]
    return parts[-1] if len(parts) > 1 else match[0]  # one part ("/no_think", "tokens /s") names nobody


def now() -> str:
    """UTC, to the second, ISO 8601."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@functools.cache
def host() -> str:
    """12 hex digits of this machine since it was started: a process id means something only beside it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        boot = ""
    return hashlib.sha256(f"{platform.node()} {boot}".encode()).hexdigest()[:12]


def package_version() -> str:
    """Version of the installed package, "unknown" when run from a checkout that was never installed."""
    try:
        return metadata.version("grpo-bench")
    except metadata.PackageNotFoundError:
        return "unknown"


@functools.cache
def git() -> dict[str, Any]:
    """``sha``, ``dirty``, and of a dirty tree ``diff`` (size-limited), ``diff_sha256`` and ``untracked`` code files.

    Only this project's own repository counts: inside a virtual environment that lies in somebody's checkout, or in a
    wheel, the sha is "unknown". Records and results do not make a tree dirty.
    """
    unknown = {"sha": "unknown", "dirty": False}
    if _git("ls-files", "--error-unmatch", "__init__.py") is None:
        return unknown
    sha = _git("rev-parse", "HEAD")
    root = _git("rev-parse", "--show-toplevel")
    if sha is None or root is None:
        return unknown
    top = Path(root.strip())
    diff = _git("diff", "HEAD", "--no-color", "--no-ext-diff", "--", ".", ":(exclude)results", folder=top) or ""
    listed = _git("ls-files", "--others", "--exclude-standard", "--", "grpo_bench", "conf", "sweeps", folder=top) or ""
    untracked = sorted(listed.split())
    out: dict[str, Any] = {"sha": sha.strip(), "dirty": bool(diff or untracked)}
    if out["dirty"]:
        out["diff"] = diff.encode()[:DIFF_LIMIT].decode(errors="ignore")
        out["diff_truncated"] = len(diff.encode()) > DIFF_LIMIT
        out["diff_sha256"] = hashlib.sha256(diff.encode()).hexdigest()
        out["untracked"] = untracked
    return out


def git_sha() -> str:
    """The commit, with ``-dirty`` when code differs from it; "unknown" outside the project's repository."""
    found = git()
    return found["sha"] + ("-dirty" if found["dirty"] else "")


def _git(*arguments: str, folder: Path = _PACKAGE) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, errors="replace", timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):  # no git here: the revision is honestly unknown
        return None
    return done.stdout if done.returncode == 0 else None


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu_name() -> str:
    """What the processor calls itself."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def _device(kind: str | None) -> dict[str, Any]:
    """What torch computes on; asked only where torch is loaded already, since loading it costs seconds.

    ``kind``: cpu or cuda; None, a GPU where there is one.
    """
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "get_num_threads"):
        return {}
    from grpo_bench import kernels  # imports torch

    gpu = torch.cuda.is_available()
    out: dict[str, Any] = {
        "torch_threads": torch.get_num_threads(),
        "gpus": [],
        "kernels": kernels.fingerprint(on_gpu=gpu if kind is None else kind == "cuda"),
    }
    if gpu:
        out["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        out["cuda"] = torch.version.cuda
        out["cudnn"] = torch.backends.cudnn.version()
    return out


def collect(meta: dict[str, Any], attempt: int, continued_from: int | None) -> dict[str, Any]:
    """One entry of ``provenance.json``: this attempt at a run.

    ``meta`` gives ``seed``, ``prompt_stream_hash``, ``fingerprints`` and the ``device`` that is computed on;
    ``continued_from`` is the step of the checkpoint that the attempt starts at, None from the beginning.
    """
    return {
        "attempt": attempt,
        "started": now(),
        "continued_from_step": continued_from,
        "argv": base_names([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "version": package_version(),
        "git": git(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu_name(),
        "cpu_count": os.cpu_count(),
        "device": _device(meta.get("device")),
        "packages": _versions(),
        "seed": meta.get("seed"),
        "prompt_stream_hash": meta.get("prompt_stream_hash"),
        "fingerprints": meta.get("fingerprints", {}),
    }


def changed(before: dict[str, Any], after: dict[str, Any]) -> str:
    """What differs between two attempts and can move bits: "torch version, thread count"; "" for nothing."""
    pairs = {
        "torch version": [a["packages"].get("torch") for a in (before, after)],
        "transformers version": [a["packages"].get("transformers") for a in (before, after)],
        "thread count": [a["device"].get("torch_threads") for a in (before, after)],
        "sampling kernels": [a["device"].get("kernels") for a in (before, after)],
        "processor": [a["cpu"] for a in (before, after)],
        "GPU": [a["device"].get("gpus") for a in (before, after)],
        "commit": [a["git"]["sha"] for a in (before, after)],
    }
    return ", ".join(what for what, (a, b) in pairs.items() if a != b)
