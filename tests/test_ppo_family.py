"""PPO's forms: its arms, VC-PPO, VAPO and VinePPO by hand, and how they relate to PPO."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from algo_data import Networks, credited, loss_and_gradients, make, make_batch, node
from torch import Tensor

from grpo_bench import ops
from grpo_bench.algos import ALGORITHMS, Algorithm, load
from grpo_bench.algos.dialects import DIALECTS
from grpo_bench.algos.vapo import VAPO
from grpo_bench.compose import compose, composing
from grpo_bench.config import Config, parse
from grpo_bench.types import Batch, UserError

NO_KL = {"kl__place": "none"}
RAW = {"whiten": False, "kl__place": "none"}


def close(actual: Tensor | None, expected: object, tol: float = 1e-12) -> None:
    assert actual is not None
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0, atol=tol)


@functools.cache
def config(*overrides: str) -> Config:
    with composing():
        return parse(compose(["device=cpu", *overrides]))


def with_values(batch: Batch, *rows: list[float]) -> Batch:
    return replace(batch, values=torch.tensor(rows, dtype=torch.float64))


def alone() -> Batch:
    """[1, 0, 0, 0, 0, 0, 0, 0], one token each, values and KL 0."""
    batch = make_batch([1] * 8, 8, [1.0, 0, 0, 0, 0, 0, 0, 0])
    return replace(batch, values=torch.zeros_like(batch.mask), kl_coef=0.0)


# The lone winner. All of them have A = R here; whitened over eight tokens: μ = 1/8, and the squares add up to
# (49 + 7)/64 = 7/8. ddof 0: σ² = 7/64, (7/8)/σ = √7 = 2.645751, −(1/8)/σ = −.377964.
# ddof 1: σ² = 1/8, (7/8)/σ = 2.474874, −(1/8)/σ = −.353553.
DDOF_0, DDOF_1 = (2.6457513, -0.3779645), (2.4748737, -0.3535534)


WINNERS = [
    ("ppo", "paper", DDOF_0),
    ("ppo", "trl", DDOF_1),
    ("ppo", "verl", DDOF_1),
    ("ppo", "openrlhf", DDOF_0),
    ("vc_ppo", "paper", DDOF_0),
    ("vapo", "paper", DDOF_0),
    ("vineppo", "paper", DDOF_0),
]


def test_every_algorithm_and_dialect_has_its_lone_winner_in_one_of_the_three_families() -> None:
    """Those of GRPO and of the critic-free ones are in their own files, which say so of theirs."""
    from test_critic_free import WINNERS as critic_free
    from test_grpo_family import LONE_WINNERS

    found = {(name, dialect) for name, dialect, _ in (*WINNERS, *critic_free)} | set(LONE_WINNERS)
    assert found == {(name, dialect) for name in ALGORITHMS for dialect in ("paper", *DIALECTS.get(name, {}))}


@pytest.mark.parametrize(("name", "dialect", "expected"), WINNERS)
def test_lone_winner(name: str, dialect: str, expected: tuple[float, float]) -> None:
    algo = load(node(name), dialect)
    advantages, _ = algo.advantages(alone())
    close(advantages.squeeze(1), [expected[0], *[expected[1]] * 7], 1e-6)
    if dialect == "paper":
        assert algo.lone_winner == expected


# The arms of PPO.


@pytest.mark.parametrize(
    ("arm", "knobs", "root"),
    [
        (
            "ppo_rlhf",
            {"kl__place": "reward", "kl__estimator": "k1", "value_clip": 0.2, "aggregation": "token_mean"},
            {"kl_coef": 0.05, "group_size": 1},
        ),
        ("ppo_shared", {}, {"kl_coef": 0.04, "group_size": 1}),
        ("ppo_dual_clip", {"dual_clip": 3.0}, {"kl_coef": 0.04, "group_size": 1}),
    ],
)
def test_an_arm_of_ppo_differs_from_it_in_what_names_it(
    arm: str, knobs: dict[str, Any], root: dict[str, float]
) -> None:
    cfg = config(f"arm={arm}")
    assert cfg.algo == make("ppo", **knobs)
    assert {name: getattr(cfg, name) for name in root} == root
    assert cfg.model.critic == ("shared" if arm == "ppo_shared" else "separate")


def test_the_weight_of_the_value_loss_acts_on_a_shared_trunk_alone() -> None:
    assert not [w for w in config("arm=ppo_shared").algo.check(config("arm=ppo_shared")) if "vf_coef" in w]
    assert [w for w in config("arm=ppo").algo.check(config("arm=ppo")) if "vf_coef" in w]


def test_rlhf_pays_the_kl_of_each_token_in_the_reward() -> None:
    """R = 1, β = .05, k1 = 2 −1 3 on three tokens, V = 0, γ = 1, λ = .95: r = −.1, .05, 1 − .15."""
    algo = config("arm=ppo_rlhf").algo.model_copy(update={"whiten": False})
    batch = with_values(make_batch([3], 1, [1.0]), [0.0] * 3)
    assert batch.old_logp is not None
    batch = replace(batch, kl_coef=0.05, ref_logp=batch.old_logp - torch.tensor([[2.0, -1.0, 3.0]]))
    # A2 = .85, A1 = .05 + .95·.85 = .8575, A0 = −.1 + .95·.8575 = .714625
    close(algo.advantages(batch)[0], [[0.714625, 0.8575, 0.85]])


def test_the_dual_clip_bounds_what_a_bad_answer_can_cost() -> None:
    """ρ = 5: A = −1 costs 5 without it, 3 with it; A = 1 gets 1.2 either way. ρ = 2 stays 2."""
    batch = make_batch([2, 2], 2, [1, 0])
    batch = replace(batch, advantages=torch.tensor([[1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64))
    assert batch.old_logp is not None
    logp = batch.old_logp + torch.tensor([5.0, 2.0], dtype=torch.float64).log()
    close(make("ppo", **NO_KL).token_loss(logp, batch), [[-1.2, -1.2], [5, 2]])
    close(make("ppo", dual_clip=3.0, **NO_KL).token_loss(logp, batch), [[-1.2, -1.2], [3, 2]])


# VC-PPO.


def test_vc_ppo_by_hand() -> None:
    """R = 1, V = .5 .6 .8; δ = .1 .2 .2. λ_policy = .5: A2 = .2, A1 = .2 + .1 = .3, A0 = .1 + .15 = .25."""
    batch = with_values(make_batch([3], 1, [1.0], width=4), [0.5, 0.6, 0.8, 0.0])
    advantages, targets = make("vc_ppo", lam_policy=0.5, **RAW).advantages(batch)
    close(advantages, [[0.25, 0.3, 0.2, 0]])
    close(targets, [[1, 1, 1, 0]])  # λ_critic = 1: the return, on every token
    # λ_critic = 0: r + V of the next
    close(make("vc_ppo", lam_critic=0.0, **RAW).advantages(batch)[1], [[0.6, 0.8, 1, 0]])


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_vc_ppo_with_one_lambda_is_ppo(lam: float) -> None:
    batch = make_batch()
    shared = {"kl__place": "reward", "kl__estimator": "k1", "aggregation": "token_mean"}
    one = make("vc_ppo", lam_policy=lam, lam_critic=lam, **shared)
    other = make("ppo", lam=lam, vf_coef=1.0, **shared)
    for got, expected in zip(one.advantages(batch), other.advantages(batch), strict=True):
        close(got, expected, 0)
    networks = Networks(batch)
    for got, expected in zip(
        loss_and_gradients(one, batch, networks)[1], loss_and_gradients(other, batch, networks)[1], strict=True
    ):
        close(got, expected, 0)


def test_the_policys_lambda_leaves_the_critics_targets_alone() -> None:
    batch = make_batch()
    close(make("vc_ppo", lam_policy=0.1).advantages(batch)[1], make("vc_ppo", lam_policy=1.0).advantages(batch)[1])


# VAPO.


def test_vapo_gives_longer_answers_a_longer_memory() -> None:
    """α = .05: l = 20 gives 1 − 1/1 = 0, 40: 1 − 1/2, 100: 1 − 1/5, 1000: 1 − 1/50; under 20 it would be negative."""
    mask = (torch.arange(1000) < torch.tensor([[1], [10], [20], [40], [100], [1000], [0]])).double()
    close(VAPO.model_validate(node("vapo")).lam_policy(mask), [[0], [0], [0], [0.5], [0.8], [0.98], [0]])
    # α = 1: 1 − 1/l
    close(VAPO.model_validate(node("vapo", alpha=1.0)).lam_policy(mask)[:4], [[0], [0.9], [0.95], [0.975]])


def test_vapo_by_hand() -> None:
    """α = 1. l = 2: λ = .5, R = 1, V = .2 .4: δ = .2 .6, A0 = .2 + .3; l = 4: λ = .75, R = 0, V = .8 everywhere."""
    batch = with_values(make_batch([2, 4], 2, [1.0, 0.0]), [0.2, 0.4, 0, 0], [0.8] * 4)
    advantages, targets = make("vapo", alpha=1.0, **RAW).advantages(batch)
    # δ = 0 0 0 −.8: A3 = −.8, A2 = −.6, A1 = −.45, A0 = −.3375
    close(advantages, [[0.5, 0.6, 0, 0], [-0.3375, -0.45, -0.6, -0.8]])
    close(targets, [[1, 1, 0, 0], [0, 0, 0, 0]])


def test_vapo_with_answers_of_one_length_is_vc_ppo_with_its_lambda() -> None:
    batch = make_batch([5] * 8)
    vapo, vc_ppo = make("vapo", alpha=1.0, mu=0.0), make("vc_ppo", lam_policy=0.8, clip_high=0.28)  # 1 − 1/5
    networks = Networks(batch)
    for got, expected in zip(
        loss_and_gradients(vapo, batch, networks)[1], loss_and_gradients(vc_ppo, batch, networks)[1], strict=True
    ):
        close(got, expected)


def test_vapo_raises_the_likelihood_of_correct_answers_alone() -> None:
    """By μ times their mean over their own tokens: 5 + 7 + 6 = 18 of 35."""
    batch = credited(make("vapo"), make_batch(rewards=[1, 0, 0, 1, 0, 0, 0, 1]))
    logp = Networks(batch).logp.detach()
    difference = make("vapo", mu=0.1).token_loss(logp, batch) - make("vapo", mu=0.0).token_loss(logp, batch)
    close(difference, -0.1 * logp * batch.correct[:, None] * 35 / 18)
    loss = (make("vapo").token_weights(batch.mask) * difference).sum()
    close(loss, -0.1 * logp[batch.correct].sum() / 18)


def test_vapo_without_a_correct_answer_has_no_positive_examples() -> None:
    batch = credited(make("vapo"), make_batch(rewards=[0.0] * 8))
    logp = Networks(batch).logp.detach()
    close(make("vapo", mu=0.1).token_loss(logp, batch), make("vapo", mu=0.0).token_loss(logp, batch))


def test_vapo_says_when_no_answer_is_long_enough_for_its_lambda() -> None:
    cfg = config("arm=vapo", "task.max_new_tokens=20")
    assert any("gives λ = 0 to every answer of up to 20 tokens" in w for w in cfg.algo.check(cfg))
    cfg = config("arm=vapo", "task.max_new_tokens=20", "algo.alpha=1")
    assert not any("algo.alpha" in w for w in cfg.algo.check(cfg))


# VinePPO.


def vine(lengths: list[int], rewards: list[float], steps: list[list[int]], values: list[list[float]]) -> Batch:
    batch = with_values(make_batch(lengths, len(lengths), rewards), *values)
    return replace(batch, step_ids=torch.tensor(steps))


def test_vineppo_by_hand() -> None:
    """Steps of 2, 3 and 1 tokens, V = .25 .5 1 at their starts, R = 1: .5 − .25, 1 − .5, 1 − 1; one step: 0 − .25."""
    batch = vine(
        [6, 2],
        [1.0, 0.0],
        [[0, 0, 1, 1, 1, 2], [0, 0, 0, 0, 0, 0]],
        [[0.25, 0.25, 0.5, 0.5, 0.5, 1.0], [0.25, 0.25, 0, 0, 0, 0]],
    )
    advantages, targets = make("vineppo", **RAW).advantages(batch)
    close(advantages, [[0.25, 0.25, 0.5, 0.5, 0.5, 0], [-0.25, -0.25, 0, 0, 0, 0]])
    assert targets is None
    # whitened over the eight tokens: mean 1.5/8 = .1875, squares 2/16 + 3/4 + 2/16 = 1, σ² = 1/8 − .1875² = .089844
    white, _ = make("vineppo", **NO_KL).advantages(batch)
    close(white[0, :3], [0.208514, 0.208514, 1.042572], 1e-5)  # .0625/.299739, .3125/.299739


def test_vineppo_takes_a_steps_kl_from_its_reward() -> None:
    """β = .1, k1 = 1 2 3 over steps {0, 1} and {2}: .5 − .25 − .3 and 1 − .5 − .3."""
    batch = vine([3], [1.0], [[0, 0, 1]], [[0.25, 0.25, 0.5]])
    assert batch.old_logp is not None
    batch = replace(batch, kl_coef=0.1, ref_logp=batch.old_logp - torch.tensor([[1.0, 2.0, 3.0]]))
    algo = make("vineppo", whiten=False, kl__place="reward", kl__estimator="k1")
    close(algo.advantages(batch)[0], [[-0.05, -0.05, 0.2]])


def random_vine(seed: int = 0) -> Batch:
    """Answers with steps of any length, and a value for each step."""
    batch = make_batch(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    starts = (torch.rand(batch.mask.shape, generator=generator) < 0.4).long()
    starts[:, 0] = 0
    ids = starts.cumsum(1)
    values = torch.rand(batch.mask.shape, generator=generator, dtype=torch.float64).gather(1, ids)
    return replace(batch, step_ids=ids * batch.mask.long(), values=values * batch.mask)


def test_the_steps_of_an_answer_add_up_to_reward_minus_value_of_the_prompt() -> None:
    batch = random_vine()
    advantages, _ = make("vineppo", **RAW).advantages(batch)
    assert batch.step_ids is not None
    assert batch.values is not None
    first = torch.ones_like(batch.mask)
    first[:, 1:] = (batch.step_ids[:, 1:] != batch.step_ids[:, :-1]).double()
    assert batch.step_ids.max() >= 2
    close((advantages * first * batch.mask).sum(1), batch.rewards - batch.values[:, 0])


def test_vineppo_with_one_step_is_reinforce_with_the_prompts_monte_carlo_value_as_baseline() -> None:
    batch = make_batch()
    values = torch.rand(8, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * batch.mask
    batch = replace(batch, values=values, step_ids=torch.zeros_like(batch.mask, dtype=torch.long))
    advantages, _ = make("vineppo", **RAW).advantages(batch)
    close(advantages, (batch.rewards[:, None] - values) * batch.mask)


def test_vineppo_with_steps_of_one_token_is_ppo_at_lambda_zero() -> None:
    batch = make_batch()
    batch = replace(batch, step_ids=torch.arange(7) * batch.mask.long())
    close(make("vineppo", **RAW).advantages(batch)[0], make("ppo", lam=0.0, **RAW).advantages(batch)[0])


def test_vineppo_asks_for_branches_and_no_critic() -> None:
    algo: Algorithm = make("vineppo", branches=3, delimiters=["\n"])
    assert algo.extra_rollouts == "branches"
    assert algo.branching == (3, ("\n",))
    assert not algo.needs_critic
    assert config("arm=vineppo").algo.branching == (9, (" ;", "\n"))
    with pytest.raises(UserError, match=r"algo\.delimiters"):
        config("arm=vineppo", "algo.delimiters=[]")


def test_step_sums() -> None:
    x = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])
    mask = torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 0]])
    ids = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 0]])
    close(ops.step_sums(x, ids, mask), [[3, 3, 7, 7], [5, 6, 0, 0]])
