"""Every algorithm's advantages once more, from its paper's equations: float64, one token after the other."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Knobs = dict[str, Any]


@dataclass(frozen=True)
class Data:
    """One step's answers: (B,T) arrays, ``lengths`` tokens of each, ``group`` answers to a prompt side by side."""

    lengths: list[int]
    group: int
    rewards: list[float]
    correct: list[bool]
    greedy: list[float]
    old: Array
    ref: Array
    values: Array
    steps: Array
    beta: float

    @property
    def rows(self) -> range:
        return range(len(self.lengths))

    def mates(self, i: int) -> list[int]:
        first = i - i % self.group
        return list(range(first, first + self.group))

    def tokens(self) -> list[tuple[int, int]]:
        return [(i, t) for i in self.rows for t in range(self.lengths[i])]

    def log_ref(self, i: int) -> float:
        """log π_old(o)/π_ref(o) of a whole answer."""
        return sum(float(self.old[i, t] - self.ref[i, t]) for t in range(self.lengths[i]))


def mean(numbers: list[float]) -> float:
    return math.fsum(numbers) / len(numbers)


def std(numbers: list[float]) -> float:
    center = mean(numbers)
    return math.sqrt(mean([(x - center) ** 2 for x in numbers]))


def flat(numbers: list[float]) -> bool:
    return max(numbers) - min(numbers) <= 1e-6


def on_tokens(d: Data, scores: list[float]) -> Array:
    """One number of each answer on all its tokens."""
    a = np.zeros_like(d.old)
    for i, t in d.tokens():
        a[i, t] = scores[i]
    return a


def whitened(d: Data, a: Array) -> Array:
    every = [float(a[i, t]) for i, t in d.tokens()]
    center, deviation = mean(every), math.sqrt(std(every) ** 2 + 1e-8)
    out = np.zeros_like(a)
    for i, t in d.tokens():
        out[i, t] = (a[i, t] - center) / deviation
    return out


def z_score(d: Data, k: Knobs) -> Array:
    """(rᵢ − mean of the group) / (std of the group + ε), 0 in a group of equal rewards."""
    scores = []
    for i in d.rows:
        group = [d.rewards[j] for j in d.mates(i)]
        scores.append(0.0 if flat(group) else (d.rewards[i] - mean(group)) / (std(group) + k["eps"]))
    return on_tokens(d, scores)


def batch_z_score(d: Data, k: Knobs) -> Array:
    scores = []
    for i in d.rows:
        group = [d.rewards[j] for j in d.mates(i)]
        scores.append(0.0 if flat(group) else (d.rewards[i] - mean(group)) / (std(d.rewards) + k["eps"]))
    return on_tokens(d, scores)


def centred(d: Data, k: Knobs) -> Array:
    return on_tokens(d, [d.rewards[i] - mean([d.rewards[j] for j in d.mates(i)]) for i in d.rows])


def over_mean(d: Data, k: Knobs) -> Array:
    scores = []
    for i in d.rows:
        center = mean([d.rewards[j] for j in d.mates(i)])
        scores.append((d.rewards[i] - center) / center if center > 0 else 0.0)
    return on_tokens(d, scores)


def left_out(d: Data, k: Knobs) -> Array:
    """Rᵢ − mean of the others, R = r − β log π_old(o)/π_ref(o)."""
    penalised = [d.rewards[i] - d.beta * d.log_ref(i) for i in d.rows]
    others = [mean([penalised[j] for j in d.mates(i) if j != i]) for i in d.rows]
    return on_tokens(d, [penalised[i] - others[i] for i in d.rows])


def length_weighted(d: Data, k: Knobs) -> Array:
    """rᵢ − Σ lⱼ rⱼ / Σ lⱼ."""
    scores = []
    for i in d.rows:
        weight = sum(d.lengths[j] for j in d.mates(i))
        scores.append(d.rewards[i] - sum(d.lengths[j] * d.rewards[j] for j in d.mates(i)) / weight)
    return on_tokens(d, scores)


def rewards_to_go(d: Data, k: Knobs) -> Array:
    """Σ_{t' ≥ t} γ^(t'−t) rₜ', rₜ = 1[last] r − β log π_old/π_ref, whitened."""
    a = np.zeros_like(d.old)
    for i, t in d.tokens():
        for later in range(t, d.lengths[i]):
            reward = (d.rewards[i] if later == d.lengths[i] - 1 else 0.0) - d.beta * (d.old[i, later] - d.ref[i, later])
            a[i, t] += k["gamma"] ** (later - t) * reward
    return whitened(d, a)


def over_greedy(d: Data, k: Knobs) -> Array:
    """r(o) − r(greedy) − what is still to come of β log π_old/π_ref."""
    a = np.zeros_like(d.old)
    for i, t in d.tokens():
        to_come = sum(float(d.old[i, s] - d.ref[i, s]) for s in range(t, d.lengths[i]))
        a[i, t] = d.rewards[i] - d.greedy[i] - d.beta * to_come
    return a


def steps_change(d: Data, k: Knobs) -> Array:
    """V(start of the next step) − V(start of this one), the reward in place of a V after the last step; whitened."""
    a = np.zeros_like(d.old)
    for i, t in d.tokens():
        own = [s for s in range(d.lengths[i]) if d.steps[i, s] == d.steps[i, t]]
        after = own[-1] + 1
        a[i, t] = (d.values[i, after] if after < d.lengths[i] else d.rewards[i]) - d.values[i, own[0]]
    return whitened(d, a)


def estimated(d: Data, gamma: float, lam: Callable[[int], float], beta: float) -> Array:
    """Σ_k (γλ)^k δ_{t+k},  δₜ = rₜ − β log π_old/π_ref + γ V_{t+1} − Vₜ, the sum written out; λ by length."""
    a = np.zeros_like(d.old)
    for i, t in d.tokens():
        last = d.lengths[i] - 1
        for s in range(t, last + 1):
            following = d.values[i, s + 1] if s < last else 0.0
            paid = beta * (d.old[i, s] - d.ref[i, s])
            delta = (d.rewards[i] if s == last else 0.0) - paid + gamma * following - d.values[i, s]
            a[i, t] += (gamma * lam(d.lengths[i])) ** (s - t) * delta
    return a


def nothing(d: Data, k: Knobs) -> Array:
    return on_tokens(d, [d.rewards[i] for i in d.rows])


def selected(d: Data, k: Knobs) -> Array:
    return on_tokens(d, [float(d.correct[i]) for i in d.rows])


def of_critic(name: str, d: Data, k: Knobs) -> tuple[Array, Array]:
    """(advantages, targets) of the algorithms with a critic; targets are those of the advantages before whitening."""
    policy: Callable[[int], float]
    if name == "ppo":
        policy = critic = lambda length: float(k["lam"])
    elif name == "vc_ppo":
        policy, critic = (lambda length: float(k["lam_policy"])), (lambda length: float(k["lam_critic"]))
    else:
        policy, critic = (
            (lambda length: max(0.0, 1 - 1 / (k["alpha"] * length))),
            (lambda length: float(k["lam_critic"])),
        )
    beta = d.beta if k["kl"]["place"] == "reward" else 0.0
    advantages = estimated(d, k["gamma"], policy, beta)
    targets = estimated(d, k["gamma"], critic, beta)
    for i, t in d.tokens():
        targets[i, t] += d.values[i, t]
    return (whitened(d, advantages) if k["whiten"] else advantages), targets


CREDIT: dict[str, Callable[[Data, Knobs], Array]] = {
    "grpo": z_score, "dapo": z_score, "gspo": z_score, "cispo": z_score, "gmpo": z_score, "sapo": z_score,
    "dr_grpo": centred, "lite_ppo": batch_z_score, "maxrl": over_mean, "rloo": left_out, "rloo_sequence": left_out,
    "opo": length_weighted, "reinforce": nothing, "reinforce_pp": rewards_to_go, "remax": over_greedy,
    "reinforce_pp_baseline": lambda d, k: whitened(d, centred(d, k)), "vineppo": steps_change, "raft": selected,
}  # fmt: skip
