"""The gradient of embeddings by the rows that were looked up equals autograd's own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from model_data import batch_of, make, network, ragged
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from grpo_bench.policy import Policy, layout, make_models
from grpo_bench.policy.embedding import TrainedEmbedding, install

IDS = torch.tensor([[3, 0, 3, 7], [0, 6, 3, 1]])


def pair(padding: int | None = None) -> tuple[nn.Embedding, nn.Embedding]:
    torch.manual_seed(0)
    plain = nn.Embedding(9, 5, padding_idx=padding).double()
    own = copy.deepcopy(plain)
    assert install(own) == 1
    assert type(own) is TrainedEmbedding
    return own, plain


def loss_of(embedding: nn.Embedding, tied: bool, ids: Tensor = IDS, reentrant: bool | None = None) -> Tensor:
    if reentrant is None:
        x = embedding(ids)
    else:
        one = torch.ones((), dtype=torch.float64, requires_grad=True)  # reentrant ones want an input with a gradient
        x = checkpoint(lambda i, y: embedding(i) * y, ids, one, use_reentrant=reentrant)
    out: Tensor = torch.sin(x @ embedding.weight.mT if tied else x).sum()
    return out


@pytest.mark.parametrize("padding", [None, 0, 3])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("reentrant", [None, True, False])
def test_gradients_add_up_over_micro_batches(tied: bool, padding: int | None, reentrant: bool | None) -> None:
    own, plain = pair(padding)
    for parts in ([IDS], [IDS[:1], IDS[1:], IDS[:0]]):
        for embedding in (own, plain):
            embedding.weight.grad = None
            for ids in parts:
                loss_of(embedding, tied, ids, reentrant).backward()
        assert own.weight.grad is not None
        torch.testing.assert_close(own.weight.grad, plain.weight.grad, rtol=1e-14, atol=1e-14)


def test_the_gradient_by_hand() -> None:
    """Row 3 was looked up three times, row 7 once, row 2 never."""
    own, _ = pair()
    own(IDS).sum().backward()
    assert own.weight.grad is not None
    assert own.weight.grad[:, 0].tolist() == [2, 1, 0, 3, 0, 0, 1, 1, 0]


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_that_are_returned_are_not_added(tied: bool) -> None:
    own, plain = pair()
    got, want = (torch.autograd.grad(loss_of(e, tied), e.weight)[0] for e in (own, plain))
    torch.testing.assert_close(got, want, rtol=1e-14, atol=1e-14)
    assert own.weight.grad is None
    other = nn.Parameter(torch.ones((), dtype=torch.float64))
    (loss_of(own, tied) * other).backward(inputs=[other])
    assert own.weight.grad is None
    (loss_of(own, tied) * other).backward(inputs=[own.weight])
    torch.testing.assert_close(own.weight.grad, want, rtol=1e-14, atol=1e-14)
    assert other.grad is not None


def test_two_embeddings_of_one_weight_and_a_weight_that_was_computed() -> None:
    own, plain = pair()
    for embedding in (own, plain):
        again = copy.copy(embedding)
        (again(IDS).square().sum() + loss_of(embedding, True)).backward()
    torch.testing.assert_close(own.weight.grad, plain.weight.grad, rtol=1e-14, atol=1e-14)
    for embedding in (own, plain):
        embedding.weight.grad = None
        torch.func.functional_call(embedding, {"weight": 2 * embedding.weight}, IDS).square().sum().backward()
    torch.testing.assert_close(own.weight.grad, plain.weight.grad, rtol=1e-14, atol=1e-14)


def test_frozen_weights_and_what_is_left_alone() -> None:
    own, plain = pair()
    with torch.no_grad():
        assert torch.equal(own(IDS), plain(IDS))
    own.weight.requires_grad_(False)
    assert not own(IDS).requires_grad
    others = [nn.Embedding(9, 5, max_norm=1.0), nn.Embedding(9, 5, sparse=True)]
    others.append(nn.Embedding(9, 5, scale_grad_by_freq=True))
    assert install(nn.Sequential(*others)) == 0


def plainly(model: Any) -> Any:
    for module in model.modules():
        if type(module) is TrainedEmbedding:
            module.__class__ = nn.Embedding
    return model


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("again", [False, True])
def test_a_policy_with_and_without(kind: str, again: bool) -> None:
    """Tied and untied, with learned positions, with layers computed again in the backward pass."""
    batch, found = batch_of(ragged(8, group_size=4, seed=3)), []
    for change in (lambda model: model, plainly):
        policy = Policy(network(kind), torch.float32)
        assert any(type(m) is TrainedEmbedding for m in policy.modules())
        change(policy)
        if again:
            policy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        for rows in (torch.arange(4), torch.arange(4, 8)):
            policy.logp(layout(batch, rows), 0.9)[0].sum().backward()
        found.append({name: p.grad for name, p in policy.named_parameters()})
    assert found[0].keys() == found[1].keys()
    for name, grad in found[0].items():
        assert (grad is None) == (found[1][name] is None)
        if grad is not None:
            torch.testing.assert_close(grad, found[1][name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("critic", ["separate", "shared"])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_critic_whose_head_makes_no_gradient_of_the_words(kind: str, critic: str) -> None:
    batch, found = batch_of(ragged(8, group_size=4, seed=3)), []
    for change in (lambda model: model, plainly):
        cfg = make(f"model.critic={critic}").model
        models = make_models(network(kind), cfg, torch.float32, critic=True, reference=False)
        assert models.critic is not None
        models.critic.double()
        nn.init.constant_(models.critic.head.weight, 0.3)
        change(models.critic)
        change(models.policy)
        rows = layout(batch, torch.arange(8))
        states = models.policy.states(rows) if critic == "shared" else None
        models.critic.values(rows, states).square().sum().backward()
        trunk = models.policy if models.critic.trunk is None else models.critic.trunk
        found.append([p.grad for p in trunk.parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1]) > 10
    for own, plain in zip(*found, strict=True):
        torch.testing.assert_close(own, plain, rtol=1e-12, atol=1e-12)


class _Breaks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tensor:
        raise RuntimeError("can't allocate memory")


def test_rows_of_a_backward_pass_that_breaks_off_are_dropped() -> None:
    """As when memory runs out: the same micro-batch is then made again, smaller."""
    own, plain = pair()
    x = own(IDS)
    loss = torch.sin(x @ own.weight.mT).sum() + _Breaks.apply(own.weight).sum()
    with pytest.raises(RuntimeError, match="can't allocate"):
        loss.backward()
    own.weight.grad = None
    for embedding in (own, plain):
        loss_of(embedding, True).backward()
    torch.testing.assert_close(own.weight.grad, plain.weight.grad, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("tied", [True, False])
def test_whoever_waits_for_the_gradient_is_given_all_of_it(tied: bool) -> None:
    grads = []
    for embedding in pair():
        embedding.weight.register_hook(lambda grad: 2 * grad)
        loss_of(embedding, tied).backward()
        grads.append(embedding.weight.grad)
    assert grads[0] is not None
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-14, atol=1e-14)
