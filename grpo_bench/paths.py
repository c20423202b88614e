"""Where the configuration lies, in a checkout, an editable install and a wheel alike."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent


def conf_dir() -> Path:
    """The folder ``conf/``: inside the package in a wheel, beside it in a checkout or an editable install."""
    for folder in (_HERE / "conf", _HERE.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise RuntimeError(f"no conf/ in {_HERE} or {_HERE.parent}: the installation of grpo-bench is broken")


def sweeps_dir() -> Path | None:
    """The folder ``sweeps/`` of a checkout; None in an installed package, which does not carry it."""
    folder = _HERE.parent / "sweeps"
    return folder if folder.is_dir() else None
