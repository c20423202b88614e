"""What holds for every algorithm at every setting of its knobs; new ones are tested without a line here."""

from __future__ import annotations

import functools

import pytest

from grpo_bench.algos import ALGORITHMS, Algorithm
from grpo_bench.compose import compose, composing
from grpo_bench.config import parse
from grpo_bench.selfcheck import CHECKS, Check, Subject, outcome
from grpo_bench.selfcheck.variants import variants

EVERYWHERE = [check for check in CHECKS if check.name != "lone winner"]  # declared for the YAML's knobs alone
NOISE = "zero variance"  # seen as a signal where a dialect leaves groups of equal rewards to its ε


@functools.cache
def every_setting(name: str) -> dict[str, Algorithm]:
    with composing():
        cfg = parse(compose(["device=cpu", f"algo={name}"]))
    return {"": cfg.algo, **variants(cfg)}


def leaves_equal_rewards_to_epsilon(algo: Algorithm) -> bool:
    """And divides by the deviation of the group, which is then rounding alone."""
    by_group = "shift" in algo.invariant_to and "guard" not in algo.inert()
    return by_group and getattr(algo, "guard", "range") == "eps" and getattr(algo, "eps", 1.0) < 1e-5


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("check", EVERYWHERE, ids=lambda check: check.name)
def test_every_setting(check: Check, name: str) -> None:
    found = {label: outcome(check, Subject(label, algo, False)) for label, algo in every_setting(name).items()}
    red = {label: verdict.detail for label, verdict in found.items() if verdict.status == "red"}
    noisy = {label for label, algo in every_setting(name).items() if leaves_equal_rewards_to_epsilon(algo)}
    assert set(red) == (noisy if check.name == NOISE else set()), red


def test_settings_are_many_and_of_every_kind() -> None:
    assert all(len(every_setting(name)) >= 5 for name in ALGORITHMS)
    grpo = every_setting("grpo").values()
    assert {algo.kl.place for algo in grpo} == {"none", "loss", "reward", "advantage"}
    assert {algo.aggregation for algo in grpo} == {"sequence_mean", "token_mean", "constant_length"}
    assert {algo.whole_answer for algo in grpo} == {algo.needs_entropy for algo in grpo} == {True, False}
