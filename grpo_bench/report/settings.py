"""What distinguishes the rows of a study: the settings in which their configurations differ, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from grpo_bench.table.arms import Arm
from grpo_bench.table.compare import Comparison

ABSENT = "·"  # the row's algorithm has no such knob
# names and places of a run, and what the machine decides: they differ without any difference between rows
_NOT_SETTINGS = ("config_version", "seed", "row", "arm", "study", "results", "tracker", "threads", "parallel", "resume")


@dataclass(frozen=True)
class Settings:
    """``rows[key][i]`` is the value in column i, ABSENT where it has none; ``baseline`` is a column or None."""

    columns: list[str]
    rows: dict[str, list[str]]
    baseline: int | None


def settings(c: Comparison) -> Settings:
    """Dotted keys whose values are not the same in every row, the baseline's column first."""
    arms = sorted((arm for arm in c.arms if arm.config), key=lambda arm: not _is_baseline(c, arm))
    flat = [dict(_flatten(arm.config)) for arm in arms]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    table = {key: [one.get(key, ABSENT) for one in flat] for key in keys if key.split(".")[0] not in _NOT_SETTINGS}
    varied = {key: values for key, values in table.items() if len(set(values)) > 1}
    first = 0 if arms and _is_baseline(c, arms[0]) else None
    return Settings([arm.label for arm in arms], varied, first)


def _is_baseline(c: Comparison, arm: Arm) -> bool:
    return c.baseline is not None and arm.called(c.baseline)


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
