"""What the study declared beforehand against what its runs measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from grpo_bench.records import Run
from grpo_bench.table.arms import Arm
from grpo_bench.table.compare import Comparison
from grpo_bench.table.judge import ALPHA, Claim, Judgement, judge
from grpo_bench.table.layout import NONE, Bold, Sheet
from grpo_bench.table.measures import MEASURES, Measure, Reading
from grpo_bench.table.pairs import facts, refusal
from grpo_bench.table.units import interval_text, number_text

OF_THE_MODEL = ("model", "initial weights", "warm start", "warm-start settings", "compute precision")
BEFORE_RL = {"warm-started": "base", "pretrained": "pretrained"}


@dataclass(frozen=True)
class Values:
    """A measure's values in the rows of a claim: (rows, seeds) of the seeds that every row has; ``lacking`` says why
    there are none."""

    labels: list[str]
    seeds: list[int] = field(default_factory=list)
    rows: list[list[float]] = field(default_factory=list)
    lacking: str = ""
    refused: bool = False


@dataclass(frozen=True)
class Finding:
    """One hypothesis with its evidence; ``judgement`` is None where there is nothing to judge."""

    id: str
    claim: str
    measure: str
    criterion: str
    source: str
    values: Values
    judgement: Judgement | None
    outcome: str
    scale: str = "difference"

    @property
    def why(self) -> str:
        return self.judgement.why if self.judgement else self.values.lacking


def evaluate(c: Comparison, declared: Sequence[Mapping[str, Any]] | None = None) -> list[Finding]:
    """Every declared hypothesis (by default those of the study's own configuration), judged as one family."""
    if declared is None:
        declared = next((h for config in c.study.configs if (h := (config.get("study") or {}).get("hypotheses"))), [])
    reading = Reading(c.arms)
    return [_evaluate(c, reading, one, len(declared)) for one in declared]


def collect(c: Comparison, reading: Reading, names: Sequence[str], measure: str) -> Values:
    """Values of ``measure`` in the rows ``names`` (a row, an arm, "warm-started", "pretrained"), paired by seed.

    Runs that may not be compared as a pair are refused, but for costs, which depend on no test.
    """
    arms: dict[str, Arm] = {}
    for name in names:
        if name in BEFORE_RL:
            continue
        called = [arm for arm in c.arms if name in (arm.label, arm.row)] or [a for a in c.arms if a.called(name)]
        if len(called) != 1:
            lacking = f"no run of {name}" if not called else f"{name} names {len(called)} rows"
            return Values(list(names), lacking=lacking)
        arms[name] = called[0]
    if not arms:
        return Values(list(names), lacking="no row of this study is named")
    runs = {name: {run.seed: run for run in arm.scored} for name, arm in arms.items()}
    shared = sorted(set.intersection(*(set(by_seed) for by_seed in runs.values())))
    kind = MEASURES[measure].kind
    why = None if kind == "cost" else _refused(list(runs.values()), shared, _across(names), kind == "accuracy")
    if why:
        return Values(list(names), lacking=why, refused=True)
    first = next(iter(runs.values()))
    table: dict[int, list[float | None]] = {
        seed: [
            reading.before(measure, BEFORE_RL[name], first[seed])
            if name in BEFORE_RL
            else reading.value(measure, runs[name][seed])
            for name in names
        ]
        for seed in shared
    }
    complete = {seed: [v for v in row if v is not None] for seed, row in table.items() if None not in row}
    if not complete:
        empty = [name for i, name in enumerate(names) if all(row[i] is None for row in table.values())]
        lacking = "no seed with finished runs of all rows" if not shared else "not recorded"
        return Values(list(names), lacking=lacking + (f" for {', '.join(empty)}" if shared and empty else ""))
    return Values(list(names), list(complete), [list(row) for row in zip(*complete.values(), strict=True)])


def hypotheses_sheet(findings: Sequence[Finding], left_over: int = 0) -> Sheet | None:
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
        rows.append(
            [
                finding.id, finding.claim, label, "; ".join(means) or NONE, _found(finding, measure),
                finding.criterion, str(len(finding.values.seeds) or NONE),
                Bold(said) if isinstance(outcome, Bold) else said, finding.source or NONE,
            ]
        )  # fmt: skip
    level = f"{100 * (1 - ALPHA / len(findings)):.4g} %"
    notes = [
        "Declared in the study's configuration before its runs. Found: first row minus or over the second; of a list, "
        "its last minus or over its first.",
        f"Supported: the {level} interval over paired seeds (Student's t, Bonferroni over the {len(findings)} "
        "hypotheses) lies wholly where the criterion says; contradicted: wholly elsewhere; equal and flat by two "
        "one-sided tests in every pair of rows. Fewer than 5 seeds: descriptive, no outcome.",
    ]
    return Sheet("hypotheses", "Hypotheses", header, rows, notes, wide=True)


def _evaluate(c: Comparison, reading: Reading, one: Mapping[str, Any], family: int) -> Finding:
    name, rows = str(one.get("measure") or "accuracy"), [str(row) for row in one.get("rows") or []]
    measure = MEASURES.get(name)
    claim = Claim(one["expect"], one.get("scale") or "difference", one.get("at_least"), one.get("at_most"))
    if claim.expect in ("equal", "flat") and claim.at_most is None and measure and measure.unit == "fraction":
        claim = Claim(claim.expect, claim.scale, at_most=c.margin if claim.scale == "difference" else 1 + c.margin)
    values = collect(c, reading, rows, name) if measure else Values(rows, lacking=f"no measure {name}")
    judgement = judge(values.rows, claim, family=family, counted=measure.counted) if measure and values.rows else None
    outcome = judgement.outcome if judgement else "not comparable" if values.refused else "not tested here"
    return Finding(
        str(one.get("id")), str(one.get("claim") or ""), name, criterion(claim, measure), str(one.get("source") or ""),
        values, judgement, outcome, claim.scale,
    )  # fmt: skip


def criterion(claim: Claim, measure: Measure | None) -> str:
    """Such as "greater, by at least 2.0 points" or "ratio 1.4 to 1.6"."""

    def size(value: float) -> str:
        if claim.scale == "ratio":
            return f"{value:g} ×"
        return number_text(value, measure, points=True) if measure else f"{value:g}"

    if claim.expect in ("equal", "flat"):
        return claim.expect + (f" within {size(claim.at_most)}" if claim.at_most is not None else "")
    by = " by" if claim.scale == "difference" else ", ratio"
    if claim.at_least is not None and claim.at_most is not None:
        return f"{claim.expect}{by} {size(claim.at_least)} to {size(claim.at_most)}"
    if claim.at_least is not None:
        return f"{claim.expect}{by} at least {size(claim.at_least)}"
    return claim.expect + (f"{by} at most {size(claim.at_most)}" if claim.at_most is not None else "")


def _found(finding: Finding, measure: Measure | None) -> str:
    if finding.judgement is None or measure is None:
        return NONE
    return interval_text(finding.judgement.interval, measure, finding.scale)


def _across(names: Sequence[str]) -> bool:
    """The claim itself is about models ("the larger, the higher"): its rows name one each."""
    return all(" model=" in name or name in BEFORE_RL for name in names)


def _refused(rows: Sequence[Mapping[int, Run]], seeds: Sequence[int], across_models: bool, tested: bool) -> str | None:
    """Each row of a claim against its first; where models are what is compared, that they differ is no reason.
    ``tested``: the measure rests on the final test, whose problems are then compared one by one."""
    reasons: dict[str, None] = {}
    for other in rows[1:]:
        for seed in seeds:
            a, b = rows[0][seed], other[seed]
            if not across_models and tested:
                reasons |= {why: None} if (why := refusal(a, b)) is not None else {}
                continue
            first, second = facts(a), facts(b)
            differ = [k for k, v in first.items() if None not in (v, second[k]) and v != second[k]]
            reasons |= {f"{name} differs": None for name in differ if not (across_models and name in OF_THE_MODEL)}
    return "; ".join(reasons) or None
