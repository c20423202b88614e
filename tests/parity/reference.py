"""Every algorithm once more, from its paper's equations: float64 NumPy, one token after the other, no code of ours.

Numbers (clip, λ, …) are the YAML's; what is multiplied, averaged and subtracted is written out here. Gradients are
central differences of the loss. Advantages are computed once, as in a rollout; what a paper holds fixed in its gradient
(sg) is computed from ``frozen``, the log-probs at which the gradient is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from algo_data import Networks
from peers import Answer, Missing
from reference_advantages import CREDIT, Array, Data, Knobs, mean, of_critic, on_tokens

from grpo_bench.algos import Algorithm
from grpo_bench.types import Batch

NAME = "NumPy reference"
DIALECT = "paper"


H = 1e-6  # of central differences: their error is h² and 1e-16/h, far below what is compared


def version() -> str:
    return np.__version__


# What is maximised: of each token, (B,T), or of each answer, (B,).


def clipped(ratio: float, a: float, k: Knobs) -> float:
    bounded = min(ratio * a, min(max(ratio, 1 - k["clip_low"]), 1 + k["clip_high"]) * a)
    if a < 0 and k.get("dual_clip"):
        return float(max(bounded, k["dual_clip"] * a))
    return float(bounded)


def token_clip(d: Data, k: Knobs, a: Array, logp: Array, frozen: Array) -> Array:
    out = np.zeros_like(a)
    for i, t in d.tokens():
        out[i, t] = clipped(math.exp(logp[i, t] - d.old[i, t]), a[i, t], k)
    return out


def answer_clip(d: Data, k: Knobs, a: Array, logp: Array, frozen: Array) -> Array:
    """Of the whole answer's ratio; for gspo its |o|-th root."""
    out = np.zeros(len(d.lengths))
    for i in d.rows:
        change = sum(float(logp[i, t] - d.old[i, t]) for t in range(d.lengths[i]))
        root = d.lengths[i] if k["name"] == "gspo" else 1
        out[i] = clipped(math.exp(change / root), a[i, 0], k)
    return out


def geometric_mean(d: Data, k: Knobs, a: Array, logp: Array, frozen: Array) -> Array:
    """{ Π min[ρ^sgn, clip(ρ, e^−ε, e^ε)^sgn]^sgn }^(1/|o|) Ã, as a product."""
    out = np.zeros(len(d.lengths))
    for i in d.rows:
        sign = float(np.sign(a[i, 0]))
        product = 1.0
        for t in range(d.lengths[i]):
            ratio = math.exp(logp[i, t] - d.old[i, t])
            bounded = min(max(ratio, math.exp(-k["clip_low"])), math.exp(k["clip_high"]))
            product *= min(ratio**sign, bounded**sign) ** sign
        out[i] = product ** (1 / d.lengths[i]) * a[i, 0]
    return out


def clipped_weight(d: Data, k: Knobs, a: Array, logp: Array, frozen: Array) -> Array:
    out = np.zeros_like(a)
    for i, t in d.tokens():
        weight = min(math.exp(frozen[i, t] - d.old[i, t]), 1 + k["clip_high"])  # no lower bound
        out[i, t] = weight * a[i, t] * logp[i, t]
    return out


def soft_gate(d: Data, k: Knobs, a: Array, logp: Array, frozen: Array) -> Array:
    out = np.zeros_like(a)
    for i, t in d.tokens():
        tau = k["tau_pos"] if a[i, t] > 0 else k["tau_neg"]
        out[i, t] = 4 / tau / (1 + math.exp(-tau * (math.exp(logp[i, t] - d.old[i, t]) - 1))) * a[i, t]
    return out


def log_prob(d: Data, k: Knobs, a: Array, logp: Array, frozen: Array) -> Array:
    return a * logp


def with_positives(d: Data, k: Knobs, a: Array, logp: Array, frozen: Array) -> Array:
    """The positive examples are a mean over their own tokens; here over all, so each counts all/own times."""
    out = token_clip(d, k, a, logp, frozen)
    own = sum(d.lengths[i] for i in d.rows if d.correct[i])
    for i, t in d.tokens():
        if d.correct[i]:
            out[i, t] += k["mu"] * logp[i, t] * sum(d.lengths) / own
    return out


OBJECTIVE: dict[str, Callable[[Data, Knobs, Array, Array, Array], Array]] = {
    "gspo": answer_clip, "rloo_sequence": answer_clip, "gmpo": geometric_mean, "cispo": clipped_weight,
    "sapo": soft_gate, "reinforce": log_prob, "remax": log_prob, "opo": log_prob, "raft": log_prob,
    "vapo": with_positives,
}  # fmt: skip  # the others: token_clip

# How tokens become one number.
TOKENS = (
    "dapo",
    "cispo",
    "lite_ppo",
    "vc_ppo",
    "vapo",
    "rloo",
    "vineppo",
    "raft",
)
CONSTANT = ("dr_grpo", "maxrl", "reinforce", "remax", "opo")  # summed over tokens, over a constant, mean over answers

PENALTY = {"grpo": "k3", "ppo": "k3", "vineppo": "k3", "reinforce_pp_baseline": "k2"}  # KL to π_ref in the loss


def in_loss(name: str, d: Data, i: int) -> bool:
    """Whether an answer is in the loss at all: what was dropped counts nowhere but in a mean over answers."""
    if name == "dapo":
        return 0 < sum(d.correct[j] for j in d.mates(i)) < d.group
    return d.correct[i] if name == "raft" else True


def loss_of(name: str, d: Data, k: Knobs, a: Array, logp: Array, frozen: Array) -> float:
    formula = OBJECTIVE.get(name, token_clip)
    if name == "grpo" and k["surrogate"] == "logprob":  # the article's second form
        formula = log_prob
    elif name == "grpo" and k["ratio"] == "sequence":  # the article's first
        formula = answer_clip
    objective = formula(d, k, a, logp, frozen)
    if objective.ndim == 1:  # spread over its answer, for the KL below, which is of tokens
        objective = on_tokens(d, [float(x) for x in objective])
    estimator = PENALTY.get(name) if k["kl"]["place"] == "loss" else None
    for i, t in d.tokens():
        change = float((d.ref if k["kl"]["to"] == "reference" else d.old)[i, t] - logp[i, t])  # log π_ref/π
        if estimator == "k3":
            objective[i, t] -= d.beta * (math.exp(change) - change - 1)
        elif estimator == "k2":
            objective[i, t] -= d.beta * 0.5 * change**2
    answers = [[float(objective[i, t]) for t in range(d.lengths[i])] for i in d.rows if in_loss(name, d, i)]
    if name in TOKENS:
        every = [x for answer in answers for x in answer]
        return -mean(every) if every else 0.0
    if name in CONSTANT:
        return -math.fsum(math.fsum(answer) for answer in answers) / k["length"] / len(d.lengths)
    return -mean([mean(answer) for answer in answers])


def value_loss(name: str, d: Data, k: Knobs, values: Array, targets: Array) -> float:
    """mean (V − V_target)², averaged as the policy's loss is."""

    def error(i: int, t: int) -> float:
        plain = float((values[i, t] - targets[i, t]) ** 2)
        if k["value_clip"] is None:
            return plain
        near = min(max(values[i, t], d.values[i, t] - k["value_clip"]), d.values[i, t] + k["value_clip"])
        return max(plain, float((near - targets[i, t]) ** 2))

    errors = [[error(i, t) for t in range(d.lengths[i])] for i in d.rows]
    if name in TOKENS:
        return mean([x for answer in errors for x in answer])
    return mean([mean(answer) for answer in errors])


def slopes(function: Callable[[Array], float], at: Array, d: Data) -> Array:
    out = np.zeros_like(at)
    for i, t in d.tokens():
        ahead, behind = at.copy(), at.copy()
        ahead[i, t] += H
        behind[i, t] -= H
        out[i, t] = (function(ahead) - function(behind)) / (2 * H)
    return out


def update(algo: Algorithm, batch: Batch, networks: Networks) -> Answer:
    assert batch.old_logp is not None
    assert batch.ref_logp is not None
    assert batch.values is not None
    assert batch.baseline_rewards is not None
    assert batch.step_ids is not None
    name, k = algo.name, algo.model_dump()
    if name not in CREDIT and not algo.needs_critic:
        raise Missing("no reference is written for it")
    d = Data(
        lengths=[int(n) for n in batch.mask.sum(1)],
        group=batch.group_size,
        rewards=batch.rewards.tolist(),
        correct=batch.correct.tolist(),
        greedy=batch.baseline_rewards.tolist(),
        old=batch.old_logp.double().numpy(),
        ref=batch.ref_logp.double().numpy(),
        values=batch.values.double().numpy(),
        steps=batch.step_ids.numpy(),
        beta=batch.kl_coef,
    )
    logp = networks.logp.detach().double().numpy()
    values = networks.values.detach().double().numpy()
    value_slopes = None
    if algo.needs_critic:
        a, targets = of_critic(name, d, k)
    else:
        a = CREDIT[name](d, k)
    for i, t in d.tokens():
        if not in_loss(name, d, i):
            a[i, t] = 0.0
    total = loss_of(name, d, k, a, logp, logp)
    policy_slopes = slopes(lambda x: loss_of(name, d, k, a, x, logp), logp, d)
    if algo.needs_critic:
        total += k["vf_coef"] * value_loss(name, d, k, values, targets)
        found = slopes(lambda x: k["vf_coef"] * value_loss(name, d, k, x, targets), values, d)
        value_slopes = torch.from_numpy(found)
    return Answer(torch.from_numpy(a), total, torch.from_numpy(policy_slopes), value_slopes)
