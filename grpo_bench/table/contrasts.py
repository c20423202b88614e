"""Pairs of arms judged as one family: every figure that the number of seeds allows, and the verdict of one rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from grpo_bench import stats
from grpo_bench.stats import Discordance, Interval, Verdict
from grpo_bench.table.arms import Arm, Difference, against
from grpo_bench.table.pairs import matrices

NOT_COMPARABLE = "not comparable"


@dataclass
class Contrast:
    """Two arms compared on accuracy.

    ``judged`` is the verdict over seeds within the family; ``problems`` the problem-level interval of the same
    difference (other problems, these trained models), ``bootstrap`` the one over both, ``discordance`` McNemar's test
    seed by seed. ``p`` and ``test`` are over seeds from three seeds on, below over problems; ``holm`` and
    ``sign_flip`` exist over seeds only. ``verdict`` is what is printed.
    """

    first: str
    second: str
    difference: Difference
    p: float | None = None
    test: str = ""
    sign_flip: float | None = None
    holm: float | None = None
    bootstrap: Interval | None = None
    problems: Interval | None = None
    discordance: list[Discordance] = field(default_factory=list)
    judged: Verdict | None = None
    verdict: str = NOT_COMPARABLE


def contrast_all(
    arms: list[Arm],
    declared: Sequence[tuple[str, str]],
    baseline: str | None,
    margin: float,
    notes: list[str],
    *,
    beforehand: bool = True,
    verdicts_only: bool = False,
) -> tuple[list[Contrast], int]:
    """The declared contrasts, else every arm against the baseline, judged together; and the size of their family.

    The family is what was declared: a contrast without runs yet, or whose runs are refused as pairs, counts in it, one
    for each row that its first name means, so that verdicts do not change their level as a study grows. What has no
    figures goes to ``notes``. Unless the contrasts were chosen ``beforehand`` they have figures and no verdict: who
    chooses them by the results finds a difference far more often. ``verdicts_only`` leaves out what is shown beside a
    verdict (bootstrap, problems).
    """
    wanted = declared or ([(arm.label, baseline) for arm in arms if not arm.called(baseline)] if baseline else [])
    contrasts: list[Contrast] = []
    waiting = 0
    for first, second in wanted:
        named = [arm for arm in arms if arm.called(first)]
        firsts = [arm for arm in named if arm.scored]
        if not firsts or not any(arm.called(second) and arm.scored for arm in arms):
            waiting += max(len(named), 1)
            if declared:
                notes.append(f"Declared contrast {first} against {second}: no finished runs of both yet.")
            continue
        for arm in named:
            if not arm.scored:
                waiting += 1
                notes.append(f"Contrast {arm.label} against {second}: no finished run of {arm.label} yet.")
                continue
            found, other = against(arm, second, arms)
            contrasts.append(Contrast(arm.label, other.label if other else second, found))
            if declared and found.refused and not ((baseline and arm.called(baseline)) or second == baseline):
                # against the baseline it stands in the notes already
                notes.append(f"{arm.label} against {contrasts[-1].second}: not comparable, {found.refused}.")
    differences = {i: over_seeds(contrast) for i, contrast in enumerate(contrasts)}
    family = len(contrasts) + waiting
    judged = stats.verdicts(differences, margin, family=family) if contrasts else {}
    for i, contrast in enumerate(contrasts):
        if contrast.difference.refused is None and contrast.difference.pairs:
            contrast.judged = judged[i] if beforehand else replace(judged[i], word="descriptive", within_margin=False)
            contrast.verdict = contrast.judged.words
            if not verdicts_only:
                _fill(contrast, judged[i])
    notes += _interim(contrasts, arms)
    return contrasts, family


def _interim(contrasts: Sequence[Contrast], arms: Sequence[Arm]) -> list[str]:
    """A verdict is for the seeds that were planned: who looks after every run and stops at the first difference finds
    one far more often than in one study of twenty."""
    open_arms = {arm.label: arm for arm in arms if arm.incomplete}
    early = [
        f"{c.first} against {c.second}"
        for c in contrasts
        if c.judged is not None and c.judged.word != "descriptive" and open_arms.keys() & {c.first, c.second}
    ]
    if not early:
        return []
    return [f"Interim, planned seeds are missing: {'; '.join(early)}. The verdict counts once they are all there."]


def over_seeds(contrast: Contrast, metric: str = "acc") -> list[float]:
    """First − second, one per paired seed; none where the pair is refused."""
    if contrast.difference.refused:
        return []
    return [a.means[metric] - b.means[metric] for a, b in contrast.difference.pairs]


def _fill(contrast: Contrast, judged: Verdict) -> None:
    pairs, estimate = contrast.difference.pairs, contrast.difference.by["acc"]
    contrast.discordance = _discordance(contrast)
    both = matrices(pairs, "acc")
    if both is not None:
        contrast.problems = stats.paired_problems(*both)
    if estimate.unit == "seeds":
        contrast.p, contrast.test = judged.p, "t over seeds"
        contrast.sign_flip, contrast.holm = judged.sign_flip_p, judged.p_holm
        if both is not None:
            contrast.bootstrap = stats.bootstrap_two_level(*both)
    elif estimate.unit == "problems" and len(contrast.discordance) == len(pairs) == 1:
        contrast.p, contrast.test = contrast.discordance[0].p, "McNemar"
    elif estimate.unit == "problems":
        contrast.p, contrast.test = estimate.interval.p, "z over problems"


def _discordance(contrast: Contrast) -> list[Discordance]:
    """Seeds of which both sides came to the final test, on the same problems, with one answer to each."""
    found: list[Discordance] = []
    for seed, (a, b) in zip(contrast.difference.seeds, contrast.difference.pairs, strict=True):
        if a.scores is None or b.scores is None or a.scores.ids != b.scores.ids:
            continue
        x, y = a.scores.by["acc"], b.scores.by["acc"]
        if np.isin(x, (0, 1)).all() and np.isin(y, (0, 1)).all():
            found += stats.by_seed(x, y, [seed])
    return found
