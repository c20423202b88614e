"""verl's functions against the algorithms in ``dialect=verl``, and where no dialect reaches."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import absent
import numpy as np
import peer_openrlhf
import peer_verl
import pytest
import torch
from algo_data import Networks, make_batch
from cells import cells, compare, label
from peers import difference, make, ours

from grpo_bench import ops

CELLS = [c for c in cells(peer_verl.NAME) if c[0] in peer_verl.ESTIMATORS]


@pytest.mark.parametrize(("algorithm", "knobs"), CELLS, ids=label)
def test_the_dialect_is_what_verl_computes(verl: Any, algorithm: str, knobs: dict[str, Any]) -> None:
    found = compare(peer_verl.NAME, algorithm, knobs).found
    assert found is not None
    assert found.worst < 1e-7  # its 1e-8 beside counts of tokens


@pytest.mark.parametrize(("mode", "knobs"), [
    ("token-mean", {"aggregation": "token_mean"}),
    ("seq-mean-token-mean", {"aggregation": "sequence_mean"}),
    ("seq-mean-token-sum", {"aggregation": "constant_length", "length": 1}),
])  # fmt: skip
def test_its_aggregations_are_ours(verl: Any, mode: str, knobs: dict[str, Any]) -> None:
    mask = make_batch().mask
    losses = torch.randn(mask.shape, generator=torch.Generator().manual_seed(0), dtype=mask.dtype)
    weights = make("grpo", **knobs).token_weights(mask)
    torch.testing.assert_close((weights * losses).sum(), verl.agg_loss(losses, mask, mode), rtol=0, atol=1e-8)


@pytest.mark.parametrize(("kind", "estimate"), [("kl", ops.kl_k1), ("mse", ops.kl_k2), ("low_var_kl", ops.kl_k3)])
def test_its_kl_estimators_are_ours(verl: Any, kind: str, estimate: Any) -> None:
    batch = make_batch()
    assert batch.old_logp is not None
    theirs = verl.kl_penalty(batch.old_logp, batch.ref_logp, kind)
    torch.testing.assert_close(estimate(batch.old_logp, batch.ref_logp), theirs, rtol=0, atol=1e-12)


def test_its_adaptive_coefficient_is_ours(verl: Any) -> None:
    """KL .02, target .01: the error is held to .2; 8 samples of a horizon of 10000."""
    controller = verl.AdaptiveKLController(0.04, 0.01, 10000)
    controller.update(0.02, 8)
    state = make("grpo", kl__control="adaptive").next_state(make_batch())
    assert state["kl_coef"] == pytest.approx(controller.value, abs=1e-15)


def test_one_completion_per_prompt_has_its_raw_reward_there(verl: Any) -> None:
    batch = make_batch([2, 3], 1, [1.0, 0.5])
    rewards = batch.rewards[:, None] * ops.last_token(batch.mask)
    theirs, _ = verl.compute_grpo_outcome_advantage(rewards, batch.mask, np.array([0, 1]))
    torch.testing.assert_close(theirs, batch.rewards[:, None] * batch.mask, rtol=0, atol=1e-5)
    assert not make("grpo", "verl").advantages(batch)[0].any()


def test_remax_and_opo_part_from_it_once_the_policy_has_moved(verl: Any) -> None:
    for name, reason in peer_verl.ON_POLICY.items():
        cell = compare(peer_verl.NAME, name, {})
        assert cell.partial == reason
        batch = make_batch()
        algo, moved = make(name, "verl"), Networks(batch, drift=0.3)
        apart = difference(ours(algo, batch, moved), peer_verl.update(algo, batch, moved), batch.mask)
        assert apart.advantages < 1e-12
        assert apart.gradient > 1e-3


def test_what_stood_in_for_absent_packages_is_gone(verl: Any, openrlhf: Any) -> None:
    """Else transformers would take a kernel for installed, and remember it."""
    import transformers.utils

    for name in {*peer_verl.ELSEWHERE, *peer_openrlhf.ELSEWHERE}:
        assert importlib.util.find_spec(name) is None or not isinstance(importlib.import_module(name), absent.Empty)
    for asked, name in (("is_flash_attn_2_available", "flash_attn"), ("is_peft_available", "peft")):
        assert getattr(transformers.utils, asked)() <= (importlib.util.find_spec(name) is not None)
