"""Intervals, paired differences, tests, corrections and verdicts: plain arrays in, small records out.

Two units of inference, never mixed: *seeds* (does the algorithm do better when it is trained again?) and *problems*
(do these trained models do better on other problems of this kind?). Accuracies and differences are fractions.
"""

from __future__ import annotations

from grpo_bench.stats.bootstrap import bootstrap_two_level
from grpo_bench.stats.discordance import Discordance, by_seed, mcnemar
from grpo_bench.stats.intervals import (
    Floats,
    Interval,
    mean_t_interval,
    paired_problems,
    paired_t,
    proportion,
    wilson,
)
from grpo_bench.stats.paired import holm, sd_ratio, sign_flip, sign_flip_floor, tost
from grpo_bench.stats.power import minimum_detectable_effect
from grpo_bench.stats.verdict import ESTIMAND, SEEDS_FOR_VERDICT, Verdict, rule, verdicts

__all__ = [
    "ESTIMAND",
    "SEEDS_FOR_VERDICT",
    "Discordance",
    "Floats",
    "Interval",
    "Verdict",
    "bootstrap_two_level",
    "by_seed",
    "holm",
    "mcnemar",
    "mean_t_interval",
    "minimum_detectable_effect",
    "paired_problems",
    "paired_t",
    "proportion",
    "rule",
    "sd_ratio",
    "sign_flip",
    "sign_flip_floor",
    "tost",
    "verdicts",
    "wilson",
]
