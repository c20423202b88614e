"""Where the configuration lies, in a checkout, an editable install and a wheel alike."""

from __future__ import annotations

import os
from pathlib import Path

_HERE = Path(__file__).resolve().parent


def conf_dir() -> Path:
    """The folder ``conf/``: inside the package in a wheel, beside it in a checkout or an editable install."""
    for folder in (_HERE / "conf", _HERE.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise RuntimeError(f"no conf/ in {_HERE} or {_HERE.parent}: the installation of grpo-bench is broken")


def sweeps_dir() -> Path | None:
    """The folder ``sweeps/``, found as ``conf_dir`` is; None where there is none."""
    return next((f for f in (_HERE / "sweeps", _HERE.parent / "sweeps") if f.is_dir()), None)


def cache_dir() -> Path:
    """Where what can be made again is kept (warm-started weights, what runs cost here): $GRPO_BENCH_CACHE, else
    grpo_bench under the user's cache folder."""
    if "GRPO_BENCH_CACHE" in os.environ:
        return Path(os.environ["GRPO_BENCH_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "grpo_bench"
