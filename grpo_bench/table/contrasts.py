"""Pairs of arms with every p-value that the number of seeds allows, and a verdict no stronger than its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grpo_bench import stats
from grpo_bench.stats import Interval
from grpo_bench.table.arms import Arm, Difference, against
from grpo_bench.table.pairs import difference, matrices


@dataclass
class Contrast:
    """Two arms compared, with every p-value that the number of seeds allows; ``holm`` is over the table's contrasts."""

    first: str
    second: str
    difference: Difference
    p: float | None = None
    test: str = ""
    sign_flip: float | None = None
    holm: float | None = None
    bootstrap: Interval | None = None
    verdict: str = "not comparable"


def contrast_all(
    arms: list[Arm], declared: Sequence[tuple[str, str]], baseline: str | None, margin: float, notes: list[str]
) -> list[Contrast]:
    """The declared contrasts, else every arm against the baseline. Those without runs yet go to ``notes``."""
    wanted = declared or ([(arm.label, baseline) for arm in arms if not arm.called(baseline)] if baseline else [])
    contrasts = []
    for first, second in wanted:
        firsts = [arm for arm in arms if arm.called(first) and arm.scored]
        if firsts and any(arm.called(second) and arm.scored for arm in arms):
            for arm in firsts:
                found, other = against(arm, second, arms)
                contrasts.append(Contrast(arm.label, other.label if other else second, found))
        elif declared:
            notes.append(f"Declared contrast {first} against {second}: no finished runs of both yet.")
    for contrast in contrasts:
        if contrast.difference.refused is None:
            _test(contrast)
    tested = [contrast for contrast in contrasts if contrast.p is not None]
    for contrast, p in zip(tested, stats.holm([c.p for c in tested if c.p is not None]), strict=True):
        contrast.holm = p
    for contrast in contrasts:
        contrast.verdict = _verdict(contrast, margin)
    return contrasts


def _test(contrast: Contrast) -> None:
    pairs, estimate = contrast.difference.pairs, contrast.difference.by["acc"]
    both = matrices(pairs, "acc")
    if estimate.unit == "seeds":
        contrast.p, contrast.test = estimate.interval.p, "t over seeds"
        if len(pairs) <= 20:  # a million sign patterns; beyond, t needs no check
            contrast.sign_flip = stats.sign_flip([a.means["acc"] - b.means["acc"] for a, b in pairs])
        if both is not None:
            contrast.bootstrap = stats.bootstrap_two_level(*both)
    elif estimate.unit == "problems" and both is not None and len(pairs) == 1:
        a, b = both[0][0], both[1][0]
        contrast.p, contrast.test = stats.mcnemar(int((a > b).sum()), int((b > a).sum())), "McNemar"
    elif estimate.unit == "problems":
        contrast.p, contrast.test = estimate.interval.p, "z over problems"


def _verdict(contrast: Contrast, margin: float) -> str:
    """A winner only where the 95 % interval excludes zero and Holm's p agrees; "equivalent" by two one-sided tests
    at 5 % (the 90 % interval within the margin)."""
    estimate = contrast.difference.by.get("acc")
    if estimate is None or contrast.difference.refused:
        return "not comparable"
    interval, narrow = estimate.interval, difference(contrast.difference.pairs, "acc", level=0.90).interval
    if interval.excludes_zero and contrast.holm is not None and contrast.holm < 0.05:
        words = "higher" if interval.estimate > 0 else "lower"
    elif interval.excludes_zero:
        words = "undecided after Holm's correction"
    elif narrow.known and -margin < narrow.low and narrow.high < margin:
        words = "equivalent"
    else:
        return "undecided"
    if estimate.unit == "problems":
        return f"{words}, on these seeds"
    return f"{words}, descriptive" if "descriptive" in estimate.kind else words
