"""Do the intervals cover and do the tests keep their size? Simulated studies through the very functions of the tables.

    python -m grpo_bench.stats.coverage into=results/coverage studies=4000

writes ``coverage.md`` and ``coverage.json``: how often an interval holds the truth that it speaks of, how often a test
rejects what is true, and how often a family of contrasts gets a false word. The same numbers every time.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from grpo_bench.files import disk_errors, write_atomic, write_json
from grpo_bench.stats import Interval, bootstrap_two_level, mean_t_interval, paired_problems, paired_t, verdicts
from grpo_bench.stats.simulation import World, draw
from grpo_bench.types import UserError

MARGIN = 0.02
FAMILY = 4
SEEDS = (5, 10)
WORLDS = (
    World("problems", "what differs is which problems an arm solves; runs of an arm are as good as each other",
          taste=2.5, runs=0.0, skills=0.0),
    World("both", "both differ, by sizes of the order that runs of the embedded task show"),
    World("seeds", "runs differ by points, in all and by kind of problem; arms solve much the same problems",
          taste=0.3, runs=0.45, skills=0.5),
    World("collapse", "as `both`, but one run in ten of an arm, never of the baseline, falls far: few seeds show it",
          collapse=0.1),
)  # fmt: skip
SCENARIOS = {
    "no difference": (0.0, 0.0, 0.0, 0.0),
    "all at the margin": (MARGIN, MARGIN, -MARGIN, -MARGIN),
    "two and two": (0.0, 0.0, MARGIN, -MARGIN),
    "3 and 5 points": (0.03, -0.03, 0.05, -0.05),
}
# the mixed families and the power are shown once; where runs collapse, what the rule says of no difference
ASKED = {"both": tuple(SCENARIOS), "collapse": ("no difference",)}
SIZES = ("no difference", "all at the margin")


def coverage(world: World, seeds: int, studies: int, boots: int = 0, seed: int = 0) -> dict[str, Any]:
    """Shares of ``studies`` whose interval holds its truth, two arms that differ by about two points.

    ``interval`` and ``simultaneous`` (the level of a family of 4): the paired t intervals and the difference on this
    set of problems; ``accuracy``: one arm's t interval and its accuracy there; ``problems``: the problem-level interval
    and the difference of these very runs on all problems there could be; ``bootstrap``: two levels, over seeds and
    problems, and the difference over both, of the first ``boots`` studies (each costs as much as twenty t intervals).
    ``sd_seeds`` and ``sd_problems`` are what a difference varies by from seed
    to seed, and the true one from one set of problems to another.
    """
    rng = np.random.default_rng([seed, seeds])
    gap = 0.3
    anywhere = world.anywhere(gap)
    held: Counter[str] = Counter()
    truths, spreads = [], []
    for i in range(studies):
        study = draw(world, seeds, rng, [gap])
        base, arm = study.scores
        xs, ys = arm.mean(axis=1, dtype=np.float64), base.mean(axis=1, dtype=np.float64)
        truth = float(study.truth[1] - study.truth[0])
        held["interval"] += _holds(paired_t(xs, ys), truth)
        held["simultaneous"] += _holds(paired_t(xs, ys, 1 - 0.05 / FAMILY), truth)
        held["accuracy"] += _holds(mean_t_interval(xs), float(study.truth[1]))
        held["problems"] += _holds(paired_problems(arm, base), float(study.elsewhere[1] - study.elsewhere[0]))
        if i < boots:
            held["bootstrap"] += _holds(bootstrap_two_level(arm, base, reps=500, seed=i), anywhere)
        truths.append(truth)
        spreads.append(float((xs - ys).var(ddof=1)))
    shares = {key: held[key] / studies for key in ("interval", "simultaneous", "accuracy", "problems")}
    return {
        "world": world.name, "seeds": seeds, "studies": studies, **shares,
        "bootstrap": held["bootstrap"] / boots if boots else None, "boots": boots,
        "sd_seeds": math.sqrt(float(np.mean(spreads))), "sd_problems": float(np.std(truths)),
    }  # fmt: skip


def family(world: World, seeds: int, studies: int, scenario: str, seed: int = 0) -> dict[str, Any]:
    """What the rule says of four contrasts with one baseline whose true differences are exactly those of ``scenario``.

    Per contrast: the share under 0.05 of the t test (``t``), the sign-flip test (``sign_flip``) and the equivalence
    test (``tost``) before correction, and of every word. Per family: ``false_difference``, any better or worse where
    the truth is 0 or on the other side; ``false_equivalence``, any equivalent where it is at or beyond the margin.
    """
    gaps = SCENARIOS[scenario]
    rng = np.random.default_rng([seed, seeds, list(SCENARIOS).index(scenario)])
    tests: Counter[str] = Counter()
    words: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    null = sum(gap == 0 for gap in gaps)
    edge = sum(abs(gap) == MARGIN for gap in gaps)
    for _ in range(studies):
        means = draw(world, seeds, rng, gaps, exact=True).scores.mean(axis=2, dtype=np.float64)
        judged = verdicts({i: row - means[0] for i, row in enumerate(means[1:])}, MARGIN)
        differs, equal = False, False
        for i, gap in enumerate(gaps):
            found = judged[i]
            words[found.word] += 1
            differs |= (found.word == "better" and gap <= 0) or (found.word == "worse" and gap >= 0)
            equal |= found.within_margin and abs(gap) >= MARGIN
            if gap == 0:
                tests["t"] += found.p is not None and found.p < 0.05
                tests["sign_flip"] += found.sign_flip_p is not None and found.sign_flip_p <= 0.05
            if abs(gap) == MARGIN:
                tests["tost"] += found.tost_p is not None and found.tost_p < 0.05
        wrong["false_difference"] += differs
        wrong["false_equivalence"] += equal
    return {
        "world": world.name, "seeds": seeds, "studies": studies, "scenario": scenario,
        "t": tests["t"] / (null * studies) if null else None,
        "sign_flip": tests["sign_flip"] / (null * studies) if null else None,
        "tost": tests["tost"] / (edge * studies) if edge else None,
        **{key: wrong[key] / studies for key in ("false_difference", "false_equivalence")},
        "words": {word: words[word] / (len(gaps) * studies) for word in sorted(words)},
    }  # fmt: skip


def measure(studies: int) -> dict[str, Any]:
    """Every world at 5 and 10 seeds: ``coverage`` from ``studies`` studies, ``families`` from half as many."""
    total = len(SEEDS) * sum(1 + len(ASKED.get(world.name, SIZES)) for world in WORLDS)
    covered, families = [], []
    with tqdm(total=total, desc="coverage", disable=None, file=sys.stderr) as bar:
        for world in WORLDS:
            for seeds in SEEDS:
                covered.append(coverage(world, seeds, studies, boots=min(studies, 500)))
                bar.update()
                for scenario in ASKED.get(world.name, SIZES):
                    families.append(family(world, seeds, max(1, studies // 2), scenario))
                    bar.update()
    worlds = [asdict(world) for world in WORLDS]
    return {"margin": MARGIN, "family": FAMILY, "worlds": worlds, "coverage": covered, "families": families}


def page(found: dict[str, Any]) -> str:
    """The measurements as Markdown."""
    studies, half = found["coverage"][0]["studies"], found["families"][0]["studies"]
    parts = ["# Coverage of the intervals and size of the tests", _ABOUT.format(
        studies=studies, half=half, noise=196 * math.sqrt(0.05 * 0.95 / studies),
        half_noise=196 * math.sqrt(0.05 * 0.95 / half), problems=found["worlds"][0]["problems"],
    )]  # fmt: skip
    parts.append("\n".join(f"- `{world['name']}`: {world['words']}." for world in found["worlds"]))
    head = ["variance from", "seeds", "difference, 95 %", "difference, 98.75 %", "accuracy, 95 %"]
    head += ["other problems, 95 %", "bootstrap, 95 %", "sd over seeds", "sd over problem sets"]
    keys = ("interval", "simultaneous", "accuracy", "problems", "bootstrap")
    rows = [
        [one["world"], str(one["seeds"]), *[_percent(one[key]) for key in keys],
         *[f"{100 * one[key]:.2f}" for key in ("sd_seeds", "sd_problems")]]
        for one in found["coverage"]
    ]  # fmt: skip
    parts += ["## How often an interval holds its truth, %", _table(head, rows), _COVERAGE]
    head = ["variance from", "seeds", "true differences", "t test", "sign flip", "TOST", "any false difference"]
    head += ["any false equivalence", "better or worse", "equivalent", "not established"]
    rows = [
        [one["world"], str(one["seeds"]), one["scenario"], *[_percent(one[k]) for k in ("t", "sign_flip", "tost")],
         *[_percent(one[key]) for key in ("false_difference", "false_equivalence")],
         _percent(one["words"].get("better", 0) + one["words"].get("worse", 0)),
         *[_percent(one["words"].get(word, 0)) for word in ("equivalent", "not established")]]
        for one in found["families"]
    ]  # fmt: skip
    parts += ["## How often tests reject and which words the rule gives, %", _table(head, rows), _SIZE]
    return "\n\n".join(parts) + "\n"


_ABOUT = (
    "Made by `python -m grpo_bench.stats.coverage`. Simulated studies of {problems:,} problems, which are drawn "
    "once per study and are then the truth: an arm's accuracy is its expectation over runs on exactly these "
    "problems. Answers are right or wrong, drawn per problem and run. {studies:,} studies per line of the first "
    "table and {half:,} of the second: 95 % or 5 % is uncertain by ± {noise:.1f} and ± {half_noise:.1f} points. "
    "Where the variance comes from:"
)
_COVERAGE = (
    "Difference: paired t interval over seeds, for the true difference on this set of problems; 98.75 % is the "
    "level of a family of four contrasts. Accuracy: t interval of one arm. Other problems: the problem-level "
    "interval, for these very runs on all problems there could be. Bootstrap: two levels, seeds and problems, for "
    "the difference over both. The last two columns are in percentage points: the sd of a difference from seed to "
    "seed, and of the true one from one set of problems to another."
)
_SIZE = (
    "Four arms against one baseline, their true differences exactly as named (the margin is 2 points). t test and "
    "sign flip: share under 0.05 where the difference is 0, uncorrected. TOST: share under 0.05 where it is at "
    "the margin, uncorrected. Any false difference: families in which some contrast is called better or worse "
    "though the truth is 0 or on the other side. Any false equivalence: families in which some contrast at or "
    "beyond the margin is called equivalent. The last three columns: share of contrasts given each word. Where "
    "one run in ten collapses, an arm that is equal in the mean is better in its ordinary run, and few seeds show "
    "little else: no interval over so few seeds covers that mean, so collapses are to be counted beside a verdict "
    "(table stability)."
)


USAGE = "usage: python -m grpo_bench.stats.coverage [into=FOLDER] [studies=N], N at least 2"


def _holds(interval: Interval, truth: float) -> bool:
    return interval.low <= truth <= interval.high


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, [":---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on stderr for bad input."""
    words = sys.argv[1:] if argv is None else argv
    if any(word in ("-h", "--help") for word in words):
        print(USAGE)
        return 0
    try:
        given = dict(word.partition("=")[::2] for word in words)
        folder, studies = Path(given.pop("into", "results/coverage")), given.pop("studies", "4000")
        if given or not studies.isdecimal() or int(studies) < 2:
            raise UserError(USAGE)
        found = measure(int(studies))
        text = page(found)
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "coverage.json", found)
            write_atomic(folder / "coverage.md", text.encode())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
