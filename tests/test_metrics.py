"""The glossary: every name defined once, clocks kept apart, no NaN on disk."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_bench import metrics
from grpo_bench.metrics import GLOSSARY, check_metrics, check_timing, describe, finite, lookup, timing_metrics

REPO = Path(__file__).resolve().parent.parent
NAMESPACES = {
    *("reward", "group", "adv", "policy", "kl", "value", "completions"),
    *("eval", "time", "perf", "mem", "cost", "health"),
}


def test_every_namespace_of_the_field_is_there_and_every_entry_is_whole():
    assert {name.split("/")[0] for name in GLOSSARY} >= NAMESPACES
    assert len(GLOSSARY) == len(metrics._ALL)  # no name defined twice
    for metric in GLOSSARY.values():
        assert all((metric.unit, metric.definition, metric.mask, metric.reduction)), metric.name


def test_patterns():
    assert lookup("eval/dev/greedy/acc").name == "eval/<split>/<mode>/acc"
    assert lookup("eval/test/sampled/pass@16").name == "eval/<split>/<mode>/pass@<k>"
    assert lookup("reward/length/mean").name == "reward/<part>/mean"
    for name in ("eval/dev/greedy/pass@0", "eval/dev/greedy/pass@x", "eval/dev/acc", "eval/<split>/<mode>/acc"):
        with pytest.raises(KeyError):
            check_metrics([name])


def test_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(KeyError, match="policy/entropy"):
        check_metrics(["policy/entropie"])


def test_clocks_never_reach_metrics_and_nothing_else_reaches_timing():
    check_metrics(["step", "samples", "reward/mean", "health/nan_steps"])
    with pytest.raises(ValueError, match="time/step_s"):
        check_metrics(["time/step_s"])
    check_timing({"step": 1, "elapsed_s": 2.0, "seconds": {"rollout": 1.0, "eval": 0.5}, "peak_memory_bytes": 3})
    check_timing({"perf/gen_tok_s": 10.0})
    with pytest.raises(ValueError, match="reward/mean"):
        check_timing({"reward/mean": 1.0})
    with pytest.raises(KeyError, match="time/rolout_s"):
        check_timing({"seconds": {"rolout": 1.0}})


def test_timing_under_glossary_names():
    line = {"step": 3, "elapsed_s": 9.0, "seconds": {"rollout": 2.0}, "peak_memory_bytes": 3e9, "perf/samples_s": 0.1}
    shown = timing_metrics(line)
    assert shown == {"time/total_s": 9.0, "time/rollout_s": 2.0, "mem/peak_alloc_gb": 3.0, "perf/samples_s": 0.1}
    assert all(lookup(name).clock for name in shown)


def test_finite_goes_deep_and_leaves_the_rest():
    value = {"a": math.nan, "b": [1, math.inf, {"c": (-math.inf, True, None, "nan")}]}
    assert finite(value) == {"a": None, "b": [1, None, {"c": [None, True, None, "nan"]}]}


def test_describe_lists_all_names_or_one_namespace():
    whole = describe()
    assert whole.count("\n") == len(GLOSSARY) + 2
    assert all(f"`{name}`" in whole for name in GLOSSARY)
    assert describe("kl").count("\n") == sum(name.startswith("kl/") for name in GLOSSARY) + 2


def test_readers_of_the_glossary_do_not_pay_for_torch():
    code = "import sys, grpo_bench.metrics, grpo_bench.record, grpo_bench.trackers, grpo_bench.console; "
    code += "print(sorted({'torch', 'wandb', 'transformers', 'tensorboard'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
