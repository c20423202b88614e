"""Which models a claim means by their place among the study's: ``model=smallest``, ``largest``, ``each``."""

from __future__ import annotations

import re
from collections.abc import Sequence

from grpo_bench.row_names import EACH, PLACE
from grpo_bench.table.arms import Arm

LISTED = 3  # models that a trend needs
_MODEL = re.compile(r"(?<= model=)\S+")


def resolved(arms: Sequence[Arm], names: Sequence[str]) -> tuple[list[str], str]:
    """``names`` with the models themselves, and "" or why that cannot be said: the names stay then.

    The order is of the recorded parameters of the policy. All models of the study count, those without a finished run
    included: while the size of one is not known, no other can be called the largest.
    """
    if not any(map(PLACE.search, names)):
        return list(names), ""
    sizes = _sizes(arms)
    if waiting := [model for model, size in sizes.items() if size is None]:
        return list(names), f"no finished run of model {', '.join(waiting)} yet, so its place is not known"
    ordered = sorted(sizes, key=lambda model: sizes[model] or 0)
    least = LISTED if any(_place(name) == EACH for name in names) else 2
    if len(ordered) < least:
        return list(names), f"the study has {len(ordered)} model{'s' * (len(ordered) != 1)} and this needs {least}"
    if len(set(sizes.values())) < len(sizes):
        return list(names), "models of one size have no places"
    chosen = {"smallest": ordered[:1], "largest": ordered[-1:], EACH: ordered}
    found = []
    for name in names:
        place = _place(name)
        found += [name] if place is None else [_with(name, model) for model in chosen[place]]
    if len(set(found)) < len(found):
        return list(names), f"{max(found, key=found.count)} is named twice"
    return found, ""


def _with(name: str, model: str) -> str:
    return PLACE.sub(lambda _: model, name)


def _place(name: str) -> str | None:
    found = PLACE.search(name)
    return found[0] if found else None


def _sizes(arms: Sequence[Arm]) -> dict[str, float | None]:
    """Parameters of the policy by model, as rows call it; None where no run of it is finished."""
    sizes: dict[str, float | None] = {}
    for arm in arms:
        word = _MODEL.search(arm.row)
        model = word[0] if word else arm.model
        known = [n for run in arm.scored if (n := (run.cost.get("parameters") or {}).get("policy")) is not None]
        sizes[model] = sizes.get(model) or next((float(n) for n in known), None)
    return sizes
