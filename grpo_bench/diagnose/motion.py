"""Rules about the update: whether it moved the policy at all, too far, or into numbers that are none."""

from __future__ import annotations

from statistics import median_low

from grpo_bench.diagnose.evidence import Evidence
from grpo_bench.diagnose.rule import Said, percent, rule


@rule("non_finite", 0.0, "steps", "A loss or gradient that is not finite skips its update; healthy runs have none.")
def non_finite(e: Evidence, limit: float) -> Said:
    stability = (e.run.result or {}).get("stability") or {}
    counted = e.steps[-1].get("health/nan_steps") if e.steps else None
    steps = int(max(counted or 0, stability.get("nan_steps") or 0))
    if steps <= limit:
        return None
    ended = "; the run was stopped as diverged" if e.run.status == "diverged" else ""
    return (
        f"loss or gradient was not finite in {steps} of {e.last_step} steps, whose updates were skipped{ended}",
        f"lr (now {e.knob('lr')}) lower, optim.grad_clip (now {e.knob('optim.grad_clip')}), optim.warmup_updates, "
        "model.dtype=float32, algo.log_clamp",
    )


@rule(
    "gradient_spike", 10.0, "times the median norm",
    """Spikes of the gradient norm announce a collapse. In the 99 runs of the committed study of all algorithms the
    largest norm stays below 8 times the median; a norm that the clip would let through does no harm.""",
)  # fmt: skip
def gradient_spike(e: Evidence, limit: float) -> Said:
    norms = [n for n in e.series("policy/grad_norm") if n > 0]
    if not norms:
        return None
    largest = max(e.series("policy/grad_norm_max") or norms)
    usual, clip = median_low(norms), e.knob("optim.grad_clip")
    if largest <= limit * usual or (clip is not None and largest <= clip):
        return None
    step = next(s["step"] for s in e.steps if largest in (s.get("policy/grad_norm_max"), s.get("policy/grad_norm")))
    return (
        f"the gradient norm jumped to {largest:.3g} at step {step}, {largest / usual:,.0f} times its median of "
        f"{usual:.3g}",
        f"optim.grad_clip (now {clip}), lr (now {e.knob('lr')}) lower, optim.warmup_updates, fewer epochs, "
        "algo.kl.clamp_out where the k3 estimate of the KL explodes",
    )


@rule(
    "kl_jump", 0.05, "nats a token",
    """Five times the trust region of the article (KL(new, old) <= 0.01). In the committed study of all algorithms no
    step exceeds 0.003; a 435-step published run ends 0.2 away from its reference in all.""",
)  # fmt: skip
def kl_jump(e: Evidence, limit: float) -> Said:
    worst, step, what = 0.0, 0, ""
    before: float | None = None
    for line in e.steps:
        for name in ("policy/kl_old", "policy/approx_kl_k3"):
            if (line.get(name) or 0) > worst:
                worst, step, what = line[name], line["step"], "from the policy that sampled"
        reference = line.get("kl/ref_k3_token")
        if reference is not None and before is not None and reference - before > worst:
            worst, step, what = reference - before, line["step"], "further from the reference"
        before = reference if reference is not None else before
    if worst <= limit:
        return None
    return (
        f"the policy jumped at step {step}: {worst:.2g} nats a token {what} in one step",
        f"lr (now {e.knob('lr')}) lower, fewer epochs and minibatches (now {e.updates_per_step} updates a step), "
        "target_kl=0.01, kl_coef higher",
    )


@rule(
    "hardly_moved", 0.05, "of the greedy answers",
    """Accuracy cannot rise by more than the share of answers that changed: with at most 5 % of them changed, not by
    more than 5 points.""",
    stuck=True, covered_by="no_updates below_start",
)  # fmt: skip
def hardly_moved(e: Evidence, limit: float) -> Said:
    same = e.unchanged
    if same is None or 1 - same > limit:
        return None
    rates = e.series("policy/lr")
    updates = int(e.steps[-1].get("updates", 0)) if e.steps else 0
    top = f" at a learning rate of up to {max(rates):.2g}" if rates else ""
    held = f", kl_coef (now {e.knob('kl_coef')}) lower" if e.knob("kl_coef") else ""
    return (
        f"the policy hardly moved: after {updates} updates{top} {percent(same)} of the greedy answers are word for "
        "word those from before",
        f"lr (now {e.knob('lr')}) higher, budget.amount, more updates a step (epochs, minibatches){held}",
    )


@rule(
    "inert_clip", 0.0, "of the tokens",
    """With one update per rollout every ratio is 1 and the clip can do nothing; with more, a clip that never acts says
    that the policy hardly moves within a step. Asked of runs that did not learn, and where the study varies the clip:
    its comparison is empty then.""",
    covered_by="reward_constant no_updates",
)  # fmt: skip
def inert_clip(e: Evidence, limit: float) -> Said:
    low, high = e.knob("algo.clip_low"), e.knob("algo.clip_high")
    acted = e.series("policy/clip_frac")
    if (low is None and high is None) or not acted or max(acted) > limit:
        return None
    if e.learned and "clip" not in e.run.row:
        return None
    if e.updates_per_step == 1:
        return (
            "the clip never acted: with one update per rollout every ratio is 1",
            "epochs or minibatches above 1 (each step then makes epochs x minibatches updates)",
        )
    ratios = e.series("policy/ratio_max")
    largest = f"; the largest ratio was {max(ratios):.3g}" if ratios else ""
    bounds = f"[{1 - low:g}, {1 + high:g}]" if low is not None and high is not None else "its bounds"
    return (
        f"the clip never acted: no ratio left {bounds} on the side that counts{largest}",
        f"lr (now {e.knob('lr')}) or epochs (now {e.knob('epochs')}) higher, or algo.clip_low and algo.clip_high lower",
    )
