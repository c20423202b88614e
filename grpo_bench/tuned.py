"""Learning rates that were tuned: ``conf/tuned/<task>-<model>.yaml``, by arm, then by algorithm, then ``default``.

A rate may be given as a multiple of the tuned one, ``critic_lr=0.1x``: the same question with every task and model.
"""

from __future__ import annotations

import functools
import re
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from grpo_bench.paths import conf_dir
from grpo_bench.types import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from grpo_bench.config import Config


RATES = ("lr", "critic_lr")
_MULTIPLE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)x")


def multiple(value: Any) -> Decimal | None:
    """``"0.1x"`` -> 0.1; None for what is no multiple."""
    match = _MULTIPLE.fullmatch(value) if isinstance(value, str) else None
    return Decimal(match[1]) if match else None


@functools.cache
def _load(path: Path) -> dict[str, Any]:
    return dict(OmegaConf.to_container(OmegaConf.load(path))) if path.is_file() else {}  # type: ignore[arg-type]


def namesakes(name: str, known: Iterable[str]) -> list[str]:
    """Those of ``known`` that an arm is called after, nearest first: ppo_tuned_cold, ppo_tuned, ppo.

    An arm is named after the one that it changes a thing of, and takes over its learning rate.
    """
    found = [other for other in known if name == other or name.startswith(f"{other}_")]
    return sorted(found, key=len, reverse=True)


def tuned_rate(key: str, cfg: Config, times: Decimal = Decimal(1)) -> float:
    """The value of ``key`` (lr or critic_lr) for a run: of its arm (or the arm that it is named after), its algorithm,
    the task and model, or of all; ``times`` as much."""
    file = conf_dir() / "tuned" / f"{cfg.task.name}-{cfg.model.name}.yaml"
    entries = _load(file)
    names = [*(namesakes(cfg.arm, entries) if cfg.arm else []), cfg.algo.name, "default"]
    found = [entry[key] for name in names if (entry := entries.get(name)) and entry.get(key) is not None]
    value = found[0] if found else _load(conf_dir() / "tuned" / "default.yaml")[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise UserError(f"{file.name}: {key}={value!r} should be a number of at least 0 and below 1")
    rate = float(times * Decimal(repr(float(value))))  # as if written by hand: 3 times 1e-4 is 3e-4 to the last bit
    if rate >= 1:
        raise UserError(f"{key}={times}x: {times} times the tuned {value:g} should be below 1")
    return rate
