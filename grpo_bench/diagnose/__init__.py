"""Why a run did not learn, in words, with the knob to turn: rules over its records. No torch.

``diagnose(run)`` is silent on a healthy run; ``python -m grpo_bench.diagnose FOLDER`` prints it for a run or a study.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from grpo_bench.diagnose import answers, motion, outcome, signal
from grpo_bench.diagnose.evidence import Evidence
from grpo_bench.diagnose.rule import Finding, Rule
from grpo_bench.records import Run

__all__ = ["RULES", "Evidence", "Finding", "RowFinding", "Rule", "by_row", "diagnose"]

# the outcome first, then what explains it: was there training, a signal, a movement, an answer
RULES: tuple[Rule, ...] = (
    outcome.no_gain,
    outcome.below_start,
    outcome.over_optimised,
    outcome.collapse,
    outcome.no_updates,
    outcome.short_run,
    signal.random_reward,
    signal.blind_reward,
    signal.reward_constant,
    signal.zero_variance,
    signal.form,
    signal.critic,
    signal.verifier,
    motion.non_finite,
    motion.gradient_spike,
    motion.kl_jump,
    motion.hardly_moved,
    motion.inert_clip,
    answers.no_eos,
    answers.truncation,
    answers.entropy_collapse,
    answers.length_collapse,
    outcome.still_rising,
)


def diagnose(run: Run) -> list[Finding]:
    """What the records of one run show, the outcome first; [] for a healthy run and for one that never began.

    Raises UserError where a record is damaged.
    """
    evidence = Evidence(run)
    if not evidence.steps:
        return []
    said: dict[str, Finding] = {}
    for rule in RULES:
        if rule.stuck and evidence.learned:
            continue
        found = rule.check(evidence, rule.limit)
        if found is not None:
            said[rule.kind] = Finding(rule.kind, *found)
    covered = {rule.kind for rule in RULES if rule.covered_by & said.keys()}
    return [finding for kind, finding in said.items() if kind not in covered]


@dataclass(frozen=True, slots=True)
class RowFinding:
    """A finding of a row of a table: in which seeds it was made, of how many, and the first of them in words."""

    row: str
    seeds: tuple[int, ...]
    of: int
    finding: Finding


def by_row(runs: Iterable[Run]) -> list[RowFinding]:
    """The findings of a study's runs, one per row and kind, in the order of the rows."""
    rows: dict[str, list[Run]] = {}
    for run in runs:
        if run.status != "missing":
            rows.setdefault(run.row, []).append(run)
    out = []
    for row, members in rows.items():
        found: dict[str, list[tuple[int, Finding]]] = {}
        for run in members:
            for finding in diagnose(run):
                found.setdefault(finding.kind, []).append((run.seed, finding))
        for made in found.values():
            out.append(RowFinding(row, tuple(seed for seed, _ in made), len(members), made[0][1]))
    return out
