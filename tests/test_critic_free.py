"""The critic-free baselines and the supervised control, by hand, and how they relate to one another."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import pytest
import torch
from algo_data import LENGTHS, Networks, credited, loss_and_gradients, make, make_batch, node
from torch import Tensor

from grpo_bench import ops
from grpo_bench.algos import load
from grpo_bench.algos.dialects import DIALECTS
from grpo_bench.collect import drop
from grpo_bench.compose import compose, composing
from grpo_bench.config import Config, parse
from grpo_bench.types import Batch

NO_KL = {"kl__place": "none"}
SUM = {"aggregation": "constant_length", "length": 1}  # Σ log π of an answer, mean over answers


def close(actual: Tensor | None, expected: object, tol: float = 1e-12) -> None:
    assert actual is not None
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0, atol=tol)


@functools.cache
def config(*overrides: str) -> Config:
    with composing():
        return parse(compose(["device=cpu", *overrides]))


def on_policy(batch: Batch) -> Networks:
    """Networks that have not moved since the rollout: every ratio is 1."""
    return Networks(batch, drift=0.0)


def alone() -> Batch:
    """[1, 0, 0, 0, 0, 0, 0, 0], one token each, greedy reward and KL 0, nothing remembered."""
    batch = make_batch([1] * 8, 8, [1.0, 0, 0, 0, 0, 0, 0, 0])
    return replace(batch, baseline_rewards=torch.zeros(8, dtype=torch.float64), kl_coef=0.0, state={})


# Leave-one-out: 1 − 0/7 = 1;  0 − 1/7 = −.142857. Whitened over eight tokens: μ = 1/8 (or 0 once the group's mean is
# off), squares 49/64 + 7/64 = 7/8; ddof 0: σ² = 7/64, √7 = 2.645751, −1/√7 = −.377964; ddof 1: σ² = 1/8,
# (7/8)·√8 = 2.474874, −(1/8)·√8 = −.353553. OPO with all lengths alike: b = 1/8.
LEFT_OUT, DDOF_0, DDOF_1 = (1.0, -0.1428571), (2.6457513, -0.3779645), (2.4748737, -0.3535534)


WINNERS: list[tuple[str, str, tuple[float, float]]] = [
    ("rloo", "paper", LEFT_OUT),
    ("rloo", "verl", LEFT_OUT),
    ("rloo", "openrlhf", LEFT_OUT),
    ("rloo_sequence", "paper", LEFT_OUT),
    ("reinforce", "paper", (1.0, 0.0)),
    ("reinforce_pp", "paper", DDOF_0),
    ("reinforce_pp", "verl", DDOF_1),
    ("reinforce_pp", "openrlhf", DDOF_0),
    ("reinforce_pp_baseline", "paper", DDOF_0),
    ("reinforce_pp_baseline", "verl", DDOF_1),
    ("reinforce_pp_baseline", "openrlhf", DDOF_0),
    ("remax", "paper", (1.0, 0.0)),
    ("remax", "verl", (1.0, 0.0)),
    ("opo", "paper", (0.875, -0.125)),
    ("opo", "verl", (0.875, -0.125)),
    ("raft", "paper", (1.0, 0.0)),
]


@pytest.mark.parametrize(("name", "dialect", "expected"), WINNERS)
def test_lone_winner(name: str, dialect: str, expected: tuple[float, float]) -> None:
    algo = load(node(name), dialect)
    advantages, targets = algo.advantages(alone())
    assert targets is None
    close(advantages.squeeze(1), [expected[0], *[expected[1]] * 7], 1e-6)
    if dialect == "paper":
        assert algo.lone_winner == pytest.approx(expected, abs=1e-6)


def test_every_dialect_has_its_lone_winner_here() -> None:
    names = {name for name, _, _ in WINNERS}
    known = {(name, dialect) for name in names for dialect in ("paper", *DIALECTS.get(name, {}))}
    assert known == {(name, dialect) for name, dialect, _ in WINNERS}


def test_lone_winner_under_other_knobs() -> None:
    close(make("reinforce", baseline="running_mean").advantages(alone())[0].squeeze(1), [1.0] + [0.0] * 7)
    close(make("raft", select="best").advantages(alone())[0].squeeze(1), [1.0] + [0.0] * 7)


# RLOO.


def test_rloo_by_hand() -> None:
    """R = 3 1 2 and 1 1 1: 3 − 1.5, 1 − 2.5, 2 − 2; equal rewards nothing."""
    batch = make_batch([2, 1, 2, 1, 1, 1], 3, [3.0, 1, 2, 1, 1, 1])
    for name in ("rloo", "rloo_sequence"):
        advantages, _ = make(name, **NO_KL).advantages(batch)
        close(advantages, [[1.5, 1.5], [-1.5, 0], [0, 0], [0, 0], [0, 0], [0, 0]])


def test_rloo_is_the_centred_reward_times_g_over_g_minus_one() -> None:
    batch = make_batch()
    expected = 4 / 3 * ops.group_center(batch.rewards, 4)[:, None] * batch.mask
    for name in ("rloo", "rloo_sequence"):
        close(make(name, **NO_KL).advantages(batch)[0], expected)


@pytest.mark.parametrize("name", ["rloo", "rloo_sequence", "opo", "reinforce"])
def test_the_answers_whole_kl_is_part_of_its_reward(name: str) -> None:
    """β = .1, Σ k1 = 3 and −1 on two tokens: as if the rewards were 1 − .3 and 0 + .1."""
    batch = make_batch([2, 2], 2, [1.0, 0.0])
    assert batch.old_logp is not None
    kl = torch.tensor([[1.0, 2.0], [-2.0, 1.0]], dtype=torch.float64)
    batch = replace(batch, kl_coef=0.1, ref_logp=batch.old_logp - kl)
    paid = replace(batch, rewards=torch.tensor([0.7, 0.1], dtype=torch.float64))
    got, _ = make(name, kl__place="reward", kl__estimator="k1").advantages(batch)
    close(got, make(name, **NO_KL).advantages(paid)[0])


def test_openrlhf_takes_what_is_still_to_come_of_the_kl_after_the_baseline() -> None:
    """β = .1, k1 = 1 2 and −2 1: 1 − .3, 1 − .2;  −1 + .1, −1 − .1."""
    batch = make_batch([2, 2], 2, [1.0, 0.0])
    assert batch.old_logp is not None
    kl = torch.tensor([[1.0, 2.0], [-2.0, 1.0]], dtype=torch.float64)
    batch = replace(batch, kl_coef=0.1, ref_logp=batch.old_logp - kl)
    close(load(node("rloo"), "openrlhf").advantages(batch)[0], [[0.7, 0.8], [-0.9, -1.1]])


def test_the_two_forms_of_rloo_by_hand() -> None:
    """log ratios .1 .2, A = ±1. Tokens: ρ = 1.105171, 1.221403 (1.2 for A = 1); answer: e^.3 = 1.349859 (1.2)."""
    batch = credited(make("rloo", **NO_KL), make_batch([2, 2], 2, [1.0, 0.0]))
    assert batch.old_logp is not None
    logp = batch.old_logp + torch.tensor([0.1, 0.2], dtype=torch.float64)
    close(make("rloo", **NO_KL).token_loss(logp, batch), [[-1.105171, -1.2], [1.105171, 1.221403]], 1e-6)
    algo = make("rloo_sequence", **NO_KL)
    loss = algo.token_loss(logp, batch)
    close(loss, [[-1.2, -1.2], [1.349859, 1.349859]], 1e-6)
    close((algo.token_weights(batch.mask) * loss).sum(), (1.349859 - 1.2) / 2, 1e-6)  # mean over answers
    close(algo.log_ratio(logp, batch), [[0.3, 0.3], [0.3, 0.3]])


def test_both_forms_of_rloo_are_the_papers_reinforce_on_policy() -> None:
    """The paper: ∇ 1/B Σᵢ Aᵢ Σₜ log πᵢₜ."""
    batch = credited(make("rloo", **NO_KL), make_batch())
    assert batch.advantages is not None
    for algo in (make("rloo", **NO_KL, **SUM), make("rloo_sequence", **NO_KL)):
        close(loss_and_gradients(algo, batch, on_policy(batch))[1][0], -batch.advantages / 8)


def test_rloo_sequence_is_rloo_where_answers_have_one_token() -> None:
    batch = make_batch([1] * 8)
    networks = Networks(batch)
    one, other = (loss_and_gradients(make(name), batch, networks) for name in ("rloo", "rloo_sequence"))
    close(one[0], other[0])
    close(one[1][0], other[1][0])


# REINFORCE.


def test_reinforce_gradient_is_the_reward_on_every_token_wherever_the_policy_went() -> None:
    batch = make_batch(rewards=[2.0, 0, 0, -1, 0, 0.5, 0, 0])
    loss, (gradient, *_) = loss_and_gradients(make("reinforce"), batch, networks := Networks(batch, drift=2.0))
    close(gradient, -batch.rewards[:, None] * batch.mask / 8)
    close(loss, -(batch.rewards * (networks.logp.detach() * batch.mask).sum(1)).mean())


def test_reinforce_remembers_a_running_mean() -> None:
    """Mean rewards .5, 1, 0, decay .8: .5, .8·.5 + .2·1 = .6, .8·.6 = .48; each is the next step's baseline."""
    algo = make("reinforce", baseline="running_mean", decay=0.8)
    batch = replace(make_batch([2, 2], 1, [1.0, 0.0]), state={})
    close(algo.advantages(batch)[0], [[1, 1], [0, 0]])
    for rewards, baseline in (([1.0, 0.0], 0.5), ([1.0, 1.0], 0.6), ([0.0, 0.0], 0.48)):
        batch = replace(batch, rewards=torch.tensor(rewards, dtype=torch.float64))
        state = algo.next_state(batch)
        assert state == {"reward_mean": pytest.approx(baseline)}
        batch = replace(batch, state=state)
        close(algo.advantages(batch)[0], [[rewards[0] - baseline] * 2, [rewards[1] - baseline] * 2])


def test_a_reward_that_went_wrong_does_not_enter_the_running_mean() -> None:
    algo = make("reinforce", baseline="running_mean")
    batch = make_batch(rewards=[float("nan")] + [1.0] * 7)
    assert algo.next_state(replace(batch, state={"reward_mean": 0.3})) == {}


def test_the_running_mean_and_an_adaptive_kl_live_side_by_side() -> None:
    algo = make("reinforce", baseline="running_mean", kl__place="loss", kl__control="adaptive")
    assert set(algo.next_state(make_batch())) == {"kl_coef", "reward_mean"}
    assert make("reinforce").next_state(make_batch()) == {}


# REINFORCE++.


def test_reinforce_pp_by_hand() -> None:
    """R = 1 and 0, β = .1, k1 = 1 0 2 and 3: r = −.1 0 .8 and −.3; γ = .5: .8, 0 + .4, −.1 + .2 = .1; −.3.
    μ = 1/4 = .25; squares .55² + .15² + .15² + .55² = .65, σ² = .1625, σ = .403113."""
    batch = make_batch([3, 1], 1, [1.0, 0.0])
    assert batch.old_logp is not None
    kl = torch.tensor([[1.0, 0.0, 2.0], [3.0, 0, 0]], dtype=torch.float64)
    batch = replace(batch, kl_coef=0.1, ref_logp=batch.old_logp - kl)
    advantages, _ = make("reinforce_pp", gamma=0.5).advantages(batch)
    close(advantages, [[-0.372104, 0.372104, 1.364382], [-1.364382, 0, 0]], 1e-6)  # ±.15/σ, ±.55/σ
    # ddof 1: σ² = .65/3 = .216667, σ = .465475
    advantages, _ = make("reinforce_pp", gamma=0.5, whiten_ddof=1).advantages(batch)
    close(advantages, [[-0.322252, 0.322252, 1.181589], [-1.181589, 0, 0]], 1e-6)


def test_reinforce_pp_without_discount_and_kl_is_the_whitened_outcome() -> None:
    batch = make_batch()
    expected = ops.whiten(batch.rewards[:, None] * batch.mask, batch.mask)
    close(make("reinforce_pp", **NO_KL).advantages(batch)[0], expected)


def test_reinforce_pp_is_ppo_at_lambda_one_whose_critic_says_zero() -> None:
    batch = replace(make_batch(), values=torch.zeros(8, 7, dtype=torch.float64))
    ppo = make("ppo", lam=1.0, kl__place="reward", kl__estimator="k1")
    close(make("reinforce_pp").advantages(batch)[0], ppo.advantages(batch)[0])


def test_reinforce_pp_baseline_by_hand() -> None:
    """Groups 1 0 and 1 1, lengths 2 1 1 1: .5 .5 −.5 0 0 on five tokens, μ = .1, σ² = (2·.16 + .36 + 2·.01)/5 = .14."""
    batch = make_batch([2, 1, 1, 1], 2, [1.0, 0, 1, 1])
    advantages, _ = make("reinforce_pp_baseline").advantages(batch)
    # σ = .374166: .4/σ, −.6/σ, −.1/σ
    close(advantages, [[1.069045, 1.069045], [-1.603567, 0], [-0.267261, 0], [-0.267261, 0]], 1e-6)


def test_reinforce_pp_baseline_with_one_group_of_answers_of_one_length_is_grpo() -> None:
    batch = make_batch([3] * 8, 8)
    close(make("reinforce_pp_baseline").advantages(batch)[0], make("grpo").advantages(batch)[0], 1e-6)


# ReMax.


def test_remax_by_hand() -> None:
    """r = 1 and 0, greedy 1 and .5: 0 and −.5 on every token; β = .1, k1 = 1 2 still to come: −.3, −.2 and −.5."""
    batch = make_batch([2, 1], 1, [1.0, 0.0])
    batch = replace(batch, baseline_rewards=torch.tensor([1.0, 0.5], dtype=torch.float64))
    close(make("remax", **NO_KL).advantages(batch)[0], [[0, 0], [-0.5, 0]])
    assert batch.old_logp is not None
    kl = torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    batch = replace(batch, kl_coef=0.1, ref_logp=batch.old_logp - kl)
    close(make("remax").advantages(batch)[0], [[-0.3, -0.2], [-0.5, 0]])


def test_remax_with_greedy_reward_zero_is_reinforce() -> None:
    batch = replace(make_batch(), baseline_rewards=torch.zeros(8, dtype=torch.float64))
    networks = Networks(batch)
    one, other = (loss_and_gradients(make(name, **NO_KL), batch, networks) for name in ("remax", "reinforce"))
    close(one[0], other[0])
    close(one[1][0], other[1][0])


def test_remax_asks_for_a_greedy_answer() -> None:
    assert make("remax").extra_rollouts == "greedy"
    assert {make(name).extra_rollouts for name in ("rloo", "reinforce", "opo", "raft")} == {"none"}


# OPO.


def test_opo_by_hand() -> None:
    """l = 5 3 1 1, r = 1 0 1 0: b = (5 + 1)/10 = .6; l = 2 2 2 2: b = .5."""
    batch = make_batch([5, 3, 1, 1, 2, 2, 2, 2], 4, [1.0, 0, 1, 0, 1, 1, 0, 0])
    advantages, _ = make("opo").advantages(batch)
    close(advantages[:, 0], [0.4, -0.6, 0.4, -0.6, 0.5, 0.5, -0.5, -0.5])


def test_opo_with_answers_of_one_length_is_the_centred_reward() -> None:
    batch = make_batch([4] * 8)
    close(make("opo").advantages(batch)[0], ops.group_center(batch.rewards, 4)[:, None] * batch.mask)


def test_opos_baseline_leaves_no_push_on_a_groups_mean_log_prob() -> None:
    """Σ l (r − b) = 0: that is what the baseline is."""
    batch = make_batch(rewards=[1, 0, 0, 0.5, 0, 1, 1, 0.25])
    close(make("opo").advantages(batch)[0].view(2, -1).sum(1), [0, 0])


def test_opo_leaves_answers_out_that_are_out_of_the_loss() -> None:
    batch = make_batch([5, 3, 1, 1], 4, [1.0, 0, 1, 0])
    batch = drop(batch, torch.tensor([False, True, True, True]))
    close(make("opo").advantages(batch)[0][:, 0], [0, -0.2, 0.8, -0.2])  # b = 1/5


# RAFT.


def test_raft_keeps_the_correct_or_the_best_of_each_group() -> None:
    """Groups of four: the best is the largest reward if above 0, and all that are equally good."""
    batch = make_batch(rewards=[1, 0.2, 0, 1, -1, 0, -2, 0])
    batch = replace(batch, correct=torch.tensor([True, False, False, False, True, False, False, True]))
    assert make("raft").keep(batch).tolist() == batch.correct.tolist()
    assert make("raft", select="best").keep(batch).tolist() == [True, False, False, True] + [False] * 4
    shaped = replace(batch, rewards=torch.tensor([0.3, 0.2, 0, 0.1, 0, 0.4, 0.1, 0.4], dtype=torch.float64))
    assert make("raft", select="best").keep(shaped).tolist() == [True] + [False] * 4 + [True, False, True]


def test_raft_is_supervised_training_on_the_correct_answers() -> None:
    algo, batch = make("raft"), make_batch(rewards=[1, 0, 0, 1, 0, 1, 0, 0])
    batch = drop(batch, algo.keep(batch))
    networks = Networks(batch)
    loss, (gradient, *_) = loss_and_gradients(algo, batch, networks)
    right = batch.correct[:, None] * batch.mask
    close(loss, -(networks.logp.detach() * right).sum() / right.sum())
    # LENGTHS of rows 0, 3 and 5 are 5, 7 and 7: 19 tokens
    assert right.sum() == LENGTHS[0] + LENGTHS[3] + LENGTHS[5] == 19
    close(gradient, -right / 19)


def test_raft_does_nothing_when_nothing_is_correct() -> None:
    algo, batch = make("raft"), make_batch(rewards=[0.0] * 8)
    loss, (gradient, *_) = loss_and_gradients(algo, drop(batch, algo.keep(batch)), Networks(batch))
    assert loss == 0
    assert not gradient.any()


# Arms and warnings.

ARMS = {
    "rloo": 8, "rloo_sequence": 8, "reinforce": 1, "reinforce_running_mean": 1, "reinforce_pp": 1,
    "reinforce_pp_baseline": 8, "remax": 1, "opo": 8, "vineppo": 8, "vc_ppo": 1, "vapo": 16, "raft": 8, "raft_best": 8,
}  # fmt: skip


@pytest.mark.parametrize(("arm", "group_size"), ARMS.items())
def test_every_arm_composes_with_its_group(arm: str, group_size: int) -> None:
    cfg = config(f"arm={arm}")
    assert cfg.group_size == group_size
    assert arm.startswith(cfg.algo.name)
    if arm not in ("raft", "raft_best"):  # supervised training needs no ratio; the others have one, or one update
        assert math.isfinite(cfg.algo.clip_range[0]) or (cfg.epochs, cfg.minibatches) == (1, 1)


@pytest.mark.parametrize("name", ["reinforce", "remax", "opo"])
def test_what_has_no_ratio_says_when_updates_are_off_policy(name: str) -> None:
    assert not any("ratio" in w or "on-policy" in w for w in config(f"arm={name}").algo.check(config(f"arm={name}")))
    cfg = config(f"arm={name}", "minibatches=4", "epochs=2")
    assert [w for w in cfg.algo.check(cfg) if "8 updates per rollout" in w]
