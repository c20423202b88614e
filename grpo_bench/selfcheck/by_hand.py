"""Checks against numbers worked by hand: what the lone winner of a group of eight gets, and what ddof does to it."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from grpo_bench.algos import Algorithm
from grpo_bench.selfcheck.data import kept, make_batch
from grpo_bench.selfcheck.variants import changed
from grpo_bench.selfcheck.verdict import NotApplicable, Subject, Undeclared, require

DIGITS = 1e-6  # declared numbers have seven


def winner_and_losers(algo: Algorithm) -> list[float]:
    """Advantages of rewards [1,0,0,0,0,0,0,0], one token each; values, greedy reward, KL and running means are 0."""
    batch = make_batch([1] * 8, 8, [1.0] + [0.0] * 7, width=2)
    zeros = torch.zeros_like(batch.mask)
    batch = replace(batch, ref_logp=batch.old_logp, values=zeros, baseline_rewards=zeros[:, 0], state={})
    found: list[float] = algo.advantages(kept(algo, batch))[0][:, 0].tolist()
    return found


def lone_winner(subject: Subject) -> None:
    algo = subject.algo
    if algo.lone_winner is None:
        raise Undeclared("the class declares no lone_winner")
    if not subject.as_yaml:
        raise NotApplicable("lone_winner is declared for the knobs of the YAML, and these differ")
    winner, loser = algo.lone_winner
    for member, (seen, expected) in enumerate(zip(winner_and_losers(algo), [winner] + [loser] * 7, strict=True)):
        who = "winner" if member == 0 else f"loser {member}"
        require(abs(seen - expected) <= DIGITS, f"advantage of the lone {who} of 8", f"{expected:.7f}", f"{seen:.7f}")


def ddof(subject: Subject) -> None:
    """√(7/8) for eight numbers, whatever is divided by their deviation."""
    algo = subject.algo
    idle = algo.inert()
    knobs = [name for name in type(algo).model_fields if name.endswith("ddof") and name not in idle]
    if not knobs:
        raise NotApplicable("no ddof that acts")
    for name in knobs:
        zero, one = (winner_and_losers(changed(algo, **{name: value}))[0] for value in (0, 1))
        if zero == 0:
            raise NotApplicable("the lone winner has no advantage")
        wanted, seen = math.sqrt(7 / 8), one / zero
        require(abs(seen - wanted) <= 1e-4, f"{name}=1 against {name}=0", f"{wanted:.6f} of it", f"{seen:.6f}")
