"""How numbers read: the tables of a comparison as rows of text, before any file format."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from grpo_bench.table.arms import Arm, Difference
from grpo_bench.table.compare import Comparison, Reference
from grpo_bench.table.pairs import Estimate

NONE = "–"


class Bold(str):
    """A cell to be set in bold: a difference whose interval excludes zero."""

    __slots__ = ()


@dataclass
class Sheet:
    """A table as text: ``rows`` are as wide as ``header``; ``wide`` columns hold sentences and may wrap."""

    name: str
    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    wide: bool = False


def sheets(comparison: Comparison) -> list[Sheet]:
    """The tables that measured something: accuracy, answers, cost, stability, contrasts."""
    every = [accuracy_sheet(comparison), answers_sheet(comparison), cost_sheet(comparison), stability_sheet(comparison)]
    if comparison.contrasts:
        every.append(contrasts_sheet(comparison))
    return [sheet for sheet in every if sheet.rows]


def accuracy_sheet(c: Comparison) -> Sheet:
    """The main table: the models before RL first, then the arms."""
    base = "Δ before RL [95 %]" if all(r.label != "warm-started" for r in c.references) else "Δ warm-started [95 %]"
    header = ["", "seeds", "accuracy % [95 %]", "strict %", "flexible %", base]
    if c.baseline:
        header.append(f"Δ {c.baseline} [95 %]")
    header.append("intervals over")
    rows: list[list[str]] = []
    for reference in c.references:
        row = [reference.label, NONE, *_accuracies(reference), *[NONE] * (2 if c.baseline else 1)]
        rows.append([*row, reference.accuracy["acc"].kind])
    for arm in c.arms:
        row = [arm_label(arm), seeds(arm), *_accuracies(arm), points(arm.to_base)]
        kinds = {arm.accuracy["acc"].kind if arm.accuracy else NONE: None}
        kinds |= _kinds(arm.to_base)
        if c.baseline:
            itself = arm.called(c.baseline)
            row.append("baseline" if itself else points(arm.to_baseline))
            if not itself:
                kinds |= _kinds(arm.to_baseline, f" (Δ {c.baseline})", kinds)
        rows.append([*row, "; ".join(kinds)])
    notes = [
        "accuracy: strict match of an answer that ended by itself, greedy, on the final test; strict and flexible: the "
        "marked answer, and the last number or expression, finished or not. Differences in percentage points, paired.",
        *_meanings([row[-1] for row in rows]),
        "Bold: the difference's interval excludes zero.",
    ]
    return Sheet("accuracy", "Accuracy", header, rows, notes)


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


def cost_sheet(c: Comparison) -> Sheet:
    """What each arm took: networks, memory, seconds by phase, tokens."""
    header = ["", "policy", "critic", "reference", "peak memory", "s/update: rollout", "reward", "score", "update"]
    header += ["sum", "s/step", "eval s", "total s", "samples", "of them extra", "prompts", "tokens generated"]
    header += ["trained", "updates"]
    header.append("FLOPs")
    learnt = any("parameters_reward_model" in arm.cost for arm in c.arms)
    header += ["reward model", "its memory", "its s/update"] if learnt else []
    rows = []
    for arm in c.arms:
        cost = arm.cost
        if not cost:
            continue
        nets = [count(cost.get(f"parameters_{net}")) for net in ("policy", "critic", "reference")]
        phases = [number(cost.get(f"seconds_per_update_{p}"), 3) for p in ("rollout", "reward", "score", "update")]
        clocks = [cost.get(key) for key in ("seconds_per_update", "seconds_per_step", "seconds_eval", "seconds_total")]
        kinds = ("samples", "extra_samples", "prompts", "generated_tokens", "trained_tokens", "updates")
        amounts = [cost.get(kind) for kind in kinds]
        row = [arm_label(arm), *nets, memory(cost.get("peak_memory_bytes")), *phases]
        row += [*[number(x, 3) for x in clocks[:2]], *[number(x, 0) for x in clocks[2:]]]
        row += [*[integer(x) for x in amounts], scientific(cost.get("flops"))]
        if learnt:
            row += [count(cost.get("parameters_reward_model")), memory(cost.get("memory_reward_model"))]
            row.append(number(cost.get("seconds_per_update_reward_model"), 3))
        rows.append(row)
    notes = [
        "Means over seeds; memory is the largest. A step is one rollout and its updates, an update one optimiser step "
        "of the policy; s/update and s/step leave evaluation out. Samples that an algorithm drops, extra ones that it "
        "takes for its baseline, and a critic's warm-up are charged to it."
    ]
    if learnt:
        notes.append("A reward model's memory is its weights and what scoring takes; its seconds are part of reward.")
    return Sheet("cost", "Cost", header, rows, notes)


def stability_sheet(c: Comparison) -> Sheet:
    header = ["", "diverged", "worst seed %", "max grad norm", "steps with NaN", "reward sd, last steps"]
    header += ["advantage sd", "groups without signal %", "KL to reference", "entropy"]
    rows = []
    for arm in c.arms:
        s = arm.stability
        if not arm.accuracy:
            continue
        row = [arm_label(arm), f"{s['diverged']:.0f} of {s['begun']:.0f}", percent(s["worst_seed"])]
        row += [general(s["grad_norm_max"]), integer(s["nan_steps"]), number(s["reward_std_last"], 3)]
        row += [number(s["adv/std"], 3), percent(s["group/frac_zero_std"])]
        rows.append([*row, number(s["kl_final"], 4), number(s["entropy_final"], 3)])
    return Sheet("stability", "Stability", header, rows, ["Advantage sd and groups without signal: means over steps."])


def contrasts_sheet(c: Comparison) -> Sheet:
    header = ["pair", "seeds", "difference [95 %]", "intervals over", "p", "test", "p, sign flip", "p, Holm"]
    header += ["[95 %] seeds and problems", "verdict"]
    rows = []
    for contrast in c.contrasts:
        d = contrast.difference
        kind = d.by["acc"].kind if d.by else NONE
        both = contrast.bootstrap
        row = [f"{contrast.first} - {contrast.second}", str(len(d.seeds)) if d.by else NONE, points(d), kind]
        row += [pvalue(contrast.p), contrast.test or NONE, pvalue(contrast.sign_flip), pvalue(contrast.holm)]
        row += [f"[{100 * both.low:+.1f}, {100 * both.high:+.1f}]" if both else NONE, contrast.verdict]
        rows.append(row)
    when = "declared in the study's configuration" if c.declared else "every row against the baseline, not declared"
    notes = [
        f"Contrasts: {when}. Higher or lower: the interval excludes zero and Holm's p over these contrasts is below "
        f"0.05. Equivalent: the 90 % interval lies within ±{100 * c.margin:g} points. Seeds and problems: two-level "
        "bootstrap."
    ]
    return Sheet("contrasts", "Contrasts", header, rows, notes)


def arm_label(arm: Arm) -> str:
    return f"{arm.label} (incomplete)" if arm.incomplete else arm.label


def seeds(arm: Arm) -> str:
    done, all_of_them = len(arm.scored), len(arm.runs)
    return str(done) if done == all_of_them else f"{done} of {all_of_them}"


def points(difference: Difference) -> str:
    """A difference in percentage points with its interval, bold where that excludes zero."""
    if difference.refused:
        return "not comparable" if difference.refused != "no seed has a finished run in both" else NONE
    if "acc" not in difference.by:
        return NONE
    interval = difference.by["acc"].interval
    if not interval.known:
        return f"{100 * interval.estimate:+.1f} (no interval)"
    text = f"{100 * interval.estimate:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"
    return Bold(text) if interval.excludes_zero else text


def estimate_text(estimate: Estimate | None) -> str:
    if estimate is None:
        return NONE
    i = estimate.interval
    return f"{100 * i.estimate:.1f}" + (f" [{100 * i.low:.1f}, {100 * i.high:.1f}]" if i.known else "")


def number(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{value:,.{digits}f}"


def percent(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.1f}"


def integer(value: float | None) -> str:
    return NONE if value is None else f"{value:,.0f}"


def general(value: float | None) -> str:
    return NONE if value is None else f"{value:.3g}"


def scientific(value: float | None) -> str:
    return NONE if value is None else f"{value:.2e}".replace("e+", "e")


def pvalue(value: float | None) -> str:
    return NONE if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def count(value: float | None) -> str:
    """Parameters: 613,000 -> "0.61 M"; 0 and unknown have no network to show."""
    if not value:
        return NONE
    for size, unit in ((1e9, "B"), (1e6, "M")):
        if value >= size / 10:
            return f"{value / size:.{2 if value < 100 * size else 0}f} {unit}"
    return integer(value)


def memory(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"


def _accuracies(one: Arm | Reference) -> list[str]:
    return [estimate_text(one.accuracy.get(metric)) for metric in ("acc", "acc_strict", "acc_flexible")]


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
