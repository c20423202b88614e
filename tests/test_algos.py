"""The algorithms' equations: numbers worked by hand, and identities that relate algorithms to one another."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace

import pytest
import torch
from algo_data import Networks, credited, log_probs, loss_and_gradients, make, make_batch, node
from torch import Tensor

from grpo_bench import ops
from grpo_bench.algos import ALGORITHMS, Algorithm, load
from grpo_bench.algos.dialects import dialects_of
from grpo_bench.paths import conf_dir
from grpo_bench.types import Batch, UserError

YAMLS = sorted(file.stem for file in (conf_dir() / "algo").glob("*.yaml"))
NO_KL = {"kl__place": "none"}


def close(actual: Tensor | None, expected: object, tol: float = 1e-12) -> None:
    assert actual is not None
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0, atol=tol)


def on_policy(batch: Batch) -> Networks:
    """Networks that have not moved since the rollout: every ratio is 1."""
    return Networks(batch, drift=0.0)


# What an algorithm is.


@pytest.mark.parametrize("name", YAMLS)
def test_a_yaml_gives_every_knob_and_loads(name: str) -> None:
    algo = load(node(name))
    assert type(algo) is ALGORITHMS[algo.name]
    assert set(node(name)) == {field.alias or key for key, field in type(algo).model_fields.items()}
    assert "# @package _global_" in (conf_dir() / "algo" / f"{name}.yaml").read_text().splitlines()[0]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_has_a_yaml_a_source_and_no_parent_but_the_contract(name: str) -> None:
    assert name in YAMLS
    found = ALGORITHMS[name]
    source = r"arXiv:\d{4}\.\d{5}, (eq\. \d|§\d)"  # a section where the paper has words and no equation
    assert re.search(source, inspect.getdoc(found) or "")
    assert found.__bases__ == (Algorithm,)
    assert "import torch" not in inspect.getsource(inspect.getmodule(found) or found).split("if TYPE_CHECKING:")[0]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_dialect_names_knobs_that_exist_and_changes_something(name: str) -> None:
    paper = load(node(name))
    for dialect in dialects_of(ALGORITHMS[name], name):
        assert (load(node(name), dialect) == paper) == (dialect == "paper")


def test_an_unknown_algorithm_is_one_clear_line() -> None:
    with pytest.raises(UserError, match=r"algo=gpro is not known; choose ppo, grpo.*algo.class=package.module:Class"):
        load({"name": "gpro"})


def test_what_must_be_computed_follows_from_the_knobs() -> None:
    grpo, ppo = make("grpo"), make("ppo")
    for algo in (grpo, ppo):
        assert algo.needs_reference
        assert not algo.needs_entropy
        assert not algo.needs_old_logp
    assert ppo.needs_critic
    assert not grpo.needs_critic
    assert not make("grpo", **NO_KL).needs_reference
    assert not make("grpo", kl__to="old").needs_reference
    assert make("grpo", kl__place="reward").needs_old_logp
    assert make("ppo", entropy_coef=0.01).needs_entropy
    assert make("ppo", critic_warmup=3).frozen_steps == 3
    assert make("ppo", vf_coef=0.1).value_weight == 0.1
    assert grpo.acts_without_advantage  # its KL does
    assert make("grpo", kl__place="none", entropy_coef=0.01).acts_without_advantage
    assert not make("grpo", kl__place="reward").acts_without_advantage
    assert make("ppo", **NO_KL).acts_without_advantage  # its critic does
    assert make("grpo", ratio="sequence").whole_answer
    assert not grpo.whole_answer
    assert not make("grpo", ratio="sequence", surrogate="logprob").whole_answer
    assert make("grpo", clip_low=0.1, clip_high=0.3).clip_range == (0.1, 0.3)


# GRPO.


def test_grpo_gives_each_token_the_z_score_of_its_answer() -> None:
    # group 1: μ = .25, σ = √(.25·.75) = .433013: .75/σ = 1.732051, −.25/σ = −.577350; group 2 is flat
    batch = make_batch([2, 1, 3, 3, 1, 2, 3, 1], rewards=[1, 0, 0, 0, 0.7, 0.7, 0.7, 0.7])
    advantages, targets = make("grpo").advantages(batch)
    expected = torch.tensor([1.732051, -0.577350, -0.577350, -0.577350, 0, 0, 0, 0], dtype=torch.float64)
    close(advantages, expected[:, None] * batch.mask, 1e-6)
    assert targets is None


def test_grpo_loss_by_hand() -> None:
    """ρ = 1.5, 1.1, .5 on the tokens of two answers with Ã = ±1; ref = old, α = .04, k3."""
    batch = make_batch([3, 3], 2, [1, 0])
    batch = credited(make("grpo"), log_probs(batch, [0.0] * 3, [0.0] * 3))
    logp = -1 + torch.tensor([[1.5, 1.1, 0.5]] * 2, dtype=torch.float64).log()
    # k3 = 1/ρ + log ρ − 1: .666667 + .405465 − 1 = .072132; .909091 + .095310 − 1 = .004401; 2 − .693147 − 1 = .306853
    # Ã = 1: −(1.2, 1.1, .5) + .04·k3;  Ã = −1: −(−1.5, −1.1, −.8) + .04·k3
    loss = make("grpo").token_loss(logp, batch)
    close(loss, [[-1.197115, -1.099824, -0.487726], [1.502885, 1.100176, 0.812274]], 2e-6)
    # mean over tokens, then answers: (−2.784665 + 3.415335)/6 = .105112
    close((make("grpo").token_weights(batch.mask) * loss).sum(), 0.105112, 2e-6)


def test_grpo_gradient_on_policy_is_minus_weights_times_advantage() -> None:
    batch = credited(algo := make("grpo", **NO_KL), make_batch())
    gradient = loss_and_gradients(algo, batch, on_policy(batch))[1][0]
    assert batch.advantages is not None
    assert batch.advantages.any()
    close(gradient, -algo.token_weights(batch.mask) * batch.advantages, 0)


def test_on_policy_the_clipped_form_and_log_prob_times_advantage_have_one_gradient() -> None:
    batch = make_batch()
    clip = loss_and_gradients(make("grpo"), batch, on_policy(batch))[1][0]
    plain = loss_and_gradients(make("grpo", surrogate="logprob"), batch, on_policy(batch))[1][0]
    close(plain, clip)


def test_log_prob_times_advantage_has_its_gradient_wherever_the_policy_went() -> None:
    algo = make("grpo", surrogate="logprob", aggregation="constant_length", length=1, **NO_KL)
    batch = credited(algo, make_batch())
    loss, (gradient, *_) = loss_and_gradients(algo, batch, networks := Networks(batch, drift=2.0))
    assert batch.advantages is not None
    close(gradient, -batch.advantages / 8, 1e-15)
    # length 1: the mean over answers of Ã · Σ log π
    sums = (networks.logp.detach() * batch.mask).sum(1)
    close(loss, -(sums * batch.advantages[:, 0]).mean())


class TestWholeAnswerRatio:
    algo = make("grpo", ratio="sequence", **NO_KL)

    def test_by_hand(self) -> None:
        """log ratios .1 + .2 = .3: ρ = 1.349859, beyond 1.2: Ã = 1 gets 1.2, Ã = −1 all of ρ, on each token."""
        batch = credited(self.algo, make_batch([2, 2], 2, [1, 0], width=3))
        assert batch.old_logp is not None
        logp = batch.old_logp + torch.tensor([0.1, 0.2, 0.0], dtype=torch.float64)
        close(self.algo.token_loss(logp, batch), [[-1.2, -1.2, 0], [1.349859, 1.349859, 0]], 1e-6)

    def test_is_the_exponential_of_the_summed_log_ratio_on_every_token(self) -> None:
        batch = credited(self.algo, make_batch())
        networks = Networks(batch, drift=0.02)  # no ratio leaves its bounds
        assert batch.old_logp is not None
        assert batch.advantages is not None
        ratio = ((networks.logp.detach() - batch.old_logp) * batch.mask).sum(1, keepdim=True).exp()
        assert 0.005 < (ratio - 1).abs().max() < 0.2
        close(self.algo.token_loss(networks.logp, batch).detach(), -ratio * batch.advantages)
        # so the loss is the mean over answers of ρÃ, and each token of an answer has the same gradient, −ρÃ/B
        loss, (gradient, *_) = loss_and_gradients(self.algo, batch, networks)
        close(loss, -(ratio * batch.advantages)[:, 0].mean())
        close(gradient, -ratio * batch.advantages / 8)

    def test_is_the_token_ratio_where_answers_have_one_token(self) -> None:
        batch = make_batch([1] * 8)
        one, other = (loss_and_gradients(algo, batch, Networks(batch)) for algo in (self.algo, make("grpo", **NO_KL)))
        close(one[0], other[0])
        close(one[1][0], other[1][0])


# PPO.


def test_ppo_credit_by_hand() -> None:
    """R = 1, V = .5 .6 .8; γ = 1, λ = .95: δ = .1 .2 .2, A2 = .2, A1 = .2 + .19 = .39, A0 = .1 + .3705 = .4705."""
    values = torch.tensor([[0.5, 0.6, 0.8, 0.0]], dtype=torch.float64)
    batch = replace(make_batch([3], 1, [1.0], width=4), values=values)
    advantages, targets = make("ppo", whiten=False).advantages(batch)
    close(advantages, [[0.4705, 0.39, 0.2, 0]])
    # A + V: the target of the critic; whitening comes after it
    close(targets, [[0.9705, 0.99, 1.0, 0]])
    white, same = make("ppo").advantages(batch)
    # μ = .3535, σ² = (.117² + .0365² + .1535²)/3 = .0128612, σ = .113407: .117/σ, .0365/σ, −.1535/σ
    close(white, [[1.031682, 0.321850, -1.353532, 0]], 1e-5)
    close(same, targets)


def test_ppo_gives_a_truncated_answer_its_reward_at_its_last_token_and_no_value_beyond() -> None:
    """Width 3 filled, R = .1, V = .5 .6 .8, λ = 0: δ = .1, .2, .1 + 0 − .8 = −.7."""
    values = torch.tensor([[0.5, 0.6, 0.8]], dtype=torch.float64)
    batch = replace(make_batch([3], 1, [0.1]), values=values)
    assert not batch.finished.any()
    close(make("ppo", lam=0.0, whiten=False).advantages(batch)[0], [[0.1, 0.2, -0.7]])


def test_ppo_with_a_critic_that_says_zero_has_the_outcome_on_every_token() -> None:
    batch = replace(make_batch(), values=torch.zeros(8, 7, dtype=torch.float64))
    advantages, targets = make("ppo", lam=1.0, whiten=False).advantages(batch)
    close(advantages, batch.rewards[:, None] * batch.mask)
    close(targets, advantages)


def test_ppo_at_lambda_one_has_the_monte_carlo_return_minus_the_value() -> None:
    batch = make_batch()
    advantages, targets = make("ppo", lam=1.0, whiten=False).advantages(batch)
    assert batch.values is not None
    close(advantages, (batch.rewards[:, None] - batch.values) * batch.mask)
    close(targets, batch.rewards[:, None] * batch.mask)


def test_ppo_with_the_mean_of_the_group_as_its_critic_is_grpo_without_the_deviation() -> None:
    batch = make_batch()
    means = batch.rewards.view(2, 4).mean(1).repeat_interleave(4)
    batch = replace(batch, values=means[:, None] * batch.mask)
    advantages, _ = make("ppo", lam=1.0, whiten=False).advantages(batch)
    close(advantages, ops.group_center(batch.rewards, 4)[:, None] * batch.mask)


def test_ppo_on_policy_is_reinforce() -> None:
    """The gradient of the clipped surrogate at ρ = 1 is that of −A log π."""
    algo = make("ppo", **NO_KL)
    batch = credited(algo, make_batch())
    networks, weights = on_policy(batch), algo.token_weights(batch.mask)
    gradient = loss_and_gradients(algo, batch, networks)[1][0]
    assert batch.advantages is not None
    (-weights * batch.advantages * networks.logp).sum().backward()
    close(gradient, networks.gradients()[0], 0)


def test_ppo_and_grpo_differ_in_the_advantage_alone() -> None:
    batch = credited(make("grpo"), make_batch())
    logp = Networks(batch).logp
    close(make("ppo").token_loss(logp, batch), make("grpo").token_loss(logp, batch).detach().clone())


def test_a_group_of_equal_rewards_teaches_ppo_and_not_grpo() -> None:
    batch = make_batch(rewards=[1.0] * 4 + [0.0] * 4)
    assert not make("grpo").advantages(batch)[0].any()
    assert make("ppo").advantages(batch)[0].any()


def test_the_critic_learns_towards_its_targets() -> None:
    # V = .9, .1; V_old = .5; targets 1: (.1)² = .01, (.9)² = .81; with clip .2: max(.01, (.7 − 1)²) = .09, .81
    batch = replace(
        make_batch([2], 1, [1.0]),
        values=torch.tensor([[0.5, 0.5]], dtype=torch.float64),
        returns=torch.ones(1, 2, dtype=torch.float64),
    )
    values = torch.tensor([[0.9, 0.1]], dtype=torch.float64, requires_grad=True)
    close(make("ppo", value_clip=0.2).value_loss(values, batch).detach(), [[0.09, 0.81]])
    loss = make("ppo").value_loss(values, batch)
    close(loss.detach(), [[0.01, 0.81]])
    loss.sum().backward()
    close(values.grad, [[-0.2, -1.8]])  # 2 (V − R): a step down the gradient raises V


def test_no_critic_no_value_loss() -> None:
    with pytest.raises(NotImplementedError, match="grpo has no critic"):
        make("grpo").value_loss(torch.zeros(8, 7), make_batch())
