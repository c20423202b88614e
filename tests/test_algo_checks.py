"""What an algorithm refuses in a configuration, and what it warns about."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
from algo_data import make

from grpo_bench.algos import ALGORITHMS
from grpo_bench.compose import compose, composing
from grpo_bench.config import Config, parse, plain, warnings
from grpo_bench.types import UserError

INERT_CLIP = "the clip is inert with one update per rollout (epochs=1 minibatches=1): the ratio is 1"
NO_GROUP = "group_size=1 with a group baseline: every advantage is 0, nothing is learned"
NO_OVERLONG = "algo=dapo without its soft overlong punishment (eq. 13): give reward=dapo"
DAPO_REWARD = {"reward__parts": {"correct": 2.0, "overlong": 1.0}}
ONE_UPDATE = {"epochs": 1, "minibatches": 1}


@functools.cache
def _composed(algo: str) -> dict[str, Any]:
    with composing():
        return plain(compose(["device=cpu", f"algo={algo}"]))


def config(algo: str, **changes: Any) -> Config:
    """Composed once per algorithm, then changed and parsed; ``algo__kl__place`` changes ``algo.kl.place``."""
    data = copy.deepcopy(_composed(algo))
    for key, value in changes.items():
        *parents, last = key.split("__")
        place = data
        for parent in parents:
            place = place[parent]
        assert last in place, key
        place[last] = value
    return parse(data)


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"algo__kl__place": "reward", "algo__kl__to": "old"}, "this KL is 0; set algo.kl.to=reference"),
        ({"algo__kl__control": "adaptive", "kl_coef": 0}, "kl_coef=0 stays 0; set kl_coef=0.01"),
        ({"algo__kl__control": "adaptive", "algo__kl__place": "none", "kl_coef": 0.04}, "there is no KL to steer"),
        ({"dialect": "trl5"}, "dialect=trl5 is not known to algo={name}; it has paper"),
    ],
)
def test_contradictions_are_refused(name: str, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as error:
        config(name, **changes)
    message = str(error.value)
    assert says.format(name=name) in message
    assert "\n" not in message


def test_maxrl_refuses_rewards_whose_mean_is_made_zero() -> None:
    with pytest.raises(UserError, match=r"reward.normalise=after makes 0.*give reward.normalise=none"):
        config("maxrl", reward__normalise="after")


@pytest.mark.parametrize("aggregation", ["token_mean", "constant_length"])
def test_a_whole_answer_loss_needs_the_mean_over_answers(aggregation: str) -> None:
    assert config("grpo", algo__ratio="sequence").algo.whole_answer
    with pytest.raises(UserError, match=f"needs algo.aggregation=sequence_mean, not {aggregation}"):
        config("grpo", algo__ratio="sequence", algo__aggregation=aggregation)
    config("grpo", algo__ratio="sequence", algo__surrogate="logprob", algo__aggregation=aggregation)


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("grpo", {"algo__kl__place": "none"}, ["kl_coef=0.04 is inert: algo.kl.place is none"]),
        (
            "grpo",
            {"algo__kl__estimator": "k1"},
            ["algo.kl.estimator=k1 in the loss: its expected gradient is 0 on policy; k2 or k3 act"],
        ),
        ("grpo", {"algo__kl__estimator": "k1", "kl_coef": 0.0}, []),
        ("grpo", {"algo__kl__estimator": "k1", "algo__kl__place": "reward"}, []),
        ("grpo", ONE_UPDATE, [INERT_CLIP]),
        (
            "grpo",
            {**ONE_UPDATE, "algo__surrogate": "logprob"},
            ["algo.surrogate=logprob has no ratio: algo.ratio, clip_low and clip_high are inert"],
        ),
        ("grpo", {"epochs": 2, "minibatches": 1}, []),
        ("grpo", {"epochs": 1, "minibatches": 2}, []),
        (
            "grpo",
            {**ONE_UPDATE, "algo__kl__to": "old"},
            ["KL to the old policy is inert with one update per rollout (epochs=1 minibatches=1)", INERT_CLIP],
        ),
        (
            "grpo",
            {**ONE_UPDATE, "target_kl": 0.01},
            ["target_kl is inert with one update per rollout (epochs=1 minibatches=1)", INERT_CLIP],
        ),
        ("grpo", {"target_kl": 0.01}, []),
        ("grpo", {"group_size": 1}, [NO_GROUP]),
        ("dr_grpo", {}, []),
        (
            "dr_grpo",
            {"algo__scale": "std"},
            ["algo.scale=std: Dr. GRPO with std is half of it, the constant length without the centring"],
        ),
        (
            "dr_grpo",
            {"algo__aggregation": "token_mean"},
            [
                "algo.aggregation=token_mean: Dr. GRPO is half of it without the constant length; "
                "set algo.aggregation=constant_length"
            ],
        ),
        ("dr_grpo", {"algo__ddof": 1}, ["algo.ddof=1 is inert: algo.scale is none"]),
        ("dapo", {}, [NO_OVERLONG]),
        ("dapo", DAPO_REWARD, []),
        ("dapo", {**DAPO_REWARD, "algo__dynamic_sampling": False}, []),
        (
            "dapo",
            {**DAPO_REWARD, "algo__dynamic_sampling": False, "algo__max_refills": 3},
            ["algo.max_refills=3 is inert: algo.dynamic_sampling is false"],
        ),
        ("gspo", {}, []),
        (
            "gspo",
            {"algo__clip_high": 0.2},
            [
                "algo.clip_high=0.2: GSPO with ε = 0.2 never clips; its ratio of a whole answer moves by thousandths "
                "(the paper has 3e-4 and 4e-4)"
            ],
        ),
        ("cispo", ONE_UPDATE, [INERT_CLIP]),
        (
            "sapo",
            ONE_UPDATE,
            ["the gate is inert with one update per rollout (epochs=1 minibatches=1): the ratio is 1"],
        ),
        ("lite_ppo", {"group_size": 1}, [NO_GROUP]),
        ("maxrl", {"group_size": 1}, [NO_GROUP]),
        (
            "maxrl",
            {"reward__parts": {"length": 1.0}},
            [
                "algo=maxrl is for rewards of 0 and 1: groups whose mean is not above 0 give no signal, and with other "
                "rewards the mean is no share of right answers"
            ],
        ),
        ("raft", {}, []),
        (
            "raft",
            {"reward__parts": {"format": 1.0}},
            ["reward=correct is inert: algo.select=correct selects by correctness alone"],
        ),
        ("gspo", {"kl_coef": 0.04}, ["kl_coef=0.04 is inert: algo.kl.place is none"]),
        ("ppo", {**ONE_UPDATE, "algo__vf_coef": 1.0}, [INERT_CLIP]),
        (
            "ppo",
            {"algo__vf_coef": 0.5},
            [
                "algo.vf_coef=0.5 with a separate critic scales its loss alone, which AdamW undoes; "
                "critic_lr is what acts"
            ],
        ),
        ("ppo", {"algo__vf_coef": 1.0}, []),
        ("ppo", {"algo__vf_coef": 0.5, "model__critic": "shared"}, []),
        ("ppo", {"algo__vf_coef": 1.0, "group_size": 8}, []),
    ],
)
def test_warnings(name: str, changes: dict[str, Any], says: list[str]) -> None:
    cfg = config(name, **changes)
    assert cfg.algo.check(cfg) == says
    assert warnings(cfg)[: len(says)] == says  # what the run shows


def test_the_articles_settings_of_grpo_leave_nothing_inert() -> None:
    cfg = config("grpo")
    assert cfg.algo == make("grpo")
    assert cfg.algo.check(cfg) == []
