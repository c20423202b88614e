"""What the study declared beforehand against what its runs measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from grpo_bench.row_names import BEFORE_RL
from grpo_bench.table.compare import Comparison
from grpo_bench.table.contrasts import Contrast
from grpo_bench.table.declared import declared_in, hypotheses_of
from grpo_bench.table.judge import ALPHA, Claim, Judgement, judge
from grpo_bench.table.layout import NONE, Bold, Sheet
from grpo_bench.table.measures import MEASURES, Measure, Reading
from grpo_bench.table.units import interval_text, number_text
from grpo_bench.table.values import Values, collect, collect_pairs, named


@dataclass(frozen=True)
class Finding:
    """One hypothesis with its evidence; ``judgement`` is None where there is nothing to judge. ``later``: declared
    after the first run, which describes and belongs to no family."""

    id: str
    claim: str
    measure: str
    criterion: str
    source: str
    values: Values
    judgement: Judgement | None
    outcome: str
    scale: str = "difference"
    asked: Claim | None = None
    later: bool = False

    @property
    def why(self) -> str:
        return self.judgement.why if self.judgement else self.values.lacking


def evaluate(c: Comparison, declared: Sequence[Mapping[str, Any]] | None = None) -> list[Finding]:
    """Every declared hypothesis (by default those of the study's own configuration), judged as one family; after them,
    outside it, those that only later runs declare."""
    later: Sequence[Mapping[str, Any]] = []
    if declared is None:
        declared, later = hypotheses_of(c.study)
    reading = Reading(c.arms)
    found = [_evaluate(c, reading, one, len(declared)) for one in declared]
    return found + [_described(_evaluate(c, reading, one, 1)) for one in later]


def _described(finding: Finding) -> Finding:
    """Figures of what was declared when runs had ended already: no outcome, whatever they say."""
    if finding.judgement is None:
        return replace(finding, later=True)
    no_ratio = math.isnan(finding.judgement.interval.estimate)  # its reason stays, others explain an outcome
    judgement = replace(finding.judgement, outcome="descriptive", why=finding.why if no_ratio else "")
    return replace(finding, judgement=judgement, outcome="descriptive", later=True)


def hypotheses_sheet(c: Comparison, findings: Sequence[Finding]) -> Sheet | None:
    """Claim, figures, criterion and outcome of each; None where the study declares none."""
    if not findings:
        return None
    header = [
        "hypothesis",
        "claim",
        "measure",
        "means by row",
        "found [95 %]",
        "criterion",
        "seeds",
        "outcome",
        "source",
    ]
    rows = []
    for finding in findings:
        measure = MEASURES.get(finding.measure)
        label = measure.label if measure else finding.measure
        means = [
            f"{name} {number_text(sum(row) / len(row), measure)}"
            for name, row in zip(finding.values.labels, finding.values.rows, strict=False)
            if measure
        ]
        outcome = Bold(finding.outcome) if finding.outcome in ("supported", "contradicted") else finding.outcome
        said = f"{outcome} ({finding.why})" if finding.why else outcome
        said = f"declared later: {said}" if finding.later else said
        rows.append(
            [
                finding.id, finding.claim, label, "; ".join(means) or NONE, _found(finding, measure),
                finding.criterion, str(len(finding.values.seeds) or NONE),
                Bold(said) if isinstance(outcome, Bold) else said, finding.source or NONE,
            ]
        )  # fmt: skip
    used, _ = hypotheses_of(c.study)
    family = len([finding for finding in findings if not finding.later])
    level = f"{100 * (1 - ALPHA / max(family, 1)):.4g} %"
    given = [declared_in(config) for config in c.study.configs]
    notes = [
        f"Declared in the configuration of {sum(one == used for one in given)} of {len(given)} runs. Found: first row "
        "minus or over the second; of a list, its last minus or over its first.",
        f"Supported: the {level} interval over paired seeds (Student's t, Bonferroni over the {family} "
        "hypotheses) lies wholly where the criterion says; contradicted: wholly elsewhere; equal and flat by two "
        "one-sided tests in every pair of rows. Fewer than 5 seeds: descriptive, no outcome. The accuracy of a pair "
        "that is a contrast is judged as there, within the contrasts.",
    ]
    if family < len(findings):
        notes.append(
            f"Declared later: the last {len(findings) - family} stand in runs begun after the first one, or stand "
            "otherwise there; their figures describe, outside the family."
        )
    if any(finding.asked and finding.asked.interaction for finding in findings):
        notes.append(
            "Of four rows: (first − second) − (third − fourth), or (first / second) / (third / fourth), in each seed "
            "that all four have; each pair is comparable in itself."
        )
    return Sheet("hypotheses", "Hypotheses", header, rows, notes, wide=True)


def _evaluate(c: Comparison, reading: Reading, one: Mapping[str, Any], family: int) -> Finding:
    name, rows = str(one.get("measure") or "accuracy"), [str(row) for row in one.get("rows") or []]
    measure, than = MEASURES.get(name), [str(row) for row in one.get("than") or []]
    claim = Claim(one["expect"], one.get("scale") or "difference", one.get("at_least"), one.get("at_most"), bool(than))
    if claim.expect in ("equal", "flat") and claim.at_most is None and measure and measure.unit == "fraction":
        claim = replace(claim, at_most=c.margin if claim.scale == "difference" else 1 + c.margin)
    if measure is None:
        values = Values([*rows, *than], lacking=f"no measure {name}")
    elif than:
        values = collect_pairs(c, reading, rows, than, name)
    else:
        values = collect(c, reading, rows, name)
    judgement = decide(c, values, name, claim, family) if values.rows else None
    outcome = judgement.outcome if judgement else "not comparable" if values.refused else "not tested here"
    return Finding(
        str(one.get("id")), str(one.get("claim") or ""), name, _asked(claim, measure, values),
        str(one.get("source") or ""), values, judgement, outcome, claim.scale, claim,
    )  # fmt: skip


def decide(c: Comparison, values: Values, measure: str, claim: Claim, family: int) -> Judgement:
    """The outcome of a claim on what was collected. The accuracy of a pair that is a contrast of the study has the
    level of the contrasts' family and their equivalence: no pair of rows is judged twice by two rules."""
    contrast = _contrast(c, values.labels) if measure == "accuracy" and claim.scale == "difference" else None
    if contrast is None or contrast.judged is None:
        return judge(values.rows, claim, family=family, counted=MEASURES[measure].counted)
    judgement = judge(values.rows, claim, family=c.family, counted=True)
    within = contrast.judged.within_margin and claim.expect in ("equal", "flat") and claim.at_most == c.margin
    return replace(judgement, outcome="supported", why="") if within else judgement


def _contrast(c: Comparison, names: Sequence[str]) -> Contrast | None:
    """The declared one of exactly these two rows, in either order."""
    labels = {arm.label for name in names for arm in named(c, name) if name not in BEFORE_RL}
    if len(names) != 2 or len(labels) != 2 or c.declared == "no":
        return None
    return next((one for one in c.contrasts if {one.first, one.second} == labels), None)


def compared(labels: Sequence[str], claim: Claim) -> tuple[str, str]:
    """The two differences, or ratios, of an interaction: ("grpo long − ppo long", "grpo short − ppo short")."""
    sign = " / " if claim.scale == "ratio" else " − "
    return sign.join(labels[:2]), sign.join(labels[2:])


def _asked(claim: Claim, measure: Measure | None, values: Values) -> str:
    words = criterion(claim, measure)
    if not claim.interaction:
        return words
    first, second = compared(values.labels, claim)
    return f"{words}: {first} against {second}"


def criterion(claim: Claim, measure: Measure | None) -> str:
    """Such as "greater, by at least 2.0 points" or "ratio 1.4 to 1.6"."""

    def size(value: float) -> str:
        if claim.scale == "ratio":
            return f"{value:g} ×"
        return number_text(value, measure, points=True) if measure else f"{value:g}"

    if claim.expect in ("equal", "flat"):
        return claim.expect + (f" within {size(claim.at_most)}" if claim.at_most is not None else "")
    if claim.scale == "difference" and claim.at_most is None and claim.at_least is not None and claim.at_least < 0:
        other = {"greater": "lower", "less": "higher", "increasing": "falling", "decreasing": "rising"}[claim.expect]
        return f"not {other} by more than {size(-claim.at_least)}"
    by = " by" if claim.scale == "difference" else ", ratio"
    if claim.at_least is not None and claim.at_most is not None:
        return f"{claim.expect}{by} {size(claim.at_least)} to {size(claim.at_most)}"
    if claim.at_least is not None:
        return f"{claim.expect}{by} at least {size(claim.at_least)}"
    return claim.expect + (f"{by} at most {size(claim.at_most)}" if claim.at_most is not None else "")


def _found(finding: Finding, measure: Measure | None) -> str:
    if finding.judgement is None or measure is None:
        return NONE
    text = interval_text(finding.judgement.interval, measure, finding.scale)
    if finding.asked is None or not finding.asked.interaction:
        return text
    between = "ratio of the two ratios" if finding.scale == "ratio" else "of the difference between differences"
    return f"{text}, {between}"
