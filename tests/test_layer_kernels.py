"""Rotary embeddings, gates and norms in one pass equal the formulas and the models' own, forward and backward."""

from __future__ import annotations

import copy
import math
import sys

import pytest
import torch
from kernel_data import kernels_on, needs_compiler  # noqa: F401 (a fixture)
from model_data import ARCHITECTURES, batch_of, make, network, ragged
from torch import Tensor, nn
from torch.nn import functional as F

from grpo_bench import kernels
from grpo_bench.kernels import layers
from grpo_bench.policy import Policy, decoder_layer, gates, layout, make_models, norms, rotary

pytestmark = needs_compiler
TYPES = [torch.float32, torch.bfloat16]


def near(own: Tensor, exact: Tensor, terms: float = 1.0) -> bool:
    """Within one rounding of each entry's type, and of fp32 sums of terms as large as ``terms``."""
    rounding = 2**-8 if own.dtype == torch.bfloat16 else 2**-22
    return bool(((own.double() - exact).abs() <= rounding * exact.abs() + 4e-6 * terms).all())


# --- by hand ---


def test_a_rotation_by_hand():
    """A quarter turn of the first pair (1, 3) gives (-3, 1); the second pair (2, 4) is not turned. Back undoes it."""
    x = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    cosines, sines = torch.tensor([[0.0, 1.0, 0.0, 1.0]]), torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    turned, other = layers.rotate(x, 2 * x, cosines, sines)
    assert torch.equal(other, 2 * turned)
    assert turned.tolist() == [[[-3.0, 2.0, 1.0, 4.0]]]
    assert layers.rotate(turned, other, cosines, sines, back=True)[0].tolist() == x.tolist()


def test_a_gate_by_hand():
    """silu(ln 3) = ln 3 · 3/4. Its derivative there is 3/4 + ln 3 · 3/16."""
    ln3 = math.log(3)
    gate, up, grad = (torch.tensor([v]) for v in (ln3, 2.0, 10.0))
    assert layers.gate(gate, up).item() == pytest.approx(ln3 * 0.75 * 2, rel=1e-6)
    of_gate, of_up = layers.gate_gradient(gate, up, grad)
    assert of_gate.item() == pytest.approx(10 * 2 * (0.75 + ln3 * 3 / 16), rel=1e-6)
    assert of_up.item() == pytest.approx(10 * ln3 * 0.75, rel=1e-6)


def test_a_norm_by_hand():
    """(3, 4) has a root mean square of 5/√2; weights 1 and 2. The gradient has no part along x."""
    x, weight = torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0])
    scale = math.sqrt(2) / 5
    out = layers.normed(x, weight, 0.0, 0.0, torch.float32)
    assert out[0].tolist() == pytest.approx([3 * scale, 8 * scale], rel=1e-6)
    of_x, of_weight = layers.norm_gradient(x, weight, torch.tensor([[1.0, 1.0]]), 0.0, 0.0)
    # g·w = (1, 2), along x: 11/25 of it; what is left: (1 − 33/25, 2 − 44/25)
    assert of_x[0].tolist() == pytest.approx([-8 / 25 * scale, 6 / 25 * scale], rel=1e-5)
    assert of_weight.tolist() == pytest.approx([3 * scale, 4 * scale], rel=1e-6)


# --- the formulas ---


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("heads", "rows", "width"), [(1, 1, 2), (3, 5, 16), (4, 700, 64), (2, 9, 34)])
def test_rotations(heads, rows, width, threads, dtype):
    torch.set_num_threads(threads)
    torch.manual_seed(rows)
    x = torch.randn(rows, heads, width).to(dtype).transpose(0, 1)  # as a layer hands it on
    cosines, sines = torch.randn(2, rows, width)  # no pair need be alike
    exact = x.detach().double().requires_grad_()
    half = torch.cat([-exact[..., width // 2 :], exact[..., : width // 2]], -1)
    formula = exact * cosines.double() + half * sines.double()
    for own in layers.rotate(x, x.contiguous(), cosines, sines):
        assert near(own, formula, 4.0)
    grad = torch.randn(heads, rows, width).to(dtype)
    formula.backward(grad.double())
    assert exact.grad is not None
    for own in layers.rotate(grad, grad, cosines, sines, back=True):
        assert near(own, exact.grad, 4.0)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("count", [1, 31, 4096, 4097, 300_001])
def test_gates(count, threads, dtype):
    torch.set_num_threads(threads)
    torch.manual_seed(count)
    gate, up, grad = (10 * torch.randn(3, count)).to(dtype)
    wide, other = gate.double().requires_grad_(), up.double().requires_grad_()
    formula = F.silu(wide) * other
    formula.backward(grad.double())
    assert wide.grad is not None
    assert other.grad is not None
    assert near(layers.gate(gate, up), formula, 1000.0)
    of_gate, of_up = layers.gate_gradient(gate, up, grad)
    assert near(of_gate, wide.grad, 10_000.0)
    assert near(of_up, other.grad, 1000.0)


@pytest.mark.parametrize("dtype", TYPES)
def test_gates_of_extremes(dtype):
    """Far to the left a gate is shut, far to the right it lets everything through; a NaN stays one."""
    ones = torch.ones(8, dtype=dtype)
    assert layers.gate(torch.tensor([-1e38]).to(dtype), ones[:1]).item() == 0
    gate = torch.tensor([-1e30, -500.0, -100.0, 0.0, 100.0, 500.0, 1e30, math.nan]).to(dtype)
    out = layers.gate(gate, ones)
    assert out[:3].abs().max() < 1e-6
    assert out[3:7].tolist() == [0.0, 100.0, 500.0, gate[6].item()]
    assert out[7].isnan()
    of_gate, of_up = layers.gate_gradient(gate[1:6], ones[:5], ones[:5])
    assert of_up.tolist() == pytest.approx([0.0, 0.0, 0.0, 100.0, 500.0], abs=1e-6)
    assert all(x.isnan() for of in layers.gate_gradient(gate[7:], ones[:1], ones[:1]) for x in of)
    assert of_gate.tolist() == pytest.approx([0.0, 0.0, 0.5, 1.0, 1.0], abs=1e-6)


@pytest.mark.parametrize(("kind", "out"), [(TYPES[0], TYPES[0]), (TYPES[0], TYPES[1]), (TYPES[1], TYPES[1])])
@pytest.mark.parametrize("shift", [0.0, 1.0])
@pytest.mark.parametrize("rows", [1, 127, 128, 129, 1000])
def test_norms(rows, shift, kind, out):
    torch.manual_seed(rows)
    x, weight, grad = torch.randn(rows, 48).to(kind), torch.randn(48), torch.randn(rows, 48).to(out)
    wide, other = x.double().requires_grad_(), weight.double().requires_grad_()
    formula = wide / torch.sqrt(wide.square().mean(-1, keepdim=True) + 1e-5) * (shift + other)
    formula.backward(grad.double())
    assert wide.grad is not None
    assert other.grad is not None
    assert near(layers.normed(x, weight, 1e-5, shift, out), formula)
    bits = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        of_x, of_weight = layers.norm_gradient(x, weight, grad, 1e-5, shift)
        assert of_x.dtype == kind
        assert near(of_x, wide.grad, 4.0)
        assert near(of_weight, other.grad, 10.0 * math.sqrt(rows))
        bits.append((of_x, of_weight))
    assert all(torch.equal(a, b) for a, b in zip(*bits, strict=True))


# --- in models ---


def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    calls = dict.fromkeys(("rotate", "gate", "normed"), 0)

    def watch(name: str) -> None:
        own = getattr(layers, name)

        def call(*args, **kwargs):
            calls[name] += 1
            return own(*args, **kwargs)

        monkeypatch.setattr(layers, name, call)

    for name in calls:
        watch(name)
    return calls


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_models_compute_what_they_did(kind, monkeypatch):
    """Log-probs and all gradients in fp32, with and without."""
    policy = Policy(network(kind, double=False), torch.float32)
    batch = batch_of(ragged(5))
    rows = layout(batch, torch.arange(5))
    calls = counted(monkeypatch)
    monkeypatch.setattr(decoder_layer, "_takes", lambda *_: False)  # layers that are one operation call none of them
    found = []
    for on in (True, False):
        kernels.use(on)
        policy.zero_grad()
        logp, _ = policy.logp(rows, 0.9)
        logp.sum().backward()
        found.append((logp.detach(), [p.grad.clone() for p in policy.parameters() if p.grad is not None]))
        if on:
            used = dict(calls)
    assert calls == used  # none without
    assert [bool(used[name]) for name in ("rotate", "gate", "normed")] == {
        "llama": [True, True, True], "qwen2": [True, True, True], "gpt2": [False, False, False],
        "gemma2": [True, False, True],
    }[kind]  # fmt: skip
    (ours, own), (theirs, wanted) = found
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    size = max(float(g.abs().max()) for g in wanted)
    for a, b in zip(own, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 * size)


def test_a_policy_in_bfloat16_is_as_near_to_fp32_as_before(monkeypatch):
    """Errors of log-probs beside those of tensor operations: rounded at other places, and not much larger."""
    exact = Policy(network("llama", double=False), torch.float32)
    low = Policy(copy.deepcopy(exact.model), torch.bfloat16)
    rows = layout(batch_of(ragged(5)), torch.arange(5))
    with torch.no_grad():
        wanted, _ = exact.logp(rows, 1.0)
    calls = counted(monkeypatch)
    errors = {}
    for on in (True, False):
        kernels.use(on)
        logp, _ = low.logp(rows, 1.0)
        errors[on] = float((logp.detach() - wanted).square().mean().sqrt())
        assert calls["rotate"] == 2  # of two layers, by the first of the two
    assert errors[True] < 1.5 * errors[False]


def test_a_gate_of_another_function_stays():
    model = network("gemma2", double=False)
    Policy(model, torch.float32)
    gated = [m for m in model.modules() if hasattr(m, "gate_proj")]
    assert gated
    assert not any(hasattr(type(m), "faster") for m in gated)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(4, 8), nn.Linear(4, 8)
        self.down_proj, self.act_fn = nn.Linear(8, 4), nn.SiLU()

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Leaky(Plain):
    def forward(self, x):
        return super().forward(x) + 0.1 * x


class Clamped(Plain):
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x).clamp(max=10)) * self.up_proj(x))


class Mixture(Plain):
    def forward(self, x):
        return super().forward(x), None


class Unlike(Plain):
    def forward(self, x, router):
        return super().forward(x) * router


@pytest.mark.parametrize("kind", [Leaky, Clamped, Mixture, Unlike])
def test_a_layer_that_does_something_else_stays(kind):
    torch.manual_seed(0)
    layer = kind()
    assert gates.install(layer) == 0
    assert type(layer) is kind
    assert gates.install(Plain()) == 1


def test_only_queries_may_be_used():
    """What nobody looks at has a gradient of zero."""
    q, k = torch.randn(1, 2, 3, 8, requires_grad=True), torch.randn(1, 1, 3, 8, requires_grad=True)
    turned, _ = rotary.rotated(q, k, torch.ones(1, 3, 8), torch.zeros(1, 3, 8))
    turned.sum().backward()
    assert q.grad is not None
    assert torch.equal(q.grad, torch.ones(1, 2, 3, 8))
    assert k.grad is None or not k.grad.any()


def test_gradients_flow_with_adapters_and_checkpointing():
    """The same gradients with layers computed again in the backward pass, of adapters too."""
    grads = []
    for lora in ("null", "{r:2,alpha:4,targets:null}"):
        for again in (False, True):
            cfg = make(f"model.lora={lora}")
            net = network("llama", double=False)
            if again:
                net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            policy = make_models(net, cfg.model, torch.float32, critic=False, reference=False).policy
            with torch.no_grad():
                for name, p in policy.named_parameters():
                    if "lora_B" in name:
                        p.fill_(0.1)
            policy.logp(layout(batch_of(ragged(5)), torch.arange(5)), 1.0)[0].sum().backward()
            grads.append([p.grad for p in policy.parameters() if p.grad is not None])
    for plain, again in (grads[:2], grads[2:]):
        assert plain
        for a, b in zip(plain, again, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_the_original_may_be_called_by_names():
    rotary.install(network("llama", double=False))
    apply = sys.modules["transformers.models.llama.modeling_llama"].apply_rotary_pos_emb  # type: ignore[attr-defined]
    q, k, angles = torch.randn(1, 2, 3, 8), torch.randn(1, 1, 3, 8), torch.randn(1, 3, 8)
    named = apply(q=q, k=k, cos=angles.cos(), sin=angles.sin())
    for a, b in zip(named, apply(q, k, angles.cos(), angles.sin()), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_a_rotation_of_neighbours_stays():
    """Cohere and GLM turn pairs that lie side by side: their file keeps its own function."""

    def neighbours(q, k, cos, sin, unsqueeze_dim=1):
        def turn(x):
            return torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)

        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return q * cos + turn(q) * sin, k * cos + turn(k) * sin

    from transformers.models.llama import modeling_llama

    model, before = network("llama", double=False), modeling_llama.apply_rotary_pos_emb
    try:
        modeling_llama.apply_rotary_pos_emb = neighbours
        assert rotary.install(model) == 0
        assert modeling_llama.apply_rotary_pos_emb is neighbours
    finally:
        modeling_llama.apply_rotary_pos_emb = before
    assert rotary.install(model) == 1
    installed = modeling_llama.apply_rotary_pos_emb
    assert rotary.install(model) == 1
    assert modeling_llama.apply_rotary_pos_emb is installed  # not one in another


def test_what_a_rotation_does_not_take_goes_to_the_original(monkeypatch):
    """Several rows, mixed types outside autocast, another place of the heads."""
    rotary.install(network("llama", double=False))
    apply = sys.modules["transformers.models.llama.modeling_llama"].apply_rotary_pos_emb  # type: ignore[attr-defined]
    calls = counted(monkeypatch)
    q, k = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 3, 8)
    cos, sin = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    wanted = apply.original(q, k, cos, sin)
    assert all(torch.equal(a, b) for a, b in zip(apply(q, k, cos, sin), wanted, strict=True))
    one = [x[:1] for x in (q, k, cos, sin)]
    assert apply(one[0].bfloat16(), one[1].bfloat16(), *one[2:])[0].dtype == torch.float32
    moved = apply(one[0].transpose(1, 2), one[1].transpose(1, 2), *one[2:], unsqueeze_dim=2)
    assert calls["rotate"] == 0
    ours = apply(*one)
    assert calls["rotate"] == 1
    for a, b, c in zip(ours, wanted, moved, strict=True):
        torch.testing.assert_close(a, b[:1], rtol=0, atol=1e-5)
        torch.testing.assert_close(a, c.transpose(1, 2), rtol=0, atol=1e-5)


def test_norms_of_other_types_go_through_torch(monkeypatch):
    calls = counted(monkeypatch)
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    norms.rms_norm(x, torch.ones(8, dtype=torch.float64), 1e-6).sum().backward()
    assert calls["normed"] == 0
    y = torch.randn(3, 8, requires_grad=True)
    norms.rms_norm(y, torch.ones(8), 1e-6).sum().backward()
    assert calls["normed"] == 1
