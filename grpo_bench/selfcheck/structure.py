"""Checks of the contract: what an algorithm returns, which tokens it trains, what it reads and what it leaves alone."""

from __future__ import annotations

from dataclasses import fields, replace

import torch
from torch import Tensor

from grpo_bench.algos import Algorithm
from grpo_bench.ops import last_token
from grpo_bench.selfcheck.data import Networks, credited, kept, loss_and_gradients, mixed
from grpo_bench.selfcheck.verdict import NotApplicable, Red, Subject, close, require
from grpo_bench.types import Batch

SILENT = 1e-9  # an advantage below this is none


def _plane(what: str, x: Tensor, batch: Batch) -> None:
    """(B,T), of the batch's dtype."""
    require(x.shape == batch.mask.shape, what, f"shape {tuple(batch.mask.shape)}", tuple(x.shape))
    require(x.dtype == batch.mask.dtype, what, str(batch.mask.dtype), x.dtype)


def shapes(subject: Subject) -> None:
    algo, batch = subject.algo, mixed(subject.algo)
    keep = algo.keep(batch)
    require(keep.shape == (8,) and keep.dtype == torch.bool, "keep", "(8,) torch.bool", (tuple(keep.shape), keep.dtype))
    for some in (batch, kept(algo, batch)):
        outside = some.mask == 0
        advantages, returns = algo.advantages(some)
        wanted = "value targets" if algo.needs_critic else "no value targets without a critic"
        require((returns is not None) == algo.needs_critic, "second result of advantages", wanted, returns)
        weights = algo.token_weights(some.mask)
        for what, x in {"advantages": advantages, "value targets": returns, "token_weights": weights}.items():
            if x is not None:
                _plane(what, x, some)
                require(not x[outside].any(), f"{what} outside the mask", "0", float(x[outside].abs().max()))
        full, networks = replace(some, advantages=advantages, returns=returns), Networks(some)
        entropy = networks.entropy if algo.needs_entropy else None
        _plane("token_loss", algo.token_loss(networks.logp, full, entropy), some)
        if algo.needs_critic:
            _plane("value_loss", algo.value_loss(networks.values, full), some)
    for key, value in algo.next_state(batch).items():
        require(isinstance(value, float), f"next_state[{key!r}]", "a float", type(value).__name__)


def tokens(subject: Subject) -> None:
    """On policy, without KL: then no clip holds a gradient back."""
    algo = subject.algo
    batch = kept(algo, replace(mixed(algo), kl_coef=0.0))
    full, weights, on = credited(algo, batch), algo.token_weights(batch.mask), batch.mask.bool()
    assert full.advantages is not None
    require((weights[on] > 0).all(), "weight of a sampled token", "above 0", float(weights[on].min()))
    acts = full.advantages.abs() > SILENT
    last = last_token(batch.mask).bool()
    for row in acts.any(1).nonzero().flatten().tolist():
        require(acts[row][last[row]].all(), f"advantage of the last token of row {row}", "not 0, as its others", 0.0)
    networks = Networks(batch, drift=0.0)
    (weights * algo.token_loss(networks.logp, full, networks.entropy if algo.needs_entropy else None)).sum().backward()
    _every("gradient by a log-prob whose advantage is not 0", networks.gradients()[0], acts & on)
    if algo.needs_critic:
        (weights * algo.value_loss(networks.values, full)).sum().backward()
        assert full.returns is not None
        off = (full.returns - networks.values).abs() > SILENT
        _every("gradient by a value off its target", networks.gradients()[1], off & on)


def _every(what: str, gradient: Tensor, places: Tensor) -> None:
    still = ((gradient == 0) & places).nonzero()
    if len(still):
        row, token = still[0].tolist()
        raise Red(f"{what}, row {row} token {token}: expected not 0, saw 0.0")


def unread(subject: Subject) -> None:
    algo = subject.algo
    batch = kept(algo, mixed(algo))
    networks = Networks(batch)
    whole, gradients = loss_and_gradients(algo, batch, networks)
    lean = replace(
        batch,
        values=batch.values if algo.needs_critic or algo.extra_rollouts == "branches" else None,
        step_ids=batch.step_ids if algo.extra_rollouts == "branches" else None,
        ref_logp=batch.ref_logp if algo.needs_reference else None,
        baseline_rewards=batch.baseline_rewards if algo.extra_rollouts == "greedy" else None,
    )
    full = credited(algo, lean if algo.needs_old_logp else replace(lean, old_logp=None))
    loss = networks.loss(algo, replace(full, old_logp=batch.old_logp), algo.token_weights(batch.mask))
    loss.backward()
    close("loss where fields that were not asked for are None", loss.detach(), whole, 0.0)
    for seen, expected in zip(networks.gradients(), gradients, strict=True):
        close("gradient where fields that were not asked for are None", seen, expected, 0.0)


def untouched(subject: Subject) -> None:
    algo, batch = subject.algo, mixed(subject.algo)
    before = {f.name: v.clone() for f in fields(batch) if isinstance(v := getattr(batch, f.name), Tensor)}
    state = dict(batch.state)
    full = credited(algo, batch)
    credit = {name: x.clone() for name in ("advantages", "returns") if (x := getattr(full, name)) is not None}
    Networks(batch).loss(algo, full, algo.token_weights(batch.mask))
    algo.keep(batch)
    algo.next_state(batch)
    for name, value in {**before, **credit}.items():
        require(torch.equal(getattr(full, name), value), f"batch.{name} afterwards", "as before", "other numbers")
    require(batch.state == state, "batch.state afterwards", str(state), batch.state)


def dropped(subject: Subject) -> None:
    algo, batch = subject.algo, mixed(subject.algo)
    whole = kept(algo, batch)
    for rows in ([2, 3], list(range(8))):
        mask = batch.mask.clone()
        mask[rows] = 0
        some = kept(algo, replace(batch, mask=mask))
        loss, gradients = loss_and_gradients(algo, some, Networks(some))
        require(loss.isfinite(), f"loss with rows {rows} dropped", "finite", float(loss))
        for gradient in gradients:
            require(gradient.isfinite().all(), f"gradient with rows {rows} dropped", "finite", "NaN or infinity")
            still = float(gradient[rows].abs().max())
            require(still == 0, f"gradient of dropped rows {rows}", "0", still)
        # B still counts them; Σ mask does not
        if algo.aggregation != "token_mean" and type(algo).token_weights is Algorithm.token_weights:
            left = some.mask.any(1)
            expected = algo.token_weights(whole.mask)[left]
            close(f"weights of kept rows with rows {rows} dropped", algo.token_weights(some.mask)[left], expected, 0.0)


def critic(subject: Subject) -> None:
    algo = subject.algo
    if not algo.needs_critic:
        raise NotApplicable("no critic")
    batch = kept(algo, mixed(algo))
    full = credited(algo, batch)
    assert full.returns is not None
    networks = Networks(batch)
    (algo.token_weights(batch.mask) * algo.value_loss(networks.values, full)).sum().backward()
    step = networks.gradients()[1]
    values = networks.values.detach()
    before = ((values - full.returns) ** 2 * batch.mask).sum()
    after = ((values - 1e-3 * step / step.norm() - full.returns) ** 2 * batch.mask).sum()
    require(after < before, "distance of values to their targets after a step", f"below {before:.9g}", f"{after:.9g}")
