"""TRL's released trainers against the algorithms in ``dialect=trl``, and its other options against our knobs."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import peer_trl
import pytest
import torch
from algo_data import make_batch
from cells import cells, compare, label
from model_data import make as make_config
from peers import BATCHES, Answer, difference, make, ours

from grpo_bench.algos import ALGORITHMS
from grpo_bench.policy import layout, make_models
from grpo_bench.tiny import tiny_model

HAS = ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "gmpo", "sapo", "lite_ppo", "rloo_sequence")


@pytest.mark.parametrize(("algorithm", "knobs"), [c for c in cells(peer_trl.NAME) if c[0] in HAS], ids=label)
def test_the_dialect_is_what_trl_computes(algorithm: str, knobs: dict[str, Any]) -> None:
    found = compare(peer_trl.NAME, algorithm, knobs).found
    assert found is not None
    assert found.worst < 1e-12


def test_what_trl_has_is_what_is_compared() -> None:
    assert {a for a in ALGORITHMS if not compare(peer_trl.NAME, a, {}).reason} == set(HAS)


# One option of TRL at a time, and the knob that is the same here.
OPTIONS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "nothing set": ("grpo", {}, {"aggregation": "token_mean"}),
    "loss_type=grpo": ("grpo", {"loss_type": "grpo"}, {"aggregation": "sequence_mean"}),
    "loss_type=bnpo": ("grpo", {"loss_type": "bnpo"}, {"aggregation": "token_mean"}),
    "epsilon_high": ("grpo", {"epsilon_high": 0.28}, {"aggregation": "token_mean", "clip_high": 0.28}),
    "scale_rewards=none": (
        "dr_grpo", {"scale_rewards": "none", "loss_type": "dr_grpo", "max_completion_length": 7}, {"scale": "none"},
    ),
    "entropy_coef": ("grpo", {"entropy_coef": 0.01}, {"aggregation": "token_mean", "entropy_coef": 0.01}),
}  # fmt: skip


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("batch", BATCHES)
def test_an_option_of_grpo_is_a_knob(case: str, batch: str) -> None:
    name, options, knobs = OPTIONS[case]
    algo = make(name, **{"ddof": 1, "eps": 1e-4, "guard": "eps", "kl__place": "loss", "kl__weighted": True, **knobs})
    rows, networks = BATCHES[batch]()
    theirs = peer_trl.compute("grpo", options, rows, networks, rows.kl_coef)
    assert difference(ours(algo, rows, networks), theirs, rows.mask).worst < 1e-12


def test_the_kl_without_the_ratio_is_an_option_too() -> None:
    """use_bias_correction_kl=False: k3 as DeepSeekMath has it."""
    rows, networks = BATCHES["graded"]()
    algo = make("grpo", ddof=1, eps=1e-4, guard="eps", aggregation="token_mean")
    theirs = peer_trl.compute("grpo", {"use_bias_correction_kl": False}, rows, networks, rows.kl_coef)
    assert difference(ours(algo, rows, networks), theirs, rows.mask).worst < 1e-12
    weighted = peer_trl.compute("grpo", {}, rows, networks, rows.kl_coef)
    assert difference(ours(algo, rows, networks), weighted, rows.mask).gradient > 1e-4


def test_several_updates_of_a_rollout_divide_by_their_mean_number_of_tokens() -> None:
    """16 and 19 tokens in two updates: TRL divides each by 17.5, we each by its own."""
    batch, networks = BATCHES["right_or_wrong"]()
    assert [int(n) for n in batch.mask.view(2, -1).sum(1)] == [16, 19]
    halves = {"steps_per_generation": 2, "gradient_accumulation_steps": 1}
    of_two = peer_trl.compute("grpo", halves, batch, networks, 0.0)
    alone = peer_trl.compute("grpo", {"steps_per_generation": 1}, batch, networks, 0.0)
    # the same rows taken for one update of two: their sum is divided by 35/2, not by 35
    assert of_two.loss == pytest.approx(2 * alone.loss)


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_the_gradient_of_a_models_weights(kind: str) -> None:
    """Its own forward of a Llama, float64 and padded on the left, against our layout and our scoring."""
    config = make_config("algo=grpo")
    assert config.model.tiny is not None
    model = tiny_model(config.model.tiny).double()
    with torch.no_grad():
        for weight in model.parameters():  # large enough that probabilities are not all alike
            weight.mul_(3.0)
    moved = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in moved.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
    batch = make_batch(rewards=[1, 0, 0, 0, 1, 1, 0, 1])
    tokens = torch.randint(2, 500, batch.tokens.shape, generator=generator)
    width = tokens.shape[1] - batch.mask.shape[1]
    tokens[:, :width] = tokens[: len(tokens) : batch.group_size, :width].repeat_interleave(batch.group_size, dim=0)
    batch = replace(batch, tokens=tokens)
    rows = torch.arange(len(batch.mask))
    policy = make_models(copy.deepcopy(moved), config.model, torch.float32, False, False).policy
    before = make_models(copy.deepcopy(model), config.model, torch.float32, False, False).policy
    with torch.no_grad():
        old = before.logp(layout(batch, rows), 1.0)[0]
    batch = replace(batch, old_logp=old)

    with peer_trl.double_precision():
        trainer = peer_trl.build(kind, batch, {}, model=model)
        inputs = trainer._generate_and_score_completions([{"prompt": "1+1="}] * len(rows))
        with torch.no_grad():
            for weight, new in zip(trainer.model.parameters(), moved.parameters(), strict=True):
                weight.copy_(new)
        trainer._compute_loss(trainer.model, inputs).backward()
    theirs = {name: weight.grad for name, weight in trainer.model.named_parameters()}

    algo = make("grpo", "trl", kl__place="none") if kind == "grpo" else make("rloo_sequence", kl__place="none")
    advantages, _ = algo.advantages(batch)
    filled = replace(batch, advantages=advantages)
    logp, _ = policy.logp(layout(filled, rows), 1.0)
    assert (logp - old)[batch.mask.bool()].abs().max() > 0.05  # the ratio is at work
    (algo.token_weights(batch.mask) * algo.token_loss(logp, filled)).sum().backward()
    largest = max(float(grad.abs().max()) for grad in theirs.values() if grad is not None)
    for name, weight in policy.model.named_parameters():  # the peer's norms round to fp32, ours do not
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, theirs[name], rtol=0, atol=3e-6 * max(1.0, largest), msg=name)
    assert largest > 1e-4


def test_an_answer_is_compared_where_the_mask_is() -> None:
    mask = torch.tensor([[1.0, 0.0]])
    one = Answer(torch.tensor([[1.0, 5.0]]), 2.0, torch.tensor([[0.5, 9.0]]))
    other = Answer(torch.tensor([[1.0, 7.0]]), 2.5, torch.tensor([[0.25, 1.0]]), torch.tensor([[0.125, 3.0]]))
    found = difference(one, other, mask)
    # 0 on the masked token; .5 of losses up to 2.5: .2; .25 by log-prob, .125 by value: .25
    assert (found.advantages, found.loss, found.gradient) == (0.0, 0.2, 0.25)
    lost = Answer(torch.tensor([[float("nan"), 0.0]]), float("nan"), other.gradient)
    assert difference(one, lost, mask).worst == math.inf
    assert difference(lost, lost, mask).loss == math.inf
