"""What holds for every algorithm at every setting of its knobs; new ones are tested without a line here."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from algo_data import LENGTHS, Networks, credited, loss_and_gradients, make_batch, padded, variants
from torch import Tensor

from grpo_bench.algos import Algorithm
from grpo_bench.types import Batch
from grpo_bench.update import take

VARIANTS = variants()

EXTREMES: dict[str, tuple[list[int], list[float], int, int]] = {  # lengths, rewards, group size, width
    "all right": (LENGTHS, [1.0] * 8, 4, 7),
    "all wrong": (LENGTHS, [0.0] * 8, 4, 7),
    "all alike, at no binary fraction": (LENGTHS, [0.7] * 8, 8, 7),
    "all truncated": ([7] * 8, [0.0] * 8, 4, 7),
    "all truncated, format rewards": ([7] * 8, [0.1, 0, 0, 0, 0.1, 0, 0, 0], 8, 7),
    "one token each": ([1] * 8, [1.0, 0, 0, 0, 0, 0, 0, 0], 8, 1),
    "groups of one": (LENGTHS, [1.0, 0, 0, 1, 0, 1, 1, 0], 1, 7),
    "one row in all": ([4], [1.0], 1, 6),
    "a group dropped": ([0, 0, 3, 2], [0.0, 0, 1, 0], 2, 3),
    "everything dropped": ([0, 0], [1.0, 0], 2, 3),
}


def those_invariant_to(what: str | None) -> pytest.MarkDecorator:
    found = {key: algo for key, algo in VARIANTS.items() if what is None or what in algo.invariant_to}
    return pytest.mark.parametrize("algo", found.values(), ids=found.keys())


every_variant = those_invariant_to(None)


def close(actual: Tensor, expected: Tensor, tol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tol)


@pytest.fixture
def batch() -> Batch:
    """Two groups of four with rewards that differ within each, truncated rows and a row of one token; float64."""
    return make_batch(rewards=[1, 0, 0, 0.5, 0, 1, 1, 0.25])


@every_variant
def test_shapes_types_and_zeros_outside_the_mask(algo: Algorithm, batch: Batch) -> None:
    outside = batch.mask == 0
    advantages, returns = algo.advantages(batch)
    assert advantages.shape == batch.mask.shape
    assert not advantages[outside].any()
    assert advantages.dtype == batch.mask.dtype
    assert (returns is not None) == algo.needs_critic
    if returns is not None:
        assert returns.shape == batch.mask.shape
        assert not returns[outside].any()
    weights = algo.token_weights(batch.mask)
    assert not weights[outside].any()
    assert (weights[~outside] > 0).all()
    keep = algo.keep(batch)
    assert keep.shape == (8,)
    assert keep.dtype == torch.bool
    assert all(isinstance(value, float) for value in algo.next_state(batch).values())


@every_variant
def test_padding_changes_nothing(algo: Algorithm, batch: Batch) -> None:
    networks = Networks(batch)
    loss, gradients = loss_and_gradients(algo, batch, networks)
    wide_loss, wide_gradients = loss_and_gradients(algo, *padded(batch, networks, 5))
    close(wide_loss, loss)
    for wide, narrow in zip(wide_gradients, gradients, strict=True):
        close(wide[:, :7], narrow)
        assert not wide[:, 7:].any()


@every_variant
def test_any_split_into_micro_batches_gives_the_same_loss_and_gradient(algo: Algorithm, batch: Batch) -> None:
    """Weights are fixed for the update, then rows go through in any order and in any portions."""
    networks = Networks(batch)
    whole, gradients = loss_and_gradients(algo, batch, networks)
    full, weights = credited(algo, batch), algo.token_weights(batch.mask)
    order = torch.tensor([3, 0, 6, 1, 7, 5, 2, 4])
    for portions in ([1] * 8, [2, 6], [3, 3, 2], [7, 1]):
        total = torch.zeros((), dtype=torch.float64)
        for rows in order.split(portions):
            loss = networks.loss(algo, take(full, rows), weights[rows], rows)
            loss.backward()
            total += loss.detach()
        close(total, whole)
        for part, at_once in zip(networks.gradients(), gradients, strict=True):
            close(part, at_once)


@every_variant
def test_the_order_of_groups_and_of_their_members_changes_nothing(algo: Algorithm, batch: Batch) -> None:
    networks = Networks(batch)
    loss, gradients = loss_and_gradients(algo, batch, networks)
    advantages, returns = algo.advantages(batch)
    for order in (torch.tensor([4, 5, 6, 7, 0, 1, 2, 3]), torch.tensor([6, 4, 7, 5, 1, 0, 3, 2])):
        moved = take(batch, order)
        moved_advantages, moved_returns = algo.advantages(moved)
        close(moved_advantages, advantages[order])
        if returns is not None and moved_returns is not None:
            close(moved_returns, returns[order])
        there = Networks(moved)
        for name in ("logp", "values", "entropy"):
            setattr(there, name, getattr(networks, name).detach()[order].requires_grad_())
        moved_loss, moved_gradients = loss_and_gradients(algo, moved, there)
        close(moved_loss, loss)
        for there_gradient, gradient in zip(moved_gradients, gradients, strict=True):
            close(there_gradient, gradient[order])


@every_variant
def test_a_dropped_row_has_no_gradient_and_keeps_its_place(algo: Algorithm, batch: Batch) -> None:
    mask = batch.mask.clone()
    mask[[2, 3]] = 0
    dropped = replace(
        batch, mask=mask, **{name: getattr(batch, name) * mask for name in ("old_logp", "ref_logp", "values")}
    )
    loss, gradients = loss_and_gradients(algo, dropped, Networks(dropped))
    assert loss.isfinite()
    for gradient in gradients:
        assert gradient.isfinite().all()
        assert not gradient[[2, 3]].any()
    if algo.aggregation != "token_mean":  # B still counts them; Σ mask does not
        kept = [0, 1, 4, 5, 6, 7]
        assert torch.equal(algo.token_weights(mask)[kept], algo.token_weights(batch.mask)[kept])


@every_variant
def test_extreme_batches_stay_finite(algo: Algorithm) -> None:
    for case, (lengths, rewards, group_size, width) in EXTREMES.items():
        for dtype in (torch.float32, torch.float64):
            batch = make_batch(lengths, group_size, rewards, width=width, dtype=dtype)
            advantages, _ = algo.advantages(batch)
            loss, gradients = loss_and_gradients(algo, batch, Networks(batch))
            for tensor in (advantages, loss, *gradients):
                assert tensor.isfinite().all(), (case, dtype)


@every_variant
def test_advantages_are_constants_and_a_batch_is_never_changed(algo: Algorithm, batch: Batch) -> None:
    before = {f.name: v.clone() for f in fields(batch) if isinstance(v := getattr(batch, f.name), Tensor)}
    networks = Networks(batch)
    full = credited(algo, batch)
    for constant in (full.advantages, full.returns):
        assert constant is None or not constant.requires_grad
    networks.loss(algo, full, algo.token_weights(batch.mask)).backward()
    algo.keep(batch)
    algo.next_state(batch)
    assert all(torch.equal(getattr(batch, name), value) for name, value in before.items())
    assert batch.state == make_batch().state


@every_variant
def test_what_an_algorithm_does_not_ask_for_is_not_read(algo: Algorithm, batch: Batch) -> None:
    """Without critic, reference, greedy rollouts or an early scoring pass their fields are None."""
    networks = Networks(batch)
    whole, gradients = loss_and_gradients(algo, batch, networks)
    lean = replace(
        batch,
        values=batch.values if algo.needs_critic else None,
        ref_logp=batch.ref_logp if algo.needs_reference else None,
        baseline_rewards=batch.baseline_rewards if algo.extra_rollouts == "greedy" else None,
    )
    full = credited(algo, lean if algo.needs_old_logp else replace(lean, old_logp=None))
    loss = networks.loss(algo, replace(full, old_logp=batch.old_logp), algo.token_weights(batch.mask))
    loss.backward()
    close(loss.detach(), whole, 0)
    for lean_gradient, gradient in zip(networks.gradients(), gradients, strict=True):
        close(lean_gradient, gradient, 0)


@every_variant
def test_rows_without_advantage_have_a_gradient_only_where_it_says_so(algo: Algorithm, batch: Batch) -> None:
    """The update skips such rows when ``acts_without_advantage`` is false."""
    networks = Networks(batch)
    silent = replace(batch, advantages=torch.zeros_like(batch.mask), returns=torch.zeros_like(batch.mask))
    networks.loss(algo, silent, algo.token_weights(batch.mask)).backward()
    acts = any(bool(gradient.any()) for gradient in networks.gradients())
    assert algo.acts_without_advantage or not acts


@every_variant
def test_more_reward_never_means_less_advantage(algo: Algorithm, batch: Batch) -> None:
    """The sign of it all: with more reward a row gains, and no other row gains more."""
    richer = batch.rewards.clone()
    richer[5] += 0.5
    less, more = credited(algo, batch), credited(algo, replace(batch, rewards=richer))
    assert less.advantages is not None
    assert more.advantages is not None
    gain = (more.advantages - less.advantages).sum(1)
    assert gain[5] > 0
    assert gain[5] >= gain.max()


@those_invariant_to("shift")
def test_a_reward_for_everyone_in_a_group_changes_nothing(algo: Algorithm, batch: Batch) -> None:
    for groups in ([3.0] * 8, [3.0] * 4 + [-2.0] * 4):
        shifted = replace(batch, rewards=batch.rewards + torch.tensor(groups, dtype=torch.float64))
        close(algo.advantages(shifted)[0], algo.advantages(batch)[0])


@those_invariant_to("scale")
def test_the_unit_of_the_reward_does_not_matter(algo: Algorithm, batch: Batch) -> None:
    """Up to ε; a KL in the reward is in the reward's unit, so it scales along."""
    for factor in (0.1, 10.0):
        unit = factor if algo.kl.place == "reward" else 1.0
        scaled = replace(batch, rewards=batch.rewards * factor, kl_coef=batch.kl_coef * unit)
        close(algo.advantages(scaled)[0], algo.advantages(batch)[0], 1e-6)
