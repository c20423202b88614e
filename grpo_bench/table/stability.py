"""How steadily each row trained: divergence, the worst seed, noise at the end, and the first signs of collapse."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from grpo_bench.records import Run
from grpo_bench.table.collapse import WORDS, collapse_count
from grpo_bench.table.compare import Comparison
from grpo_bench.table.layout import NONE, Sheet, arm_label, general, grouped, integer, number, percent

ENTROPY = 0.05  # nats per token: below, sampling a group hardly gives two different answers
TRUNCATED = 0.15  # share of training samples cut at the limit (ScaleRL's early warning is 10 to 15 %)


def stability_sheet(c: Comparison) -> Sheet:
    header = ["", "non-finite", "collapsed", "worst seed %", "sd over seeds", "reward sd, last steps", "max grad norm"]
    header += ["steps with NaN"]
    header += grouped("first step with", [f"entropy < {ENTROPY:g}", f"truncated > {100 * TRUNCATED:.0f} %"])
    header += ["advantage sd", "groups without signal %", "KL to reference", "entropy"]
    rows = []
    for arm in c.arms:
        s = arm.stability
        if not arm.accuracy:
            continue
        accuracies = [run.final["greedy"]["acc"] for run in arm.scored]
        sd = float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else None
        fell, known = collapse_count(arm)
        row = [arm_label(arm), f"{s['diverged']:.0f} of {s['begun']:.0f}", f"{fell} of {known}" if known else NONE]
        row += [percent(s["worst_seed"]), percent(sd)]
        row += [number(s["reward_std_last"], 3), general(s["grad_norm_max"]), integer(s["nan_steps"])]
        row.append(_first(arm.scored, "rollout/entropy", lambda value: value < ENTROPY))
        row.append(_first(arm.scored, "completions/truncated_frac", lambda value: value > TRUNCATED))
        row += [number(s["adv/std"], 3), percent(s["group/frac_zero_std"])]
        rows.append([*row, number(s["kl_final"], 4), number(s["entropy_final"], 3)])
    notes = [
        "Non-finite: runs stopped since their losses were not finite. Collapsed: accuracy on dev ended more than "
        f"{WORDS} below its best. Sd over seeds: of the accuracy, in points. Reward sd: of the mean reward of the last "
        "ten steps, mean over seeds; it shrinks with the number of samples a step, and compares only rows of the same. "
        "Entropy and truncation: the first step at which a seed passes the mark, median over the seeds that do, "
        "and how many they are. Advantage sd and groups without signal: means over steps.",
    ]
    return Sheet("stability", "Stability", header, rows, notes)


def first_step(run: Run, key: str, passed: Callable[[float], bool]) -> int | None:
    """The first step whose value of ``key`` passes the mark; None where none does."""
    return next(
        (int(row["step"]) for row in run.metrics if isinstance(row.get(key), int | float) and passed(row[key])), None
    )


def _first(runs: Sequence[Run], key: str, passed: Callable[[float], bool]) -> str:
    if not any(isinstance(row.get(key), int | float) for run in runs for row in run.metrics):
        return NONE
    steps = [step for run in runs if (step := first_step(run, key, passed)) is not None]
    if not steps:
        return "never"
    return f"{np.median(steps):g} ({len(steps)} of {len(runs)})"
