"""Compiled attention of packed rows equals the formula, forward and backward, and torch's way of the same plan."""

from __future__ import annotations

import pytest
import torch
from kernel_data import kernels_on, needs_compiler  # noqa: F401 (a fixture)
from model_data import batch_of, network, ragged
from torch import Tensor

from grpo_bench import kernels
from grpo_bench.kernels import attention
from grpo_bench.policy import Policy, layout
from grpo_bench.policy.packed import Packed, pack

pytestmark = needs_compiler
TYPES = [torch.float32, torch.bfloat16]
needs_tiles = pytest.mark.skipif(not attention._tiled(), reason="no AMX and no AVX512_BF16 here")
HEADS = [(4, 4, 32), (9, 3, 64), (2, 1, 12), (4, 2, 128), (7, 1, 64), (3, 1, 40), (5, 1, 80), (71, 1, 16)]
# lengths of prompts, and the length of each row with the prompt that it continues, in any order
RAGGED = ([5, 1, 17, 40], [(2, 6), (0, 3), (0, 20), (3, 33), (1, 2), (0, 1), (3, 0), (2, 17), (3, 1)])
BARE = ([3, 20], [(0, 1), (1, 0)])  # nothing of the rows is packed
LONG = ([150, 2, 70], [(0, 90), (1, 201), (0, 3), (1, 5), (2, 66)])


def packed_of(lengths: list[int], rows: list[tuple[int, int]]) -> Packed:
    group, sizes = (torch.tensor(x) for x in zip(*rows, strict=True))
    completions = torch.zeros(len(rows), max(int(sizes.max()), 1), dtype=torch.long)
    return pack([torch.zeros(n, dtype=torch.long) for n in lengths], group, completions, sizes)


def inputs(packed: Packed, heads: int, keys: int, width: int, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """Queries, keys and values as layers hand them on, and a gradient of what comes out."""
    torch.manual_seed(width)
    tokens = len(packed.ids)
    given = [torch.randn(tokens, n, width).to(dtype).transpose(0, 1)[None] for n in (heads, keys, keys)]
    return given, torch.randn(1, tokens, heads, width).to(dtype)


def formula(packed: Packed, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None) -> Tensor:
    """In double precision, of all tokens at once."""
    sequences = packed.sequences
    assert sequences is not None
    prompts = len(sequences.order)
    whose, where = torch.empty(2, sequences.tokens, dtype=torch.long)
    own = torch.empty(sequences.tokens, dtype=torch.long)
    for p in range(prompts):
        rows = range(int(sequences.firsts[p]), int(sequences.firsts[p + 1]))
        for s, before in [(p, 0), *((row, int(sequences.lengths[p])) for row in rows)]:
            start, length = int(sequences.starts[s]), int(sequences.lengths[s])
            whose[start : start + length], own[start : start + length] = p, s
            where[start : start + length] = before + torch.arange(length)
    assert torch.equal(where, packed.positions)
    seen = (own[:, None] == own) | (own == whose)[None] & (whose[:, None] == whose)
    seen &= where[:, None] >= where
    if window is not None:
        seen &= where[:, None] - where < window
    r = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(r, 1) for x in (key, value))
    scores = (query @ key.mT * scaling).masked_fill(~seen, -torch.inf)
    return (torch.softmax(scores, -1) @ value).transpose(1, 2)


def both_ways(packed: Packed, given: list[Tensor], grad: Tensor, window: int | None) -> list[list[Tensor]]:
    """What comes out and its gradients: compiled, and as torch makes them."""
    found = []
    for on in (True, False):
        kernels.use(on)
        leaves = [x.detach().requires_grad_() for x in given]
        out = packed.attend(0, *leaves, 0.2, window)
        found.append([out.detach(), *torch.autograd.grad(out, leaves, grad)])
    return found


def far(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b).abs().max() / b.abs().max().clamp(min=1e-3))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("window", [None, 4, 9])
@pytest.mark.parametrize(("heads", "keys", "width"), HEADS)
def test_attention_and_its_gradients(heads, keys, width, window, dtype):
    """As near to the formula as torch's way is, but for fp32 sums of many terms in another order."""
    for shape in (RAGGED, BARE, LONG):
        packed = packed_of(*shape)
        given, grad = inputs(packed, heads, keys, width, dtype)
        leaves = [x.double().requires_grad_() for x in given]
        exact = formula(packed, *leaves, 0.2, window)
        wanted = [exact.detach(), *torch.autograd.grad(exact, leaves, grad.double())]
        own, plain = both_ways(packed, given, grad, window)
        for a, b, c in zip(own, plain, wanted, strict=True):
            assert a.shape == b.shape == c.shape
            assert a.dtype == b.dtype == dtype
            assert far(a, c) < (1e-2 if dtype == torch.bfloat16 else 5e-6)
            assert far(a, c) < 1.5 * far(b, c) + 4e-6


def test_attention_by_hand():
    """A prompt of one token, a row of one more, that sees it at a score of ln 3 and itself at 0: 3/4 and 1/4."""
    packed = packed_of([1], [(0, 2)])
    key = torch.tensor([[1.0], [0.0]])[None, None]
    query = torch.tensor([[7.0], [1.0986123]])[None, None]
    value = torch.tensor([[8.0], [4.0]])[None, None]
    assert packed.attend(0, query, key, value, 1.0).flatten().tolist() == pytest.approx([8.0, 7.0], rel=1e-6)
    assert packed.attend(0, query, key, value, 1.0, 1).flatten().tolist() == [8.0, 4.0]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [RAGGED, LONG])
def test_threads_strides_and_gradients_change_no_bit(shape, dtype, monkeypatch):
    monkeypatch.setattr(kernels, "SMALL", 0)
    packed = packed_of(*shape)
    given, grad = inputs(packed, 6, 2, 48, dtype)
    apart = torch.stack([torch.zeros_like(grad), grad], 2)[:, :, 1]  # rows that are not dense
    found = []
    for threads, tensors, arriving in [
        (1, given, grad), (2, given, grad), (1, [x.contiguous() for x in given], grad),
        (2, [x.mT.contiguous().mT for x in given], apart),
    ]:  # fmt: skip
        torch.set_num_threads(threads)
        found.append(both_ways(packed, tensors, arriving, None)[0])
        kernels.use(True)
        with torch.no_grad():
            assert torch.equal(packed.attend(0, *tensors, 0.2), found[0][0])
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


@pytest.mark.parametrize("dtype", TYPES)
def test_a_gradient_that_is_expanded(dtype):
    packed = packed_of(*RAGGED)
    given, grad = inputs(packed, 4, 2, 8, dtype)
    one = grad[:1, :1, :1, :1].expand_as(grad)
    for a, b in zip(
        both_ways(packed, given, one, None)[0], both_ways(packed, given, one.clone(), None)[0], strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_is_not_a_number_shows(which, dtype):
    """In what sees it, and nowhere in other prompts or beside them in other rows."""
    packed = packed_of([18, 7], [(0, 20), (0, 9), (1, 30)])  # rows of 19, 8 and 29 at 25, 44 and 52
    given, grad = inputs(packed, 2, 1, 16, dtype)
    given[which][0, :, 30, 3] = torch.nan  # of the first row
    leaves = [x.detach().requires_grad_() for x in given]
    out = packed.attend(0, *leaves, 0.2)
    wrong = out.isnan().flatten(2).any(-1)[0]
    assert wrong[30]
    assert wrong[30:44].all() or which == 0
    assert not wrong[:25].any()
    assert not wrong[44:].any()
    found = torch.autograd.grad(out, leaves, grad)
    assert found[0].isnan().transpose(1, 2).flatten(2).any(-1)[0, 30]
    for of in found:
        assert not of.isnan().transpose(1, 2).flatten(2).any(-1)[0, 18:25].any()  # of the other prompt
        assert not of.isnan().transpose(1, 2).flatten(2).any(-1)[0, 44:].any()


def test_scores_far_apart():
    """Weights of zero and one, none of them infinite."""
    packed = packed_of(*RAGGED)
    given, grad = inputs(packed, 4, 2, 32, torch.float32)
    given[0] *= 100
    own, plain = both_ways(packed, given, grad, None)
    for a, b in zip(own, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))


def test_sequences_by_hand():
    """Prompts of 2 and 1 tokens; rows of 3, 0 and 4 tokens that continue the second, the first and the second."""
    found = attention.Sequences.of(torch.tensor([2, 1]), torch.tensor([1, 0, 1]), torch.tensor([3, 0, 4]))
    assert found.starts.tolist() == [0, 2, 6, 3, 6]
    assert found.lengths.tolist() == [2, 1, 0, 3, 4]
    assert found.firsts.tolist() == [2, 3, 5]
    assert found.order.tolist() == [1, 0]
    assert (found.tokens, found.most) == (10, 5)


def test_when_it_is_used(monkeypatch):
    """Not for capped scores, double precision or values narrower than keys, and not where kernels are off."""
    calls = []
    own = attention.attend
    monkeypatch.setattr(attention, "attend", lambda *args, **kwargs: (calls.append(1), own(*args, **kwargs))[1])
    packed = packed_of(*RAGGED)
    given, _ = inputs(packed, 2, 1, 8, torch.float32)
    packed.attend(0, *given, 0.2, None, 5.0)
    packed.attend(0, *(x.double() for x in given), 0.2)
    kernels.use(False)
    packed.attend(0, *given, 0.2)
    assert not calls
    kernels.use(True)
    packed.attend(0, *given, 0.2)
    assert len(calls) == 1
    with torch.autocast("cpu", torch.bfloat16):
        out = packed.attend(0, *given, 0.2)
    assert out.dtype == torch.bfloat16
    assert len(calls) == 2
    low = [x.bfloat16() for x in given]
    assert torch.equal(out, packed.attend(0, *low, 0.2))


@needs_tiles
@pytest.mark.parametrize("window", [None, 1, 33, 700, 2**31 - 1])
@pytest.mark.parametrize(
    ("heads", "keys", "width", "shape"),
    [(9, 3, 64, RAGGED), (71, 1, 16, LONG), (6, 2, 40, LONG), (2, 2, 32, ([1100], [(0, 45), (0, 1)])),
     (1, 1, 16, ([33, 4100], [(1, 70), (0, 9)])), (2, 1, 128, ([64, 0], [(0, 33), (1, 40), (0, 65)]))],
)  # fmt: skip
def test_with_and_without_matrix_tiles(heads, keys, width, shape, window, monkeypatch):
    """Within the rounding of weights and of the scores' gradients; a prompt may have no tokens of its own."""
    packed = packed_of(*shape)
    given, grad = inputs(packed, heads, keys, width, torch.bfloat16)
    own = both_ways(packed, given, grad, window)[0]
    monkeypatch.setattr(attention, "_tiled", lambda: False)
    plain = both_ways(packed, given, grad, window)[0]
    assert window == 1 or not torch.equal(own[1], plain[1])
    for a, b in zip(own, plain, strict=True):
        assert far(a, b.double()) < 2e-2
        assert float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-2)) < 6e-3


@needs_tiles
@pytest.mark.parametrize("window", [None, 4])
def test_without_matrix_tiles(window, monkeypatch):
    """bfloat16 as processors without tiles or dot products of pairs compute with it."""
    monkeypatch.setattr(attention, "_tiled", lambda: False)
    for heads, keys, width in HEADS:
        test_attention_and_its_gradients(heads, keys, width, window, torch.bfloat16)
    test_threads_strides_and_gradients_change_no_bit(LONG, torch.bfloat16, monkeypatch)


@pytest.mark.parametrize("scaling", [0.2, -0.3, 40.0])
@pytest.mark.parametrize("dtype", TYPES)
def test_any_scaling(dtype, scaling):
    """Scores far apart and below zero: weights of zero and one, none of them infinite."""
    packed = packed_of(*RAGGED)
    given, grad = inputs(packed, 4, 2, 32, dtype)
    leaves = [x.double().requires_grad_() for x in given]
    exact = formula(packed, *leaves, scaling, None)
    wanted = [exact.detach(), *torch.autograd.grad(exact, leaves, grad.double())]
    leaves = [x.detach().requires_grad_() for x in given]
    out = packed.attend(0, *leaves, scaling)
    for a, b in zip([out.detach(), *torch.autograd.grad(out, leaves, grad)], wanted, strict=True):
        assert far(a, b) < (2e-2 if dtype == torch.bfloat16 else 1e-4)


@pytest.mark.parametrize("dtype", TYPES)
def test_a_policy_with_and_without(dtype):
    """Log-probs and gradients of the whole model, with layers computed again in the backward pass too."""
    rows = layout(batch_of(ragged(8, group_size=4, seed=3)), torch.arange(8))
    found = []
    for again, on in ((False, True), (True, True), (False, False)):
        kernels.use(on)
        net = network("llama", double=False)
        if again:
            net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        policy = Policy(net, dtype)
        logp, _ = policy.logp(rows, 0.9)
        logp.sum().backward()
        found.append([logp.detach(), *(p.grad for p in policy.parameters() if p.grad is not None)])
    assert all(torch.equal(a, b) for a, b in zip(*found[:2], strict=True))
    for a, b in zip(found[0], found[2], strict=True):
        limit = 1e-4 if dtype == torch.float32 else 0.1
        assert float((a - b).norm() / b.norm()) < limit
