"""Each formula of ops.py against numbers worked by hand; the arithmetic stands beside them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from grpo_bench import ops

LONE_WINNER = [1.0, 0, 0, 0, 0, 0, 0, 0]
LN2 = math.log(2)


def t(*rows: object, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(rows[0] if len(rows) == 1 else rows, dtype=dtype)


def close(actual: Tensor, expected: object, tol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0, atol=tol)


# Means over the mask, and where tokens stand.


def test_masked_mean() -> None:
    close(ops.masked_mean(t([1.0, 2, 99], [6, 99, 99]), t([1.0, 1, 0], [1, 0, 0])), 3.0)  # (1 + 2 + 6) / 3
    close(ops.masked_mean(t([7.0, 8]), t([0.0, 0])), 0.0)


def test_following_shifts_left_and_leaves_its_input() -> None:
    x = t([1.0, 2, 3], [4, 5, 6])
    close(ops.following(x), [[2, 3, 0], [5, 6, 0]])
    close(x, [[1, 2, 3], [4, 5, 6]])


def test_last_token_is_the_last_of_each_row_also_when_it_fills_the_width() -> None:
    mask = t([1.0, 1, 0], [1, 1, 1], [1, 0, 0], [0, 0, 0])
    close(ops.last_token(mask), [[0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0]])


# GAE. Row 0: r = 0 0 1, V = .5 .6 .8. Row 1 ends after two tokens: r = 0 1, V = .2 .4. Row 2 has no tokens.
# Outside the mask stand values that must not count.
REWARDS = t([0.0, 0, 1], [0, 1, 7], [7, 7, 7])
VALUES = t([0.5, 0.6, 0.8], [0.2, 0.4, 9], [9, 9, 9])
MASK = t([1.0, 1, 1], [1, 1, 0], [0, 0, 0])


@pytest.mark.parametrize(
    ("gamma", "lam", "expected"),
    [
        # λ = 0, the TD errors: .6 − .5 = .1, .8 − .6 = .2, 1 − .8 = .2;  .4 − .2 = .2, 1 − .4 = .6
        (1.0, 0.0, [[0.1, 0.2, 0.2], [0.2, 0.6, 0], [0, 0, 0]]),
        # λ = 1, return − V: 1 − .5, 1 − .6, 1 − .8;  1 − .2, 1 − .4
        (1.0, 1.0, [[0.5, 0.4, 0.2], [0.8, 0.6, 0], [0, 0, 0]]),
        # λ = .5: A2 = .2, A1 = .2 + .5·.2 = .3, A0 = .1 + .5·.3 = .25;  A1 = .6, A0 = .2 + .5·.6 = .5
        (1.0, 0.5, [[0.25, 0.3, 0.2], [0.5, 0.6, 0], [0, 0, 0]]),
        # γ = .9: δ = .54 − .5 = .04, .72 − .6 = .12, .2; A1 = .12 + .45·.2 = .21, A0 = .04 + .45·.21 = .1345
        #         δ = .36 − .2 = .16, .6; A0 = .16 + .45·.6 = .43
        (0.9, 0.5, [[0.1345, 0.21, 0.2], [0.43, 0.6, 0], [0, 0, 0]]),
        # γ = .9, λ = 1, discounted return − V: .81 − .5, .9 − .6, 1 − .8;  .9 − .2, 1 − .4
        (0.9, 1.0, [[0.31, 0.3, 0.2], [0.7, 0.6, 0], [0, 0, 0]]),
    ],
)
def test_gae(gamma: float, lam: float, expected: list[list[float]]) -> None:
    close(ops.gae(REWARDS, VALUES, MASK, gamma, lam), expected)


def test_gae_takes_a_lambda_per_row() -> None:
    lam = t([[0.5], [0.0], [1.0]])
    close(ops.gae(REWARDS, VALUES, MASK, 1.0, lam), [[0.25, 0.3, 0.2], [0.2, 0.6, 0], [0, 0, 0]])


def test_gae_limits_on_random_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 6, 9, generator=generator, dtype=torch.float64)
    mask = (torch.arange(9) < torch.tensor([9, 1, 4, 0, 7, 8])[:, None]).double()
    gamma, kept = 0.97, rewards * mask
    discount = gamma ** torch.arange(9, dtype=torch.float64)
    monte_carlo = torch.stack([(kept[:, s:] * discount[: 9 - s]).sum(1) for s in range(9)], dim=1)
    close(ops.gae(rewards, values, mask, gamma, 1.0), (monte_carlo - values) * mask)
    after = torch.cat([(values * mask)[:, 1:], torch.zeros(6, 1, dtype=torch.float64)], dim=1)
    close(ops.gae(rewards, values, mask, gamma, 0.0), (rewards + gamma * after - values) * mask)


def test_gae_without_values_gives_the_outcome_reward_on_every_token() -> None:
    outcome = t([[1.0], [0.3], [5.0]]) * ops.last_token(MASK)
    close(ops.gae(outcome, torch.zeros_like(MASK), MASK, 1.0, 1.0), [[1, 1, 1], [0.3, 0.3, 0], [0, 0, 0]])


# Whitening.


def test_whiten() -> None:
    # 1 2 3 4: μ = 2.5, σ² = (2.25 + .25 + .25 + 2.25)/4 = 1.25, σ = 1.118034; 1.5/σ = 1.341641, .5/σ = .447214
    x, mask = t([1.0, 2, 50], [3, 4, -50]), t([1.0, 1, 0], [1, 1, 0])
    close(ops.whiten(x, mask), [[-1.341641, -0.447214, 0], [0.447214, 1.341641, 0]], 1e-6)


def test_whiten_has_its_epsilon_under_the_root() -> None:
    # ±1e-4: σ² = 1e-8, 1e-4/√(1e-8 + 1e-8) = 1/√2; outside the root it would be 1e-4/(1e-4 + 1e-8) = .9999
    close(ops.whiten(t([[1e-4, -1e-4]]), t([[1.0, 1.0]])), [[0.707107, -0.707107]], 1e-6)


def test_whiten_of_equal_single_and_no_tokens_is_zero() -> None:
    close(ops.whiten(t([[5.0, 5, 5]]), t([[1.0, 1, 1]])), [[0, 0, 0]])
    close(ops.whiten(t([[5.0, 7, 7]]), t([[1.0, 0, 0]])), [[0, 0, 0]])
    close(ops.whiten(t([[5.0, 7, 7]]), t([[0.0, 0, 0]])), [[0, 0, 0]])


# Baselines of a group.


def test_group_zscore_of_a_lone_winner() -> None:
    rewards = t(LONE_WINNER)
    # ddof 0: μ = 1/8, σ² = 1/8·7/8 = .109375, σ = .330719; .875/σ = 2.645751 = √7, −.125/σ = −.377964
    close(ops.group_zscore(rewards, 8, 0, 1e-8), [2.645751] + [-0.377964] * 7, 1e-6)
    # ddof 1: s² = .109375·8/7 = .125, s = .353553; .875/(s + 1e-6) = 2.474867, −.125/(s + 1e-6) = −.353552
    close(ops.group_zscore(rewards, 8, 1, 1e-6), [2.474867] + [-0.353552] * 7, 1e-6)
    close(ops.group_center(rewards, 8), [0.875] + [-0.125] * 7)
    # leave one out: 1 − 0 = 1, 0 − 1/7 = −.142857
    close(ops.leave_one_out(rewards, 8), [1.0] + [-1 / 7] * 7)


def test_groups_are_normalised_one_by_one() -> None:
    rewards = t([1.0, 0, 0, 1, 0.2, 0.4, 0.6, 0.8])
    # μ = .5, σ = .5 -> ±1;  μ = .5, σ² = (.09 + .01 + .01 + .09)/4 = .05, σ = .223607: .3/σ = 1.341641, .1/σ = .447214
    expected = [1, -1, -1, 1, -1.341641, -0.447214, 0.447214, 1.341641]
    close(ops.group_zscore(rewards, 4, 0, 1e-8), expected, 1e-6)
    close(ops.group_center(rewards, 4), [0.5, -0.5, -0.5, 0.5, -0.3, -0.1, 0.1, 0.3])
    # 1 − 1/3, 0 − 2/3;  .2 − 1.8/3 = −.4, .4 − 1.6/3 = −.133333
    close(
        ops.leave_one_out(rewards, 4),
        [2 / 3, -2 / 3, -2 / 3, 2 / 3, -0.4, -0.4 / 3, 0.4 / 3, 0.4],
    )


def test_group_zscore_of_a_pair() -> None:
    # μ = .5; ddof 0: σ = .5 -> 1; ddof 1: s = √.5 = .707107 -> .707107
    close(ops.group_zscore(t([1.0, 0]), 2, 0, 0.0), [1, -1])
    close(ops.group_zscore(t([1.0, 0]), 2, 1, 0.0), [0.707107, -0.707107], 1e-6)


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("eps", [0.0, 1e-8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_flat_groups_and_groups_of_one_have_no_advantage(ddof: int, eps: float, dtype: torch.dtype) -> None:
    # .7 is no binary fraction: the mean of eight of them may miss it by an ulp, 6e-8, six times an ε of 1e-8
    for value in (0.7, 0.1, 1.0, 0.0, -0.3):
        rewards = torch.full((16,), value, dtype=dtype)
        assert ops.group_zscore(rewards, 8, ddof, eps).tolist() == [0.0] * 16
        assert ops.group_zscore(rewards[:3], 1, ddof, eps).tolist() == [0.0] * 3
        assert ops.group_center(rewards, 8).tolist() == [0.0] * 16
        assert ops.leave_one_out(rewards, 8).tolist() == [0.0] * 16
    spread = torch.tensor([0.0, 1.0, 5.0], dtype=dtype)
    assert ops.group_zscore(spread, 1, ddof, eps).tolist() == [0.0] * 3
    assert ops.group_center(spread, 1).tolist() == [0.0] * 3
    assert ops.leave_one_out(spread, 1).tolist() == [0.0] * 3


def test_a_group_is_flat_by_its_range_and_not_by_epsilon() -> None:
    rewards = t([0.5, 0.5 + 5e-7, 0.5, 0.5 + 2e-6])
    assert ops.flat_groups(rewards, 2).tolist() == [[True], [False]]
    # second group: centred ±1e-6, σ = 1e-6, with ε = 1e-8: 1/(1.01) = .990099
    close(ops.group_zscore(rewards, 2, 0, 1e-8), [0, 0, -0.990099, 0.990099], 1e-6)


def test_rloo_is_the_centred_reward_scaled() -> None:
    rewards = torch.rand(24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for size in (2, 3, 4, 8, 24):
        others = (rewards.view(-1, size).sum(1, keepdim=True) - rewards.view(-1, size)) / (size - 1)
        close(ops.leave_one_out(rewards, size), rewards - others.view(-1))
        close(ops.leave_one_out(rewards, size), size / (size - 1) * ops.group_center(rewards, size))


# KL estimators.


def test_kl_estimators() -> None:
    logp, ref = t([0.5, 0.25]).log(), t([0.25, 0.5]).log()
    close(ops.kl_k1(logp, ref), [LN2, -LN2])  # log(.5/.25), log(.25/.5)
    close(ops.kl_k2(logp, ref), [0.240227, 0.240227], 1e-6)  # .693147²/2
    # π_ref/π − log(π_ref/π) − 1: .5 + .693147 − 1 = .193147;  2 − .693147 − 1 = .306853
    close(ops.kl_k3(logp, ref), [0.193147, 0.306853], 1e-6)


def test_kl_of_equal_policies_is_zero() -> None:
    logp = t([-0.1, -3.0, 0.0])
    for estimator in ops.KL_ESTIMATORS.values():
        assert estimator(logp, logp).tolist() == [0.0] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_k2_and_k3_are_never_negative(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for scale in (1e-6, 1e-3, 1.0, 10.0):
        logp, ref = -scale * torch.rand(2, 2000, generator=generator, dtype=torch.float64).to(dtype)
        rounding = torch.finfo(dtype).eps * scale  # of the difference of two nearly equal numbers
        assert (ops.kl_k3(logp, ref) >= -rounding).all()
        assert (ops.kl_k2(logp, ref) >= 0).all()


def test_k3_keeps_its_digits_where_the_policies_nearly_agree() -> None:
    # log ratio 1e-3: k3 = x²/2 + x³/6 = 5.0017e-7; exp(x) − 1 − x in fp32 would be off by 6e-8, a tenth of it
    assert ops.kl_k3(torch.tensor(-1.001), torch.tensor(-1.0)).item() == pytest.approx(5.0017e-7, rel=1e-3)


class TestKlOverAWholeVocabulary:
    """Expectations over all four words instead of samples: what estimators and their gradients are on policy."""

    def expected(self, estimator: str) -> tuple[Tensor, Tensor]:
        """E_π[k] and E_π[∇k], sampled words weighing π without a gradient through the weight."""
        logits, ref = self.policies()
        logp = logits.log_softmax(0)
        value = (logp.detach().exp() * ops.KL_ESTIMATORS[estimator](logp, ref)).sum()
        value.backward()
        assert logits.grad is not None
        return value.detach(), logits.grad

    def policies(self) -> tuple[Tensor, Tensor]:
        return t([0.3, -1.0, 2.0, 0.0]).requires_grad_(), t([1.0, 0.5, 0.5, -2.0]).log_softmax(0)

    def test_k1_and_k3_are_unbiased(self) -> None:
        logits, ref = self.policies()
        logp = logits.detach().log_softmax(0)
        kl = (logp.exp() * (logp - ref)).sum()
        close(self.expected("k1")[0], kl)
        close(self.expected("k3")[0], kl)
        assert abs(self.expected("k2")[0] - kl) > 1e-3  # k2 is not

    def test_the_expected_gradient_of_k1_is_zero(self) -> None:
        close(self.expected("k1")[1], [0, 0, 0, 0])

    def test_the_expected_gradient_of_k2_is_that_of_the_reverse_kl(self) -> None:
        logits, ref = self.policies()
        logp = logits.log_softmax(0)
        (logp.exp() * (logp - ref)).sum().backward()  # KL(π‖π_ref)
        assert logits.grad is not None
        assert logits.grad.abs().max() > 0.1
        close(self.expected("k2")[1], logits.grad)

    def test_the_expected_gradient_of_k3_is_that_of_the_forward_kl(self) -> None:
        logits, ref = self.policies()
        (ref.exp() * (ref - logits.log_softmax(0))).sum().backward()  # KL(π_ref‖π)
        assert logits.grad is not None
        close(self.expected("k3")[1], logits.grad)


# Surrogate and sequence sums.


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [
        (1.5, 2.0, 2.6, 0.0),  # min(3, 1.3·2): too far up already
        (1.5, -2.0, -3.0, -3.0),  # min(−3, −2.6): a wrong move is undone in full
        (0.5, 2.0, 1.0, 1.0),  # min(1, .8·2 = 1.6)
        (0.5, -2.0, -1.6, 0.0),  # min(−1, −1.6): too far down already
        (1.1, 2.0, 2.2, 2.2),  # inside the bounds both agree
        (0.9, -2.0, -1.8, -1.8),
        (1.0, 2.0, 2.0, 2.0),
        (1.25, 2.0, 2.5, 2.5),  # below 1 + clip_high though beyond 1 + clip_low
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_clipped_surrogate(ratio: float, advantage: float, value: float, slope: float) -> None:
    """Bounds .8 and 1.3; the slope is by log π: ρA where it is not clipped."""
    logp = (t([[-1.0]]) + math.log(ratio)).requires_grad_()
    surrogate = ops.clipped_surrogate(logp, t([[-1.0]]), t([[advantage]]), 0.2, 0.3)
    surrogate.sum().backward()
    close(surrogate.detach(), [[value]])
    assert logp.grad is not None
    close(logp.grad, [[slope]])


def test_sequence_logp_sums_each_answer_and_stays_inside_it() -> None:
    # −1 − 2 = −3; −.5
    logp, mask = t([-1.0, -2, -7], [-0.5, 9, 9], [9, 9, 9]), t([1.0, 1, 0], [1, 0, 0], [0, 0, 0])
    close(ops.sequence_logp(logp, mask), [[-3, -3, 0], [-0.5, 0, 0], [0, 0, 0]])


# The critic.


def test_value_loss() -> None:
    # R = 1, V_old = .5. V = .9: (.1)² = .01, held to .7: (.3)² = .09. V = .6: both .16. V = .1: .81, held to .3: .49.
    values, old, returns = t([[0.9, 0.6, 0.1]]), t([[0.5, 0.5, 0.5]]), t([[1.0, 1.0, 1.0]])
    close(ops.clipped_value_loss(values, old, returns, None), [[0.01, 0.16, 0.81]])
    close(ops.clipped_value_loss(values, old, returns, 0.2), [[0.09, 0.16, 0.81]])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.25, 0.75, 0.75, 0.25], 0.75),  # R − V = ∓.25: 1 − .0625/.25
        ([0.5, 0.5, 0.5, 0.5], 0.0),
        ([0.0, 1.0, 1.0, 0.0], 1.0),
        ([3.0, 4.0, 4.0, 3.0], 1.0),  # an offset is not variance
        ([1.0, 0.0, 0.0, 1.0], -3.0),  # R − V = ∓1: 1 − 1/.25
    ],
)
def test_explained_variance(values: list[float], expected: float) -> None:
    """R = 0 1 1 0: Var R = .25; a fifth column lies outside the mask."""
    mask = t([[1.0, 1, 1, 1, 0]])
    close(ops.explained_variance(t([[*values, 99.0]]), t([[0.0, 1, 1, 0, -99]]), mask), expected)


def test_explained_variance_of_constant_returns_is_zero() -> None:
    close(ops.explained_variance(t([[0.1, 0.9]]), t([[1.0, 1.0]]), t([[1.0, 1.0]])), 0.0)
    close(ops.explained_variance(t([[0.1, 0.9]]), t([[1.0, 0.0]]), t([[0.0, 0.0]])), 0.0)


# pass@k.


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [
        (16, 2, 8, 1 - 3003 / 12870),  # C(14,8) = 3003, C(16,8) = 12870: .766667
        (16, 1, 16, 1.0),
        (10, 3, 1, 0.3),  # c/n
        (6, 2, 3, 0.8),  # 1 − C(4,3)/C(6,3) = 1 − 4/20
        (5, 3, 3, 1.0),  # three draws cannot all be among two wrong ones
        (4, 0, 4, 0.0),
        (1, 1, 1, 1.0),
    ],
)
def test_pass_at_k(n: int, c: int, k: int, expected: float) -> None:
    assert ops.pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_is_the_share_of_draws_with_a_right_one() -> None:
    for n in range(1, 7):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            draws = list(itertools.combinations(range(n), k))  # samples 0..c−1 are right
            assert ops.pass_at_k(n, c, k) == pytest.approx(sum(draw[0] < c for draw in draws) / len(draws))


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 1, 0), (4, 1, 5), (0, 0, 1)])
def test_pass_at_k_refuses_impossible_counts(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"n={n}, c={c}, k={k}"):
        ops.pass_at_k(n, c, k)
