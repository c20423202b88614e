"""The run's equations with its numbers in them, and what is trained per step."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from grpo_bench.config_checks import total_steps, updates_per_step
from grpo_bench.explain.cells import clip, extra

if TYPE_CHECKING:
    from grpo_bench.algos import Algorithm
    from grpo_bench.config import Config

Lines = list[tuple[str, str]]  # label and text

ESTIMATORS = {
    "k1": "log({p}/{q})",
    "k2": "½ (log({p}/{q}))²",
    "k3": "{q}/{p} − log({q}/{p}) − 1",
}


def docstring(found: type[Algorithm]) -> tuple[list[str], list[str]]:
    """(the equation and what stands with it, the departures): a departure goes from "Differs:" to a line's final dot.

    Both are empty for a class without a docstring of its own.
    """
    equation: list[str] = []
    departures: list[str] = []
    inside = False
    for line in inspect.cleandoc(found.__doc__ or "").replace("``", "`").splitlines():
        if line.startswith("Differs:"):
            departures.append(line.removeprefix("Differs:").strip())
        elif inside:
            departures[-1] += " " + line.strip()
        else:
            equation.append(line)
        inside = bool(departures) and (inside or line.startswith("Differs:")) and not line.rstrip().endswith(".")
    while equation and not equation[-1].strip():
        equation.pop()
    kept = [line for line, before in zip(equation, ["", *equation], strict=False) if line.strip() or before.strip()]
    return kept, departures


def formula(cfg: Config) -> Lines:
    """What is maximised, from the reward to the average."""
    card, algo = cfg.algo.card(), cfg.algo
    size = f"group of {cfg.group_size}" if cfg.group_size > 1 else "one answer per prompt"
    lines = [
        ("reward", _reward(cfg)),
        ("baseline", f"{card.baseline}; {size}"),
        ("advantage", card.advantage),
        ("ratio", "none" if card.ratio == "none" else f"ρ = {card.ratio}"),
        ("clip", clip(algo)),
        ("maximise", _objective(cfg)),
        *_kl(cfg),
    ]
    if algo.needs_critic:
        lines.append(("critic", _critic(cfg)))
    lines += [("average", _average(cfg)), ("π_old", _old(cfg))]
    return lines


def per_step(cfg: Config) -> Lines:
    """Prompts, samples, minibatches, updates; what is sampled beside; how many steps the budget gives."""
    algo, updates = cfg.algo, updates_per_step(cfg)
    groups = cfg.prompts // cfg.minibatches
    noun = "group" if cfg.group_size > 1 else "answer"
    lines = [
        (
            "samples",
            f"{_many(cfg.prompts, 'prompt')} × {_many(cfg.group_size, 'completion')} = {_many(cfg.samples, 'sample')} "
            f"of at most {_many(cfg.task.max_new_tokens, 'token')}",
        ),
        ("minibatch", f"{_many(groups, noun)}, {_many(groups * cfg.group_size, 'sample')}"),
        (
            "updates",
            f"{_many(cfg.epochs, 'epoch')} × {_many(cfg.minibatches, 'minibatch', 'minibatches')} = "
            f"{_many(updates, 'update')} per rollout",
        ),
    ]
    if cfg.target_kl is not None:
        lines.append(
            ("stop", f"a minibatch with KL(π_old ‖ π) > {cfg.target_kl:g} (k3, token mean) ends the step's updates")
        )
    what = extra(algo)
    if algo.extra_rollouts == "greedy":
        what += f": {_many(cfg.prompts, 'completion')} a step"
    lines.append(("extra rollouts", what if what == "none" else f"{what}; charged to the budget"))
    reference = algo.needs_reference and (cfg.kl_coef > 0 or algo.kl.control == "adaptive")
    networks = ["policy", *(["critic"] if algo.needs_critic else []), *(["reference"] if reference else [])]
    lines.append(("networks", ", ".join(networks)))
    rates = f"lr = {cfg.lr:g}"
    if algo.needs_critic and cfg.critic_lr is not None:
        rates += f", critic_lr = {cfg.critic_lr:g}"
    lines.append(("rates", rates))
    steps = total_steps(cfg)
    amount = f"{cfg.budget.amount:,.0f} {cfg.budget.unit}"
    if steps is None:
        return [*lines, ("budget", f"{amount}; steps are as many as it allows")]
    each = "at most " if algo.refill_limit or algo.extra_rollouts != "none" else ""
    return [*lines, ("budget", f"{amount} = {each}{_many(steps, 'step')}, {_many(steps * updates, 'update')}")]


def _reward(cfg: Config) -> str:
    parts = [f"{weight:g}·{name}" if weight != 1 else name for name, weight in cfg.reward.parts.items()]
    scaled = {"none": "", "before": "; each part normalised in its group", "after": "; the sum normalised in its group"}
    return f"r = {' + '.join(parts).replace('+ -', '− ')}{scaled[cfg.reward.normalise]}"


def _objective(cfg: Config) -> str:
    algo = cfg.algo
    total = algo.card().objective
    if algo.kl.place == "loss" and cfg.kl_coef > 0:
        total += f" − {cfg.kl_coef:g} KL"
    if algo.entropy_coef > 0:
        total += f" + {algo.entropy_coef:g} H"
    return total


def _kl(cfg: Config) -> Lines:
    knobs = cfg.algo.kl
    if knobs.place == "none" or cfg.kl_coef == 0:
        why = "" if knobs.place == "none" else ": kl_coef is 0"
        return [("KL", f"none{why}")]
    policy = "π" if knobs.place == "loss" else "π_old"
    other = "π_ref" if knobs.to == "reference" else "π_old"
    estimate = ESTIMATORS[knobs.estimator].format(p=policy, q=other)
    if knobs.clamp_in is not None:
        estimate += f", the logarithm within ±{knobs.clamp_in:g}"
    if knobs.clamp_out is not None:
        estimate += f", the whole within ±{knobs.clamp_out:g}"
    if knobs.weighted and knobs.place == "loss":
        estimate = f"ρ ({estimate})"
    whom = "the policy before this training" if knobs.to == "reference" else "the policy that sampled"
    place = {
        "loss": "taken from the objective",
        "reward": f"{cfg.kl_coef:g} KL is taken from the rewards, before baseline and normalisation",
        "advantage": f"{cfg.kl_coef:g} KL, as far as it is still to come, is taken from the finished advantages",
    }[knobs.place]
    lines = [("KL", f"{knobs.estimator} of each token: {estimate}; {other}: {whom}; {place}")]
    if knobs.control == "adaptive":
        lines.append(
            (
                "coefficient",
                f"β ← β·(1 + clip(KL/{knobs.target:g} − 1, ±0.2)·{cfg.samples}/{knobs.horizon:g}) after each "
                f"step, from {cfg.kl_coef:g}; KL in token means of k3",
            )
        )
    return lines


def _critic(cfg: Config) -> str:
    algo = cfg.algo
    own = cfg.model.critic == "separate"
    words = "V is a network of its own, as large as the policy" if own else "V is a head on the policy's trunk"
    near = getattr(algo, "value_clip", None)
    inside = "" if near is None else f", V within ±{near:g} of V_old"
    words += f"; loss + {algo.value_weight:g} (V − V_target)²{inside}"
    if algo.frozen_steps:
        words += f"; in the first {_many(algo.frozen_steps, 'step')} it learns alone"
    return words


def _average(cfg: Config) -> str:
    algo = cfg.algo
    rows = cfg.samples // cfg.minibatches
    longest = cfg.task.max_new_tokens
    if algo.whole_answer:
        return f"Σᵢ 1/{rows} over the {rows} answers of an update, one loss each"
    tail = f"over the {rows} answers of an update, tokens t ≤ |oᵢ| ≤ {longest}"
    if cfg.mask_truncated:
        tail += ", truncated answers left out but counted"
    return {
        "sequence_mean": f"Σᵢ 1/{rows} Σₜ 1/|oᵢ| {tail}",
        "token_mean": f"Σᵢ Σₜ 1/Σⱼ|oⱼ| {tail}",
        "constant_length": f"Σᵢ Σₜ 1/({rows}·{algo.length:g}) {tail}",
    }[algo.aggregation]


def _old(cfg: Config) -> str:
    algo, updates = cfg.algo, updates_per_step(cfg)
    ratio = algo.card().ratio != "none"
    read = ratio or (cfg.kl_coef > 0 and (algo.needs_old_logp or algo.kl.to == "old") and algo.kl.place != "none")
    if not read:
        return f"the policy that sampled; it has no part in the {_many(updates, 'update')} of its rollout"
    if updates == 1:
        return "one update per rollout: π_old is π itself" + (
            ", ρ = 1 in value and only its gradient acts" if ratio else ""
        )
    first = "; ρ = 1 in the first of them" if ratio else ""
    return f"the policy that sampled, scored once before the {updates} updates of its rollout{first}"


def _many(n: int, noun: str, plural: str = "") -> str:
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"
