"""Runs that learned and lost it again: accuracy on dev fell from its best by more than its noise."""

from __future__ import annotations

from grpo_bench.diagnose.evidence import Evidence
from grpo_bench.diagnose.outcome import collapse
from grpo_bench.records import Run
from grpo_bench.table.arms import Arm

WORDS = f"{collapse.limit:g} {collapse.unit}"


def collapsed(run: Run) -> bool | None:
    """By the rule of the diagnosis (``diagnose.outcome.collapse``); None where dev was not evaluated twice with a
    standard error."""
    evidence = Evidence(run)
    if len(evidence.dev) < 2 or not any(se for _, _, se in evidence.dev):
        return None
    return collapse.check(evidence, collapse.limit) is not None


def collapse_count(arm: Arm) -> tuple[int, int]:
    """How many runs of a row collapsed, of how many whose record can tell."""
    known = [found for run in arm.runs if (found := collapsed(run)) is not None]
    return sum(known), len(known)
