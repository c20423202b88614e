"""The source article's comparison of PPO and GRPO, its claims and its limits, each with what this study measured.

Cells hold a row's figure and, against GRPO, the difference or ratio with its 95 % interval and an outcome: that of the
contrast or hypothesis where the study declared one of these rows and this measure, else by the rule of ``judge``. What
this study cannot say is taken from studies beside it, or said to be not tested.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from grpo_bench import stats
from grpo_bench.table import aspects
from grpo_bench.table.arms import Arm
from grpo_bench.table.beyond import (
    group_size_rows,
    sensitivity,
    sibling_outcomes,
    task_dependence,
    zero_signal_shares,
)
from grpo_bench.table.collapse import WORDS
from grpo_bench.table.compare import Comparison
from grpo_bench.table.compute import took_to_target
from grpo_bench.table.hypotheses import Finding
from grpo_bench.table.judge import ALPHA, Claim, judge
from grpo_bench.table.layout import NONE, Bold, Sheet, arm_label
from grpo_bench.table.ledger import trials
from grpo_bench.table.measures import MEASURES, Reading
from grpo_bench.table.pairs import SEEDS_FOR_T
from grpo_bench.table.units import interval_text, number_text
from grpo_bench.table.values import collect, named

PPO_ROWS = 3  # beside GRPO's; more side by side cannot be read
PREFERRED = {"ppo": ("ppo", "ppo_tuned", "ppo_g8"), "grpo": ("grpo_g8", "grpo", "grpo_g16")}
Aspect = Callable[[Arm], str]


@dataclass(frozen=True, slots=True)
class Said:
    """One claim of the article as a measure of GRPO's row against a PPO row; ``aspect`` adds figures to each cell.
    ``spread``: not the measure is compared but its sd over seeds. ``beside``: a measure shown with it, not judged."""

    name: str
    words: str
    measure: str
    claim: Claim
    aspect: Aspect | None = None
    spread: bool = False
    beside: str = ""


CLAIMS = (
    Said("accuracy", "GRPO is better (on GSM8K and MATH)", "accuracy", Claim("greater")),
    Said("stability", "GRPO is more stable", "accuracy", Claim("less", "ratio"), aspects.steadiness,
         spread=True),  # of the result: noise within a run depends on how many samples a step has
    Said("convergence", "GRPO converges faster", "learning_curve_area", Claim("greater")),
    Said("training time", "training is shorter on the same hardware", "seconds_training", Claim("less", "ratio"),
         aspects.speed),
    Said("parameters", "half the parameters", "parameters", Claim("less", "ratio", 0.45, 0.55), aspects.room),
    Said("compute", "half the compute", "flops", Claim("less", "ratio", 0.45, 0.55)),
    Said("memory", "less memory", "model_states", Claim("less", "ratio"), aspects.held, beside="peak_memory"),
    Said("variance of updates", "updates vary less", "gradient_noise", Claim("less", "ratio")),
    Said("diversity", "sampling a group keeps answers diverse", "entropy_final", Claim("greater")),
)  # fmt: skip


def article_sheet(c: Comparison, findings: Sequence[Finding] = ()) -> Sheet | None:
    """A row per aspect, claim and limit; None where the study has no finished rows of both PPO and GRPO at the same
    settings, and for a tuning sweep, whose rows are there to choose from. ``findings`` are the study's declared
    hypotheses, judged."""
    if trials(c):
        return None
    grpo, ppos, left = chosen(c)
    if grpo is None or not ppos:
        return None
    reading = Reading(c.arms)
    claims = _claims([grpo, *ppos])
    family = sum(_measured(reading, said.measure, [grpo, ppo]) for said in claims for ppo in ppos)
    header = ["", "the article says", f"GRPO: {arm_label(grpo)}", *[f"PPO: {arm_label(ppo)}" for ppo in ppos]]
    pair = [grpo, *ppos]
    rows = [
        ["value network", "PPO has one, GRPO none", *map(aspects.value_network, pair)],
        ["advantage", "PPO: GAE from the critic; GRPO: relative to the group", *map(aspects.advantage, pair)],
    ]
    rows += [_claim_row(c, reading, said, grpo, ppos, family, findings) for said in claims]
    rows += _beyond_rows(c, reading, grpo, len(ppos))
    rows.append(["where it fits", "code generation, models of billions of parameters", *map(aspects.scope, pair)])
    blank = [NONE] * len(ppos)
    rows.append(["code generation, billions of parameters", "GRPO fits them better", "not tested here", *blank])
    notes = [
        "Cells: the row's mean over seeds; then GRPO minus, or over, that row, paired by seed with its 95 % interval, "
        "and the outcome.",
        f"Outcomes: supported where the {100 * (1 - ALPHA / max(family, 1)):.4g} % interval (Bonferroni over the "
        f"{family} comparisons of this table) lies wholly where the claim says, contradicted where it lies wholly "
        "elsewhere; fewer than 5 seeds: descriptive. Accuracy has the verdict of the contrast, others the outcome of "
        "the study's own hypothesis where it has one of these rows and this measure.",
        "Stability: the ratio of the sds over seeds with the interval of Pitman and Morgan; collapsed: dev accuracy "
        f"ended more than {WORDS} below its best.",
    ]
    if claims is CLAIMS:
        notes.append(
            "Memory: judged on model states, counted by tensor, which are what the claim is about; the peak memory "
            f"({aspects.peak_of(pair)}) stands beside them without an outcome."
        )
    elif _measured(reading, "peak_memory", pair):
        notes.append(
            "Memory: the claim is about model states, which these records did not count: its outcome is about the peak "
            f"memory {aspects.peak_of(pair)}, and model states are shown by theory."
        )
    if len({_varied(arm) for arm in c.arms if arm.accuracy}) > 1:
        at = grpo.label.removeprefix(grpo.arm).strip() or "what the study varies left as it is"
        notes.append(f"Compared at one of the study's settings alone: {at}.")
    if left:
        notes.append(f"Not shown here: {', '.join(left)}.")
    return Sheet("article", "The article's claims, measured", header, rows, notes, wide=True)


def chosen(c: Comparison) -> tuple[Arm | None, list[Arm], list[str]]:
    """GRPO's row, up to three PPO rows (the preferred names and the baseline first), and the labels of those left.

    All at the same settings where a study varies one beside the arm: the baseline's, else the first that both have.
    """
    families = {name: [a for a in c.arms if a.algo == name and a.accuracy] for name in PREFERRED}
    both = [_varied(a) for a in families["grpo"] if any(_varied(a) == _varied(other) for other in families["ppo"])]
    # a baseline that names an arm names it at every setting, and so none of them
    wanted = {_varied(a) for a in c.arms if c.baseline is not None and a.called(c.baseline)}
    at = next(iter(wanted)) if len(wanted) == 1 and wanted <= set(both) else next(iter(both), None)

    def rank(arm: Arm) -> tuple[bool, int, bool]:
        names = PREFERRED[arm.algo]
        place = names.index(arm.arm) if arm.arm in names else len(names)
        return _varied(arm) != at, place, not (c.baseline is not None and arm.called(c.baseline))

    grpos, ppos = (sorted(families[name], key=rank) for name in ("grpo", "ppo"))
    pairs = [arm for arm in ppos if _varied(arm) == at][:PPO_ROWS]
    left = [arm.label for arm in [*grpos[1:], *(arm for arm in ppos if arm not in pairs)]]
    return (grpos[0] if grpos else None), pairs, left


def _varied(arm: Arm) -> tuple[str, str]:
    """What a study varies beside the arm: the settings in the row's name, and the model."""
    return arm.settings, arm.model


def _claims(arms: Sequence[Arm]) -> tuple[Said, ...]:
    """The claims, memory as one of them whatever was recorded: on model states where all runs counted theirs, else on
    the peak, so that the family of the table stays what it is."""
    if all(run.cost.get("memory") for arm in arms for run in arm.scored):
        return CLAIMS
    return tuple(
        replace(said, measure="peak_memory", aspect=aspects.uncounted, beside="")
        if said.measure == "model_states"
        else said
        for said in CLAIMS
    )


def _claim_row(
    c: Comparison,
    reading: Reading,
    said: Said,
    grpo: Arm,
    ppos: Sequence[Arm],
    family: int,
    findings: Sequence[Finding],
) -> list[str]:
    own = _figure(reading, said, grpo)
    if own is None:
        missing = f"not tested here: {MEASURES[said.measure].label} was not recorded"
        return [said.name, said.words, missing, *[NONE] * len(ppos)]
    cells = []
    for ppo in ppos:
        figure = _figure(reading, said, ppo)
        found = _against(c, reading, said, grpo, ppo, family, findings)
        cells.append(_join(figure or NONE, found))
    return [said.name, said.words, own, *cells]


def _figure(reading: Reading, said: Said, arm: Arm) -> str | None:
    measure = MEASURES[said.measure]
    values = [v for run in arm.scored if (v := reading.value(said.measure, run)) is not None]
    if not values:
        return None
    if said.spread:
        return said.aspect(arm) if said.aspect else None
    text = f"{number_text(sum(values) / len(values), measure)} ({measure.label})"
    took = took_to_target(reading, arm, "samples") if said.name == "convergence" else None
    if took is not None and (aim := reading.target) is not None:
        goal = f"{100 * aim.accuracy:.0f} % on dev"
        text += f"; median {took.median:,.0f} samples to {goal}" if took.median is not None else f"; to {goal}"
        text += f" ({took.words})"
    text = f"{text}; {said.aspect(arm)}" if said.aspect else text
    known = [v for run in arm.scored if said.beside and (v := reading.value(said.beside, run)) is not None]
    if not known:
        return text
    other = MEASURES[said.beside]
    return f"{text}; {number_text(sum(known) / len(known), other)} ({other.label})"


def _against(
    c: Comparison, reading: Reading, said: Said, grpo: Arm, ppo: Arm, family: int, findings: Sequence[Finding]
) -> str:
    """GRPO against one PPO row: figure, interval, outcome."""
    measure = MEASURES[said.measure]
    values = collect(c, reading, [grpo.label, ppo.label], said.measure)
    if not values.rows:
        return f"{'not comparable' if values.refused else 'not tested here'}: {values.lacking}"
    if said.spread:
        return _spread(values.rows[0], values.rows[1], max(family, 1))
    judged = judge(values.rows, said.claim, family=max(family, 1), counted=measure.counted)
    figures = f"GRPO {interval_text(judged.interval, measure, said.claim.scale)}"
    if said.measure == "accuracy" and (verdict := _verdict(c, grpo, ppo)):
        return f"{figures}: {verdict.upper()}"
    outcome: str = judged.outcome
    why = judged.why
    if (declared := _declared(c, findings, said, grpo, ppo)) is not None:
        outcome, why = declared.outcome, declared.why
        if declared.asked != said.claim or named(c, declared.values.labels[0]) != [grpo]:
            rows = " against ".join(declared.values.labels)
            figures += f"; the study's own {declared.id} ({rows}: {declared.criterion})"
    found = f"{figures}: {outcome.upper()}{f' ({why})' if why else ''}"
    if said.beside and (other := collect(c, reading, [grpo.label, ppo.label], said.beside)).rows:
        interval = judge(other.rows, said.claim).interval
        shown = interval_text(interval, MEASURES[said.beside], said.claim.scale)
        found += f"; {MEASURES[said.beside].label} {shown}"
    return found


def _spread(grpo: Sequence[float], ppo: Sequence[float], family: int) -> str:
    """The sds of the two rows over their common seeds against each other."""
    if len(grpo) < SEEDS_FOR_T:
        return f"not tested here: an sd over {len(grpo)} seed{'s' * (len(grpo) != 1)} says nothing"
    if np.ptp(grpo) == 0 or np.ptp(ppo) == 0:
        return "not tested here: no ratio of sds, a row is equal in every seed"
    plain, strict = stats.sd_ratio(grpo, ppo), stats.sd_ratio(grpo, ppo, 1 - ALPHA / family)
    outcome = "not established"
    if len(grpo) < stats.SEEDS_FOR_VERDICT:
        outcome = "descriptive"
    elif strict.known and (strict.high < 1 or strict.low > 1):
        outcome = "supported" if strict.high < 1 else "contradicted"
    return f"GRPO {interval_text(plain, MEASURES['accuracy'], 'ratio')} in sd over seeds: {outcome.upper()}"


def _declared(c: Comparison, findings: Sequence[Finding], said: Said, grpo: Arm, ppo: Arm) -> Finding | None:
    """The study's own hypothesis about these two rows and this measure, one that asks the same before others."""

    def rows(finding: Finding) -> list[Arm]:
        return [arm for name in finding.values.labels for arm in named(c, name)]

    pairs = ([grpo, ppo], [ppo, grpo])
    about = [f for f in findings if f.judgement and not f.later and f.measure == said.measure and rows(f) in pairs]
    return min(about, key=lambda f: (f.asked != said.claim, rows(f) != pairs[0]), default=None)


def _verdict(c: Comparison, grpo: Arm, ppo: Arm) -> str:
    """Of the declared contrast of the two, from GRPO's side; "" where it was not declared."""
    turned = {"better": "worse", "worse": "better"}
    if c.declared == "no":
        return ""
    for contrast in c.contrasts:
        word = contrast.verdict
        if (contrast.first, contrast.second) == (grpo.label, ppo.label):
            return word
        if (contrast.first, contrast.second) == (ppo.label, grpo.label):
            first, comma, rest = word.partition(",")
            return turned.get(first, first) + comma + rest
    return ""


def _beyond_rows(c: Comparison, reading: Reading, grpo: Arm, width: int) -> list[list[str]]:
    """Claims and limits that are no comparison of one GRPO row with a PPO row: found here or in a study beside this."""
    rows = [
        ("long sequences", "GRPO stays steadier on long sequences", sibling_outcomes(c, "length")),
        ("control through δ", "a KL constraint of δ controls the updates", sibling_outcomes(c, "kl_target")),
        ("larger groups", "a larger G gives better advantages", group_size_rows(c, reading)),
        ("limit: poor groups", "groups of equal rewards teach nothing", zero_signal_shares(c, reading)),
        ("limit: sensitivity", "results depend on the settings", sensitivity(c)),
        ("limit: task dependence", "results depend on the task", task_dependence(c, grpo)),
    ]
    return [[name, words, said, *[NONE] * width] for name, words, said in rows]


def _measured(reading: Reading, name: str, arms: Sequence[Arm]) -> bool:
    return all(any(reading.value(name, run) is not None for run in arm.scored) for arm in arms)


def _join(figure: str, found: str) -> str:
    text = f"{figure}; {found}"
    return Bold(text) if any(word in found for word in ("SUPPORTED", "CONTRADICTED", "BETTER", "WORSE")) else text
