"""From the records of a study to what its tables say: arms, contrasts, models before RL, what is left out and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from grpo_bench.records import METRICS, Run, Study
from grpo_bench.table.arms import Arm, against, against_base, group_arms, mean_evals, summarise
from grpo_bench.table.contrasts import Contrast, contrast_all
from grpo_bench.table.declared import disagreements, settings_of
from grpo_bench.table.pairs import Estimate, Side, accuracy, facts
from grpo_bench.types import UserError


@dataclass
class Reference:
    """A model before RL: ``pretrained`` as it came, ``base`` after the warm start."""

    label: str
    which: str
    model: str
    accuracy: dict[str, Estimate]
    evals: dict[str, float | None]


# How the study's configuration fixed the contrasts beforehand: by naming them, by naming a baseline, which every row is
# then compared with, or not at all: the baseline was given to the table, when the runs were known.
Declared = Literal["contrasts", "baseline", "no"]


@dataclass
class Comparison:
    study: Study
    baseline: str | None
    references: list[Reference]
    arms: list[Arm]
    contrasts: list[Contrast]
    declared: Declared
    margin: float
    family: int  # contrasts that were declared, those without runs yet included: what the verdicts are corrected for
    left_out: list[str]  # runs missing, failed, diverged, running
    notes: list[str]  # refused pairs and whatever else a reader must know


def compare(study: Study, baseline: str | None = None) -> Comparison:
    """All numbers of the tables. ``baseline`` overrides the study's own; UserError where no row has that name."""
    arms = group_arms(study.runs)
    settings = settings_of(study)
    names = {name for arm in arms for name in (arm.label, arm.row, arm.arm)}
    if baseline is not None and baseline not in names:
        raise UserError(f"baseline={baseline}: no such row in {study.name}; it has {', '.join(sorted(names))}")
    chosen = baseline or settings.get("baseline")
    notes: list[str] = []
    if chosen is not None and chosen not in names:
        notes.append(f"The study's baseline {chosen} has no run here, so there is no difference to it.")
        chosen = None
    for arm in arms:
        summarise(arm, notes)
        arm.to_base = against_base(arm)
        if arm.to_base.refused and arm.scored:
            notes.append(f"{arm.label} against the model before RL: {arm.to_base.refused}.")
    for arm in arms:
        if chosen is not None and arm.scored and not arm.called(chosen):
            arm.to_baseline, other = against(arm, chosen, arms)
            if arm.to_baseline.refused:
                name = other.label if other else chosen
                notes.append(f"{arm.label} against {name}: not comparable, {arm.to_baseline.refused}.")
    margin = float(settings.get("margin") or 0.02)
    declared = [(pair[0], pair[1]) for pair in settings.get("contrasts") or []]
    notes += [*disagreements(study), *_graders(study)]
    how = declaration(settings, chosen)
    contrasts, family = contrast_all(arms, declared, chosen, margin, notes, beforehand=how != "no")
    return Comparison(
        study=study,
        baseline=chosen,
        references=_references(study.runs),
        arms=arms,
        contrasts=contrasts,
        declared=how,
        margin=margin,
        family=family,
        left_out=_left_out(study.runs),
        notes=notes,
    )


def declaration(settings: Mapping[str, Any], baseline: str | None) -> Declared:
    """Of the contrasts of a study with these settings, where ``baseline`` is the one used."""
    if settings.get("contrasts"):
        return "contrasts"
    return "baseline" if baseline is not None and baseline == settings.get("baseline") else "no"


def _graders(study: Study) -> list[str]:
    """What to do where answers to one task were graded by different code, which refuses their pairs."""
    by_task: dict[str, set[str]] = {}
    for run in study.runs:
        if (known := facts(run)["grader"]) is not None:
            by_task.setdefault(str((run.config.get("task") or {}).get("name")), set()).add(known)
    return [
        f"Runs graded by different code ({', '.join(sorted(by_task[task]))}) are not compared: `python -m "
        f"grpo_bench.grade task={task} file=RUN/eval.jsonl.gz out=FILE` says how many of a run's grades move under "
        "the code at hand; run those again whose do."
        for task in sorted(by_task)
        if len(by_task[task]) > 1
    ]


def _references(runs: Sequence[Run]) -> list[Reference]:
    """The models before RL, once each; without a warm start they are one and the same."""
    found: dict[tuple[str, str, str], Reference] = {}
    for run in runs:
        for which, evals in _evaluated(run):
            name = str(((run.result or {}).get("baselines") or {}).get(which, ""))
            key = (run.model, which, name)
            if key not in found:
                one = Side({m: float(evals["greedy"][m]) for m in METRICS}, run.baseline_scores(which))
                n = int(evals["greedy"].get("n") or 0)
                measured = {m: _without_seeds(accuracy([one], m, n)) for m in METRICS}
                found[key] = Reference(which, which, run.model, measured, mean_evals([evals]))
    references = sorted(found.values(), key=lambda r: (r.model, r.which != "pretrained"))
    models = {r.model for r in references}
    for reference in references:
        alone = not any(r.which == "pretrained" and r.model == reference.model for r in references)
        words = {"pretrained": "pretrained", "base": "before RL" if alone else "warm-started"}
        reference.label = words[reference.which] + (f" ({reference.model})" if len(models) > 1 else "")
    return references


def _evaluated(run: Run) -> Iterator[tuple[str, dict[str, Any]]]:
    evals = (run.result or {}).get("eval") or {}
    names = (run.result or {}).get("baselines") or {}
    steps = ((run.config.get("model") or {}).get("warmstart") or {}).get("steps")
    for which in ("pretrained", "base"):
        one = evals.get(which) or {}
        twice = (
            which == "base"
            and evals.get("pretrained")
            and (steps == 0 or (names.get("base") is not None and names.get("base") == names.get("pretrained")))
        )
        if one.get("greedy") and not twice:
            yield which, {mode: one[mode] for mode in ("greedy", "sampled") if one.get(mode)}


def _without_seeds(estimate: Estimate) -> Estimate:
    return Estimate(estimate.interval, estimate.unit, 0, estimate.problems)


def _left_out(runs: Sequence[Run]) -> list[str]:
    lines = []
    for run in runs:
        if run.status == "complete":
            continue
        word = "running or interrupted" if run.status == "running" else run.status
        kept = "" if run.status != "diverged" else "; kept at its last accuracy" if run.scored else "; no accuracy yet"
        lines.append(f"{run.run_id}: {word} ({run.reason or 'no reason recorded'}){kept}")
    return lines
