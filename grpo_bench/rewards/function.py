"""A reward of one's own, from outside the checkout."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from grpo_bench.rewards.scored import Scored
from grpo_bench.types import UserError, error_line

if TYPE_CHECKING:
    from grpo_bench.config import Config

RewardFunction = Callable[[Scored], Sequence[float]]


def part(rows: Scored, cfg: Config) -> list[float]:
    """What ``reward.function`` returns for the rows: one finite number each.

    The function is called once with a ``Scored`` of all rows. UserError, with the row where one is to blame, when it
    raises or returns something else.
    """
    name = cfg.reward.function
    assert name is not None  # checked with the configuration
    function = load(name)
    try:
        values = list(function(rows))
    except Exception as e:
        raise UserError(f"reward.function={name} failed {_blamed(function, rows)}: {error_line(e)}") from e
    if len(values) != len(rows.responses):
        raise UserError(
            f"reward.function={name} returned {len(values)} values for {len(rows.responses)} completions; "
            "return one number for each, in order"
        )
    return [_number(value, row, name) for row, value in enumerate(values)]


def file_of(name: str) -> Path | None:
    """The file that ``path/to/file.py:name`` or ``package.module:name`` names; None where there is none."""
    place, _, _ = name.rpartition(":")
    if place.endswith(".py"):
        file = Path(place).expanduser()
        return file if file.is_file() else None
    try:
        spec = importlib.util.find_spec(place)
    except (ImportError, ValueError, AttributeError):
        return None
    return Path(spec.origin) if spec is not None and spec.origin and Path(spec.origin).is_file() else None


@functools.lru_cache(maxsize=8)
def load(name: str) -> RewardFunction:
    """The function of ``path/to/file.py:name`` or ``package.module:name``; UserError when it cannot be had."""
    place, _, attribute = name.rpartition(":")
    advice = "give path/to/file.py:name or package.module:name"
    if not place or not attribute:
        raise UserError(f"reward.function={name} names no function; {advice}")
    if place.endswith(".py") and not Path(place).expanduser().is_file():
        raise UserError(f"reward.function={name}: there is no file {place}; {advice}")
    try:
        module = _from_file(Path(place).expanduser()) if place.endswith(".py") else importlib.import_module(place)
    except Exception as e:  # whatever the user's code raises while it is imported
        raise UserError(f"reward.function={name} cannot be imported: {error_line(e)}") from e
    found = getattr(module, attribute, None)
    if not callable(found):
        raise UserError(f"reward.function={name}: {place} has no function {attribute}; {advice}")
    return found


def _from_file(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"grpo_bench_reward_{file.stem}", file.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _blamed(function: RewardFunction, rows: Scored) -> str:
    """The first row that fails by itself: the function was called with all of them."""
    for row in range(len(rows.responses)):
        try:
            function(rows.row(row))
        except Exception:
            return f"on row {row} (problem {rows.problems[row].id})"
    return f"on all {len(rows.responses)} rows together"


def _number(value: Any, row: int, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"reward.function={name} returned {value!r} for row {row}; return a finite number for each row")
    return number
