"""Decoder layers that train as one operation give what the model's own modules give, and only where they are those."""

from __future__ import annotations

import copy
import ctypes
from dataclasses import replace
from typing import Any

import peft
import pytest
import torch
from kernel_data import kernels_on, needs_compiler, needs_training_tiles, own_fp32  # noqa: F401
from model_data import batch_of, make, network, ragged
from torch import Tensor, nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Ministral3Config,
    Ministral3ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from grpo_bench import kernels, update
from grpo_bench.kernels import decoder_layer as kernel
from grpo_bench.kernels import layers, products
from grpo_bench.kernels.attention import Sequences
from grpo_bench.policy import Policy, decoder_layer, layout, linear, make_models, memory

pytestmark = needs_compiler
TYPES = [torch.float32, pytest.param(torch.bfloat16, marks=needs_training_tiles)]
WIDE = {
    "vocab_size": 61, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.1, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip
MUCH = {"hidden_size": 520, "head_dim": 16, "initializer_range": 0.03}  # a wider sum of as large terms rounds more
MODELS: dict[str, Any] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**WIDE)),
    "llama, biases": lambda: LlamaForCausalLM(LlamaConfig(**WIDE, attention_bias=True, mlp_bias=True)),
    "llama, wide heads": lambda: LlamaForCausalLM(LlamaConfig(**{**WIDE, "head_dim": 32})),
    "llama, much within": lambda: LlamaForCausalLM(LlamaConfig(**{**WIDE, "intermediate_size": 520})),
    "llama, wide": lambda: LlamaForCausalLM(LlamaConfig(**{**WIDE, **MUCH})),
    "llama, narrow keys": lambda: LlamaForCausalLM(LlamaConfig(**{**WIDE, "num_key_value_heads": 1})),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**WIDE)),
    "mistral, window": lambda: MistralForCausalLM(MistralConfig(**{**WIDE, "head_dim": 16}, sliding_window=5)),
}
OTHERS: dict[str, Any] = {
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**WIDE, residual_multiplier=0.5)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**{**WIDE, "head_dim": 16})),
    "cohere": lambda: CohereForCausalLM(CohereConfig(**WIDE)),
    "gemma2": lambda: network("gemma2", double=False),
    "ministral3, queries by position": lambda: Ministral3ForCausalLM(Ministral3Config(**{**WIDE, "head_dim": 16})),
    "llama, double": lambda: network("llama"),
}


def model(kind: str) -> Any:
    torch.manual_seed(3)
    made = {**MODELS, **OTHERS}[kind]().eval()
    for name, p in made.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(p, std=0.3)
        elif "norm" in name:
            torch.nn.init.normal_(p, mean=1.0, std=0.2)
    return made


def rows_of(rows: int = 24, group_size: int = 4, seed: int = 1) -> Any:
    batch = batch_of(ragged(rows, group_size, seed))
    return layout(batch, torch.arange(rows))


def trained(policy: Policy, rows: Any) -> list[Tensor]:
    """Log-probs and every weight's gradient by a weighted sum of them."""
    policy.zero_grad()
    logp, _ = policy.logp(rows, 1.0)
    (logp * torch.linspace(-1, 1, logp.numel()).view_as(logp)).sum().backward()
    return [logp.detach(), *(p.grad for p in policy.parameters() if p.grad is not None)]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each layer of each forward pass that may train was taken."""
    seen: list[bool] = []
    own = decoder_layer._takes

    def takes(*args: Any) -> bool:
        found = own(*args)
        seen.append(found)
        return found

    monkeypatch.setattr(decoder_layer, "_takes", takes)
    return seen


@pytest.fixture
def by_modules(monkeypatch: pytest.MonkeyPatch) -> Any:
    def plain(policy: Policy, rows: Any) -> list[Tensor]:
        with monkeypatch.context() as patch:
            patch.setattr(decoder_layer, "_takes", lambda *_: False)
            return trained(policy, rows)

    return plain


@pytest.mark.parametrize("number", [24, 96])  # the first are too few tokens for products of here
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", MODELS)
def test_in_full_precision_every_bit_is_the_modules(kind, threads, number, own_fp32, calls, by_modules, monkeypatch):  # noqa: F811
    torch.set_num_threads(threads)
    policy, rows = Policy(model(kind), torch.float32), rows_of(number)
    own, backward = [], kernel.backward

    def seen(layer, *args):
        own.append((bool(layer.given.own), layer.given.tokens >= products.FEW_ROWS))
        return backward(layer, *args)

    monkeypatch.setattr(kernel, "backward", seen)
    found = trained(policy, rows)
    assert calls == [True, True]
    assert own == [(own_fp32 and number == 96, number == 96)] * 2
    expected = by_modules(policy, rows)
    assert len(found) == len(expected) == 1 + len(list(policy.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@needs_training_tiles
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("once", [False, True])
def test_in_bfloat16_it_is_as_near_to_the_exact_gradient_as_the_modules(kind, once, calls, by_modules):
    """Sums over layers of one input are rounded once instead of once a layer."""
    net, rows = model(kind), rows_of()
    exact = trained(Policy(copy.deepcopy(net).double(), torch.float32), rows)
    policy = Policy(net, torch.bfloat16)
    calls.clear()
    with linear.cast_once([policy.model] if once else []):
        found = trained(policy, rows)
        expected = by_modules(policy, rows)
    assert calls == [True, True]
    errors = [
        torch.stack([(a.double() - b).norm() / b.norm().clamp(min=1e-9) for a, b in zip(some, exact, strict=True)])
        for some in (found, expected)
    ]
    assert errors[0].max() < 0.06
    assert errors[0].mean() <= 1.2 * errors[1].mean()  # 0.99 to 1.04 of it for three seeds of each


@needs_training_tiles
def test_weights_copies_that_are_shared_give_what_new_ones_give():
    policy, rows = Policy(model("qwen2"), torch.bfloat16), rows_of()
    expected = trained(policy, rows)
    with linear.cast_once([policy.model]):
        attention = policy.model.model.layers[0].self_attn
        whole = attention.q_proj.joined.low
        assert whole.shape == (64 + 2 * 32, 64)
        assert attention.k_proj.low.data_ptr() == whole[64:].data_ptr()
        assert torch.equal(attention.v_proj.low, attention.v_proj.weight.bfloat16())
        assert all(torch.equal(a, b) for a, b in zip(trained(policy, rows), expected, strict=True))
    assert attention.q_proj.joined.low is attention.k_proj.low is None
    with torch.no_grad():
        attention.q_proj.weight.mul_(2)
    with linear.cast_once([policy.model]):
        assert torch.equal(attention.q_proj.joined.low[:64], attention.q_proj.weight.bfloat16())


@pytest.mark.parametrize("kind", OTHERS)
def test_layers_that_compute_something_else_stay_as_they_are(kind, calls):
    policy = Policy(model(kind), torch.float32)
    assert not any(hasattr(type(m), "as_one") for m in policy.model.modules())
    trained(policy, rows_of())
    assert calls == []


@pytest.mark.parametrize("dtype", TYPES)
def test_what_somebody_watches_or_freezes_goes_by_modules(dtype, calls, by_modules):
    policy, rows = Policy(model("llama"), dtype), rows_of()
    first, second = policy.model.model.layers
    trained(policy, rows)
    assert calls == [True, True]
    calls.clear()
    seen = []
    handle = first.mlp.up_proj.register_forward_hook(lambda *args: seen.append(args[2].shape))
    trained(policy, rows)
    assert calls == [False, True]
    assert len(seen) == 1
    handle.remove()
    second.self_attn.o_proj.weight.requires_grad_(False)
    calls.clear()
    found = trained(policy, rows)
    assert calls == [True, False]
    assert len(found) == len(list(policy.parameters()))
    assert second.self_attn.o_proj.weight.grad is None
    calls.clear()
    with torch.no_grad():
        policy.logp(rows, 1.0)
    assert calls == []


@pytest.mark.parametrize("dtype", TYPES)
def test_adapters_go_by_modules(dtype, calls):
    cfg = make("model.lora={r:2,alpha:4,targets:null}", "model.tiny.hidden_size=64").model
    policy = make_models(model("llama"), cfg, dtype, critic=False, reference=False).policy
    found = trained(policy, rows_of())
    assert not any(calls)
    assert len(found) > 1
    later = Policy(model("llama"), dtype)
    adapted = peft.get_peft_model(later.model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    calls.clear()
    trained(later, rows_of())
    assert calls == [False, False]
    assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)


class Twice(nn.Module):
    def __init__(self, own: nn.Module) -> None:
        super().__init__()
        self.own = own

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return 2 * self.own(*args, **kwargs)


def _set_eps(layer: Any) -> None:
    layer.post_attention_layernorm.variance_epsilon = 0.5


def _set_scaling(layer: Any) -> None:
    layer.self_attn.scaling = 2.0


def _set_window(layer: Any) -> None:
    layer.self_attn.config = copy.copy(layer.self_attn.config)
    layer.self_attn.config.sliding_window = 2


def _wrap_gates(layer: Any) -> None:
    layer.mlp = Twice(layer.mlp)


def _wrap_queries(layer: Any) -> None:
    layer.self_attn.q_proj = Twice(layer.self_attn.q_proj)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("change", [_set_eps, _set_scaling, _set_window, _wrap_gates, _wrap_queries])
def test_parts_and_settings_that_are_changed_later_count(change, dtype, calls, by_modules):
    policy, rows = Policy(model("mistral, window"), dtype), rows_of()
    before = trained(policy, rows)
    assert calls == [True, True]
    change(policy.model.model.layers[1])
    calls.clear()
    after = trained(policy, rows)
    assert calls == [True, False]
    assert not torch.equal(before[0], after[0])
    if dtype == torch.float32:
        assert all(torch.equal(a, b) for a, b in zip(after, by_modules(policy, rows), strict=True))


@pytest.mark.parametrize("dtype", TYPES)
def test_weights_and_biases_that_lie_otherwise_go_by_modules(dtype, calls):
    """Compiled code reads them as dense, of the shapes that they had when the layer was asked."""
    policy, rows = Policy(model("qwen2"), dtype), rows_of()
    attention, mlp = policy.model.model.layers[0].self_attn, policy.model.model.layers[1].mlp
    attention.k_proj.bias = nn.Parameter(torch.randn(64)[::2])
    mlp.down_proj.weight = nn.Parameter(mlp.down_proj.weight.detach().t().contiguous().t())
    found = trained(policy, rows)
    assert calls == [False, False]
    attention.k_proj.bias = nn.Parameter(attention.k_proj.bias.detach().clone())
    mlp.down_proj.weight = nn.Parameter(mlp.down_proj.weight.detach().contiguous())
    calls.clear()
    again = trained(policy, rows)
    assert calls == [True, True]
    near = (1e-5 if dtype == torch.float32 else 0.05) * max(float(b.norm()) for b in found)
    assert all((a - b).norm() <= near for a, b in zip(again, found, strict=True))
    norm = policy.model.model.layers[0].input_layernorm
    norm.weight = nn.Parameter(norm.weight.detach().double())
    calls.clear()
    trained(policy, rows)
    assert calls == [False, True]
    norm.weight = nn.Parameter(norm.weight.detach().float())
    mlp.up_proj.weight = nn.Parameter(torch.randn(40, 64))
    with pytest.raises(RuntimeError, match="must match the size"):
        trained(policy, rows)


@pytest.mark.parametrize("dtype", TYPES)
def test_all_threads_share_every_part_of_it(dtype, monkeypatch, calls, by_modules):
    monkeypatch.setattr(kernels, "SMALL", 0)
    torch.set_num_threads(3)
    policy, rows = Policy(model("llama, biases"), dtype), rows_of()
    found = trained(policy, rows)
    assert calls == [True, True]
    expected = by_modules(policy, rows) if dtype == torch.float32 else None
    torch.set_num_threads(1)
    expected = expected or trained(policy, rows)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_without_torch_s_products_layers_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(kernel, "available", lambda: False)
    policy = Policy(model("llama"), torch.float32)
    assert not any(hasattr(type(m), "as_one") for m in policy.model.modules())
    assert len(trained(policy, rows_of())) > 1


def plain_layer() -> tuple[Any, ...]:
    """Of three tokens, one prompt and one row, of 8 hidden units, one head and 8 gates."""
    sequences = Sequences.of(torch.tensor([2]), torch.tensor([0]), torch.tensor([1]))
    recipe = kernel.Recipe((1e-5, 1e-5), (0.0, 0.0), 8, 0.3, None)
    ones = torch.ones(3, 8)
    return ones, (ones, ones), sequences, recipe, (ones[0], ones[0]), [torch.ones(8, 8)] * 7, [8] * 7


@pytest.fixture
def failing():
    """Torch's product, as long as the test lasts, is one that fails."""
    given = kernel.given_of_torch()
    fails = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_void_p] * 3)(lambda *_: 1)
    kernels._library().use_torch(*given[:2], ctypes.cast(fails, ctypes.c_void_p), given[3])
    yield fails
    kernels._library().use_torch(*given)


def test_a_product_that_fails_is_told(failing, monkeypatch):
    layer = kernel.Layer.of(*plain_layer())
    monkeypatch.setattr(kernel, "_why", lambda: "DefaultCPUAllocator: can't allocate memory")
    with pytest.raises(RuntimeError, match="can't allocate memory") as told:
        kernel.forward(layer, [None] * 7)
    assert memory.is_out_of_memory(told.value)
    monkeypatch.setattr(kernel, "_why", lambda: None)
    with pytest.raises(MemoryError, match="torch said above why"):
        kernel.forward(layer, [None] * 7)


def test_a_layer_whose_products_fail_stays_as_it_is(failing, capsys):
    policy = Policy(model("llama"), torch.float32)
    assert not any(hasattr(type(m), "as_one") for m in policy.model.modules())
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in told] == ["2 decoder layers train by their modules, more slowly"]


def test_torch_says_why_a_product_failed():
    """What does not fit: of C's own functions, as a layer calls them."""
    make, drop, multiply, _ = (ctypes.cast(x, ctypes.c_void_p).value for x in kernel.given_of_torch())
    i, p = ctypes.c_int64, ctypes.c_void_p
    wrap = ctypes.CFUNCTYPE(ctypes.c_int32, p, i, p, p, i, *[ctypes.c_int32] * 3, p)(make)
    sizes, strides, x, tensor = (i * 2)(2, 3), (i * 2)(3, 1), torch.ones(2, 3), ctypes.c_void_p()
    assert wrap(x.data_ptr(), 2, sizes, strides, 0, 6, 0, -1, ctypes.addressof(tensor)) == 0
    failed = ctypes.CFUNCTYPE(ctypes.c_int32, p, p, p)(multiply)(tensor, tensor, tensor)
    ctypes.CFUNCTYPE(ctypes.c_int32, p)(drop)(tensor)
    assert failed
    why = kernel._why()
    assert why is None or "2x3 and 2x3" in why
    assert why is not None or not hasattr(kernel._torch(), kernel.WHY)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes", True),
        ("std::bad_alloc", True),
        ("a product in a decoder layer failed: could not create a primitive", True),
        ("could not create a primitive descriptor for a matmul primitive", False),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_which_errors_are_of_memory(text, found):
    assert memory.is_out_of_memory(RuntimeError(text)) == found


def test_weights_that_change_between_the_passes_are_told(calls):
    policy = Policy(model("llama"), torch.float32)
    logp, _ = policy.logp(rows_of(), 1.0)
    assert calls == [True, True]
    with torch.no_grad():
        policy.model.model.layers[0].mlp.up_proj.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logp.sum().backward()


@needs_training_tiles
def test_copies_are_of_the_layers_that_use_them():
    """Whoever is joined with whom: a replica's layers may be where the original's are not, and weights may be tied."""
    policy, rows = Policy(model("llama"), torch.bfloat16), rows_of()
    first, second = (layer.self_attn for layer in policy.model.model.layers)
    second.q_proj.weight = first.q_proj.weight
    expected = trained(policy, rows)
    with linear.cast_once([policy.model]):
        assert all(torch.equal(a, b) for a, b in zip(trained(policy, rows), expected, strict=True))
    other = copy.deepcopy(policy.model)
    linear.join(other)
    for mine, theirs in zip(policy.model.parameters(), other.parameters(), strict=True):
        theirs.data = mine.data
    first.q_proj.joined._layers = []  # as after a forward pass that did not call all of them
    for order in ([policy.model, other], [other, policy.model]):
        with linear.cast_once(order):
            assert torch.equal(first.q_proj.low, first.q_proj.weight.bfloat16())
            assert other.model.layers[0].self_attn.q_proj.joined.low.shape == (128, 64)
            assert all(torch.equal(a, b) for a, b in zip(trained(policy, rows), expected, strict=True))


@needs_training_tiles
@pytest.mark.parametrize("algo", ["grpo", "ppo"])
def test_two_lanes_train_with_it(algo, calls, monkeypatch):
    """Updates in bfloat16, as a run makes them: near to those by modules, and the same again bit for bit."""
    monkeypatch.setattr(update, "LANE_PARAMETERS", range(2**30))
    cfg = make(f"algo={algo}", "samples_per_step=32", "kl_coef=0", "minibatches=2", "lr=0.001")
    batch = batch_of(ragged(32, cfg.group_size, 5, longest=20))
    batch = replace(batch, mask=batch.mask.float(), rewards=batch.rewards.float())
    torch.set_num_threads(2)
    norms, weights = [], []
    for on in (True, True, False):
        if not on:
            monkeypatch.setattr(decoder_layer, "_takes", lambda *_: False)
        models = make_models(model("llama"), cfg.model, torch.bfloat16, algo == "ppo", False)
        learner = update.Learner(cfg, cfg.algo, models)
        calls.clear()
        ready = learner.scored(batch, True)
        advantages, returns = cfg.algo.advantages(ready)
        found = learner.update(replace(ready, advantages=advantages, returns=returns), step=100, progress=0.0)
        assert len(learner.lanes) == 2
        assert not on or (len(calls) >= 8 and all(calls))
        norms.append(found["policy/grad_norm"])
        networks = [models.policy] if models.critic is None else [models.policy, models.critic]
        weights.append([p.detach().clone() for network in networks for p in network.parameters()])
    assert norms[0] == norms[1] > 0
    assert all(torch.equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
    assert norms[2] == pytest.approx(norms[0], rel=0.02)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("reentrant", [False, True])
def test_layers_that_are_computed_again_give_the_same(dtype, reentrant, calls):
    policy, rows = Policy(model("llama"), dtype), rows_of()
    expected = trained(policy, rows)
    policy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    calls.clear()
    found = trained(policy, rows)
    assert len(calls) >= 2
    assert all(calls)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", TYPES)
def test_a_second_backward_pass_is_refused(dtype):
    """What it needs was written over."""
    policy = Policy(model("llama"), dtype)
    logp, _ = policy.logp(rows_of(), 1.0)
    logp.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="made before"):
        logp.sum().backward()


@pytest.mark.parametrize("dtype", TYPES)
def test_less_is_kept_than_by_modules(dtype, monkeypatch):
    policy, rows = Policy(model("llama"), dtype), rows_of(96)

    def kept() -> int:
        found: dict[int, int] = {}

        def pack(x: Tensor) -> Tensor:
            found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            assert policy.states(rows).requires_grad
        return sum(found.values()) - sum(p.nbytes for p in policy.parameters())

    less = kept()
    monkeypatch.setattr(decoder_layer, "_takes", lambda *_: False)
    assert less < 0.9 * kept()


@pytest.mark.parametrize("dtype", TYPES)
def test_gradients_become_the_weights_own_without_a_copy(dtype, monkeypatch):
    """Nobody else holds them: a copy of each would cost memory and a pass."""
    policy, rows = Policy(model("llama"), dtype), rows_of()
    made: list[int] = []
    own = kernel.backward

    def watched(*args: Any) -> Any:
        found = own(*args)
        made.extend(x.untyped_storage().data_ptr() for x in found[2])
        return found

    monkeypatch.setattr(kernel, "backward", watched)
    trained(policy, rows)
    attention = policy.model.model.layers[1].self_attn
    for part in (attention.q_proj, attention.v_proj, attention.o_proj, policy.model.model.layers[0].mlp.up_proj):
        assert part.weight.grad.untyped_storage().data_ptr() in made


def test_copies_are_replaced_too_and_know_what_they_compute_with(calls):
    policy, rows = Policy(model("mistral, window"), torch.float32), rows_of()
    expected = trained(policy, rows)
    policy.model = copy.deepcopy(policy.model)
    recipe = policy.model.model.layers[1].recipe
    assert (recipe.window, recipe.width, recipe.scaling) == (5, 16, 0.25)
    calls.clear()
    assert all(torch.equal(a, b) for a, b in zip(trained(policy, rows), expected, strict=True))
    assert calls == [True, True]


# --- what a layer calls within: kernels that do more than as functions of tensors ---


def call(name: str, *given: Any) -> None:
    """``name`` with its types, of tensors, numbers and Nones."""
    kernels._call(name, *(x.data_ptr() if isinstance(x, Tensor) else x for x in given))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 127, 300])
def test_a_norms_gradient_with_what_goes_past_it(rows, dtype, threads):
    """x + plus -> norm: its whole gradient, that rounded, and what the norm made, each the same bits as by itself."""
    torch.manual_seed(rows)
    width, types = 40, f"float32_{kernels.NAMES[dtype]}"
    x, total, plus, grad = torch.randn(4, rows, width)
    weight, plus, grad = torch.randn(width), plus.to(dtype), grad.to(dtype)
    both, made = torch.empty_like(x), torch.empty_like(plus)
    call(f"normed_{types}", x, plus, both, weight, made, rows, width, 1e-5, 1.0, threads)
    assert torch.equal(both, x + plus)
    assert torch.equal(made, layers.normed(both, weight, 1e-5, 1.0, dtype))
    of_x, of_weight = layers.norm_gradient(both, weight, grad, 1e-5, 1.0)
    for own in (False, True):
        given, past, low = grad.clone(), total.clone(), torch.empty_like(grad)
        found, sums = past if own else torch.empty_like(x), torch.empty(-(-rows // 128), width)
        call(
            f"norm_gradient_{types}", x, plus, weight, given, past, found, low, given, sums, rows, width, 1e-5, 1.0,
            128, threads,
        )  # fmt: skip
        assert torch.equal(found, of_x + total)
        assert torch.equal(low, found.to(dtype))
        assert torch.equal(sums.sum(0), of_weight)
        assert torch.equal(given, made)
        assert torch.equal(past, found if own else total)
    sum_of = torch.empty_like(x)
    call(f"summed_{types}", x, plus, sum_of, x.numel(), threads)
    assert torch.equal(sum_of, x + plus)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 24, 4100])
def test_gates_that_are_halves_of_one_tensor(width, dtype, threads):
    torch.manual_seed(width)
    rows, name = 70, kernels.NAMES[dtype]
    whole, grad = torch.randn(rows, 2 * width).to(dtype), torch.randn(rows, width).to(dtype)
    gate, up = whole.split(width, dim=1)
    apart = gate.contiguous(), up.contiguous()
    made = torch.empty_like(grad)
    call(f"gate_{name}", gate, up, made, rows, width, 2 * width, threads)
    assert torch.equal(made, layers.gate(*apart))
    expected = layers.gate_gradient(*apart, grad)
    call(f"gate_gradient_{name}", gate, up, grad, gate, up, grad, rows, width, 2 * width, threads)  # in its place
    assert torch.equal(whole, torch.cat(expected, dim=1))
    assert torch.equal(grad, made)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [2, 16, 34, 64, 128])
@pytest.mark.parametrize("back", [False, True])
def test_rotations_in_their_place(width, dtype, threads, back):
    torch.manual_seed(width)
    whole = torch.randn(50, 5 * width).to(dtype)
    angles = torch.randn(50, width)
    query, key = (x.unflatten(1, (-1, width)).transpose(0, 1) for x in whole.split((3 * width, 2 * width), dim=1))
    expected = layers.rotate(query, key, angles.cos(), angles.sin(), back)
    a, b = query.double().chunk(2, dim=2)
    c, s = (x.double().chunk(2, dim=1) for x in (angles.cos(), angles.sin()))
    exact = (a * c[0] + b * s[1], b * c[1] - a * s[0]) if back else (a * c[0] - b * s[0], b * c[1] + a * s[1])
    rounding = 2**-8 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(expected[0].double(), torch.cat(exact, dim=2), rtol=rounding, atol=rounding)
    for x in (query, key):
        place = (x, x.stride(0), x.stride(1))
        call(f"rotate_{kernels.NAMES[dtype]}", *place, angles.cos(), angles.sin(), *place, *x.shape, int(back), threads)
    assert torch.equal(query, expected[0])
    assert torch.equal(key, expected[1])
