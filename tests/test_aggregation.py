"""The three weightings: how tokens become one number, and that it does not depend on how a batch is cut or padded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from algo_data import LENGTHS, make, make_batch, refused
from torch import Tensor

from grpo_bench import ops
from grpo_bench.algos import ALGORITHMS

Weighting = Callable[[Tensor], Tensor]

# answers of 4 and 2 tokens and a dropped row: B = 3, Σ mask = 6
MASK = torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.float64)
LOSS = torch.tensor([[1.0, 1, 1, 1], [3, 3, 8, 8], [8, 8, 8, 8]], dtype=torch.float64)


def constant_length_10(mask: Tensor) -> Tensor:
    return ops.constant_length(mask, 10)


WEIGHTINGS: list[Weighting] = [ops.sequence_mean, ops.token_mean, constant_length_10]


@pytest.mark.parametrize(
    ("weighting", "long", "short", "loss"),
    [
        # 1/(3·4), 1/(3·2); (mean of 1 1 1 1 + mean of 3 3 + 0)/3 = 4/3
        (ops.sequence_mean, 1 / 12, 1 / 6, 4 / 3),
        # 1/6; (4·1 + 2·3)/6 = 10/6
        (ops.token_mean, 1 / 6, 1 / 6, 10 / 6),
        # 1/(3·10); 10/30
        (constant_length_10, 1 / 30, 1 / 30, 1 / 3),
        # length 1, the sum of each answer: 1/3; (4 + 6)/3
        (lambda mask: ops.constant_length(mask, 1), 1 / 3, 1 / 3, 10 / 3),
    ],
    ids=["sequence_mean", "token_mean", "constant_length", "sum"],
)
def test_weights_and_loss_by_hand(weighting: Weighting, long: float, short: float, loss: float) -> None:
    weights = weighting(MASK)
    expected = torch.tensor([[long] * 4, [short, short, 0, 0], [0] * 4], dtype=torch.float64)
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-15)
    assert (weights * LOSS).sum().item() == pytest.approx(loss, abs=1e-12)


def test_means_have_weights_that_add_up_to_one() -> None:
    mask = make_batch().mask
    assert ops.sequence_mean(mask).sum().item() == pytest.approx(1, abs=1e-12)
    assert ops.token_mean(mask).sum().item() == pytest.approx(1, abs=1e-12)
    # a dropped row keeps its place: it takes its share of the answers along, but had no share of the tokens
    mask[0] = 0
    assert ops.sequence_mean(mask).sum().item() == pytest.approx(1 - 1 / len(LENGTHS), abs=1e-12)
    assert ops.token_mean(mask).sum().item() == pytest.approx(1, abs=1e-12)


def test_all_answers_weigh_the_same_or_all_tokens_do() -> None:
    mask = make_batch().mask
    torch.testing.assert_close(ops.sequence_mean(mask).sum(1), torch.full((8,), 1 / 8, dtype=torch.float64))
    lengths = torch.tensor(LENGTHS, dtype=torch.float64)
    torch.testing.assert_close(ops.token_mean(mask).sum(1), lengths / lengths.sum())
    torch.testing.assert_close(ops.constant_length(mask, 10).sum(1), lengths / 80)


def test_weightings_agree_where_all_answers_are_equally_long() -> None:
    mask = make_batch([5, 5, 5, 5]).mask
    torch.testing.assert_close(ops.sequence_mean(mask), ops.token_mean(mask))
    torch.testing.assert_close(ops.constant_length(mask, 5), ops.token_mean(mask))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_padding_changes_no_weight(weighting: Weighting) -> None:
    wide = torch.nn.functional.pad(MASK, (0, 5))
    assert torch.equal(weighting(wide)[:, :4], weighting(MASK))
    assert not weighting(wide)[:, 4:].any()


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_nothing_sampled_weighs_nothing(weighting: Weighting) -> None:
    assert weighting(torch.zeros(2, 3)).tolist() == [[0.0] * 3] * 2


def test_weights_taken_anew_in_each_micro_batch_would_be_another_loss() -> None:
    """Why weights are fixed per update: the mean of the rows' own means is (1 + 3)/2, the mean of tokens 10/6."""
    apart = [(ops.token_mean(MASK[i : i + 1]) * LOSS[i : i + 1]).sum().item() for i in (0, 1)]
    assert sum(apart) / 2 == pytest.approx(2)
    weights = ops.token_mean(MASK)
    parts = [(weights[i : i + 1] * LOSS[i : i + 1]).sum().item() for i in range(3)]
    assert sum(parts) == pytest.approx(10 / 6)


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize(
    ("knobs", "weighting"),
    [
        ({"aggregation": "sequence_mean"}, ops.sequence_mean),
        ({"aggregation": "token_mean"}, ops.token_mean),
        ({"aggregation": "constant_length", "length": 10}, constant_length_10),
    ],
)
def test_an_algorithm_weighs_by_its_knob(name: str, knobs: dict[str, Any], weighting: Weighting) -> None:
    algo = make(name, **knobs)
    if refused(algo):
        pytest.skip("a loss of a whole answer needs sequence_mean")
    assert torch.equal(algo.token_weights(MASK), weighting(MASK))
