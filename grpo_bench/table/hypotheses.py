"""What the study declared beforehand against what its runs measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from grpo_bench.records import Run
from grpo_bench.table.arms import Arm
from grpo_bench.table.compare import Comparison
from grpo_bench.table.contrasts import Contrast
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
    asked: Claim | None = None

    @property
    def why(self) -> str:
        return self.judgement.why if self.judgement else self.values.lacking


def evaluate(c: Comparison, declared: Sequence[Mapping[str, Any]] | None = None) -> list[Finding]:
    """Every declared hypothesis (by default those of the study's own configuration), judged as one family."""
    declared = _declared(c) if declared is None else declared
    reading = Reading(c.arms)
    return [_evaluate(c, reading, one, len(declared)) for one in declared]


def _declared(c: Comparison) -> list[Mapping[str, Any]]:
    return next((h for config in c.study.configs if (h := (config.get("study") or {}).get("hypotheses"))), [])


def collect(c: Comparison, reading: Reading, names: Sequence[str], measure: str) -> Values:
    """Values of ``measure`` in the rows ``names`` (a row, an arm, "warm-started", "pretrained"), paired by seed.

    Runs that may not be compared as a pair are refused. Costs depend on no test, but on the budget, the model and the
    prompts, and seconds and bytes on the machine and what else runs on it; parameters on nothing of a run.
    """
    arms: dict[str, Arm] = {}
    for name in names:
        if name in BEFORE_RL:
            continue
        called = named(c, name)
        if len(called) != 1:
            lacking = f"no run of {name}" if not called else f"{name} names {len(called)} rows"
            return Values(list(names), lacking=lacking)
        arms[name] = called[0]
    if not arms:
        return Values(list(names), lacking="no row of this study is named")
    runs = {name: {run.seed: run for run in arm.scored} for name, arm in arms.items()}
    shared = sorted(set.intersection(*(set(by_seed) for by_seed in runs.values())))
    why = None if measure == "parameters" else _refused(list(runs.values()), shared, _across(names), MEASURES[measure])
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
        rows.append(
            [
                finding.id, finding.claim, label, "; ".join(means) or NONE, _found(finding, measure),
                finding.criterion, str(len(finding.values.seeds) or NONE),
                Bold(said) if isinstance(outcome, Bold) else said, finding.source or NONE,
            ]
        )  # fmt: skip
    level = f"{100 * (1 - ALPHA / len(findings)):.4g} %"
    used = _declared(c)
    given = [(config.get("study") or {}).get("hypotheses") or [] for config in c.study.configs]
    notes = [
        f"Declared in the configuration of {sum(one == used for one in given)} of {len(given)} runs. Found: first row "
        "minus or over the second; of a list, its last minus or over its first.",
        f"Supported: the {level} interval over paired seeds (Student's t, Bonferroni over the {len(findings)} "
        "hypotheses) lies wholly where the criterion says; contradicted: wholly elsewhere; equal and flat by two "
        "one-sided tests in every pair of rows. Fewer than 5 seeds: descriptive, no outcome. The accuracy of a pair "
        "that is a contrast is judged as there, within the contrasts.",
    ]
    return Sheet("hypotheses", "Hypotheses", header, rows, notes, wide=True)


def _evaluate(c: Comparison, reading: Reading, one: Mapping[str, Any], family: int) -> Finding:
    name, rows = str(one.get("measure") or "accuracy"), [str(row) for row in one.get("rows") or []]
    measure = MEASURES.get(name)
    claim = Claim(one["expect"], one.get("scale") or "difference", one.get("at_least"), one.get("at_most"))
    if claim.expect in ("equal", "flat") and claim.at_most is None and measure and measure.unit == "fraction":
        claim = Claim(claim.expect, claim.scale, at_most=c.margin if claim.scale == "difference" else 1 + c.margin)
    values = collect(c, reading, rows, name) if measure else Values(rows, lacking=f"no measure {name}")
    judgement = decide(c, values, name, claim, family) if values.rows else None
    outcome = judgement.outcome if judgement else "not comparable" if values.refused else "not tested here"
    return Finding(
        str(one.get("id")), str(one.get("claim") or ""), name, criterion(claim, measure), str(one.get("source") or ""),
        values, judgement, outcome, claim.scale, claim,
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


def named(c: Comparison, name: str) -> list[Arm]:
    return [arm for arm in c.arms if name in (arm.label, arm.row)] or [arm for arm in c.arms if arm.called(name)]


def _contrast(c: Comparison, names: Sequence[str]) -> Contrast | None:
    """Of exactly these two rows, in either order."""
    labels = {arm.label for name in names for arm in named(c, name) if name not in BEFORE_RL}
    if len(names) != 2 or len(labels) != 2:
        return None
    return next((one for one in c.contrasts if {one.first, one.second} == labels), None)


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
    return interval_text(finding.judgement.interval, measure, finding.scale)


def _across(names: Sequence[str]) -> bool:
    """The claim itself is about models ("the larger, the higher"): its rows name one each."""
    return all(" model=" in name or name in BEFORE_RL for name in names)


def _refused(
    rows: Sequence[Mapping[int, Run]], seeds: Sequence[int], across_models: bool, measure: Measure
) -> str | None:
    """Each row of a claim against its first; where models are what is compared, that they differ is no reason. A
    measure of the final test compares its problems one by one."""
    reasons: dict[str, None] = {}
    for other in rows[1:]:
        for seed in seeds:
            a, b = rows[0][seed], other[seed]
            if not across_models and measure.kind == "accuracy":
                reasons |= {why: None} if (why := refusal(a, b)) is not None else {}
                continue
            first, second = _decisive(a, measure), _decisive(b, measure)
            differ = [k for k, v in first.items() if None not in (v, second[k]) and v != second[k]]
            reasons |= {f"{name} differs": None for name in differ if not (across_models and name in OF_THE_MODEL)}
    return "; ".join(reasons) or None


def _decisive(run: Run, measure: Measure) -> dict[str, str | None]:
    """What must be equal in both runs of a pair: for a cost what decides it, for others all that makes a pair."""
    every = facts(run)
    if measure.kind != "cost":
        return every
    kept = {name: every[name] for name in (*OF_THE_MODEL, "budget", "prompt stream")}
    if measure.unit not in ("s", "bytes") or measure is MEASURES["model_states"]:
        return kept  # tensors are as large on every machine
    device = run.provenance.get("device") or {}
    where: dict[str, Any] = {"processor": run.provenance.get("cpu"), "accelerators": device.get("gpus")}
    where |= {"number of threads": device.get("torch_threads"), "number of jobs at once": run.config.get("parallel")}
    return kept | {name: None if value is None else str(value) for name, value in where.items()}
