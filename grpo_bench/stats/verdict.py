"""The one rule by which a study says better, worse, equivalent or nothing, over the differences of paired seeds.

What is estimated is the mean difference on one fixed test set, from one warm start, over training again with another
seed. How other problems would change it is another question (``paired_problems``), answered beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from grpo_bench.stats.intervals import Interval, mean_t_interval
from grpo_bench.stats.paired import holm, sign_flip, sign_flip_floor, tost
from grpo_bench.stats.power import minimum_detectable_effect

Word = Literal["better", "worse", "equivalent", "not established", "descriptive"]
K = TypeVar("K")

SEEDS_FOR_VERDICT = 5  # below, an exact test over seeds cannot come under p = 0.1 whatever was measured
SIGN_FLIP_SEEDS = 20  # a million patterns; beyond, the t test needs no check
ROUNDING = 1e-12
ESTIMAND = (
    "Estimated: the mean difference on this fixed test set and from this warm start, over RL seeds "
    "(what training again would change)."
)
RULE = (
    "Better or worse: Holm-adjusted p of the paired t test over seeds under {alpha:g} within the family of {family} "
    "contrasts, and the {level} interval (Bonferroni) excludes 0. Equivalent: two one-sided t tests at ±{margin}, "
    "their p Holm-adjusted as a family of its own, under {alpha:g}. Both at once: better or worse, by less than the "
    "margin. Otherwise not established; with fewer than {seeds} paired seeds descriptive, without a verdict."
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One contrast judged within its family. Differences, intervals and ``mde`` are in the measure's own unit
    (fractions for accuracies).

    ``interval`` is the plain 95 % t interval, ``simultaneous`` the one at level 1 − alpha/family; ``p`` the paired t
    test's, ``tost_p`` the equivalence test's at the margin, each with its Holm-adjusted one; ``sign_flip_p`` the exact
    test beside it (None above 20 seeds) and ``sign_flip_floor`` the smallest that n seeds allow; ``mde`` the difference
    that the rule would have found with 80 % probability, given the sd measured. None or NaN where n is too small or
    there is no spread. ``within_margin``: equivalence holds too, also where the word is better or worse.
    """

    word: Word
    interval: Interval
    simultaneous: Interval
    p: float | None
    p_holm: float | None
    tost_p: float | None
    tost_p_holm: float | None
    sign_flip_p: float | None
    sign_flip_floor: float | None
    n: int
    mde: float | None
    family: int
    within_margin: bool

    @property
    def words(self) -> str:
        """The word as it is printed: a difference that is real and yet below the margin says both."""
        small = self.within_margin and self.word in ("better", "worse")
        return f"{self.word}, by less than the margin" if small else self.word


def verdicts(
    differences: Mapping[K, Sequence[float]], margin: float, alpha: float = 0.05, family: int | None = None
) -> dict[K, Verdict]:
    """Judge every contrast of a study by one rule; ``differences`` are first − second, one per paired seed.

    - *better* / *worse*: the Holm-adjusted p of the paired t test is under ``alpha`` and the interval at level
      1 − alpha/family excludes 0. (The second asks for more than the first: together they are Bonferroni's test.)
    - *equivalent*: the p of two one-sided t tests at ±``margin``, Holm-adjusted as a family of its own, is under alpha.
    - both hold: the word is better or worse, and ``within_margin`` says that the difference is smaller than the margin.
    - *not established*: neither.
    - *descriptive*: fewer than 5 seeds; intervals and p-values are shown, no verdict.

    The family is what was declared: every key counts, also one without enough seeds yet, whose p then stands as 1. So
    a verdict does not get easier because another contrast's runs are missing. ``family`` may name a larger size (part
    of the declared contrasts has no runs at all). Differences that are all exactly 0 (a setting without effect) are
    equivalent; equal ones other than 0 leave no spread to judge them by, and nothing is established.

    Raises ValueError for a margin that is not above 0, differences that are not finite and a family below the keys.
    """
    if not (margin > 0 and 0 < alpha < 1):
        raise ValueError(f"no verdicts at margin={margin}, alpha={alpha}")
    size = len(differences) if family is None else family
    if size < len(differences):
        raise ValueError(f"a family of {size} cannot hold {len(differences)} contrasts")
    values = {key: np.asarray(ds, dtype=np.float64) for key, ds in differences.items()}
    # 0.1 + 0.2 − 0.3 is no difference, and its rounding noise no spread
    values = {key: np.where(np.abs(d) < ROUNDING, 0.0, d) for key, d in values.items()}
    if not all(np.isfinite(d).all() for d in values.values()):
        raise ValueError("a difference is not a finite number")
    ps = {key: _p(d) for key, d in values.items()}
    tosts = {key: tost(d, margin) if ps[key] is not None else None for key, d in values.items()}
    p_holm, tost_holm = _holm(ps, size), _holm(tosts, size)
    found: dict[K, Verdict] = {}
    for key, d in values.items():
        n = len(d)
        interval, simultaneous = _interval(d, 0.95), _interval(d, 1 - alpha / size)
        adjusted, equivalence = p_holm[key], tost_holm[key]
        differs = adjusted is not None and adjusted < alpha and simultaneous.excludes_zero
        within = equivalence is not None and equivalence < alpha
        word: Word = "not established"
        if n < SEEDS_FOR_VERDICT:
            word, within = "descriptive", False
        elif differs:
            word = "better" if interval.estimate > 0 else "worse"
        elif within:
            word = "equivalent"
        found[key] = Verdict(
            word=word,
            interval=interval,
            simultaneous=simultaneous,
            p=ps[key],
            p_holm=adjusted,
            tost_p=tosts[key],
            tost_p_holm=equivalence,
            sign_flip_p=sign_flip(d) if 1 <= n <= SIGN_FLIP_SEEDS else None,
            sign_flip_floor=sign_flip_floor(n) if n else None,
            n=n,
            mde=minimum_detectable_effect(float(d.std(ddof=1)), n, alpha / size) if interval.se > 0 else None,
            family=size,
            within_margin=within,
        )
    return found


def rule(family: int, margin: float, alpha: float = 0.05) -> str:
    """The rule in two sentences for a table's note; ``margin`` in fractions, printed in points."""
    level = f"{100 * (1 - alpha / max(family, 1)):.4g} %"
    return RULE.format(
        alpha=alpha, family=family, level=level, margin=f"{100 * margin:g} points", seeds=SEEDS_FOR_VERDICT
    )


def _p(d: np.ndarray) -> float | None:
    """None where no t test can be made: too few differences, or equal ones other than 0."""
    if len(d) < 2 or (np.ptp(d) <= ROUNDING and d.any()):
        return None
    return mean_t_interval(d).p


def _holm(ps: Mapping[K, float | None], size: int) -> dict[K, float | None]:
    known = [(key, p) for key, p in ps.items() if p is not None]
    # contrasts that cannot be tested stay in the family with p = 1
    adjusted = holm([p for _, p in known] + [1.0] * (size - len(known)))
    found: dict[K, float | None] = dict.fromkeys(ps)
    return found | {key: p for (key, _), p in zip(known, adjusted, strict=False)}


def _interval(d: np.ndarray, level: float) -> Interval:
    if len(d) == 0:
        return Interval(math.nan, math.nan, math.nan, math.nan, 0)
    if _p(d) is None:
        return Interval(float(d.mean()), math.nan, math.nan, math.nan, len(d))
    return mean_t_interval(d, level)
