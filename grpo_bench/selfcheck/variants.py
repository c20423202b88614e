"""Every setting of every knob of an algorithm, read from its schema."""

from __future__ import annotations

import copy
import types
import typing
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from grpo_bench.algos import Algorithm
from grpo_bench.algos.dialects import dialects_of, speak
from grpo_bench.types import UserError

if TYPE_CHECKING:
    from grpo_bench.config import Config

EXAMPLES = {"entropy_coef": [0.01]}  # settings of numbers that act beyond their bounds


def settings(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every choice, both values of a flag, each bound that a number may take, a number in place of null."""
    for name, field in model.model_fields.items():
        key, kind = prefix + name, field.annotation
        options = typing.get_args(kind)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from settings(kind, f"{key}.")
        elif typing.get_origin(kind) is Literal:
            yield from ((key, value) for value in options)
        elif kind is bool:
            yield from ((key, value) for value in (True, False))
        elif kind in (int, float):
            bounds = [getattr(limit, side) for limit in field.metadata for side in ("ge", "le") if hasattr(limit, side)]
            yield from ((key, value) for value in [*bounds, *EXAMPLES.get(name, [])])
        elif typing.get_origin(kind) is types.UnionType and float in options:
            above = max([0.0, *(limit.gt for limit in field.metadata if hasattr(limit, "gt"))])
            yield from ((key, value) for value in (None, above + 0.2))


def changed(algo: Algorithm, **knobs: Any) -> Algorithm:
    """The algorithm with some knobs changed; ``**{"kl.place": "reward"}``."""
    node = copy.deepcopy(algo.model_dump(by_alias=True))
    for key, value in knobs.items():
        *parents, last = key.split(".")
        place = node
        for parent in parents:
            place = place[parent]
        place[last] = value
    return type(algo).model_validate(node)


def variants(cfg: Config) -> dict[str, Algorithm]:
    """The run's algorithm with each knob changed in turn, in its dialects, and with KL, entropy and average combined.

    What its ``check`` refuses in this run is left out, and what ``inert`` says has no effect.
    """
    base: Algorithm = cfg.algo
    found: dict[str, Algorithm] = {}

    def add(label: str, algo: Algorithm) -> None:
        if algo == base or algo in found.values():
            return
        try:
            algo.check(cfg.model_copy(update={"algo": algo}))
        except UserError:
            return
        found[label] = algo

    for key, value in settings(type(base)):
        if key not in base.inert():
            add(f"{key}={value}", changed(base, **{key: value}))
    node = base.model_dump(by_alias=True)
    for dialect in dialects_of(type(base), base.name):
        try:
            add(f"dialect={dialect}", type(base).model_validate(speak(node, type(base), dialect)))
        except UserError:  # the run has set a knob of this dialect otherwise
            continue
    for place, estimator in (("reward", "k1"), ("reward", "k2"), ("none", "k3")):
        for aggregation in ("sequence_mean", "token_mean"):
            knobs = {"kl.place": place, "kl.estimator": estimator, "aggregation": aggregation, "entropy_coef": 0.01}
            add(f"{place}-{estimator}-{aggregation}-entropy", changed(base, **knobs))
    return found
