"""The compiled forms of what training does equal the formula, whatever the shapes, threads and precision."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from kernel_data import kernels_on, needs_compiler, needs_training_tiles  # noqa: F401
from model_data import batch_of, make, ragged
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from grpo_bench import kernels
from grpo_bench.kernels import decoder_layer, products
from grpo_bench.kernels import head as compiled
from grpo_bench.policy import Policy, head, layout, linear, memory
from grpo_bench.policy.linear import TrainedLinear
from grpo_bench.policy.load import load_model
from grpo_bench.rollout.weights import SamplingCopy

pytestmark = needs_compiler


def near(own: Tensor, exact: Tensor, rounding: float) -> bool:
    """Within one rounding of each entry, and of what its terms may add up to in another order."""
    return bool(((own.double() - exact).abs() <= rounding * exact.abs() + 1e-5 * exact.abs().max()).all())


@needs_training_tiles
@pytest.mark.parametrize("rows", [1, 31, 32, 33, 257, 300])
@pytest.mark.parametrize(
    ("columns", "depth"), [(32, 32), (96, 64), (64, 544), (48, 16), (5, 33), (1, 1), (8192 + 64, 32)]
)
def test_gradient_of_weights_equals_the_formula(rows, columns, depth):
    torch.manual_seed(rows)
    x, grad = torch.randn(rows, depth).bfloat16(), torch.randn(rows, columns).bfloat16()
    exact = grad.double().T @ x.double()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        own = products.weight_gradient(grad, x)
        assert own.dtype == torch.float32
        assert near(own, exact, 2**-20)
    wider = torch.randn(rows, columns + 32).bfloat16()
    wider[:, 32:] = grad
    assert torch.equal(products.weight_gradient(wider[:, 32:], x), own)


@needs_training_tiles
@pytest.mark.parametrize("rows", [1, 33, 300])
def test_gradients_of_layers_of_one_input_are_those_of_each_bit_for_bit(rows):
    torch.manual_seed(rows)
    x = torch.randn(rows, 96).bfloat16()
    grads = [torch.randn(rows, columns).bfloat16() for columns in (32, 5, 8192 + 40, 64)]
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found = products.weight_gradients(grads, x)
        assert all(torch.equal(a, products.weight_gradient(g, x)) for a, g in zip(found, grads, strict=True))


@needs_training_tiles
def test_gradient_of_weights_by_hand():
    """1 + 2⁻⁹ is a sum that bfloat16 would round to 1; an entry counts where both factors do."""
    x, grad = torch.zeros(3, 64).bfloat16(), torch.zeros(3, 32).bfloat16()
    x[0, 40], x[2, 40], grad[0, 5], grad[2, 5] = 1, 2, 1, 2**-10
    own = products.weight_gradient(grad, x)
    assert own[5, 40].item() == 1 + 2**-9
    assert own.count_nonzero() == 1


@needs_training_tiles
@pytest.mark.parametrize(("rows", "columns", "depth"), [(700, 64, 96), (2100, 300, 70), (4200, 33, 40)])
def test_threads_change_no_bit(rows, columns, depth):
    """Nor do parts of tokens that are laid out one after the other, and blocks that reach beyond the result."""
    torch.manual_seed(0)
    x, grad = torch.randn(rows, depth).bfloat16(), torch.randn(rows, columns).bfloat16()
    exact = grad.double().T @ x.double()
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(products.weight_gradient(grad, x))
        assert near(found[-1], exact, 2**-18)
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("words", [5, 512, 1000])
def test_softmax_over_the_vocabulary(dtype, words, temperature):
    torch.manual_seed(words)
    logits = (torch.randn(37, words) * 5).to(dtype)
    logits[3, 1] = -torch.inf
    logits[4] = 0
    logits[5, 0] = 300
    targets = torch.randint(words, (37,))
    targets[5] = 0
    exact = torch.log_softmax(logits.double() / temperature, -1)
    p = exact.exp()
    entropy = -torch.where(p > 0, p * exact, 0.0).sum(-1)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        probs = logits.clone()
        found.append((*compiled.soften(probs, targets, temperature), probs))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    logp, own_entropy, probs = found[0]
    own = exact.gather(1, targets[:, None]).squeeze(1)
    assert torch.allclose(logp.double(), own, rtol=1e-6, atol=2e-6)
    assert torch.allclose(own_entropy.double(), entropy, rtol=1e-5, atol=1e-5)
    assert torch.allclose(probs.double(), p, rtol=2**-8 if dtype == torch.bfloat16 else 1e-5, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_of_log_probs_by_hand(dtype):
    probs = torch.tensor([[0.25, 0.5, 0.25], [1.0, 0.0, 0.0]]).to(dtype)
    compiled.logp_gradient(probs, torch.tensor([1, 0]), torch.tensor([2.0, 3.0]))
    assert probs.tolist() == [[-0.5, 1.0, -0.5], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("targets", [[0, 1, 40], [-1, 0, 0]])
def test_a_target_that_is_no_word_raises(targets):
    for on in (True, False):
        kernels.use(on)
        with pytest.raises((IndexError, RuntimeError), match=r"target|index"):
            head.head_logp(torch.randn(3, 8), torch.randn(40, 8), torch.tensor(targets), 1.0)


def test_targets_need_not_be_dense():
    torch.manual_seed(0)
    logits, targets = torch.randn(500, 40), torch.randint(40, (500, 2))
    plain = compiled.soften(logits.clone(), targets[:, 0].contiguous(), 1.0)[0]
    assert torch.equal(compiled.soften(logits, targets[:, 0], 1.0)[0], plain)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_a_number_shows(dtype, wrong):
    """A loss that is not finite is not stepped on: it must not be softened into a number."""
    logits = torch.zeros(3, 40).to(dtype)
    logits[1, 7] = wrong
    logp, entropy = compiled.soften(logits, torch.tensor([0, 1, 2]), 1.0)
    assert logp.isnan().tolist() == entropy.isnan().tolist() == [False, True, False]
    assert logits.isnan().all(-1).tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_head_with_and_without(dtype):
    """Log-probs, entropies and gradients of states and head, kept and made again in the backward pass."""
    torch.manual_seed(0)
    states, weight, targets = torch.randn(50, 64), torch.randn(96, 64) / 4, torch.randint(96, (50,))
    for kept in (2**26, 7 * 96):
        found = []
        for on in (True, False):
            kernels.use(on)
            h, w = states.to(dtype).requires_grad_(), weight.clone().requires_grad_()
            with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.bfloat16, dtype == torch.bfloat16):
                patch.setattr(memory, "KEPT_ELEMENTS", kept)
                logp, entropy = head.head_logp(h, w, targets, 0.8)
            (logp * torch.arange(50)).sum().backward()
            found.append((logp.detach(), entropy, h.grad, w.grad))
        near_enough = 1e-5 if dtype == torch.float32 else 2e-2
        for own, plain in zip(*found, strict=True):
            assert own.dtype == plain.dtype
            assert (own - plain).abs().max() <= near_enough * plain.abs().max()


@needs_training_tiles
def test_gradients_that_are_not_dense():
    """Expanded over tokens or over columns, transposed, or of no tokens at all."""
    torch.manual_seed(0)
    x, row = torch.randn(70, 48).bfloat16(), torch.randn(1, 33).bfloat16()
    for grad in (row.expand(70, 33), row.mT.expand(33, 70).mT, torch.randn(33, 70).bfloat16().mT):
        assert near(products.weight_gradient(grad, x), grad.double().T @ x.double(), 2**-20)
    assert products.weight_gradient(torch.empty(0, 33).bfloat16(), torch.empty(0, 48).bfloat16()).eq(0).all()


def layer(depth: int = 64, columns: int = 96, bias: bool = True) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(1)
    plain = nn.Linear(depth, columns, bias=bias)
    own = copy.deepcopy(plain)
    own.__class__ = TrainedLinear
    return own, plain


@needs_training_tiles
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_and_its_gradients_are_those_of_autocast(dtype, bias):
    found = []
    own, plain = layer(bias=bias)
    for one in (own, plain):
        torch.manual_seed(2)
        x = torch.randn(2, 50, 64).to(dtype).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = one(x)
        assert (type(y.grad_fn).__name__ == "_LinearsBackward") == (one is not plain)
        (y.float() * torch.randn(2, 50, 96)).sum().backward()
        found.append([y, x.grad, *(p.grad for p in one.parameters())])
    for own_tensor, plain_tensor in zip(*found, strict=True):
        assert own_tensor.dtype == plain_tensor.dtype
        assert (own_tensor.double() - plain_tensor.double()).abs().max() <= 2**-7 * plain_tensor.double().abs().max()
    assert all(torch.equal(a, b) for a, b in zip(found[0][:2], found[1][:2], strict=True))


@needs_training_tiles
def test_no_second_derivative_is_pretended():
    own, _ = layer(bias=False)
    x = torch.randn(100, 64, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        grad = torch.autograd.grad(own(x).float().square().sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@needs_training_tiles
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_layer_has_the_same_gradient(reentrant):
    own, _ = layer()
    x = torch.randn(100, 64, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = torch.autograd.grad(own(x).float().square().sum(), own.weight)[0]
        checkpoint(own, x, use_reentrant=reentrant).float().square().sum().backward()
    assert torch.equal(own.weight.grad, plain)


@needs_training_tiles
def test_without_autocast_for_few_tokens_and_frozen_weights():
    own, plain = layer()
    x = torch.randn(100, 64)
    assert torch.equal(own(x), plain(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(own(x[:3]), plain(x[:3]))
        own.weight.requires_grad_(False)
        y = own(x.requires_grad_())
    y.float().sum().backward()
    assert own.weight.grad is None
    assert x.grad is not None
    assert own.bias.grad is not None


@needs_training_tiles
def test_gradients_add_up_over_micro_batches():
    own, _ = layer(bias=False)
    x = torch.randn(200, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        whole = torch.autograd.grad(own(x).float().square().sum(), own.weight)[0]
        for part in x.split(100):
            own(part).float().square().sum().backward()
    assert torch.allclose(own.weight.grad, whole, rtol=1e-3, atol=1e-2)


class Attention(nn.Module):
    def __init__(self, biased: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(64, n, bias=biased) for n in (96, 32, 40))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)


def attention(biased: bool = False) -> tuple[Attention, Attention]:
    own, plain = Attention(biased), Attention(biased)
    assert linear.install(own) == 3
    assert len(linear.join(own)) == 1
    return own, plain


def of_three(module: nn.Module, x: Tensor) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """What three layers make of x, and the gradients of a sum of it, x's own first."""
    x = x.detach().clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = module(x)
    weights = [torch.linspace(-1, 1, y.numel()).view_as(y) for y in made]
    total = sum(((y.float() * w).sum() for y, w in zip(made, weights, strict=True)), torch.zeros(()))
    return made, list(torch.autograd.grad(total, [x, *module.parameters()]))


@needs_training_tiles
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [True, False])
def test_layers_of_one_input_share_its_gradient(biased, dtype):
    own, plain = attention(biased)
    x = torch.randn(2, 50, 64).to(dtype)
    made, grads = of_three(own, x)
    expected, wanted = of_three(plain, x)
    assert len({y.grad_fn for y in made}) == 1
    assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))
    for a, b in zip(grads, wanted, strict=True):
        assert a.dtype == b.dtype
        assert (a.double() - b.double()).abs().max() <= 2**-7 * b.double().abs().max()
    # summed in x's type: autograd, which casts this x once for all, rounds the sum
    assert bool((grads[0].bfloat16() != grads[0]).any()) == (dtype == torch.float32)


@needs_training_tiles
def test_layers_of_one_input_in_another_order_and_alone():
    own, plain = attention()
    x, other = torch.randn(100, 64), torch.randn(100, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = (
            [one.v_proj(x), one.q_proj(other), one.q_proj(x), one.k_proj(x), one.q_proj(x)] for one in (own, plain)
        )
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@needs_training_tiles
@pytest.mark.parametrize("settled", [True, False])
def test_what_was_not_asked_for_is_forgotten(settled):
    """With its input; after a whole forward pass it never is asked for."""
    own, _ = attention()
    siblings = own.q_proj.joined
    x = torch.randn(100, 64, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = 2 * x
        made = own.q_proj(y)
        (gradient,) = torch.autograd.grad(made.float().sum(), own.k_proj.weight, allow_unused=True)
        assert gradient is None  # no zeros, on which moments would decay
        gone = weakref.ref(y)
        del y, made
        assert gone() is not None
        siblings.settle() if settled else siblings.release()
        assert gone() is None
        again = own.q_proj(x)
    assert again.grad_fn is not None
    assert (siblings.asked.input is None) == settled  # each by itself from then on


@needs_training_tiles
def test_a_sibling_that_is_frozen():
    own, plain = attention()
    x = torch.randn(100, 64)
    for module in (own, plain):
        module.k_proj.weight.requires_grad_(False)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            made = module(x)
            assert len({y.grad_fn for y in made}) == 3
            sum(y.float().square().sum() for y in made).backward()
    assert own.k_proj.weight.grad is None
    wanted = plain.v_proj.weight.grad
    assert (own.v_proj.weight.grad - wanted).abs().max() <= 2**-7 * wanted.abs().max()
    assert linear.join(own) == []


@needs_training_tiles
def test_a_copy_is_joined_by_itself():
    own, _ = attention()
    twin, x = copy.deepcopy(own), torch.randn(100, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert len({y.grad_fn for y in twin(x)}) == 3
    assert len(linear.join(twin)) == 1
    assert twin.q_proj.joined is twin.v_proj.joined is not own.q_proj.joined
    assert all(torch.equal(a, b) for a, b in zip(of_three(own, x)[1], of_three(twin, x)[1], strict=True))


@pytest.mark.parametrize("sampled", [True, False])
def test_a_model_that_is_let_go_is_freed_at_once(sampled):
    cfg = make("model.tiny.hidden_size=64", "model.tiny.intermediate_size=96", "model.dtype=bfloat16").model
    policy = Policy(load_model(cfg, torch.device("cpu")), torch.bfloat16)
    gc.collect()
    gc.disable()
    try:
        held = SamplingCopy(policy, torch.bfloat16).policy if sampled else policy
        gone = [weakref.ref(m) for m in held.model.modules() if isinstance(m, nn.Linear)]
        assert len(gone) > 7
        del policy, held
        assert not any(ref() for ref in gone)
    finally:
        gc.enable()


@needs_training_tiles
@pytest.mark.parametrize("reentrant", [True, False])
def test_siblings_in_a_checkpointed_block(reentrant):
    own, _ = attention()
    x = torch.randn(100, 64, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = torch.autograd.grad(sum(y.float().square().sum() for y in own(x)), list(own.parameters()))
        sum(y.float().square().sum() for y in checkpoint(own, x, use_reentrant=reentrant)).backward()
    assert all(torch.equal(p.grad, grad) for p, grad in zip(own.parameters(), plain, strict=True))
    assert own.q_proj.joined.asked.input is None


def test_a_policy_in_bfloat16_trains_through_it(monkeypatch):
    """Log-probs and gradients are those of the plain forms up to bfloat16's rounding."""
    cfg = make("model.tiny.hidden_size=64", "model.tiny.intermediate_size=96", "model.dtype=bfloat16").model
    policy = Policy(load_model(cfg, torch.device("cpu")), torch.bfloat16)
    assert any(isinstance(m, TrainedLinear) for m in policy.modules())
    assert policy.head_is_linear
    batch = batch_of(ragged(48, 8))
    calls, made, tiles = [], products.weight_gradients, products.trains(torch.zeros(32, 32))
    whole = decoder_layer.backward

    def counted(grads, x):
        calls.extend(grad.shape[1] for grad in grads)
        return made(grads, x)

    def counted_layer(layer, *args):
        calls.append(layer.given.inner)
        return whole(layer, *args)

    monkeypatch.setattr(products, "weight_gradients", counted)
    monkeypatch.setattr(decoder_layer, "backward", counted_layer)
    found = []
    for on in (True, False):
        kernels.use(on)
        policy.zero_grad()
        calls.clear()
        logp, _ = policy.logp(layout(batch, torch.arange(len(batch.mask))), 1.0)
        logp.sum().backward()
        assert calls == ([policy.model.config.vocab_size, 96, 96] if on and tiles else [])
        grads = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
        found.append((logp.detach(), grads))
    (own, own_grads), (plain, plain_grads) = found
    assert (own - plain).abs().max() < 0.05
    assert own_grads.keys() == plain_grads.keys()
    for name, grad in own_grads.items():
        assert torch.cosine_similarity(grad.flatten(), plain_grads[name].flatten(), dim=0) > 0.999, name
