"""The main table: accuracy of every row with its differences and verdicts, and what its answers are like."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from grpo_bench.table.arms import Arm, Difference
from grpo_bench.table.compare import Comparison, Reference
from grpo_bench.table.layout import (
    NONE,
    Bold,
    Sheet,
    arm_label,
    estimate_text,
    number,
    percent,
    points,
    seeds,
)

VERDICTS = ("better", "worse", "equivalent")


def main_sheet(c: Comparison, *, short: bool = False) -> Sheet:
    """The models before RL first, then the arms. ``short``: what a front page needs, accuracy, differences, verdict."""
    members: list[Arm | Reference] = [*c.references, *c.arms]
    at_k = [key for kind in ("pass@", "maj@") if (key := _largest(members, kind))]
    header = ["", "seeds", "accuracy % [95 %]"]
    if not short:
        header += ["strict %", "flexible %", *[key.removeprefix("sampled/") + " %" for key in at_k]]
    base = "Δ before RL [95 %]" if all(r.label != "warm-started" for r in c.references) else "Δ warm-started [95 %]"
    header.append(base)
    header += [f"Δ {c.baseline} [95 %]", f"against {c.baseline}"] if c.baseline else []
    header += [] if short else ["tokens", "truncated %"]
    header.append("intervals over")
    rows: list[list[str]] = []
    for reference in c.references:
        row = [reference.label, NONE, *_accuracies(reference, at_k, short), *[NONE] * (3 if c.baseline else 1)]
        rows.append([*row, *_answers(reference, short), reference.accuracy["acc"].kind])
    for arm in c.arms:
        row = [arm_label(arm), seeds(arm), *_accuracies(arm, at_k, short), points(arm.to_base)]
        kinds = {arm.accuracy["acc"].kind if arm.accuracy else NONE: None}
        kinds |= _kinds(arm.to_base)
        if c.baseline:
            itself = arm.called(c.baseline)
            row += ["baseline", NONE] if itself else [points(arm.to_baseline), verdict_word(c, arm)]
            if not itself:
                kinds |= _kinds(arm.to_baseline, f" (Δ {c.baseline})", kinds)
        rows.append([*row, *_answers(arm, short), "; ".join(kinds)])
    others = "; strict and flexible: the marked answer, and the last number or expression, finished or not"
    notes = [
        "accuracy: strict match of an answer that ended by itself, greedy, on the final test"
        + ("" if short else others)
        + ". Differences in percentage points, paired.",
        *_meanings([row[-1] for row in rows]),
        "Bold: the difference's interval excludes zero."
        + (" The verdict is corrected for all contrasts, see there." if c.contrasts and c.declared != "no" else ""),
    ]  # fmt: skip
    return Sheet("main", "Main table", header, rows, notes)


def answers_sheet(c: Comparison) -> Sheet:
    """Sampled accuracy, pass@k, maj@k, truncation and lengths."""
    members: list[Arm | Reference] = [*c.references, *[arm for arm in c.arms if arm.accuracy]]
    found = {key for one in members for key, value in one.evals.items() if value is not None}
    keys = ["sampled/acc"] if "sampled/acc" in found else []
    found -= {"sampled/pass@1", "sampled/maj@1"}  # the same as the accuracy of one sample
    for kind in ("pass@", "maj@"):
        keys += sorted((k for k in found if k.startswith(f"sampled/{kind}")), key=lambda k: int(k.split("@")[1]))
    lengths = ["greedy/truncated", "greedy/len_mean", "greedy/len_correct", "greedy/len_wrong"]
    keys += [key for key in lengths if key in found]
    words = {
        "sampled/acc": "sampled acc. %",
        "greedy/truncated": "truncated %",
        "greedy/len_mean": "tokens",
        "greedy/len_correct": "tokens, right",
        "greedy/len_wrong": "tokens, wrong",
    }
    header = ["", *[words.get(key, key.removeprefix("sampled/") + " %") for key in keys]]
    rows = []
    for one in members:
        label = arm_label(one) if isinstance(one, Arm) else one.label
        cells = [number(one.evals.get(k), 1) if "len_" in k else percent(one.evals.get(k)) for k in keys]
        rows.append([label, *cells])
    notes = ["pass@k and maj@k from sampled answers; truncation and lengths of the greedy ones. Means over seeds."]
    return Sheet("answers", "Answers", header, rows if keys else [], notes)


def verdict_word(c: Comparison, arm: Arm) -> str:
    """Of the contrast of this row with the baseline; "–" where that pair was not declared."""
    for contrast in c.contrasts:
        other = next((a for a in c.arms if a.label == contrast.second), None)
        if contrast.first == arm.label and c.baseline and other is not None and other.called(c.baseline):
            return Bold(contrast.verdict) if contrast.verdict.startswith(VERDICTS) else contrast.verdict
    return NONE


def _largest(members: Sequence[Arm | Reference], kind: str) -> str | None:
    """The key of the largest k above 1 that was evaluated; one sample's pass@1 is its accuracy."""
    found = {
        key
        for one in members
        for key, value in one.evals.items()
        if key.startswith(f"sampled/{kind}") and value is not None
    }
    most = max(found, key=lambda key: int(key.split("@")[1]), default=None)
    return most if most is not None and int(most.split("@")[1]) > 1 else None


def _answers(one: Arm | Reference, short: bool) -> list[str]:
    return [] if short else [number(one.evals.get("greedy/len_mean"), 1), percent(one.evals.get("greedy/truncated"))]


def _accuracies(one: Arm | Reference, at_k: Sequence[str], short: bool) -> list[str]:
    metrics = ("acc",) if short else ("acc", "acc_strict", "acc_flexible")
    cells = [estimate_text(one.accuracy.get(metric)) for metric in metrics]
    return cells if short else [*cells, *[percent(one.evals.get(key)) for key in at_k]]


def _kinds(difference: Difference, suffix: str = "", known: Iterable[str] = ()) -> dict[str, None]:
    """The kind of a difference's interval, with ``suffix`` where no other cell of the row has it."""
    if difference.refused or "acc" not in difference.by or math.isnan(difference.by["acc"].interval.low):
        return {}
    kind = difference.by["acc"].kind
    return {} if kind in known else {kind + suffix: None}


def _meanings(kinds: Sequence[str]) -> list[str]:
    said = " ".join(kinds)
    lines = []
    if "seeds (" in said:
        lines.append(
            "Over seeds: Student's t; what training again would change, on these test problems. Fewer than 5 seeds are "
            "descriptive."
        )
    if "problems (" in said:
        lines.append(
            "Over problems: what other test problems would change, for the trained models at hand; conditional on "
            "these seeds, it says nothing about training again."
        )
    return lines
