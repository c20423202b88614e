"""Rules about the completions: whether they end, how long they are, whether they still vary."""

from __future__ import annotations

from grpo_bench.diagnose.evidence import Evidence
from grpo_bench.diagnose.rule import Said, percent, rule


@rule(
    "no_eos", 0.01, "of the completions",
    "One in a hundred: a model that never ends its answers gets no reward where an answer has to be finished.",
)  # fmt: skip
def no_eos(e: Evidence, limit: float) -> Said:
    ended = e.late("completions/eos_frac")
    if ended is None or ended > limit:
        return None
    return (
        f"answers do not end: {percent(ended)} of the last quarter's completions ended by themselves, the others were "
        f"cut at {e.knob('task.max_new_tokens')} tokens",
        "the end token of model and tokenizer, task.stop, task.prompt.style=chat for a chat model, "
        "model.warmstart.steps, task.max_new_tokens",
    )


@rule(
    "truncation", 0.15, "of the completions",
    "Truncation above 10 to 15 % is an early warning of an unstable run (ScaleRL); cut answers count as wrong.",
    covered_by="no_eos",
)  # fmt: skip
def truncation(e: Evidence, limit: float) -> Said:
    cut = e.late("completions/truncated_frac")
    if cut is None or cut <= limit:
        return None
    masked = "" if e.knob("mask_truncated") else ", mask_truncated=true to keep them out of the loss"
    return (
        f"{percent(cut)} of the last quarter's completions were cut at {e.knob('task.max_new_tokens')} tokens and "
        "counted as wrong",
        f"task.max_new_tokens (now {e.knob('task.max_new_tokens')}), a reward against length (reward=dapo){masked}",
    )


@rule(
    "entropy_collapse", 0.05, "of the start",
    """A published run that learned ended with 13 % of its entropy (0.53 to 0.07 nats a token); at a twentieth the
    samples of a group are all but equal. Silent where more than 90 % of the completions are right.""",
)  # fmt: skip
def entropy_collapse(e: Evidence, limit: float) -> Said:
    start, end = e.early("rollout/entropy"), e.late("rollout/entropy")
    if start is None or end is None or end > limit * start or (e.late("reward/correct") or 0) > 0.9:
        return None
    return (
        f"the policy stopped exploring: its entropy fell from {start:.2g} to {end:.2g} nats a token",
        f"lr (now {e.knob('lr')}) lower, algo.entropy_coef (now {e.knob('algo.entropy_coef')}), algo.clip_high higher "
        f"(now {e.knob('algo.clip_high')}), kl_coef (now {e.knob('kl_coef')}), rollout.temperature",
    )


@rule(
    "length_collapse", 0.5, "of the start",
    """Half: a collapse of the length goes with a collapse of accuracy (a published run with too many inner epochs),
    while runs that learned changed theirs by less (314 to 273 tokens).""",
    stuck=True,
)  # fmt: skip
def length_collapse(e: Evidence, limit: float) -> Said:
    start, end = e.early("completions/len_mean"), e.late("completions/len_mean")
    if start is None or end is None or end >= limit * start:
        return None
    return (
        f"answers shrank from {start:.0f} to {end:.0f} tokens",
        f"lr (now {e.knob('lr')}) lower, fewer epochs, kl_coef (now {e.knob('kl_coef')}), and whether the reward "
        "pays for short answers",
    )
