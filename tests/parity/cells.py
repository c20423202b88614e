"""What is compared with what: algorithm × system, in the dialect that says it computes the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import peer_openrlhf
import peer_trl
import peer_verl
import reference
from algo_data import Networks
from peers import BATCHES, Difference, Missing, difference, make, ours

from grpo_bench.algos import ALGORITHMS
from grpo_bench.algos.dialects import dialects_of

SYSTEMS: dict[str, Any] = {system.NAME: system for system in (reference, peer_trl, peer_verl, peer_openrlhf)}
TOLERANCE = 1e-6

# Settings beside an algorithm's YAML: the article's forms, what a dialect or a batch of short answers leaves idle.
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "grpo": [{"ratio": "sequence"}, {"surrogate": "logprob"}, {"kl__to": "old"}, {"dual_clip": 3.0}],
    "ppo": [{"kl__place": "reward", "kl__estimator": "k1"}, {"dual_clip": 3.0}, {"value_clip": 0.2}, {"lam": 1.0}],
    "vc_ppo": [{"lam_policy": 0.5}],
    "vapo": [{"alpha": 0.5}],  # at 0.05 λ is 0 for the few tokens here
}
WITH_KL = {"kl__place": "loss"}  # where an algorithm has none, its system may still be asked for one


@dataclass(frozen=True)
class Cell:
    """One algorithm in one system: the largest differences over all batches, or why there are none."""

    algorithm: str
    system: str
    knobs: dict[str, Any] = field(default_factory=dict)
    found: Difference | None = None
    reason: str = ""
    partial: str = ""  # what is left out of the comparison, and why


def cells(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(algorithm, knobs) that a system is asked for."""
    for algorithm in ALGORITHMS:
        yield algorithm, {}
        if name == reference.NAME:
            yield from ((algorithm, knobs) for knobs in SETTINGS.get(algorithm, []))
        elif make(algorithm).kl.place == "none" and not places_kl(algorithm, SYSTEMS[name].DIALECT):
            yield algorithm, WITH_KL


def label(value: str | dict[str, Any]) -> str:
    """A cell's part in the name of a test."""
    return value if isinstance(value, str) else "+".join(f"{k}={v}" for k, v in value.items()) or "yaml"


def places_kl(algorithm: str, dialect: str) -> bool:
    """Whether the dialect says where its KL is."""
    return "place" in dialects_of(ALGORITHMS[algorithm], algorithm).get(dialect, {}).get("kl", {})


def compare(name: str, algorithm: str, knobs: dict[str, Any]) -> Cell:
    """Our algorithm in a system's dialect against that system, on every batch."""
    system = SYSTEMS[name]
    try:
        system.version()
        if system is not reference:
            system.settings(make(algorithm))  # before the dialect: what it does not have has no dialect either
        listed = dialects_of(ALGORITHMS[algorithm], algorithm)  # not listed: its reading is the paper's
        algo = make(algorithm, system.DIALECT if system.DIALECT in listed else "paper", **knobs)
        partial = getattr(system, "ON_POLICY", {}).get(algorithm, "")
        worst = Difference(0.0, 0.0, 0.0)
        for build in BATCHES.values():
            batch, networks = build()
            if partial:
                networks = Networks(batch, drift=0.0)
            found = difference(ours(algo, batch, networks), system.update(algo, batch, networks), batch.mask)
            worst = Difference(
                max(worst.advantages, found.advantages),
                0.0 if partial else max(worst.loss, found.loss),
                max(worst.gradient, found.gradient),
            )
    except Missing as e:
        return Cell(algorithm, name, knobs, reason=str(e))
    return Cell(algorithm, name, knobs, worst, partial=partial)


def undone(name: str, algorithm: str) -> float:
    """How far the gradient is from a system's where the dialect is not set: on graded rewards, by the YAML alone."""
    system = SYSTEMS[name]
    algo, batch_and_networks = make(algorithm), BATCHES["graded"]()
    listed = dialects_of(ALGORITHMS[algorithm], algorithm)
    theirs = make(algorithm, system.DIALECT if system.DIALECT in listed else "paper")
    batch, networks = batch_and_networks
    if algorithm in getattr(system, "ON_POLICY", {}):
        networks = Networks(batch, drift=0.0)
    return difference(ours(algo, batch, networks), system.update(theirs, batch, networks), batch.mask).gradient
