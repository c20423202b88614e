"""OpenRLHF's classes against the algorithms in ``dialect=openrlhf``, and where no dialect reaches."""

from __future__ import annotations

from typing import Any

import peer_openrlhf
import pytest
import torch
from algo_data import make_batch
from cells import cells, compare, label
from peers import make

from grpo_bench import ops

CELLS = [c for c in cells(peer_openrlhf.NAME) if c[0] in peer_openrlhf.ESTIMATORS]


@pytest.mark.parametrize(("algorithm", "knobs"), CELLS, ids=label)
def test_the_dialect_is_what_openrlhf_computes(openrlhf: Any, algorithm: str, knobs: dict[str, Any]) -> None:
    found = compare(peer_openrlhf.NAME, algorithm, knobs).found
    assert found is not None
    assert found.worst < 1e-6  # it computes KL and whitening in single precision


@pytest.mark.parametrize(("kind", "estimate"), [("k1", ops.kl_k1), ("k2", ops.kl_k2), ("k3", ops.kl_k3)])
def test_its_kl_estimators_are_ours(openrlhf: Any, kind: str, estimate: Any) -> None:
    batch = make_batch()
    assert batch.old_logp is not None
    theirs = openrlhf.utils.compute_approx_kl(batch.old_logp, batch.ref_logp, kl_estimator=kind)
    ours = estimate(batch.old_logp, batch.ref_logp)
    torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=0, atol=1e-6)


def test_its_normalisation_is_our_whitening(openrlhf: Any) -> None:
    batch = make_batch()
    assert batch.values is not None
    theirs = openrlhf.utils.masked_normalize(batch.values, batch.mask, dim=None)
    torch.testing.assert_close(ops.whiten(batch.values, batch.mask), theirs, rtol=0, atol=1e-6)


def test_its_dual_clip_is_ours(openrlhf: Any) -> None:
    batch = make_batch()
    assert batch.old_logp is not None
    generator = torch.Generator().manual_seed(0)
    advantages = torch.randn(batch.mask.shape, generator=generator, dtype=batch.mask.dtype)
    logp = batch.old_logp + 2 * torch.randn(batch.mask.shape, generator=generator, dtype=batch.mask.dtype)
    loss = openrlhf.loss.PolicyLoss(dual_clip=3.0)(logp, batch.old_logp, advantages, action_mask=batch.mask)[0]
    ours = -ops.clipped_surrogate(logp, batch.old_logp, advantages, 0.2, 0.2, dual_clip=3.0, log_clamp=20.0)
    torch.testing.assert_close((ops.token_mean(batch.mask) * ours).sum(), loss, rtol=0, atol=1e-12)


def test_it_clamps_what_is_left_of_a_group_of_many(openrlhf: Any) -> None:
    """One winner of 121: (1 − 1/121)/√(1/121) = 120/121 · 11 = 10.91 by ddof 1, held to 10 there."""
    batch = make_batch([1] * 121, 121, [1.0] + [0.0] * 120)
    algo = make("grpo", "openrlhf", kl__place="advantage")
    theirs, _ = peer_openrlhf.credit(algo, batch)
    kl = algo.advantage_penalty(batch)
    ours, _ = algo.advantages(batch)
    assert float((theirs + kl)[0, 0]) == pytest.approx(10.0, abs=1e-6)
    assert float((ours + kl)[0, 0]) == pytest.approx(10.909091, abs=1e-5)
    torch.testing.assert_close(ours[1:], theirs[1:], rtol=0, atol=1e-6)
