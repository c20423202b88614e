"""The contrasts as a table: every figure that the seeds allow, and the verdict of the one rule."""

from __future__ import annotations

from collections.abc import Sequence

from grpo_bench import stats
from grpo_bench.stats import Interval
from grpo_bench.table.collapse import WORDS, collapse_count
from grpo_bench.table.compare import Comparison, Declared
from grpo_bench.table.contrasts import Contrast
from grpo_bench.table.layout import NONE, Bold, Sheet, points, pvalue
from grpo_bench.table.main import VERDICTS

WHEN: dict[Declared, str] = {
    "contrasts": "declared in the study's configuration",
    "baseline": "declared by the study's baseline: every row against it",
    "no": "none was declared; every row against a baseline chosen after the runs",
}
NO_VERDICT = (
    "Descriptive, without a verdict: which difference to look at was not chosen before the results were known. "
    "Simultaneous intervals and Holm's p count the contrasts shown."
)
MOST = 12  # McNemar's p-values are listed for so many seeds, beyond that counted


def contrasts_sheet(c: Comparison) -> Sheet:
    """Pair, mean difference with plain and simultaneous interval, t and Holm, TOST, sign flip and its floor, what
    other problems and both would change, McNemar by seed, the smallest difference that could be found, verdict."""
    header = ["pair", "seeds", "difference [95 %]", "intervals over", "simultaneous", "p", "test", "p, Holm"]
    header += ["p, TOST", "p, TOST, Holm", "p, sign flip", "its floor", "[95 %] problems", "[95 %] seeds and problems"]
    header += ["McNemar p by seed", "detectable", "collapsed", "verdict"]
    rows = []
    for contrast in c.contrasts:
        d, judged = contrast.difference, contrast.judged
        kind = d.by["acc"].kind if d.by else NONE
        row = [f"{contrast.first} - {contrast.second}", str(len(d.seeds)) if d.by else NONE, points(d), kind]
        row += [_bounds(judged.simultaneous if judged else None)]
        row += [pvalue(contrast.p), contrast.test or NONE, pvalue(contrast.holm)]
        row += [pvalue(judged.tost_p if judged else None), pvalue(judged.tost_p_holm if judged else None)]
        row += [pvalue(contrast.sign_flip), pvalue(judged.sign_flip_floor if judged and contrast.sign_flip else None)]
        row += [_bounds(contrast.problems), _bounds(contrast.bootstrap), _mcnemar(contrast)]
        enough = judged is not None and judged.word != "descriptive" and judged.mde is not None
        row.append(f"{100 * judged.mde:.1f}" if enough and judged and judged.mde else NONE)
        row.append(_collapsed(c, contrast))
        word = contrast.verdict
        rows.append([*row, Bold(word) if word.startswith(VERDICTS) else word])
    notes = [
        f"Contrasts: {WHEN[c.declared]}. {stats.ESTIMAND}",
        NO_VERDICT if c.declared == "no" else stats.rule(max(c.family, 1), c.margin),
        "Problems: what other test problems would change for these trained models; seeds and problems: two-level "
        "bootstrap. McNemar: exact, of each seed's pair on the same problems, not pooled. Detectable: the difference "
        "in points that this rule would have found with 80 % probability at the spread measured. Collapsed: seeds of "
        f"either side whose accuracy on dev ended more than {WORDS} below its best.",
    ]
    title = "Contrasts" if c.declared == "no" else "Contrasts and verdicts"
    return Sheet("contrasts", title, header, rows, notes)


def verdict_lines(contrasts: Sequence[Contrast]) -> list[str]:
    """One line per contrast for a front page: "grpo_g8 against ppo: better, +3.1 [+1.2, +5.0] points, 10 seeds"."""
    lines = []
    for contrast in contrasts:
        words = f"{contrast.first} against {contrast.second}: **{contrast.verdict}**"
        if contrast.difference.by:
            n = len(contrast.difference.seeds)
            words += f", {points(contrast.difference)} points, {n} seed{'s' * (n != 1)}"
        lines.append(words)
    return lines


def _bounds(interval: Interval | None) -> str:
    if interval is None or not interval.known:
        return NONE
    return f"[{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"


def _collapsed(c: Comparison, contrast: Contrast) -> str:
    counts = []
    for name in (contrast.first, contrast.second):
        arm = next((arm for arm in c.arms if arm.label == name), None)
        fell, known = collapse_count(arm) if arm else (0, 0)
        counts.append(f"{fell} of {known}" if known else NONE)
    return ", ".join(counts)


def _mcnemar(contrast: Contrast) -> str:
    found = contrast.discordance
    if not found:
        return NONE
    if len(found) > MOST:
        under = sum(one.p < 0.05 for one in found)
        return f"under 0.05 in {under} of {len(found)}"
    return ", ".join(pvalue(one.p) for one in found)
