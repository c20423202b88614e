"""Every run of a study in one table: what became of it, and what its records say about why."""

from __future__ import annotations

from grpo_bench.diagnose import diagnose
from grpo_bench.records import Run, training_seconds
from grpo_bench.table.compare import Comparison
from grpo_bench.table.layout import NONE, Sheet, integer, number, percent


def runs_sheet(c: Comparison) -> Sheet:
    """One row a run, in the study's order."""
    header = ["row", "seed", "status", "accuracy %", "samples", "tokens generated", "updates", "training s", "run"]
    rows = []
    for arm in c.arms:
        for run in arm.runs:
            greedy = run.final.get("greedy") or {}
            status = run.status if run.status == "complete" else f"{run.status}: {run.reason or 'no reason recorded'}"
            amounts = [integer(run.cost.get(key)) for key in ("samples", "generated_tokens", "updates")]
            clock = number(training_seconds(run), 1)
            rows.append([arm.label, str(run.seed), status, percent(greedy.get("acc")), *amounts, clock, run.run_id])
    notes = ["Accuracy: final test, greedy. Training seconds leave evaluation out."]
    return Sheet("runs", "Runs", header, rows, notes)


def diagnoses_sheet(c: Comparison) -> Sheet:
    """What stands out in the records of runs, and the knob to turn: one row a kind of finding and row of the study."""
    rows = []
    for arm in c.arms:
        found: dict[str, list[tuple[Run, str, str]]] = {}
        for run in arm.runs:
            if run.status != "missing":
                for finding in diagnose(run):
                    found.setdefault(finding.kind, []).append((run, finding.text, finding.knob or NONE))
        for kind, several in found.items():
            seeds = ", ".join(str(run.seed) for run, _, _ in several)
            _, text, knob = several[0]
            rows.append([arm.label, kind.replace("_", " "), seeds, text, knob])
    notes = ["Decided by fixed rules from the records; the words are those of the first seed named."]
    return Sheet("diagnoses", "Diagnoses", ["row", "finding", "seeds", "what the record shows", "knob to turn"], rows,
                 notes, wide=True)  # fmt: skip
