"""Rules about the outcome: no gain, a loss, an accuracy that was there and went, too little training to say."""

from __future__ import annotations

from typing import NamedTuple

from grpo_bench.diagnose.evidence import TESTED, Evidence
from grpo_bench.diagnose.rule import Said, percent, rule


@rule(
    "no_gain", 0.0, "points beyond the noise",
    """A gain counts when it exceeds 1.96 standard errors of the paired difference over problems; below that another
    draw of the problems would do as well.""",
    stuck=True, covered_by="below_start",
)  # fmt: skip
def no_gain(e: Evidence, limit: float) -> Said:
    if e.change is None:
        return None
    change = e.change
    if change.gain == 0:
        seen = f"accuracy stayed at {100 * change.after:.1f} % of {change.n:,} {change.of}"
    else:
        seen = f"accuracy went from {change}: no more than its noise"
    more = f", more test problems (eval.test_n, now {change.n})" if change.of == TESTED and change.n < FEW else ""
    return (
        seen,
        "what the other findings name; without any, lr (a grid of it: sweeps/learning_rate.yaml) and budget.amount"
        + more,
    )


@rule(
    "below_start", 0.0, "points beyond the noise",
    """A loss counts when it exceeds 1.96 standard errors of the paired difference over problems: RL has then unlearned
    what the model before it could do.""",
    stuck=True,
)  # fmt: skip
def below_start(e: Evidence, limit: float) -> Said:
    if e.change is None or not e.change.fell:
        return None
    was = "the warm-started model" if e.start == "base" and e.knob("model.warmstart.steps") else "the model before RL"
    return (
        f"accuracy fell below that of {was}: {e.change}",
        f"lr (now {_number(e.knob('lr'))}) lower, kl_coef (now {_number(e.knob('kl_coef'))}) higher, fewer epochs; "
        "then look at the reward",
    )


FEW = 200  # test problems: below, the standard error of an accuracy of 50 % is above 3.5 points
EVERY = 5  # steps over which the reward around the best evaluation is averaged


class _Fall(NamedTuple):
    peak_step: int
    peak: float
    last: float
    errors: float  # standard errors between the two
    reward_then: float
    reward_now: float


def _fall(e: Evidence) -> _Fall | None:
    """From the best to the last evaluation on dev, with the reward around the best and in the last quarter."""
    now = e.late("reward/mean")
    if len(e.dev) < 2 or now is None:
        return None
    step, peak, peak_se = max(e.dev, key=lambda point: point[1])
    _, last, last_se = e.dev[-1]
    se = (peak_se**2 + last_se**2) ** 0.5
    around = [s["reward/mean"] for s in e.steps if step - EVERY < s["step"] <= step and "reward/mean" in s]
    around = around or [s["reward/mean"] for s in e.steps[:1] if "reward/mean" in s]
    if peak <= last or se == 0 or not around:
        return None
    return _Fall(step, peak, last, (peak - last) / se, sum(around) / len(around), now)


_THREE = """Three standard errors of the difference between the best and the last evaluation on dev: two would be met by
chance, since the best is chosen among several evaluations."""


@rule(
    "over_optimised", 3.0, "standard errors", _THREE + " The reward rose meanwhile (Gao et al. 2022, arXiv:2210.10760)."
)
def over_optimised(e: Evidence, limit: float) -> Said:
    fall = _fall(e)
    if fall is None or fall.errors <= limit or e.parts == {"correct"} or fall.reward_now <= fall.reward_then:
        return None
    return (
        f"the reward rose from {fall.reward_then:.3g} to {fall.reward_now:.3g} while accuracy on dev fell from "
        f"{percent(fall.peak)} (step {fall.peak_step}) to {percent(fall.last)}: the policy pursues what the reward "
        "likes and not what is right",
        f"kl_coef (now {_number(e.knob('kl_coef'))}) higher, budget.amount shorter, or a reward that knows the answer: "
        "reward=correct, or 'reward.parts={model:1,correct:1}'",
    )


@rule("collapse", 3.0, "standard errors", _THREE, covered_by="over_optimised")
def collapse(e: Evidence, limit: float) -> Said:
    fall = _fall(e)
    if fall is None or fall.errors <= limit:
        return None
    return (
        f"accuracy on dev reached {percent(fall.peak)} at step {fall.peak_step} and fell back to {percent(fall.last)}",
        f"lr (now {_number(e.knob('lr'))}) lower, optim.schedule=linear, kl_coef (now {_number(e.knob('kl_coef'))}) "
        "or target_kl",
    )


@rule(
    "no_updates", 0.0, "updates",
    "Without an update of the policy nothing can be learned.", stuck=True,
)  # fmt: skip
def no_updates(e: Evidence, limit: float) -> Said:
    if not e.steps or e.steps[-1].get("updates", 1) > limit:
        return None
    warmup = e.knob("algo.critic_warmup")
    if warmup and warmup >= e.last_step:
        return (
            f"the policy was never updated: all {e.last_step} steps were the critic's warm-up",
            f"algo.critic_warmup (now {warmup}), budget.amount",
        )
    return (
        f"the policy was never updated in {e.last_step} steps: every update was skipped or had nothing to train on",
        "the reward and what the algorithm keeps (algo.*); non-finite losses are named apart",
    )


@rule(
    "short_run", 10.0, "steps",
    """Of a published PPO log on GSM8K (0.5 B parameters, 435 steps) step 9 shows 1 % and step 19 shows 18 %, step 29
    46 %: before ten steps nothing is to be seen.""",
    stuck=True, covered_by="no_updates",
)  # fmt: skip
def short_run(e: Evidence, limit: float) -> Said:
    if not e.steps or e.last_step >= limit:
        return None
    updates = int(e.steps[-1].get("updates", 0))
    warmup = e.knob("optim.warmup_updates") or 0
    rising = f", and the learning rate rises over the first {warmup} of them" if warmup else ""
    return (
        f"it was over after {e.last_step} step{'s' * (e.last_step != 1)} with {updates} updates{rising}",
        f"budget.amount (now {e.knob('budget.amount'):g} {e.knob('budget.unit')})"
        if e.knob("budget.amount")
        else "budget.amount",
    )


@rule(
    "still_rising", 2.0, "standard errors",
    """Two standard errors between the first and the last quarter's completions: it had begun to learn when it ended,
    although the final test does not show it yet.""",
    stuck=True, covered_by="below_start short_run over_optimised collapse",
)  # fmt: skip
def still_rising(e: Evidence, limit: float) -> Said:
    trained = e._trained()
    if trained is None or trained.se == 0 or trained.gain <= limit * trained.se:
        return None
    return f"the share of right completions while training was still rising: {trained}", "budget.amount higher"


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)
