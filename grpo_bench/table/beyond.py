"""What the article says that one pair of rows cannot show: answers from other rows and from studies beside this."""

from __future__ import annotations

from collections.abc import Sequence

from grpo_bench.stats import mean_t_interval
from grpo_bench.table.arms import Arm, mean_of
from grpo_bench.table.compare import Comparison
from grpo_bench.table.groups import advantage_errors
from grpo_bench.table.hypotheses import Finding, compared, evaluate
from grpo_bench.table.ledger import trials
from grpo_bench.table.measures import MEASURES, Reading
from grpo_bench.table.siblings import sibling, sibling_tasks
from grpo_bench.table.units import interval_text, number_text

LISTED = 4  # findings of a sibling that a cell can hold


def sibling_outcomes(c: Comparison, name: str, ids: Sequence[str] = ()) -> str:
    """The outcomes of what a study beside this one declared (those of ``ids``; none given: those that cite the
    article, else the first ones), or that it is not tested."""
    other = sibling(c, name)
    if other is None:
        return f"not tested here; sweeps/{name}.yaml does"
    findings = evaluate(other)
    shown = [f for f in findings if f.id in ids] or [f for f in findings if "article" in f.source] or findings
    if not any(f.judgement for f in shown):
        return f"not tested here; {other.study.name} has begun and has nothing to show yet"
    return f"{_join(shown[:LISTED])} (from {other.study.name})"


def _join(findings: Sequence[Finding]) -> str:
    return "; ".join(_one(f) for f in findings if f.judgement)


def _one(finding: Finding) -> str:
    assert finding.judgement is not None
    figures = interval_text(finding.judgement.interval, MEASURES[finding.measure], finding.scale)
    return f"{MEASURES[finding.measure].label}, {_rows(finding)}: {figures}, {finding.outcome.upper()}"


def _rows(finding: Finding) -> str:
    """What the figures are of: two rows, a list from its first to its last, or two differences."""
    labels, sign = finding.values.labels, " / " if finding.scale == "ratio" else " − "
    if finding.asked is not None and finding.asked.interaction:
        return sign.join(f"({pair})" for pair in compared(labels, finding.asked))
    return sign.join(labels) if len(labels) == 2 else f"{labels[0]} … {labels[-1]}"


def group_size_rows(c: Comparison, reading: Reading) -> str:
    """Noise of the gradient and accuracy by G in this study, the error of advantages beside it where measured, and what
    the study of group sizes found."""
    said = []
    sized = _by_group_size(c)
    if len(sized) > 1:
        for name in ("gradient_noise", "accuracy"):
            cells = [f"G = {g}: {text}" for g, arm in sized if (text := _mean(reading, name, arm))]
            said += [f"{MEASURES[name].label} here: {', '.join(cells)}"] if len(cells) > 1 else []
    errors = _advantage_errors(c)
    said += [errors] if errors else []
    beside = sibling_outcomes(c, "group_size", ("same_prompts_larger_is_better", "larger_groups_steadier"))
    return "; ".join([*said, beside])


def zero_signal_shares(c: Comparison, reading: Reading) -> str:
    """The share of groups without signal by G, with its interval over seeds."""
    cells = []
    for g, arm in _by_group_size(c):
        values = [v for run in arm.scored if (v := reading.value("zero_signal", run)) is not None]
        if values:
            i = mean_t_interval(values)
            bounds = f" [{100 * i.low:.1f}, {100 * i.high:.1f}]" if i.known else ""
            cells.append(f"G = {g}: {100 * i.estimate:.1f}{bounds} %")
    if not cells:
        return "not tested here"
    beside = sibling_outcomes(c, "group_size", ("zero_signal_falls",))
    return f"groups without signal, mean over steps [95 %]: {', '.join(cells)}; {beside}"


def sensitivity(c: Comparison) -> str:
    """How far dev accuracy moves over the learning rates tried, by arm; and what the study of KL coefficients found."""
    own = trials(c)
    other = c if own else sibling(c, "learning_rate")
    said = []
    for arm in dict.fromkeys(t.arm for t in trials(other)) if other else ():
        tried = [t for t in trials(other) if t.arm == arm and t.mean is not None] if other else []
        if len(tried) > 1:
            low, high = min(tried, key=lambda t: t.mean or 0), max(tried, key=lambda t: t.mean or 0)
            said.append(
                f"{arm} {100 * (low.mean or 0):.1f} to {100 * (high.mean or 0):.1f} % on dev over lr "
                f"{min(t.rates[0] or 0 for t in tried):g} to {max(t.rates[0] or 0 for t in tried):g}"
            )
    text = f"{'; '.join(said)} (descriptive, from {other.study.name})" if said and other else ""
    coefficient = sibling_outcomes(c, "kl_coef", ("accuracy_flat",))
    parts = [text or "learning rate: not tested here; sweeps/learning_rate.yaml does", f"kl_coef: {coefficient}"]
    return "; ".join(parts)


def task_dependence(c: Comparison, grpo: Arm) -> str:
    """The same study on other tasks: GRPO's accuracy against each row of PPO there."""
    said = []
    for task, other in sibling_tasks(c).items():
        reading = Reading(other.arms)
        own = next((arm for arm in other.arms if arm.row == grpo.row and arm.scored), None)
        ppos = [arm for arm in other.arms if arm.algo == "ppo" and arm.scored]
        if own is not None and ppos:
            cells = [f"{arm.label} {_mean(reading, 'accuracy', arm)}" for arm in (own, *ppos)]
            said.append(f"{task}: {', '.join(cells)} ({len(own.scored)} seeds, see {other.study.name})")
    return "; ".join(said) or "not tested here: this study has run on one task"


def _by_group_size(c: Comparison) -> list[tuple[int, Arm]]:
    """GRPO's rows by G, where one setting alone names them: an arm, no override."""
    arms = [arm for arm in c.arms if arm.algo == "grpo" and arm.scored and arm.row == arm.arm]
    plain = [arm for arm in arms if arm.row in ("grpo", f"grpo_g{arm.config.get('group_size')}")]
    return sorted(((int(arm.config["group_size"]), arm) for arm in plain if arm.config.get("group_size")), key=_first)


def _first(pair: tuple[int, Arm]) -> int:
    return pair[0]


def _advantage_errors(c: Comparison) -> str:
    """As the study of group sizes measured them, or this one."""
    other = sibling(c, "group_size")
    return advantage_errors(c.study.folder) or (advantage_errors(other.study.folder) if other else "")


def _mean(reading: Reading, name: str, arm: Arm) -> str:
    value = mean_of([reading.value(name, run) for run in arm.scored], skip=True)
    return "" if value is None else number_text(value, MEASURES[name])
