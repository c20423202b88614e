"""The rows that did not beat the model they began from, with what their records say about why."""

from __future__ import annotations

from collections.abc import Callable

from grpo_bench.table.arms import Arm
from grpo_bench.table.compare import Comparison
from grpo_bench.table.layout import Sheet, arm_label, general, integer, percent, points

FEW_UPDATES = 0.5  # of the median of the study's rows
NO_SIGNAL = 0.6  # share of groups whose rewards are all equal
RISE = 0.05  # of the mean reward, from the first to the last fifth of a run
FOLLOWED = 0.25  # of that rise; where correctness rises by less, it did not follow
CLIPPED = 0.5  # share of tokens beyond the clip

Finding = Callable[[Arm, float], str | None]


def shortfall_sheet(c: Comparison) -> Sheet | None:
    """Arms whose difference to the model before RL does not lie above zero with its whole interval; None if all do."""
    behind = [arm for arm in c.arms if arm.accuracy and not ahead(arm)]
    if not behind:
        return None
    updates = sorted(arm.cost["updates"] or 0.0 for arm in c.arms if arm.cost)
    median = updates[len(updates) // 2] if updates else 0.0
    header = ["", "Δ before RL [95 %]", "steps", "updates", "of the samples, extra or redrawn %"]
    header += ["groups without signal %", "beyond the clip %", "mean |A|", "KL a step moved", "what the record shows"]
    rows = []
    for arm in behind:
        dropped = unused(arm)
        row = [arm_label(arm), points(arm.to_base), integer(arm.cost.get("steps")), integer(arm.cost.get("updates"))]
        flat = None if arm.config.get("group_size") == 1 else mean(arm, "group/frac_zero_std")  # one is always flat
        row += [percent(dropped), percent(flat), percent(mean(arm, "policy/clip_frac"))]
        row += [general(mean(arm, "adv/abs_mean")), general(mean(arm, "policy/kl_old"))]
        rows.append([*row, "; ".join(findings(arm, median)) or "nothing that these figures show"])
    notes = [
        "Means over steps and seeds. KL a step moved: from the policy that sampled to the one before the step's last "
        "update, k3 per token. The last column is decided by fixed rules from the others, not by hand."
    ]
    return Sheet("shortfall", "Not better than the model before RL", header, rows, notes, wide=True)


def ahead(arm: Arm) -> bool:
    """The interval of the difference to the model before RL lies above zero."""
    estimate = arm.to_base.by.get("acc")
    return estimate is not None and estimate.interval.excludes_zero and estimate.interval.estimate > 0


def findings(arm: Arm, median_updates: float) -> list[str]:
    """What stands out in the records, in words; empty where nothing does."""
    return [
        said
        for rule in (_drop, _control, _pursued, _few, _flat, _clip, _still, _truncated)
        if (said := rule(arm, median_updates))
    ]


def mean(arm: Arm, key: str) -> float | None:
    """Over the steps of every seed; None where it was not recorded."""
    values = [float(row[key]) for run in arm.scored for row in run.metrics if isinstance(row.get(key), int | float)]
    return sum(values) / len(values) if values else None


def ends(arm: Arm, key: str) -> tuple[float, float] | None:
    """Means over the first and the last fifth of the steps of every seed; None where it was not recorded."""
    first: list[float] = []
    last: list[float] = []
    for run in arm.scored:
        values = [float(row[key]) for row in run.metrics if isinstance(row.get(key), int | float)]
        part = max(len(values) // 5, 1)
        first, last = first + values[:part], last + values[-part:]
    return (sum(first) / len(first), sum(last) / len(last)) if first else None


def unused(arm: Arm) -> float | None:
    """Share of the charged completions beyond the steps' own: extra rollouts and prompts drawn again; at least so many
    were not trained on, since what a step drops of its own (RAFT's wrong answers) is not among them."""
    extra, samples = arm.cost.get("extra_samples") or 0.0, arm.cost.get("samples")
    steps, size = arm.cost.get("steps"), arm.config.get("samples_per_step")
    if not samples or not steps or not size:
        return None
    return min(max(1 - steps * size / samples, extra / samples, 0.0), 1.0)


def _drop(arm: Arm, _: float) -> str | None:
    estimate = arm.to_base.by.get("acc")
    if estimate is not None and estimate.interval.excludes_zero and estimate.interval.estimate < 0:
        return "worse than the model it began from"
    return None


def _control(arm: Arm, _: float) -> str | None:
    parts = (arm.config.get("reward") or {}).get("parts") or {}
    return "a control: its reward knows nothing of the answer" if set(parts) == {"random"} else None


def _pursued(arm: Arm, _: float) -> str | None:
    """Over-optimisation of a reward that is not correctness itself (Gao et al. 2022, arXiv:2210.10760)."""
    reward, correct = ends(arm, "reward/mean"), ends(arm, "reward/correct")
    parts = set((arm.config.get("reward") or {}).get("parts") or {})
    if reward is None or correct is None or parts <= {"correct", "random"}:
        return None
    rise = reward[1] - reward[0]
    if rise < RISE or correct[1] - correct[0] > rise * FOLLOWED:
        return None
    return (
        f"its reward rose from {reward[0]:.2f} to {reward[1]:.2f} while the share of right answers went from "
        f"{100 * correct[0]:.0f} to {100 * correct[1]:.0f} %: the reward was pursued, not the answer"
    )


def _few(arm: Arm, median: float) -> str | None:
    updates = arm.cost.get("updates")
    if updates is None or not median or updates >= FEW_UPDATES * median:
        return None
    share = unused(arm)
    why = f", since {100 * share:.0f} % of its samples are not trained on" if share and share > 0.2 else ""
    return f"{updates:,.0f} updates where the median row makes {median:,.0f}{why}"


def _flat(arm: Arm, _: float) -> str | None:
    share = mean(arm, "group/frac_zero_std")
    if share is None or share < NO_SIGNAL or (arm.config.get("group_size") or 1) == 1:
        return None
    return f"{100 * share:.0f} % of its groups have one reward and no signal"


def _clip(arm: Arm, _: float) -> str | None:
    share = mean(arm, "policy/clip_frac")
    return f"{100 * share:.0f} % of its tokens lie beyond the clip" if share is not None and share >= CLIPPED else None


def _still(arm: Arm, _: float) -> str | None:
    coefficient = arm.config.get("kl_coef") or 0.0
    place = ((arm.config.get("algo") or {}).get("kl") or {}).get("place")
    return (
        f"held by a KL of coefficient {coefficient:g}" if place not in (None, "none") and coefficient >= 0.1 else None
    )


def _truncated(arm: Arm, _: float) -> str | None:
    share = arm.evals.get("greedy/truncated")
    return f"{100 * share:.0f} % of its test answers are truncated" if share is not None and share >= 0.2 else None
