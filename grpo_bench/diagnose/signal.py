"""Rules about the signal: whether the rewards, the groups and the critic hold anything to learn from."""

from __future__ import annotations

import math

from grpo_bench.diagnose.evidence import Evidence
from grpo_bench.diagnose.rule import Said, percent, rule


@rule(
    "random_reward", 0.0, "other parts",
    "A coin toss holds nothing about the answer; it is a control (Shao et al. 2025, arXiv:2506.10947).",
)  # fmt: skip
def random_reward(e: Evidence, limit: float) -> Said:
    if e.parts != {"random"}:
        return None
    return (
        "the reward is a coin toss, on purpose: whatever accuracy did is drift, or a side effect of the update",
        "reward=correct; as a control leave it",
    )


@rule(
    "blind_reward", 2.0, "standard errors",
    """Two standard errors between the rewards of right and of wrong completions, among those kept for reading and with
    at least 20 of each: a reward that does not tell them apart cannot teach to be right.""",
    covered_by="random_reward",
)  # fmt: skip
def blind_reward(e: Evidence, limit: float) -> Said:
    right, wrong = e.rewards
    if min(len(right), len(wrong)) < 20:
        return None
    a, b = sum(right) / len(right), sum(wrong) / len(wrong)
    se = math.sqrt(_variance(right) / len(right) + _variance(wrong) / len(wrong))
    if a - b > limit * se:
        return None
    return (
        f"the reward does not tell right from wrong: on average {a:.3g} for {len(right)} right completions and "
        f"{b:.3g} for {len(wrong)} wrong ones",
        "reward, and its parts and weights (reward.parts); compare with reward=correct",
    )


@rule(
    "reward_constant", 0.5, "of the steps",
    """B completions that are right with probability p are all wrong with probability (1 - p)^B: in half of the steps
    at p = ln 2 / B, which is less than one right completion a step.""",
    stuck=True,
)  # fmt: skip
def reward_constant(e: Evidence, limit: float) -> Said:
    spreads = [(s["reward/min"], s["reward/max"]) for s in e.steps if s.get("reward/max") is not None]
    flat = [low for low, high in spreads if high - low <= 1e-6]
    if not spreads or len(flat) / len(spreads) < limit:
        return None
    where = f"in {len(flat)} of {len(spreads)} steps every completion got the same reward"
    right = e.mean("reward/correct") or 0.0
    if right > 0.5:
        return (
            f"{where}, and {percent(right)} were right: the task is solved, there is nothing left to learn",
            "a harder task (task.filters, task.arithmetic.steps) or a weaker start (model.warmstart.steps)",
        )
    loose = e.mean("reward/flexible") or 0.0
    if loose > right + 0.01:
        return (
            f"{where}: {percent(right)} were right, though {percent(loose)} held the right answer in a form that does "
            "not count",
            "task.prompt.template and its shots, more model.warmstart.steps, or a reward for the form "
            "('reward.parts={correct:1,format:0.1}')",
        )
    reward = " (0)" if all(low == 0 for low in flat) else ""
    return (
        f"{where}{reward}, and {percent(right)} were right: this model solves too few of these "
        "problems for a difference to learn from",
        "a stronger or longer warm-started model (model, model.warmstart.steps), easier problems (task.filters), "
        "more completions (samples_per_step, group_size), task.max_new_tokens if answers are cut",
    )


@rule(
    "zero_variance", 0.8, "of the groups",
    """A group whose rewards are all equal gives no gradient. Their share is p^G + (1 - p)^G for problems that are
    solved with probability p; 0.8 is that of a 5 % solver at G = 4, and leaves a fifth of what was sampled to learn
    from (GRPO at G = 2 learned with 0.6).""",
    stuck=True, covered_by="reward_constant",
)  # fmt: skip
def zero_variance(e: Evidence, limit: float) -> Said:
    share, size = e.mean("group/frac_zero_std"), int(e.knob("group_size") or 1)
    if share is None or share <= limit or size < 2 or e.series("value/explained_var"):
        return None
    if any(s.get("group/frac_zero_std") == 1 and (s.get("adv/abs_mean") or 0) > 0 for s in e.steps):
        return None  # advantages without a difference within groups: the algorithm does not rest on it
    right, wrong = e.mean("group/frac_all_correct") or 0.0, e.mean("group/frac_all_wrong") or 0.0
    knob = "easier problems (task.filters), a longer warm start" if wrong >= right else "harder problems (task.filters)"
    return (
        f"{percent(share)} of the groups of {size} had equal rewards ({percent(wrong)} all wrong, {percent(right)} all "
        "right) and gave no gradient",
        f"group_size (now {size}) higher, {knob}, or algo=dapo, which draws until groups differ",
    )


@rule(
    "form", 0.1, "of the completions",
    """One completion in ten: then the form of the answer costs more than most differences that tables compare. Early
    gains under strict grading are mostly form (a published log: 1 % at step 9, 46 % at step 29).""",
    stuck=True, covered_by="reward_constant",
)  # fmt: skip
def form(e: Evidence, limit: float) -> Said:
    strict, loose = e.late("reward/correct"), e.late("reward/flexible")
    if strict is None or loose is None or loose - strict <= limit:
        return None
    return (
        f"at the end {percent(loose)} of the completions held the right answer and only {percent(strict)} in the form "
        "that counts",
        "task.prompt.template and its shots, model.warmstart.steps, a reward for the form "
        "('reward.parts={correct:1,format:0.1}')",
    )


@rule(
    "critic", 0.0, "explained variance",
    """Below 0 the critic predicts the returns worse than their mean does, and its baseline adds variance to the
    advantages. Every large published loss of PPO to a critic-free method traces to the critic (VC-PPO, VinePPO).""",
    stuck=True, covered_by="reward_constant",
)  # fmt: skip
def critic(e: Evidence, limit: float) -> Said:
    explained = e.late("value/explained_var")
    if explained is None or explained >= limit:
        return None
    warmup, rate = e.knob("algo.critic_warmup"), e.knob("critic_lr")
    return (
        f"the critic predicts returns worse than their mean: explained variance {explained:.2g} in the last quarter",
        f"critic_lr (now {rate}), algo.critic_warmup (now {warmup}), algo.lam (now {e.knob('algo.lam')}; 1 leaves the "
        "critic out of the target), model.critic=separate",
    )


@rule(
    "verifier", 0.01, "of the completions",
    "One in a hundred counted wrong because its check was cut short is a point of accuracy, as large as an effect.",
)  # fmt: skip
def verifier(e: Evidence, limit: float) -> Said:
    if not e.run.timing or not e.steps:
        return None
    last = e.run.timing[-1]
    timeouts, errors = (int(last.get(f"health/verifier_{what}") or 0) for what in ("timeouts", "errors"))
    samples = sum(e.series("cost/samples")) or 1.0
    if (timeouts + errors) / samples <= limit:
        return None
    return (
        f"the verifier gave up on {timeouts} comparisons and failed on {errors}, of {samples:,.0f} completions; all of "
        "them counted as wrong",
        f"task.verify_seconds (now {e.knob('task.verify_seconds')}), task.verify_workers",
    )


def _variance(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return sum((v - mean) ** 2 for v in values) / (len(values) - 1)
