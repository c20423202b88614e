"""What a rule is: a symptom with a limit, the reason for that limit, and the words and the knob that go with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from grpo_bench.diagnose.evidence import Evidence

Said = tuple[str, str] | None  # text and knob, None where there is nothing to say
Check = Callable[[Evidence, float], Said]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a run's records show: ``kind`` is the rule's name, ``text`` what was seen with its figures and
    what it means, ``knob`` the settings to turn."""

    kind: str
    text: str
    knob: str


@dataclass(frozen=True, slots=True)
class Rule:
    """``check`` is a pure function of the evidence and the limit.

    ``stuck``: asked only of runs whose accuracy did not rise by more than its noise, since the same figure is harmless
    in a run that learned. ``covered_by``: rules that, where they speak, have said this already.
    """

    kind: str
    limit: float
    unit: str
    reason: str
    stuck: bool
    covered_by: frozenset[str]
    check: Check


def rule(
    kind: str, limit: float, unit: str, reason: str, *, stuck: bool = False, covered_by: str = ""
) -> Callable[[Check], Rule]:
    """Make the decorated check a rule."""
    return lambda check: Rule(kind, limit, unit, " ".join(reason.split()), stuck, frozenset(covered_by.split()), check)


def percent(fraction: float) -> str:
    """``0.314`` as ``31 %``; small or nearly whole ones with a decimal."""
    shown = 100 * fraction
    return f"{shown:.0f} %" if 1 <= shown <= 99 or shown in (0, 100) else f"{shown:.1f} %"
