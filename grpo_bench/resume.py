"""How a configuration stands to the record that its folder holds: new, to be continued, or complete."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from grpo_bench.types import UserError

if TYPE_CHECKING:
    from grpo_bench.config import Config

Standing = Literal["new", "incomplete", "extended", "complete"]


def standing(cfg: Config, directory: Path) -> Standing:
    """The folder's name pins everything but the budget's amount, so that is what is compared here.

    Raises UserError for a budget below the recorded one, and for a longer one under a schedule that ends with its
    budget: its first part would have run at other learning rates.
    """
    file = directory / "config.yaml"
    if not cfg.resume or not file.is_file():
        return "new"
    return _standing(cfg, directory, file)


def is_complete(cfg: Config, directory: Path) -> bool:
    """Whether the folder holds the finished run of this configuration, ``resume=false`` or not: at a sweep's end the
    question is what lies on disk, no longer how it came there."""
    file = directory / "config.yaml"
    return file.is_file() and _standing(cfg, directory, file) == "complete"


def _standing(cfg: Config, directory: Path, file: Path) -> Standing:
    try:
        before = yaml.safe_load(file.read_text())["budget"]["amount"]
    except (yaml.YAMLError, KeyError, TypeError):
        raise UserError(f"{file} cannot be read; delete {directory}, or start over with resume=false") from None
    amount, unit, schedule = cfg.budget.amount, cfg.budget.unit, cfg.optim.schedule
    if amount < before:
        raise UserError(
            f"budget.amount={amount:g} is less than the {before:g} {unit} of {directory}; a record is not cut short: "
            f"give budget.amount={before:g} or more, or start over with resume=false"
        )
    if amount > before and schedule != "constant":
        raise UserError(
            f"budget.amount={amount:g} cannot extend {directory}: optim.schedule={schedule} was laid out for "
            f"{before:g} {unit}; use optim.schedule=constant, another seed, or start over with resume=false"
        )
    if (directory / "result.json").is_file():
        return "complete" if amount == before else "extended"
    return "incomplete"


def complete_line(directory: Path, export: bool = False) -> str:
    """One line on a run that is not run again; with ``export`` it says how to make an export that is missing."""
    from grpo_bench.provenance import git_sha

    now, then = git_sha(), read(directory / "result.json").get("git_sha")
    other = f" (by commit {str(then)[:8]}, this is {now[:8]})" if then != now else ""
    if export and not (directory / "export").is_dir():
        again = f"python -m grpo_bench.evaluate checkpoint={directory} export={directory / 'export'}"
        return f"complete before, skipped{other}: {directory}; its export is missing: run {again}"
    return f"complete before, skipped{other}: {directory}; resume=false runs it again"


def read(file: Path) -> dict[str, Any]:
    """Content of a JSON file of a record; empty when it is absent or half written."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
