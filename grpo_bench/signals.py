"""What a step's tensors say, under the glossary's names: advantages, KL to the reference, values, health."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from grpo_bench import ops

if TYPE_CHECKING:
    from grpo_bench.collect import Experience
    from grpo_bench.state import Parts, State
    from grpo_bench.types import Batch


def signals(batch: Batch) -> dict[str, float]:
    """Advantages, KL to the reference and values as scored, before any update; nothing where all was dropped."""
    mask, on = batch.mask, batch.mask.bool()
    assert batch.advantages is not None
    taken = batch.advantages[on]
    if not len(taken):
        return {}
    out = {
        "adv/mean": float(taken.mean()),
        "adv/std": float(taken.std(correction=0)),
        "adv/min": float(taken.min()),
        "adv/max": float(taken.max()),
        "adv/abs_mean": float(taken.abs().mean()),
    }
    if batch.old_logp is not None and batch.ref_logp is not None:
        for name, estimate in ops.KL_ESTIMATORS.items():
            out[f"kl/ref_{name}_token"] = float(ops.masked_mean(estimate(batch.old_logp, batch.ref_logp), mask))
        out["kl/ref_seq"] = float((ops.kl_k1(batch.old_logp, batch.ref_logp) * mask).sum(1)[mask.any(1)].mean())
    if batch.values is not None:
        out["value/mean"] = float(ops.masked_mean(batch.values, mask))
        out["value/first_token_mean"] = float(batch.values[mask.any(1), 0].mean())
        if batch.returns is not None:  # a critic's targets; values from branches have none
            out["value/explained_var"] = float(ops.explained_variance(batch.values, batch.returns, mask))
            out["value/return_mean"] = float(ops.masked_mean(batch.returns, mask))
    if batch.step_ids is not None:
        out["completions/steps_mean"] = float((batch.step_ids.amax(1) + 1)[mask.any(1)].float().mean())
    if batch.baseline_rewards is not None:
        out["reward/greedy"] = float(batch.baseline_rewards[mask.any(1)].mean())
    return out


def costs(before: State, after: State) -> dict[str, int]:
    """What a step took: the difference that it made to the run's counters."""
    return {
        name: getattr(after, counter) - getattr(before, counter)
        for name, counter in {
            "cost/samples": "samples",
            "cost/gen_tokens": "generated_tokens",
            "cost/train_tokens": "trained_tokens",
            "cost/extra_samples": "extra_samples",
            "cost/extra_tokens": "extra_tokens",
        }.items()
    }


def score_flops(parts: Parts, batch: Batch, old: bool) -> float:
    """FLOPs of the scoring pass: one forward per network that took part."""
    assert batch.prompt_lengths is not None
    scored = batch.mask.any(1)
    completions = batch.mask.sum(1)[scored]
    lengths, tokens = completions.long().tolist(), int(completions.sum())
    prompts = batch.prompt_lengths[scored].tolist()
    groups = batch.group_ids[scored].tolist() if parts.models.policy.takes_plans else range(len(prompts))
    headed = int(old) + int(parts.models.has_reference)
    critic = parts.models.critic
    headless = int(critic is not None and (critic.trunk is not None or not old))
    return sum(parts.size.shared(prompts, groups, lengths, n) for n in [tokens] * headed + [0] * headless)


def health(state: State, metrics: dict[str, Any], updated: dict[str, float]) -> None:
    """Count what is not finite, and remember what the stability columns of a table show."""
    skipped = int(updated["health/skipped_updates"])
    state.skipped_updates += skipped
    state.nan_steps += bool(skipped)
    state.nan_in_a_row = state.nan_in_a_row + 1 if skipped else 0
    state.grad_norm_max = max(state.grad_norm_max, updated.get("policy/grad_norm_max", 0.0) if not skipped else 0.0)
    state.recent_rewards = [*state.recent_rewards[-9:], metrics["reward/mean"]]
    for key in ("kl/ref_k3_token", "rollout/entropy"):
        if key in metrics:
            state.last[key] = metrics[key]
    metrics["health/skipped_updates"] = state.skipped_updates
    metrics["health/nan_steps"] = state.nan_steps


def throughput(metrics: dict[str, Any], seconds: dict[str, float]) -> dict[str, float]:
    """Rates of a step, by the clock: perf/ and time/step_s; phases that took no measurable time give no rate."""
    work = sum(s for name, s in seconds.items() if name not in ("eval", "ckpt"))
    rates = {
        "perf/gen_tok_s": (metrics["cost/gen_tokens"], seconds.get("rollout", 0.0)),
        "perf/train_tok_s": (metrics["cost/train_tokens"], seconds.get("update", 0.0)),
        "perf/samples_s": (metrics["cost/samples"], work),
    }
    return {"time/step_s": work, **{name: amount / s for name, (amount, s) in rates.items() if s > 0}}


def shown(experience: Experience, batch: Batch, step: int, count: int) -> list[dict[str, Any]]:
    """The first ``count`` completions of a step, for people to read: rows of ``samples.jsonl``."""
    assert batch.advantages is not None
    first = batch.advantages[:, 0].tolist()
    rollouts = experience.rollouts
    return [
        {
            "step": step,
            "row": i,
            "id": experience.rows[i].id,
            "response": rollouts.texts[i],
            "extracted": experience.grades[i].extracted,
            "correct": bool(batch.correct[i]),
            "finished": rollouts.finished[i],
            "length": len(rollouts.completion_ids[i]),
            "reward": float(batch.rewards[i]),
            **{f"reward/{name}": values[i] for name, values in experience.parts.items()},
            "advantage": first[i],
        }
        for i in range(min(count, len(rollouts.texts)))
    ]
