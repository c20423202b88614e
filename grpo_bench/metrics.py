"""The glossary: every metric a run writes, defined once; the writer, the trackers, the docs and the tests read it.

A name is ``namespace/what``; ``<part>`` in a name stands for one word (``eval/<split>/<mode>/pass@<k>``). A *clock*
metric depends on the machine (seconds, memory, throughput): it goes to ``timing.jsonl`` and never to
``metrics.jsonl``, which is equal byte for byte however often a run was interrupted.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

GB = 1e9  # bytes; every *_gb below

_TOKENS = "sampled tokens"  # mask = 1: the end token included, prompts and padding not
_COMPUTED = "sampled tokens; with one update per rollout without skipped groups"
_ROWS = "completions"
_GROUPS = "groups"
# reward/, group/ and completions/ speak of all completions that a step sampled from its prompts, dropped and surplus
# ones too: an algorithm that drops what it cannot use would otherwise seem to answer better. Greedy baselines and
# branches are none of them.


@dataclass(frozen=True, slots=True)
class Metric:
    """What one name means: ``mask`` is what is counted, ``reduction`` how it becomes one number."""

    name: str
    unit: str
    definition: str
    mask: str
    reduction: str
    clock: bool = False


def _clock(name: str, unit: str, definition: str, reduction: str = "sum over the step") -> Metric:
    return Metric(name, unit, definition, "whole process", reduction, clock=True)


def _stats(prefix: str, unit: str, what: str, mask: str, names: Iterable[str]) -> list[Metric]:
    words = {
        "mean": ("mean", "mean"),
        "std": ("standard deviation (ddof 0)", "std"),
        "min": ("smallest", "min"),
        "max": ("largest", "max"),
        "abs_mean": ("mean absolute value", "mean"),
    }
    return [Metric(f"{prefix}{n}", unit, f"{words[n][0]} of {what}", mask, words[n][1]) for n in names]


_UPDATES = "mean over the updates of the step"

_ALL: tuple[Metric, ...] = (
    # counters: the x-axes, cumulative from the start of the run
    Metric("step", "steps", "one rollout and its updates; counts from 1", "whole run", "count"),
    Metric("samples", "completions", "sampled for training: dropped, greedy and branched ones too", "whole run", "sum"),
    Metric("prompts", "prompts", "problems taken from the training stream", "whole run", "sum"),
    Metric("generated_tokens", "tokens", "tokens of all completions that samples counts", "whole run", "sum"),
    Metric("trained_tokens", "tokens", "sampled tokens that entered an update, once per epoch", "whole run", "sum"),
    Metric("updates", "updates", "optimiser steps of the policy", "whole run", "sum"),
    Metric("flops", "FLOPs", "estimated floating-point operations of rollout, scoring and update", "whole run", "sum"),
    # reward
    *_stats("reward/", "reward", "the shaped reward", _ROWS, ("mean", "std", "min", "max")),
    Metric("reward/group_std_mean", "reward", "reward spread within a group (ddof 0)", _GROUPS, "mean of stds"),
    Metric("reward/<part>/mean", "reward", "one part of the reward before its weight", _ROWS, "mean"),
    Metric("reward/greedy", "reward", "the greedy answers' shaped reward, where they are the baseline", _ROWS, "mean"),
    Metric("reward/correct", "fraction", "strict match and ended by itself", _ROWS, "mean"),
    Metric("reward/flexible", "fraction", "the last number or expression is right", _ROWS, "mean"),
    Metric("reward/format", "fraction", "carries an answer in the asked-for form, right or wrong", _ROWS, "mean"),
    # groups
    Metric("group/frac_zero_std", "fraction", "all rewards equal (max - min <= 1e-6): no signal", _GROUPS, "mean"),
    Metric("group/frac_all_correct", "fraction", "every completion correct", _GROUPS, "mean"),
    Metric("group/frac_all_wrong", "fraction", "no completion correct", _GROUPS, "mean"),
    Metric("group/effective", "groups", "in the step, kept and with unequal rewards", _GROUPS, "count"),
    Metric(
        "group/skipped",
        "groups",
        "trained on without being computed: all advantages 0, and nothing else acts on them",
        _GROUPS,
        "count",
    ),
    Metric("group/filtered", "groups", "dropped by the algorithm, of all drawn; charged", _GROUPS, "count"),
    Metric("group/frac_kept", "fraction", "kept by the algorithm, surplus ones too, of all drawn", _GROUPS, "mean"),
    Metric("group/refills", "draws", "further draws of prompts, since too few groups were kept", "step", "count"),
    # advantage
    *_stats("adv/", "advantage", "the advantage used by the loss", _TOKENS, ("mean", "std", "min", "max", "abs_mean")),
    # policy
    Metric("policy/loss", "loss", "sum of weights x token_loss, as minimised (no critic term)", _TOKENS, _UPDATES),
    Metric("policy/ratio_mean", "ratio", "pi_theta / pi_old per token", _TOKENS, _UPDATES),
    Metric("policy/ratio_max", "ratio", "largest pi_theta / pi_old", _TOKENS, "max over the updates"),
    Metric("policy/ratio_min", "ratio", "smallest pi_theta / pi_old", _TOKENS, "min over the updates"),
    Metric("policy/clip_frac", "fraction", "tokens beyond the clip on A's side", _TOKENS, _UPDATES),
    Metric("policy/clip_frac_low", "fraction", "A < 0 and ratio below 1 - clip_low", _TOKENS, _UPDATES),
    Metric("policy/clip_frac_high", "fraction", "A > 0 and ratio above 1 + clip_high", _TOKENS, _UPDATES),
    Metric("policy/approx_kl_k1", "nats/token", "KL(old, new) by k1 = log pi_old - log pi_theta", _TOKENS, _UPDATES),
    Metric("policy/approx_kl_k2", "nats/token", "KL(old, new) by k2 = (log ratio)^2 / 2", _TOKENS, _UPDATES),
    Metric("policy/approx_kl_k3", "nats/token", "KL(old, new) by k3 = ratio - 1 - log ratio", _TOKENS, _UPDATES),
    Metric("policy/kl_old", "nats/token", "what target_kl is checked against: k3 after a minibatch", _TOKENS, "last"),
    Metric("policy/kl_stopped", "0 or 1", "target_kl ended the step's updates early", "step", "last"),
    Metric(
        "rollout/entropy",
        "nats/token",
        "-mean log-prob of the sampled tokens, as the sampler drew them: entropy without bias, of every group",
        "all sampled tokens",
        "mean",
    ),
    Metric(
        "policy/entropy",
        "nats/token",
        "entropy at the sampling temperature, full vocabulary; without skipped groups",
        _TOKENS,
        _UPDATES,
    ),
    Metric("policy/grad_norm", "norm", "gradient norm of the policy before clipping", "parameters", _UPDATES),
    Metric("policy/grad_norm_max", "norm", "largest such norm", "parameters", "max over the updates"),
    Metric(
        "policy/grad_variance",
        "norm^2",
        "trace of the covariance of the step's policy gradient, over independent parts of its completions",
        "parameters",
        "every grad_noise_every steps",
    ),
    Metric(
        "policy/grad_signal",
        "norm^2",
        "squared norm of the step's policy gradient less its variance",
        "parameters",
        "every grad_noise_every steps",
    ),
    Metric(
        "policy/grad_noise",
        "ratio",
        "variance of the step's policy gradient over its squared norm; about 1: nothing but noise",
        "parameters",
        "every grad_noise_every steps",
    ),
    Metric("policy/lr", "1", "learning rate of the policy at the last update", "step", "last"),
    Metric("policy/n_updates", "updates", "optimiser steps of the policy in this step", "step", "count"),
    # KL to the reference
    Metric("kl/ref_k1_token", "nats/token", "log pi - log pi_ref, before the updates", _COMPUTED, "mean"),
    Metric("kl/ref_k2_token", "nats/token", "(log pi - log pi_ref)^2 / 2, before the updates", _COMPUTED, "mean"),
    Metric("kl/ref_k3_token", "nats/token", "exp(-k1) - 1 + k1, before the updates", _COMPUTED, "mean"),
    Metric("kl/ref_seq", "nats/completion", "k1 summed over a completion", _TOKENS, "sum per row, mean over rows"),
    Metric("kl/coef", "1", "coefficient in force (alpha); moves when adaptive", "step", "last"),
    # critic
    Metric("value/loss", "reward^2", "weighted value loss before vf_coef", _TOKENS, _UPDATES),
    Metric("value/explained_var", "fraction", "1 - Var(target - V) / Var(target), V before updates", _TOKENS, "whole"),
    Metric("value/mean", "reward", "V before the updates", _TOKENS, "mean"),
    Metric("value/first_token_mean", "reward", "V of the prompt alone (first position)", _ROWS, "mean"),
    Metric("value/return_mean", "reward", "value target", _TOKENS, "mean"),
    Metric("value/grad_norm", "norm", "gradient norm of the critic before clipping", "parameters", _UPDATES),
    Metric("value/lr", "1", "learning rate of the critic at the last update", "step", "last"),
    # completions
    Metric("completions/len_mean", "tokens", "length, the end token included", _ROWS, "mean"),
    Metric("completions/len_min", "tokens", "shortest", _ROWS, "min"),
    Metric("completions/len_max", "tokens", "longest", _ROWS, "max"),
    Metric("completions/len_correct", "tokens", "length of correct ones; null when there are none", _ROWS, "mean"),
    Metric("completions/len_wrong", "tokens", "length of the others; null when there are none", _ROWS, "mean"),
    Metric("completions/truncated_frac", "fraction", "cut at max_new_tokens", _ROWS, "mean"),
    Metric("completions/eos_frac", "fraction", "ended by the end token or a stop string", _ROWS, "mean"),
    Metric("completions/terminated_len_mean", "tokens", "length of those that ended by themselves", _ROWS, "mean"),
    Metric("completions/steps_mean", "steps", "steps that branches start from, of rows trained on", _ROWS, "mean"),
    Metric("completions/repetition", "fraction", "1 - distinct / all 4-grams of tokens", _ROWS, "mean"),
    # evaluation
    Metric("eval/<split>/<mode>/acc", "fraction", "correct: strict match and finished; the headline", _ROWS, "mean"),
    Metric("eval/<split>/<mode>/acc_strict", "fraction", "strict match, finished or not", _ROWS, "mean"),
    Metric("eval/<split>/<mode>/acc_flexible", "fraction", "last number or expression is right", _ROWS, "mean"),
    Metric("eval/<split>/<mode>/stderr", "fraction", "standard error of acc, clustered by problem", "problems", "se"),
    Metric("eval/<split>/<mode>/n", "problems", "problems evaluated", "problems", "count"),
    Metric("eval/<split>/<mode>/pass@<k>", "fraction", "unbiased 1 - C(n-c,k)/C(n,k)", "problems", "mean"),
    Metric("eval/<split>/<mode>/maj@<k>", "fraction", "majority answer of k samples is right", "problems", "mean"),
    Metric("eval/<split>/<mode>/truncated", "fraction", "cut at max_new_tokens", _ROWS, "mean"),
    Metric("eval/<split>/<mode>/len_mean", "tokens", "length, the end token included", _ROWS, "mean"),
    Metric("eval/<split>/<mode>/len_correct", "tokens", "length of correct ones; null without any", _ROWS, "mean"),
    Metric("eval/<split>/<mode>/len_wrong", "tokens", "length of the others; null without any", _ROWS, "mean"),
    # clocks: timing.jsonl only
    _clock("time/total_s", "s", "time at work on this run, interruptions left out", "cumulative"),
    _clock("time/step_s", "s", "rollout, reward, score and update of the step"),
    _clock("time/rollout_s", "s", "sampling completions"),
    _clock("time/reward_s", "s", "grading and rewarding them, as far as it was waited for"),
    _clock("time/reward_model_s", "s", "a reward model's part of time/reward_s"),
    _clock("time/score_s", "s", "old and reference log-probs and values"),
    _clock("time/update_s", "s", "forward, backward and optimiser steps"),
    _clock("time/eval_s", "s", "evaluation; not in any training budget"),
    _clock("time/ckpt_s", "s", "writing the checkpoint"),
    _clock("perf/gen_tok_s", "tokens/s", "sampled tokens over rollout seconds", "ratio"),
    _clock("perf/train_tok_s", "tokens/s", "trained tokens over update seconds", "ratio"),
    _clock("perf/samples_s", "completions/s", "completions over step seconds", "ratio"),
    _clock("mem/peak_alloc_gb", "GB (1e9 bytes)", "GPU memory allocated; on a CPU the resident set", "max so far"),
    # events, cumulative
    Metric("cost/samples", "completions", "completions sampled in this step, extra ones too", _ROWS, "count"),
    Metric("cost/gen_tokens", "tokens", "tokens sampled in this step, extra ones too", _TOKENS, "sum"),
    Metric("cost/extra_samples", "completions", "greedy baselines and branches among cost/samples", _ROWS, "count"),
    Metric("cost/extra_tokens", "tokens", "theirs among cost/gen_tokens", _TOKENS, "sum"),
    Metric("cost/train_tokens", "tokens", "sampled tokens trained on in this step, per epoch", _TOKENS, "sum"),
    Metric("health/nan_steps", "steps", "steps with a non-finite loss or gradient", "whole run", "count"),
    Metric("health/skipped_updates", "updates", "not made: loss or gradient not finite", "whole run", "count"),
    # clocks: whether a comparison meets its limit depends on the machine, and an interruption forgets cached verdicts
    _clock("health/verifier_timeouts", "comparisons", "ended by the time limit, counted wrong", "count, this attempt"),
    _clock("health/verifier_errors", "comparisons", "failed otherwise, counted wrong", "count, this attempt"),
)

GLOSSARY: dict[str, Metric] = {m.name: m for m in _ALL}
COUNTERS = ("step", "samples", "prompts", "generated_tokens", "trained_tokens", "updates", "flops")


def _pattern(name: str) -> re.Pattern[str]:
    words = {"<k>": r"[1-9]\d*"}
    parts = re.split(r"(<\w+>)", name)
    return re.compile("".join(words.get(p, r"[^/<>]+") if p.startswith("<") else re.escape(p) for p in parts))


_PATTERNS = [(_pattern(m.name), m) for m in _ALL if "<" in m.name]
_TIMING_FIELDS = frozenset({"step", "elapsed_s", "seconds", "peak_memory_bytes"})


def lookup(name: str) -> Metric:
    """The definition of ``name``; KeyError, with the nearest known name, where there is none."""
    if name in GLOSSARY and "<" not in name:
        return GLOSSARY[name]
    for pattern, metric in _PATTERNS:
        if pattern.fullmatch(name):
            return metric
    near = difflib.get_close_matches(name, GLOSSARY, n=1)
    raise KeyError(f"metric {name!r} is not in the glossary" + (f"; nearest: {near[0]!r}" if near else ""))


def check_metrics(names: Iterable[str]) -> None:
    """KeyError for an unknown name, ValueError for a clock: what ``metrics.jsonl`` may hold."""
    for name in names:
        if lookup(name).clock:
            raise ValueError(f"{name!r} depends on the machine and belongs to timing, not to metrics")


def check_timing(timing: Mapping[str, Any]) -> None:
    """KeyError or ValueError for what ``timing.jsonl`` may not hold (see :func:`timing_metrics`)."""
    for name, value in timing.items():
        if name == "seconds":
            for phase in value:
                lookup(f"time/{phase}_s")
        elif name not in _TIMING_FIELDS and not lookup(name).clock:
            raise ValueError(f"{name!r} does not depend on the machine and belongs to metrics, not to timing")


def timing_metrics(timing: Mapping[str, Any]) -> dict[str, Any]:
    """A line of ``timing.jsonl`` under the glossary's names, as trackers show it.

    ``{"elapsed_s": 9.0, "seconds": {"rollout": 2.0}, "peak_memory_bytes": 3e9}`` becomes ``time/total_s``,
    ``time/rollout_s`` and ``mem/peak_alloc_gb``; other keys pass through.
    """
    out: dict[str, Any] = {}
    for name, value in timing.items():
        if name == "seconds":
            out |= {f"time/{phase}_s": seconds for phase, seconds in value.items()}
        elif name == "elapsed_s":
            out["time/total_s"] = value
        elif name == "peak_memory_bytes":
            out["mem/peak_alloc_gb"] = value / GB
        elif name != "step":
            out[name] = value
    return out


def finite(value: Any) -> Any:
    """``value`` with every NaN and infinity, however deep, replaced by None: JSON has no word for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value


def describe(namespace: str | None = None) -> str:
    """The glossary, or one namespace of it (``reward``), as a Markdown table."""
    rows = [m for m in _ALL if namespace is None or m.name.split("/")[0] == namespace]
    lines = ["| name | unit | definition | over | reduction | file |", "|---|---|---|---|---|---|"]
    for m in rows:
        cells = (f"`{m.name}`", m.unit, m.definition, m.mask, m.reduction, "timing" if m.clock else "metrics")
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
