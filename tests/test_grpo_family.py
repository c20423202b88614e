"""GRPO's relatives: numbers worked by hand, and identities that relate them to GRPO and to one another."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from algo_data import Networks, credited, loss_and_gradients, make, make_batch, node
from model_data import make as configured
from torch import Tensor

from grpo_bench import ops
from grpo_bench.algos import Algorithm, load
from grpo_bench.algos.dialects import DIALECTS
from grpo_bench.compose import compose, composing
from grpo_bench.config import parse
from grpo_bench.types import Batch, UserError

FAMILY = ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "gmpo", "sapo", "lite_ppo", "maxrl")
GRPO = {"kl__place": "none"}  # the relatives have no KL
EXACT = {**GRPO, "eps": 0.0}


def close(actual: Tensor | None, expected: object, tol: float = 1e-12) -> None:
    assert actual is not None
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0, atol=tol)


def on_policy(batch: Batch) -> Networks:
    """Networks that have not moved since the rollout: every ratio is 1."""
    return Networks(batch, drift=0.0)


def pair(algo: Algorithm, length: int = 3, width: int = 3) -> Batch:
    """Two answers to one question with advantages 1 and −1."""
    batch = make_batch([length] * 2, 2, [1, 0], width=width)
    return replace(batch, advantages=torch.tensor([[1.0], [-1.0]], dtype=torch.float64) * batch.mask)


def moved(batch: Batch, *log_ratios: float) -> Tensor:
    """log π of both answers, so far from log π_old."""
    assert batch.old_logp is not None
    return batch.old_logp + torch.tensor(log_ratios, dtype=torch.float64)


def ratios(batch: Batch, *rho: float) -> Tensor:
    return moved(batch, *(math.log(r) for r in rho))


def same(one: Algorithm, other: Algorithm, batch: Batch, networks: Networks, tol: float = 1e-12) -> None:
    """Loss and gradient of the two agree on this batch."""
    (loss, gradients), (its_loss, its_gradients) = (loss_and_gradients(a, batch, networks) for a in (one, other))
    close(loss, its_loss, tol)
    close(gradients[0], its_gradients[0], tol)
    assert gradients[0].any()


# The lone winner of [1,0,0,0,0,0,0,0], one token each: μ = 1/8, Σ(r − μ)² = 7/8.
# ddof 0: σ = √(7/64) = .3307189; ddof 1: σ = √(1/8) = .3535534.

Z0 = (2.6457512, -0.3779645)  # .875/(.3307189 + 1e-8), −.125/the same
TRL = (2.4741740, -0.3534534)  # .875/(.3535534 + 1e-4) = .875/.3536534, −.125/.3536534
VERL = (2.4748667, -0.3535524)  # .875/(.3535534 + 1e-6), −.125/the same
OPENRLHF = (2.4748737, -0.3535534)  # .875/(.3535534 + 1e-9), −.125/the same
CENTRED = (0.875, -0.125)  # 1 − 1/8, 0 − 1/8
LONE_WINNERS = {
    ("grpo", "paper"): Z0,
    ("grpo", "trl"): TRL,
    ("grpo", "verl"): VERL,
    ("grpo", "openrlhf"): OPENRLHF,
    ("dr_grpo", "paper"): CENTRED,
    ("dr_grpo", "trl"): TRL,  # half of it: the deviation stays
    ("dr_grpo", "verl"): CENTRED,
    ("dr_grpo", "openrlhf"): CENTRED,
    ("dapo", "paper"): Z0,
    ("dapo", "trl"): TRL,
    ("dapo", "verl"): VERL,
    ("dapo", "openrlhf"): OPENRLHF,
    ("gspo", "paper"): Z0,
    ("gspo", "trl"): TRL,
    ("gspo", "verl"): VERL,
    ("gspo", "openrlhf"): OPENRLHF,
    ("cispo", "paper"): Z0,
    ("cispo", "trl"): TRL,
    ("cispo", "verl"): VERL,
    ("gmpo", "paper"): Z0,
    ("gmpo", "trl"): TRL,
    ("gmpo", "verl"): VERL,
    ("sapo", "paper"): Z0,
    ("sapo", "trl"): TRL,
    ("sapo", "verl"): VERL,
    ("lite_ppo", "paper"): Z0,  # its group is the batch
    ("lite_ppo", "trl"): TRL,
    ("maxrl", "paper"): (7.0, -1.0),  # (7/8)/(1/8), −(1/8)/(1/8)
}


def test_every_dialect_has_its_lone_winner_here() -> None:
    known = {(name, dialect) for name in FAMILY for dialect in ("paper", *DIALECTS.get(name, {}))}
    assert known == set(LONE_WINNERS)


@pytest.mark.parametrize(("name", "dialect"), LONE_WINNERS)
def test_lone_winner(name: str, dialect: str) -> None:
    algo = load(node(name), dialect)
    batch = replace(make_batch([1] * 8, 8, [1.0, 0, 0, 0, 0, 0, 0, 0]), kl_coef=0.0)
    winner, loser = LONE_WINNERS[name, dialect]
    close(algo.advantages(batch)[0].squeeze(1), [winner] + [loser] * 7, 1e-6)
    if dialect == "paper":
        assert algo.lone_winner == pytest.approx((winner, loser), abs=1e-6)


# What they have in common.


@pytest.mark.parametrize("name", [name for name in FAMILY if name not in ("dr_grpo", "lite_ppo", "maxrl")])
def test_advantage_is_that_of_grpo(name: str) -> None:
    batch = make_batch(rewards=[1, 0, 0, 0.5, 0, 1, 1, 0.25])
    close(make(name).advantages(batch)[0], make("grpo").advantages(batch)[0], 0)


@pytest.mark.parametrize("name", FAMILY)
def test_on_policy_the_gradient_is_minus_weights_times_advantage(name: str) -> None:
    """Clips, gates and geometric means differ only where the policy has moved."""
    algo = make(name, **GRPO)
    batch = credited(algo, make_batch())
    gradient = loss_and_gradients(algo, batch, on_policy(batch))[1][0]
    assert batch.advantages is not None
    close(gradient, -algo.token_weights(batch.mask) * batch.advantages)


@pytest.mark.parametrize("name", ["gspo", "gmpo"])
@pytest.mark.parametrize("aggregation", ["token_mean", "constant_length"])
def test_one_loss_per_answer_needs_the_mean_over_answers(name: str, aggregation: str) -> None:
    assert make(name).whole_answer
    with pytest.raises(UserError, match=f"algo={name} has one loss per answer here.*not {aggregation}"):
        configured(f"algo={name}", f"algo.aggregation={aggregation}")


# Dr. GRPO.


def test_dr_grpo_centres_and_no_more() -> None:
    # μ = .25: .75, −.25; equal rewards 0
    batch = make_batch([2, 1, 3, 3, 1, 2, 3, 1], rewards=[1, 0, 0, 0, 0.7, 0.7, 0.7, 0.7])
    expected = torch.tensor([0.75, -0.25, -0.25, -0.25, 0, 0, 0, 0], dtype=torch.float64)
    close(make("dr_grpo").advantages(batch)[0], expected[:, None] * batch.mask)


def test_dr_grpo_divides_every_answer_by_the_same_length() -> None:
    """Answers of 3 tokens and 1, Ã = ±.5, ρ = 1, L = 7: (−3·.5 + 1·.5)/(2·7) = −1/14."""
    algo = make("dr_grpo")
    assert algo.length == 7
    batch = credited(algo, make_batch([3, 1], 2, [1, 0]))
    loss, (gradient, *_) = loss_and_gradients(algo, batch, on_policy(batch))
    close(loss, -1 / 14)
    # each token moves by ±.5/14, whatever the length of its answer
    close(gradient, [[-1 / 28] * 3, [1 / 28, 0, 0]])


def test_dr_grpo_is_grpo_times_the_deviation_of_each_group() -> None:
    batch = make_batch(rewards=[1, 0, 0, 0.5, 0, 1, 1, 0.25])
    deviation = batch.rewards.view(2, 4).std(1, correction=0).repeat_interleave(4)
    advantages = make("grpo", **EXACT).advantages(batch)[0] * deviation[:, None]
    close(make("dr_grpo").advantages(batch)[0], advantages)


def test_dr_grpo_without_either_half_is_grpo() -> None:
    batch = make_batch()
    same(make("dr_grpo", scale="std", aggregation="sequence_mean"), make("grpo", **GRPO), batch, Networks(batch), 0)


def test_the_length_is_the_tasks() -> None:
    for name in ("dr_grpo", "maxrl"):
        assert configured(f"algo={name}").algo.length == 40
        assert configured(f"algo={name}", "algo.length=9").algo.length == 9
        with composing():
            cfg = parse(compose(["device=cpu", f"algo={name}", "task=gsm8k", "model=smollm2-135m"]))
        assert cfg.algo.length == cfg.task.max_new_tokens > 40


# DAPO.


def test_dapo_loss_by_hand() -> None:
    """ρ = 1.5, 1.1, .5. Ã = 1: −(1.28, 1.1, .5); Ã = −1: 1.5, 1.1, .8. Mean over tokens: (−2.88 + 3.4)/6 = .086667."""
    algo = make("dapo")
    batch = pair(algo)
    loss = algo.token_loss(ratios(batch, 1.5, 1.1, 0.5), batch)
    close(loss, [[-1.28, -1.1, -0.5], [1.5, 1.1, 0.8]])
    close((algo.token_weights(batch.mask) * loss).sum(), 0.52 / 6)


def test_dapo_is_grpo_with_a_wider_upper_clip_and_all_tokens_alike() -> None:
    batch = make_batch()
    same(make("dapo"), make("grpo", clip_high=0.28, aggregation="token_mean", **GRPO), batch, Networks(batch), 0)


def test_dapo_keeps_groups_with_right_and_wrong_answers() -> None:
    # by who is right, not by a reward that has other parts: groups 1 and 2 differ in it, too
    batch = make_batch([2] * 12, 4, [1.0, 0.9, 1.0, 0.9, 0.1, 0, 0.1, 0, 1, 0, 0, 0.1])
    assert batch.correct.tolist() == [True] * 4 + [False] * 4 + [True] + [False] * 3
    assert make("dapo").keep(batch).tolist() == [False] * 8 + [True] * 4
    assert make("dapo", dynamic_sampling=False).keep(batch).all()
    assert make("dapo").refill_limit == 9
    assert make("dapo", max_refills=0).refill_limit == 0
    assert make("dapo", dynamic_sampling=False).refill_limit == 0


# GSPO.


@pytest.mark.parametrize(
    ("log_ratios", "winner", "loser"),
    [
        # their mean is log s
        ((0.0002, 0.0004), -1.000300045, 1.000300045),  # s = e^.0003, within 1 − 3e-4, 1 + 4e-4
        ((0.001, 0.0), -1.0004, 1.000500125),  # s = e^.0005: Ã = 1 is held
        ((-0.001, 0.0), -0.999500125, 0.9997),  # s = e^−.0005: Ã = −1 is held
    ],
)
def test_gspo_by_hand(log_ratios: tuple[float, float], winner: float, loser: float) -> None:
    algo = make("gspo")
    batch = pair(algo, 2)
    loss = algo.token_loss(moved(batch, *log_ratios, 9.0), batch)
    close(loss, [[winner, winner, 0], [loser, loser, 0]], 1e-9)
    close(algo.log_ratio(moved(batch, *log_ratios, 9.0), batch), [[sum(log_ratios) / 2] * 2 + [0]] * 2)


def test_gspo_gives_each_token_of_an_answer_the_same_gradient() -> None:
    algo = make("gspo")
    batch = credited(algo, make_batch())
    networks = Networks(batch, drift=1e-4)  # no ratio leaves its bounds
    loss, (gradient, *_) = loss_and_gradients(algo, batch, networks)
    s = algo.log_ratio(networks.logp.detach(), batch).exp()
    assert batch.advantages is not None
    close(loss, -(s * batch.advantages)[:, 0].mean())
    close(gradient, -s * batch.advantages / (8 * batch.mask.sum(1, keepdim=True)))


def test_gspo_is_the_whole_answer_ratio_where_answers_have_one_token() -> None:
    batch = make_batch([1] * 8)
    clip = {"clip_low": 0.2, "clip_high": 0.2}
    same(make("gspo", **clip), make("grpo", ratio="sequence", **clip, **GRPO), batch, Networks(batch))


# CISPO.


def test_cispo_by_hand() -> None:
    """ρ = 6, .1, 1, the weight at most 1 + 4 = 5 and nothing below: −5·Ã·log π, −.1·Ã·log π, −Ã·log π."""
    algo = make("cispo")
    batch = pair(algo)
    logp = ratios(batch, 6, 0.1, 1).requires_grad_()
    weight = torch.tensor([5.0, 0.1, 1.0], dtype=torch.float64)
    sign = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    loss = algo.token_loss(logp, batch)
    close(loss.detach(), -weight * sign * logp.detach())
    loss.sum().backward()
    close(logp.grad, -weight * sign)  # every token has its gradient, and the weight none


def test_cispo_bounds() -> None:
    batch = pair(make("cispo"))
    logp = ratios(batch, 6, 0.1, 1)
    for knobs, expected in (
        ({"clip_low": 0.2, "clip_high": 0.2}, [1.2, 0.8, 1.0]),  # both sides
        ({"cap": "absolute", "clip_high": 5.0}, [5.0, 0.1, 1.0]),  # the bound itself
        ({"cap": "absolute", "clip_high": 0.2}, [0.2, 0.1, 0.2]),  # which caps every ratio where 1.2 is meant
        ({"clip_high": 8.0}, [6.0, 0.1, 1.0]),
    ):
        loss = make("cispo", **knobs).token_loss(logp, batch)
        close(loss[0] / -logp[0], expected)
    assert make("cispo").clip_range == (math.inf, 4.0)
    assert load(node("cispo"), "trl").clip_range == (math.inf, 4.0)
    assert load(node("cispo"), "verl").clip_range == (0.2, 0.2)


def test_cispo_keeps_the_gradient_that_grpo_drops() -> None:
    batch = pair(make("cispo"))
    gradients = {}
    for name in ("cispo", "grpo"):
        logp = ratios(batch, 1.5, 1, 1).requires_grad_()
        make(name, **GRPO).token_loss(logp, batch).sum().backward()
        assert logp.grad is not None
        gradients[name] = logp.grad[0].tolist()
    assert gradients["grpo"] == pytest.approx([0, -1, -1])  # ρ = 1.5 > 1.2
    assert gradients["cispo"] == pytest.approx([-1.5, -1, -1])


# GMPO.


def test_gmpo_by_hand() -> None:
    """log ρ = .6, −.6. Ã = 1 holds the upper: mean(.4, −.6) = −.1; Ã = −1 the lower: mean(.6, −.4) = .1."""
    algo = make("gmpo")
    batch = pair(algo, 2)
    loss = algo.token_loss(moved(batch, 0.6, -0.6, 9.0), batch)
    # −e^−.1 = −.904837, e^.1 = 1.105171
    close(loss, [[-0.904837, -0.904837, 0], [1.105171, 1.105171, 0]], 1e-6)


def test_gmpo_stops_a_token_only_where_it_went_with_its_advantage() -> None:
    algo = make("gmpo")
    batch = pair(algo, 2, 2)
    logp = moved(batch, 0.6, -0.6).requires_grad_()
    algo.token_loss(logp, batch).sum().backward()
    assert logp.grad is not None
    # of 2 tokens of ½ each, broadcast over 2: −ρÃ where it acts
    close(logp.grad, [[0, -0.904837], [1.105171, 0]], 1e-6)


def test_gmpo_of_one_token_is_ppos_clip_in_log_space() -> None:
    batch = make_batch([1] * 8)
    clip = {"clip_low": -math.expm1(-0.4), "clip_high": math.expm1(0.4)}
    assert make("gmpo").clip_range == pytest.approx(tuple(clip.values()))
    networks = Networks(batch, drift=1.0)
    same(make("gmpo"), make("grpo", **clip, **GRPO), batch, networks)
    assert batch.old_logp is not None
    assert ((networks.logp - batch.old_logp).abs() > 0.4).any()


def test_gmpo_and_gspo_agree_where_neither_clips() -> None:
    batch = make_batch()
    wide = {"clip_low": 0.9, "clip_high": 9.0}
    same(make("gmpo", **wide), make("gspo", **wide), batch, Networks(batch, drift=0.1))


# SAPO.


def test_sapo_by_hand() -> None:
    """ρ = 1.5, 1, .5. τ = 1: 4σ(.5) = 4·.622459, 4·½, 4σ(−.5) = 4·.377541.

    τ = 1.05: σ(.525) = .628316, ½, σ(−.525) = .371684, times 4/1.05 = 3.809524.
    """
    algo = make("sapo")
    batch = pair(algo)
    loss = algo.token_loss(ratios(batch, 1.5, 1, 0.5), batch)
    close(loss, [[-2.489837, -2.0, -1.510163], [2.393585, 1.904762, 1.415939]], 2e-6)


def test_sapo_lets_a_token_fade_on_both_sides() -> None:
    """d/d log ρ of 4/τ·σ(τ(ρ − 1)) is 4ρ·σ(1 − σ): at ρ = 1.5 6·.622459·.377541, at 1 1, at .5 2·.377541·.622459."""
    algo = make("sapo", tau_neg=1.0)
    batch = pair(algo)
    logp = ratios(batch, 1.5, 1, 0.5).requires_grad_()
    algo.token_loss(logp, batch).sum().backward()
    close(logp.grad, [[-1.410022, -1.0, -0.470007], [1.410022, 1.0, 0.470007]], 2e-6)
    far = ratios(batch, 60, 1, 0.01).requires_grad_()
    algo.token_loss(far, batch).sum().backward()
    assert far.grad is not None
    assert (far.grad[:, [0, 2]].abs() < 0.01).all()


# Lite PPO.


def test_lite_ppo_by_hand() -> None:
    # means .25 and .5; the batch: mean 3/8, σ² = 3/8·5/8 = 15/64, σ = .484123
    # .75/σ = 1.549193, −.25/σ = −.516398, ±.5/σ = ±1.032796
    batch = make_batch([1] * 8, rewards=[1, 0, 0, 0, 1, 1, 0, 0])
    expected = [1.549193, -0.516398, -0.516398, -0.516398, 1.032796, 1.032796, -1.032796, -1.032796]
    close(make("lite_ppo").advantages(batch)[0].squeeze(1), expected, 1e-6)
    # ddof 1: σ² = 15/56, σ = .517549, and 1e-4 beside it: .75/.517649 = 1.448858, ±.5/.517649 = ±.965905
    trl = load(node("lite_ppo"), "trl").advantages(batch)[0].squeeze(1)
    close(trl[[0, 4, 7]], [1.448858, 0.965905, -0.965905], 2e-6)


def test_lite_ppo_of_one_group_is_grpo_with_all_tokens_alike() -> None:
    batch = make_batch(group_size=8, rewards=[1, 0, 0, 0.5, 0, 1, 1, 0.25])
    same(make("lite_ppo"), make("grpo", aggregation="token_mean", **GRPO), batch, Networks(batch))


def test_lite_ppo_keeps_the_groups_apart_in_the_mean_and_together_in_the_deviation() -> None:
    batch = make_batch(rewards=[1, 0, 0, 0.5, 0, 1, 1, 0.25])
    before = make("lite_ppo").advantages(batch)[0]
    close(make("lite_ppo").advantages(replace(batch, rewards=batch.rewards + 3))[0], before)  # all alike: no change
    ajar = batch.rewards + torch.tensor([3.0] * 4 + [-2.0] * 4, dtype=torch.float64)
    after = make("lite_ppo").advantages(replace(batch, rewards=ajar))[0]
    deviations = batch.rewards.std(correction=0) / ajar.std(correction=0)
    assert deviations < 0.3  # far-apart groups make every advantage smaller
    close(after, before * deviations, 1e-6)


# MaxRL.


def test_maxrl_by_hand() -> None:
    # K of 4 right: (4 − K)/K and −1; none right or all right: 0
    rewards = [1, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0, 1, 1, 1, 1, 0, 0, 0, 0]
    batch = make_batch([1] * 20, rewards=[float(r) for r in rewards])
    expected = [3.0, -1, -1, -1, 1, 1, -1, -1, 1 / 3, 1 / 3, 1 / 3, -1, *[0] * 8]
    close(make("maxrl").advantages(batch)[0].squeeze(1), expected)


def test_maxrl_where_the_mean_is_not_above_zero() -> None:
    batch = make_batch([1] * 8, rewards=[-1.0, 0, 0, 0, 1, -1, 1, -1])
    assert not make("maxrl").advantages(batch)[0].any()


def test_maxrl_is_grpo_times_deviation_over_mean() -> None:
    batch = make_batch(rewards=[1, 0, 0, 0.5, 0, 1, 1, 0.25])
    groups = batch.rewards.view(2, 4)
    factor = (groups.std(1, correction=0) / groups.mean(1)).repeat_interleave(4)
    close(make("maxrl").advantages(batch)[0], make("grpo", **EXACT).advantages(batch)[0] * factor[:, None])


@pytest.mark.parametrize("chance", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("size", [2, 4, 8])
def test_maxrl_expects_the_gradient_of_the_truncated_log_likelihood(chance: float, size: int) -> None:
    """E[1/G Σ Ãᵢ d log π(rᵢ)/dp] over all outcomes is Σ_{k<G} 1/k d pass@k/dp = (1 − (1 − p)^(G−1))/p, near 1/p."""
    outcomes = torch.tensor(list(itertools.product([0.0, 1.0], repeat=size)), dtype=torch.float64)
    scores = ops.group_over_mean(outcomes.flatten(), size).view(-1, size)
    slopes = outcomes / chance - (1 - outcomes) / (1 - chance)
    weights = (outcomes * chance + (1 - outcomes) * (1 - chance)).prod(1)
    expected = (1 - (1 - chance) ** (size - 1)) / chance
    assert float((weights * (scores * slopes).mean(1)).sum()) == pytest.approx(expected, rel=1e-9)


# Their formulae in ops.


def test_groups_without_a_spread_have_no_score() -> None:
    one, two = torch.tensor([0.7]), torch.tensor([1.0, 0.0])
    for guard in (True, False):
        close(ops.batch_zscore(one, 1, 1, 0.0, guard), [0])  # B ≤ ddof
        close(ops.batch_zscore(two, 1, 0, 1e-8, guard), [0, 0])  # groups of one: each is its own mean
    close(ops.batch_zscore(torch.full((4,), 0.7), 2, 0, 0.0), [0] * 4)  # 0/0 otherwise
    close(ops.group_over_mean(two, 1), [0, 0])


def test_mixed_groups() -> None:
    correct = torch.tensor([True, True, False, False, True, False])
    assert ops.mixed_groups(correct, 2).tolist() == [False] * 4 + [True] * 2
    assert not ops.mixed_groups(correct, 1).any()


def test_ratio_and_answer_mean() -> None:
    zero, logs = torch.zeros(1, 3), torch.tensor([[2.0, -30.0, 0.5]])
    close(ops.ratio(logs, zero), logs.exp())
    close(ops.ratio(logs, zero, 1.0), torch.tensor([[1.0, -1.0, 0.5]]).exp())
    mask = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    close(ops.answer_mean(torch.tensor([[2.0, 4.0, 9.0], [5.0, 5.0, 5.0]]), mask), [[3, 3, 0], [0, 0, 0]])


# The arms.


@pytest.mark.parametrize("name", [name for name in FAMILY if name != "grpo"])
def test_an_arm_is_its_algorithm_at_a_group_size_of_eight(name: str) -> None:
    cfg = configured(f"arm={name}")
    assert (cfg.algo.name, cfg.group_size, cfg.kl_coef, cfg.dialect) == (name, 8, 0.0, "paper")
    assert cfg.algo == make(name, length=cfg.algo.length)


@pytest.mark.parametrize(
    ("arm", "settings"),
    [
        ("grpo_sequence", {"ratio": "sequence"}),
        ("grpo_logprob", {"surrogate": "logprob", "kl.to": "old", "kl_coef": 0.04}),
        ("grpo_delta_stop", {"target_kl": 0.01, "kl_coef": 0.0}),
        ("grpo_delta_adaptive", {"kl.to": "old", "kl.control": "adaptive", "kl.target": 0.01, "kl_coef": 0.04}),
        ("grpo_g2", {"group_size": 2}),
        ("random_reward", {"reward.parts": {"random": 1.0}}),
    ],
)
def test_a_form_of_grpo_differs_from_it_in_what_it_is_named_for(arm: str, settings: dict[str, Any]) -> None:
    cfg, plain = configured(f"arm={arm}"), configured("arm=grpo")
    for key, value in settings.items():
        *path, last = key.split(".")
        node = cfg.algo if key.startswith("kl.") or key in ("ratio", "surrogate") else cfg
        for name in path:
            node = getattr(node, name)
        assert getattr(node, last) == value
    left = {
        key for key, value in cfg.algo.model_dump().items() if value != plain.algo.model_dump()[key] and key != "kl"
    }
    assert left == {key for key in settings if key in ("ratio", "surrogate")}
    assert cfg.algo.check(cfg) == (
        ["algo.surrogate=logprob has no ratio: algo.ratio, clip_low and clip_high are inert"]
        if arm == "grpo_logprob"
        else []
    )


def test_the_adaptive_arms_coefficient_can_move_in_a_run_of_some_thousand_samples() -> None:
    """± .2 · 256/1000 = 5 % a step: in the default run's 40 steps up to 7-fold."""
    cfg = configured("arm=grpo_delta_adaptive")
    batch = replace(make_batch(), kl_coef=0.04, state={"kl": 1.0, "samples": float(cfg.samples)})
    assert cfg.algo.next_state(batch) == {"kl_coef": pytest.approx(0.04 * 1.0512)}


def test_dapos_arm_has_the_overlong_part_of_the_reward() -> None:
    # right and wrong lie 2 apart, as the paper's 1 and −1; the punishment is at most 1
    assert configured("arm=dapo").reward.parts == {"correct": 2.0, "overlong": 1.0}


def test_two_completions_give_plus_and_minus_one() -> None:
    """2-GRPO: μ = ½, σ = ½."""
    batch = make_batch([1, 1], 2, [1, 0])
    close(make("grpo", **EXACT).advantages(batch)[0], [[1], [-1]])
