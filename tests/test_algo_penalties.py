"""The KL and the entropy, which all algorithms share: where they act, with which sign, and how its weight moves."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from algo_data import Networks, credited, log_probs, loss_and_gradients, make, make_batch
from torch import Tensor

from grpo_bench import ops
from grpo_bench.algos import ALGORITHMS

NO_KL = {"kl__place": "none"}
IN_REWARD = [name for name, found in ALGORITHMS.items() if "reward" in found.kl_places]


def close(actual: Tensor, expected: object, tol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0, atol=tol)


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("to", ["reference", "old"])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_a_kl_in_the_loss_is_added_and_leaves_the_reward_alone(name: str, to: str, estimator: str) -> None:
    algo, without = make(name, kl__place="loss", kl__to=to, kl__estimator=estimator), make(name, **NO_KL)
    batch = credited(without, make_batch())
    logp = Networks(batch).logp.detach()
    other = batch.ref_logp if to == "reference" else batch.old_logp
    assert other is not None
    penalty = algo.token_loss(logp, batch) - without.token_loss(logp, batch)
    close(penalty, 0.04 * ops.KL_ESTIMATORS[estimator](logp, other))
    close(algo.advantages(batch)[0], without.advantages(batch)[0], 0)
    off = replace(batch, kl_coef=0.0)
    close(algo.token_loss(logp, off), without.token_loss(logp, off), 0)


@pytest.mark.parametrize("name", IN_REWARD)
def test_a_kl_in_the_reward_leaves_the_loss_alone(name: str) -> None:
    algo, without = make(name, kl__place="reward", kl__estimator="k1"), make(name, **NO_KL)
    batch = credited(without, make_batch())
    logp = Networks(batch).logp.detach()
    close(algo.token_loss(logp, batch), without.token_loss(logp, batch), 0)
    assert not torch.equal(algo.advantages(batch)[0], without.advantages(batch)[0])
    off = replace(batch, kl_coef=0.0)
    close(algo.advantages(off)[0], without.advantages(off)[0], 0)


def test_ppo_takes_the_kl_from_the_reward_of_each_token() -> None:
    """R = 1, β = .1, k1 = 2 −1 3: r = −.2, .1, 1 − .3; V = 0, γ = λ = 1: A = .6, .8, .7."""
    batch = log_probs(make_batch([3], 1, [1.0]), [2.0, -1.0, 3.0])
    batch = replace(batch, values=torch.zeros(1, 3, dtype=torch.float64), kl_coef=0.1)
    knobs = {"lam": 1.0, "whiten": False, "kl__place": "reward"}
    close(make("ppo", kl__estimator="k1", **knobs).advantages(batch)[0], [[0.6, 0.8, 0.7]])
    # k2 = 2, .5, 4.5: r = −.2, −.05, 1 − .45: A = .3, .5, .55
    close(make("ppo", kl__estimator="k2", **knobs).advantages(batch)[0], [[0.3, 0.5, 0.55]])


def test_grpo_takes_the_summed_kl_from_the_answer_before_the_group_is_normalised() -> None:
    """R = 1 0 0, β = .1, Σ k1 = 4 −2 1: .6 .2 −.1, μ = .233333, σ² = (.134444 + .001111 + .111111)/3, σ = .286744."""
    batch = log_probs(make_batch([2, 1, 2], 3, [1, 0, 0]), [3.0, 1.0], [-2.0, 9.0], [0.5, 0.5])
    advantages, _ = make("grpo", kl__place="reward", kl__estimator="k1").advantages(replace(batch, kl_coef=0.1))
    # .366667/σ, −.033333/σ, −.333333/σ
    close(advantages, [[1.278725, 1.278725], [-0.116248, 0], [-1.162476, -1.162476]], 1e-5)


@pytest.mark.parametrize("name", IN_REWARD)
def test_a_kl_in_the_reward_can_tell_equal_answers_apart(name: str) -> None:
    batch = make_batch(rewards=[1.0] * 8)
    assert make(name, kl__place="reward", kl__estimator="k1").advantages(batch)[0].any()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_entropy_lowers_the_loss(name: str) -> None:
    algo = make(name, entropy_coef=0.01)
    batch = credited(algo, make_batch())
    networks = Networks(batch)
    gradient = loss_and_gradients(algo, batch, networks)[1][2]
    close(gradient, -0.01 * algo.token_weights(batch.mask), 1e-15)
    more = algo.token_loss(networks.logp, batch, networks.entropy + 1)
    close(more - algo.token_loss(networks.logp, batch, networks.entropy), -0.01 * torch.ones_like(batch.mask))


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        # .04 · (1 + clip(KL/.01 − 1, ±.2) · 256/10000), 256/10000 = .0256
        (0.02, 0.0402048),  # +1, held to .2: .04 · 1.00512
        (0.011, 0.0401024),  # +.1: .04 · 1.00256
        (0.01, 0.04),
        (0.009, 0.0398976),  # −.1: .04 · .99744
        (0.0, 0.0397952),  # −1, held to −.2: .04 · .99488
        (10.0, 0.0402048),
    ],
)
def test_adaptive_coefficient(measured: float, expected: float) -> None:
    algo = make("grpo", kl__control="adaptive", kl__target=0.01, kl__horizon=10000)
    batch = replace(make_batch(), kl_coef=0.04, state={"kl": measured, "samples": 256.0})
    assert algo.next_state(batch) == {"kl_coef": pytest.approx(expected, abs=1e-12)}


def test_adaptive_coefficient_steers_the_kl_and_waits_where_none_was_measured() -> None:
    algo = make("ppo", kl__control="adaptive")
    batch = make_batch()
    assert algo.next_state(replace(batch, state={"samples": 256.0})) == {}
    assert make("ppo").next_state(batch) == {}
    path = [batch.kl_coef]
    for _ in range(50):  # the KL stays too high: ever more weight
        state = algo.next_state(replace(batch, kl_coef=path[-1], state={"kl": 0.05, "samples": 1000.0}))
        path.append(state["kl_coef"])
    assert all(after > before for before, after in pairwise(path))
    # 50 steps of 1 + .2·.1 = 1.02
    assert path[-1] == pytest.approx(0.04 * math.exp(50 * math.log(1.02)))
