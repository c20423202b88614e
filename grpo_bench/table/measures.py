"""What a study can be asked about a run: one number each, with its unit and how it is read from the run's record.

A fraction stays a fraction here (0.02 is two points); sheets print it in percent. A hypothesis' ``at_least`` and
``at_most`` are in these units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from grpo_bench.records import Run
from grpo_bench.stats.curves import Reached
from grpo_bench.table.arms import Arm, before_rl
from grpo_bench.table.collapse import collapsed
from grpo_bench.table.curves import DEV, Target, common_end, reached, target, whole_end
from grpo_bench.table.readers import (
    common_area,
    cost,
    curve_area,
    drift,
    end,
    evaluated,
    final,
    first_third,
    format_gain,
    gain,
    gap,
    largest,
    last,
    mean,
    model_states,
    number,
    per,
    phase,
    squared,
    stability,
    to_target,
    trained_parameters,
    trained_seconds,
    whole,
    zero_signal,
)

FIRST = 3  # steps that a measure of a run's beginning looks at

Reader = Callable[["Reading", Run], float | None]
Kind = Literal["accuracy", "training", "cost"]


@dataclass(frozen=True, slots=True)
class Measure:
    """``better`` is the direction a reader wishes for (None: neither). ``counted``: a share of counted problems, where
    equal values in every seed are chance and no certainty. ``kind`` cost: depends on the machine or on arithmetic
    alone, not on the test. ``before``: how it reads on a model before RL, from its evaluations."""

    label: str
    unit: str
    better: Literal["higher", "lower"] | None
    read: Reader
    kind: Kind = "training"
    counted: bool = False
    before: Callable[[dict[str, Any]], float | None] | None = None
    definition: str = ""


@dataclass
class Reading:
    """Reads measures of one study's runs; what they share (the target) is worked out once. ``rows`` are those that a
    claim compares, none outside of one."""

    arms: Sequence[Arm]
    rows: Sequence[Arm] = ()
    _values: dict[tuple[str, str], float | None] = field(default_factory=dict)
    _target: list[Target | None] = field(default_factory=list)
    _common: dict[tuple[str, str], float | None] = field(default_factory=dict)
    _claims: dict[tuple[str, ...], Reading] = field(default_factory=dict)

    def of(self, rows: Sequence[Arm]) -> Reading:
        """The same for a claim about ``rows``: what they have in common is no matter of other rows. The target stays
        the study's."""
        labels = tuple(sorted({arm.label for arm in rows}))
        if labels not in self._claims:
            self._claims[labels] = Reading(self.arms, rows, _target=self._target)
        return self._claims[labels]

    @property
    def target(self) -> Target | None:
        """The dev accuracy that "to target" means in this study, see ``curves.target``."""
        if not self._target:
            self._target.append(target(self.arms))
        return self._target[0]

    def whole_end(self, run: Run, key: str, axis: str = "samples") -> float | None:
        """Where a stopped run would have ended, see ``curves.whole_end``."""
        return whole_end(self.arms, run, key, axis)

    def common_end(self, key: str, axis: str) -> float | None:
        """The furthest place that all runs of the claim's rows reach, see ``curves.common_end``."""
        if (key, axis) not in self._common:
            self._common[key, axis] = common_end(self.rows or self.arms, key, axis)
        return self._common[key, axis]

    def reached(self, run: Run, axis: str) -> Reached | None:
        """Where the run came to the study's target on ``axis``, or that it did not; None without target or curve."""
        aim = self.target
        return None if aim is None else reached(run, aim.accuracy, axis, self.whole_end(run, DEV, axis))

    def value(self, name: str, run: Run) -> float | None:
        """``MEASURES[name]`` of a run; None where its record does not say. KeyError for an unknown name."""
        key = (name, run.run_id)
        if key not in self._values:
            found = MEASURES[name].read(self, run) if run.scored else None
            self._values[key] = found if found is not None and math.isfinite(found) else None
        return self._values[key]

    def before(self, name: str, which: str, run: Run) -> float | None:
        """The same of the model that ``run`` began from: ``which`` is "base" or "pretrained"."""
        read = MEASURES[name].before
        evals = before_rl(run, which)
        return read(evals) if read is not None and evals else None


# ---------------------------------------------------------------- the measures


def _accuracy(label: str, mode: str, key: str, definition: str) -> Measure:
    return Measure(label, "fraction", "higher", final(mode, key), "accuracy", True, evaluated(mode, key), definition)


def _at_k(kind: str, k: int) -> Measure:
    words = {"pass": "any of k sampled answers is right, unbiased", "maj": "the majority of k sampled answers is right"}
    return _accuracy(f"{kind}@{k}", "sampled", f"{kind}@{k}", words[kind])


def _zero(_: dict[str, Any]) -> float:
    return 0.0  # a gain over itself


MEASURES: dict[str, Measure] = {
    # what was learnt: the final test
    "accuracy": _accuracy("accuracy", "greedy", "acc", "strict match of an answer that ended by itself, greedy"),
    "strict": _accuracy("strict accuracy", "greedy", "acc_strict", "strict match, ended or not, greedy"),
    "flexible": _accuracy("flexible accuracy", "greedy", "acc_flexible", "the last number or expression, greedy"),
    "sampled_accuracy": _accuracy("sampled accuracy", "sampled", "acc", "as accuracy, of sampled answers"),
    **{f"pass@{k}": _at_k("pass", k) for k in (1, 2, 4, 8, 16, 32, 64)},
    **{f"maj@{k}": _at_k("maj", k) for k in (1, 2, 4, 8, 16, 32, 64)},
    "gain": Measure("gain in accuracy", "fraction", "higher", gain("acc"), "accuracy", True, _zero,
                    "accuracy minus that of the warm-started model"),
    "gain_strict": Measure("gain in strict accuracy", "fraction", "higher", gain("acc_strict"), "accuracy", True,
                           _zero, "strict accuracy minus that of the warm-started model"),
    "gain_flexible": Measure("gain in flexible accuracy", "fraction", "higher", gain("acc_flexible"), "accuracy", True,
                             _zero, "flexible accuracy minus that of the warm-started model"),
    "gain_format": Measure("gain in format alone", "fraction", None, format_gain, "accuracy", True, _zero,
                           "gain in strict minus gain in flexible accuracy"),
    "length": Measure("length", "tokens", None, final("greedy", "len_mean"), "accuracy", False,
                      evaluated("greedy", "len_mean"), "mean length of greedy test answers"),
    "length_gap": Measure("wrong minus right answers' length", "tokens", "lower", lambda _, run: gap(run.final),
                          "accuracy", False, gap, "mean length of wrong minus that of right greedy test answers"),
    "truncation": Measure("truncated answers", "fraction", "lower", final("greedy", "truncated"), "accuracy", True,
                          evaluated("greedy", "truncated"), "greedy test answers cut at max_new_tokens"),
    # how it was learnt: curves on dev and on training samples
    "learning_curve_area": Measure("area under the learning curve", "fraction", "higher",
                                   curve_area(DEV), "training", True, None,
                                   "mean dev accuracy over the run (trapezoids), a stopped one held at its last"),
    "learning_curve_area_tokens": Measure("area under the learning curve by tokens", "fraction", "higher",
                                          common_area(DEV, "generated_tokens"), "training", True, None,
                                          "mean dev accuracy over the generated tokens that every run of the rows "
                                          "compared has, those of the shortest one (trapezoids)"),
    "reward_area": Measure("area under the training curve", "fraction", "higher",
                           curve_area("reward/correct"), "training", False, None,
                           "mean share of right training samples over the run (trapezoids)"),
    "samples_to_target": Measure("samples to the target", "completions", "lower", to_target("samples"),
                                 definition="training samples until dev accuracy first reaches the study's target"),
    "tokens_to_target": Measure("tokens to the target", "tokens", "lower", to_target("generated_tokens"),
                                definition="generated tokens until then"),
    "updates_to_target": Measure("updates to the target", "updates", "lower", to_target("updates"),
                                 definition="updates until then"),
    "seconds_to_target": Measure("seconds to the target", "s", "lower", to_target("seconds"), "cost",
                                 definition="seconds of training until then, evaluations left out"),
    "gain_first_third": Measure("gain made in the first third", "fraction", None, first_third, "training", False, _zero,
                                "share of the dev gain that is there after a third of the samples; of the model "
                                "before RL none"),
    # how far the policy moved
    "kl_final": Measure("KL to the reference, end", "nats/token", None, stability("kl_final"),
                        definition="k3 per token at the last step"),
    "kl_end": Measure("KL to the reference, last fifth", "nats/token", None, end("kl/ref_k3_token"),
                      definition="k3 per token, mean over the last fifth of the steps"),
    "kl_max": Measure("KL to the reference, largest", "nats/token", None, largest("kl/ref_k3_token"),
                      definition="largest k3 per token of any step"),
    "policy_kl": Measure("KL of a step's updates", "nats/token", None, mean("policy/approx_kl_k3"),
                         definition="k3 from the policy that sampled, mean over updates and steps"),
    "policy_kl_max": Measure("KL of a step's updates, largest", "nats/token", "lower", largest("policy/kl_old"),
                             definition="largest k3 from the policy that sampled, before a step's last update"),
    "entropy_final": Measure("entropy, end", "nats/token", None, stability("entropy_final"),
                             definition="entropy of the policy at the last step"),
    "entropy_end": Measure("entropy, last fifth", "nats/token", None, end("rollout/entropy"),
                           definition="entropy of the policy, mean over the last fifth of the steps"),
    "entropy_mean": Measure("entropy, mean", "nats/token", None, mean("rollout/entropy"),
                            definition="entropy of the policy, mean over steps"),
    "clip_fraction": Measure("tokens beyond the clip", "fraction", None, mean("policy/clip_frac"),
                             definition="mean over updates and steps"),
    "ratio_max": Measure("largest ratio", "ratio", None, largest("policy/ratio_max"),
                         definition="largest π/π_old of the run"),
    "length_drift": Measure("drift of the length", "tokens", None, drift,
                            definition="training samples: mean length in the last fifth of the steps minus the first"),
    "length_training": Measure("length while training", "tokens", None, mean("completions/len_mean"),
                               definition="mean length of training samples"),
    "truncation_training": Measure("truncated while training", "fraction", "lower",
                                   mean("completions/truncated_frac"), definition="mean over steps"),
    # what there was to learn from
    "zero_signal": Measure("groups without signal", "fraction", "lower", zero_signal,
                           definition="groups whose rewards are all equal, mean over steps"),
    "advantage_sd": Measure("sd of the advantage", "advantage", None, mean("adv/std"), definition="mean over steps"),
    "advantage_variance": Measure("variance of the advantage", "advantage²", None, squared(mean("adv/std")),
                                  definition="of the mean sd over steps"),
    "explained_variance": Measure("critic's explained variance", "fraction", "higher", mean("value/explained_var"),
                                  definition="mean over steps"),
    "explained_variance_first": Measure("critic's explained variance at first", "fraction", "higher",
                                        mean("value/explained_var", FIRST),
                                        definition=f"mean over the first {FIRST} steps"),
    "explained_variance_last": Measure("critic's explained variance at the end", "fraction", "higher",
                                       last("value/explained_var"), definition="at the last step"),
    "value_loss": Measure("value loss", "reward²", "lower", mean("value/loss"), definition="mean over steps"),
    # steadiness
    "gradient_norm": Measure("gradient norm", "norm", "lower", mean("policy/grad_norm"),
                             definition="of the policy before clipping, mean over updates and steps"),
    "gradient_variance": Measure("variance of the gradient", "norm²", "lower", mean("policy/grad_variance"),
                                 definition="trace of the covariance of a step's gradient, mean over steps"),
    "gradient_signal": Measure("signal of the gradient", "norm²", None, mean("policy/grad_signal"),
                               definition="squared norm of a step's gradient less its variance, mean over steps"),
    "gradient_noise": Measure("noise of the gradient", "ratio", "lower", mean("policy/grad_noise"),
                              definition="variance of a step's gradient over its squared norm, mean over steps"),
    "gradient_norm_max": Measure("largest gradient norm", "norm", "lower", stability("grad_norm_max")),
    "reward_sd_last": Measure("reward sd over the last steps", "reward", "lower", stability("reward_std_last"),
                              definition="sd of the mean reward of the last ten steps; less with more samples a step"),
    "diverged": Measure("non-finite", "0 or 1", "lower", lambda _, run: float(run.status == "diverged"), "training",
                        True, definition="stopped since its losses were not finite"),
    "collapsed": Measure("collapsed", "0 or 1", "lower", lambda _, run: number(collapsed(run)), "training", True,
                         definition="accuracy on dev ended beyond its noise below its best"),
    # what it cost
    "seconds_per_step": Measure("seconds a step", "s", "lower", per(trained_seconds, "steps"), "cost"),
    "seconds_per_update": Measure("seconds an update", "s", "lower", per(trained_seconds, "updates"), "cost"),
    "seconds_per_sample": Measure("seconds a sample", "s", "lower", per(trained_seconds, "samples"), "cost"),
    "seconds_training": Measure("seconds of training", "s", "lower", whole(trained_seconds), "cost",
                                definition="rollout, reward, score and update; evaluation left out"),
    "seconds_rollout": Measure("seconds of rollout", "s", "lower", whole(phase("rollout")), "cost"),
    "seconds_score": Measure("seconds of scoring", "s", "lower", whole(phase("score")), "cost"),
    "seconds_update": Measure("seconds of updates", "s", "lower", whole(phase("update")), "cost"),
    "peak_memory": Measure("peak memory", "bytes", "lower", whole(cost("peak_memory_bytes")), "cost"),
    "model_states": Measure("model states", "bytes", "lower", whole(model_states), "cost",
                            definition="weights, gradients, AdamW's moments and a sampler's copy, by counting tensors"),
    "parameters": Measure("trained parameters", "parameters", "lower", trained_parameters, "cost",
                          definition="of the policy and the critic"),
    "flops": Measure("FLOPs", "FLOPs", "lower", whole(cost("flops")), "cost"),
    "flops_per_sample": Measure("FLOPs a sample", "FLOPs", "lower", per(cost("flops"), "samples"), "cost"),
    "samples": Measure("samples", "completions", None, whole(cost("samples")), "cost"),
    "prompts": Measure("prompts", "prompts", None, whole(cost("prompts")), "cost"),
    "generated_tokens": Measure("generated tokens", "tokens", None, whole(cost("generated_tokens")), "cost"),
    "updates": Measure("updates", "updates", None, whole(cost("updates")), "cost"),
}  # fmt: skip
