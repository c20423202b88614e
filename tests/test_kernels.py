"""The compiled forms of what sampling does equal their forms in torch, whatever shapes, threads and precision."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys

import pytest
import torch
from kernel_data import PRODUCTS, kernels_on, needs_compiler, needs_tiles, needs_vectors, packed  # noqa: F401
from model_data import make, network
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from grpo_bench import kernels
from grpo_bench.kernels import build, layers, products, sampling
from grpo_bench.policy import Policy, norms
from grpo_bench.rollout import Noise, Sampling, packed_linear
from grpo_bench.rollout.cache import SharedPrefixCache
from grpo_bench.rollout.native import NativeEngine
from grpo_bench.rollout.packed_linear import PackedLinear
from grpo_bench.rollout.plans import DecodePlan, PrefillPlan, Shape, Where
from grpo_bench.rollout.sampling import draw
from grpo_bench.rollout.weights import SamplingCopy
from grpo_bench.tiny import tiny_tokenizer


def both(function):
    kernels.use(True)
    fast = function()
    kernels.use(False)
    return fast, function()


def decode(dtype: torch.dtype, heads: int, kv: int, width: int, window: int | None, softcap: float | None) -> Tensor:
    """Seven rows of three prompts of unequal lengths, some of them with more tokens of their own than others."""
    torch.manual_seed(heads + width)
    places, counts = torch.tensor([2, 0, 0, 1, 2, 2, 1]), torch.tensor([3, 5, 1, 2, 5, 4, 5])
    lengths = torch.tensor([6, 11, 9])
    cache = SharedPrefixCache(3, 11, 7, 8)
    prompt_keys, prompt_values = torch.randn(2, 3, kv, 11, width).to(dtype)
    cache.put_prompts(0, 0, prompt_keys, prompt_values)
    own = torch.randn(2, 7, kv, 8, width).to(dtype)
    cache.layers[0].own_keys[:], cache.layers[0].own_values[:] = own[0], own[1]
    query = torch.randn(1, 7, heads, width).to(dtype).transpose(1, 2)  # as modules give it: strided
    key, value = (torch.randn(1, 7, kv, width).to(dtype).transpose(1, 2) for _ in range(2))
    cells = places * 4 + torch.tensor([0, 0, 1, 0, 1, 2, 1])
    grid = torch.zeros(12, dtype=torch.long)
    grid[cells] = torch.arange(7)
    plan = DecodePlan(cache, Shape(7, 3, 4, 11, 5, False), Where(counts, lengths[places], places, cells, grid))
    out = plan.attend(0, query, key, value, 0.3, window, softcap)
    assert torch.equal(cache.layers[0].own_keys[1, :, 4], key[0, :, 1])  # row 1's fifth token of its own
    return out


@needs_compiler
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (4, None), (9, None), (None, 2.0)])
@pytest.mark.parametrize(
    ("heads", "kv", "width"),
    [(4, 4, 32), (9, 3, 64), (2, 1, 12), (4, 2, 128), (4, 1, 64), (7, 1, 64), (10, 2, 32), (3, 1, 40), (5, 1, 80)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_of_one_token_of_each_row(dtype, heads, kv, width, window, softcap):
    fast, plain = both(lambda: decode(dtype, heads, kv, width, window, softcap))
    near = {"atol": 1e-5, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 0.03, "rtol": 0.03}
    assert fast.shape == plain.shape
    assert fast.dtype == dtype
    torch.testing.assert_close(fast, plain, **near)


def prefill(dtype: torch.dtype, lengths: list[int], window: int | None, softcap: float | None) -> tuple[Tensor, Tensor]:
    """What prompts of four heads on two see, and their keys in a cache whose first place is another's."""
    torch.manual_seed(sum(lengths))
    count = sum(lengths)
    query = torch.randn(1, count, 4, 32).to(dtype).transpose(1, 2)
    key, value = (torch.randn(1, count, 2, 32).to(dtype).transpose(1, 2) for _ in range(2))
    cache = SharedPrefixCache(len(lengths) + 1, 16, 2, 4)
    out = PrefillPlan(lengths, cache, 1, torch.device("cpu")).attend(0, query, key, value, 0.3, window, softcap)
    keys = cache.layers[0].prompt_keys
    return out, torch.cat([keys[1 + i, :, :n] for i, n in enumerate(lengths)], dim=1)


@needs_compiler
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (4, None), (None, 2.0)])
@pytest.mark.parametrize("lengths", [[6, 11, 1, 9], [7, 7], [5]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_of_prompts(dtype, lengths, window, softcap):
    (fast, kept), (plain, same) = both(lambda: prefill(dtype, lengths, window, softcap))
    near = {"atol": 1e-5, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 0.03, "rtol": 0.03}
    assert fast.shape == plain.shape == (1, sum(lengths), 4, 32)
    assert fast.dtype == dtype
    torch.testing.assert_close(fast, plain, **near)
    assert torch.equal(kept, same)


@needs_compiler
def test_threads_change_no_bit(monkeypatch):
    monkeypatch.setattr(kernels, "SMALL", 0)
    logits, uniforms = torch.randn(9, 700), torch.rand(9, dtype=torch.float64)
    weight = torch.randn(70, 50)

    def all_of_them() -> list[Tensor]:
        out = [decode(torch.float32, 4, 2, 32, None, None), *draw(logits, Sampling(1.0, 1), uniforms)]
        out.append(sampling.rms_norm(logits, logits[0], 1e-5))
        for dtype in kernels.NAMES:
            if products.multiplies(weight, dtype):
                out.append(products.multiply(logits.flatten()[:2000].view(40, 50).to(dtype), packed(weight, dtype), 70))
        return out

    torch.set_num_threads(1)
    one = all_of_them()
    torch.set_num_threads(2)
    assert all(torch.equal(a, b) for a, b in zip(one, all_of_them(), strict=True))


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm(dtype):
    x, weight = torch.randn(3, 5, 96).to(dtype), torch.randn(96).to(dtype)
    exact = torch.rms_norm(x.double(), (96,), weight.double(), 1e-5)
    torch.testing.assert_close(sampling.rms_norm(x, weight, 1e-5), exact.to(dtype), atol=1e-5, rtol=1e-2)
    if dtype == torch.float32:
        torch.testing.assert_close(sampling.rms_norm(x, weight, 1e-5).double(), exact, atol=1e-5, rtol=1e-5)


@needs_compiler
@pytest.mark.parametrize("words", [5, 256, 500, 49155])
@pytest.mark.parametrize("temperature", [1.0, 0.6, 0.0])
def test_choice_of_a_token(words, temperature):
    torch.manual_seed(words)
    logits, uniforms = torch.randn(64, words) * 3, torch.rand(64, dtype=torch.float64)
    logits[:, 3] = -math.inf
    (tokens, logps), (plain_tokens, plain_logps) = both(lambda: draw(logits, Sampling(temperature, 1), uniforms))
    assert torch.equal(tokens, plain_tokens)
    torch.testing.assert_close(logps, plain_logps, atol=2e-6, rtol=1e-6)


@needs_compiler
@pytest.mark.parametrize("temperature", [1.0, 0.6, 0.0])
def test_bfloat16_logits_choose_as_the_same_numbers_in_fp32(temperature):
    torch.manual_seed(0)
    logits, uniforms = (torch.randn(64, 700) * 3).bfloat16(), torch.rand(64, dtype=torch.float64)
    low, wide = (sampling.draw(x, temperature, uniforms) for x in (logits, logits.float()))
    assert torch.equal(low[0], wide[0])
    torch.testing.assert_close(low[1], wide[1], atol=1e-6, rtol=1e-6)
    assert low[1].dtype == torch.float32


@needs_compiler
def test_no_impossible_word_is_chosen():
    """Two words of four are possible, of probability 1/2 each: u < 1/2 gives the first, and never the others."""
    logits = torch.tensor([[-math.inf, 1.0, -math.inf, 1.0]]).expand(5, 4)
    uniforms = torch.tensor([0.0, 0.4999, 0.5, 0.75, math.nextafter(1.0, 0.0)], dtype=torch.float64)
    tokens, logps = draw(logits, Sampling(1.0, 1), uniforms)
    assert tokens.tolist() == [1, 1, 3, 3, 3]
    torch.testing.assert_close(logps, torch.full((5,), math.log(0.5)))


@needs_compiler
def test_what_is_not_a_number_chooses_some_word():
    tokens, _ = draw(torch.full((2, 300), math.nan), Sampling(1.0, 1), torch.tensor([0.2, 0.9], dtype=torch.float64))
    assert all(0 <= t < 300 for t in tokens.tolist())


@needs_tiles
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("rows", "columns", "depth"),
    [(1, 32, 32), (5, 192, 576), (40, 688, 256), (33, 200, 700), (3, 10, 40), (2, 33, 33), (1, 1, 1)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_with_packed_weights(dtype, rows, columns, depth, bias):
    """Weights given in fp32 are rounded to bfloat16; products of these are exact, and summed in fp32."""
    torch.manual_seed(rows)
    x, weight = torch.randn(2, rows, depth).bfloat16(), torch.randn(columns, depth).to(dtype)
    plus = torch.randn(columns).bfloat16() if bias else None
    exact = x.double() @ weight.bfloat16().double().T + (plus.double() if plus is not None else 0.0)
    out = products.multiply(x, packed(weight), columns, plus)
    torch.testing.assert_close(out.double(), exact, atol=1e-3, rtol=2**-8)  # half a unit in the last place


@needs_vectors
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("rows", "columns", "depth"),
    [(1, 32, 32), (5, 192, 576), (40, 688, 256), (33, 200, 700), (3, 10, 40), (2, 33, 33), (1, 1, 1), (300, 40, 2000)],
)
def test_products_in_fp32(monkeypatch, rows, columns, depth, bias):
    """Each row's are the same bit for bit, whatever the rows beside it and the number of threads."""
    monkeypatch.setattr(kernels, "SMALL", 0)
    torch.manual_seed(rows)
    x, weight = torch.randn(2, rows, depth), torch.randn(columns, depth)
    plus = torch.randn(columns) if bias else None
    exact = x.double() @ weight.double().T + (plus.double() if plus is not None else 0.0)
    ready = packed(weight, torch.float32)
    torch.set_num_threads(2)
    out = products.multiply(x, ready, columns, plus)
    largest = (x.abs() @ weight.T.abs() + (plus.abs() if plus is not None else 0.0)).max()
    assert (out - exact).abs().max() <= (depth + 1) * 2**-24 * largest
    torch.set_num_threads(1)
    alone = torch.stack([products.multiply(row, ready, columns, plus) for row in x.flatten(0, 1)])
    assert torch.equal(alone.view_as(out), out)


@pytest.mark.parametrize("dtype", PRODUCTS)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("rows", "columns", "depth"), [(1, 16, 32), (32, 48, 576), (33, 1536, 64), (45, 100, 50), (7, 17, 33), (1, 1, 1)]
)
def test_gated_products_round_as_their_parts_do(monkeypatch, dtype, threads, rows, columns, depth):
    monkeypatch.setattr(kernels, "SMALL", 0)
    torch.set_num_threads(threads)
    torch.manual_seed(rows)
    x, gate, up = torch.randn(rows, depth).to(dtype), torch.randn(columns, depth), torch.randn(columns, depth)
    wide = -(-columns // products.TILE) * products.TILE
    both_of_them = products.packed_room([(2 * wide, depth)], dtype)[0].fill_(math.nan)
    products.pack(gate, both_of_them, first=0, step=2)
    products.pack(up, both_of_them, first=1, step=2)
    want = layers.gate(*(products.multiply(x, packed(w, dtype), columns) for w in (gate, up)))
    assert torch.equal(products.multiply(x, both_of_them, columns, gated=True), want)


@pytest.mark.parametrize("dtype", PRODUCTS)
@pytest.mark.parametrize("rows", [1, 70])
def test_weights_packed_behind_each_other_give_what_they_give_alone(dtype, rows):
    torch.manual_seed(0)
    x, parts = torch.randn(rows, 70).to(dtype), [torch.randn(n, 70) for n in (48, 16, 33)]
    room, first = products.packed_room([(97, 70)], dtype)[0].fill_(math.nan), 0
    for part in parts:
        products.pack(part, room, first)
        first += len(part) // products.TILE
    want = torch.cat([products.multiply(x, packed(w, dtype), len(w)) for w in parts], dim=1)
    assert torch.equal(products.multiply(x, room, 97), want)


@needs_tiles
def test_products_of_many_rows(monkeypatch):
    """More than stay in a core's cache at once."""
    torch.manual_seed(0)
    x, weight = torch.randn(601, 1536).bfloat16(), torch.randn(40, 1536)
    exact = x.double() @ weight.bfloat16().double().T
    out = products.multiply(x, packed(weight), 40)
    torch.testing.assert_close(out.double(), exact, atol=1e-3, rtol=2**-8)


@pytest.mark.parametrize("dtype", PRODUCTS)
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2", "tied"])
def test_a_copy_for_sampling_follows_the_weights(dtype, kind):
    policy = Policy(network("llama" if kind == "tied" else kind, double=False), dtype)
    if kind == "tied":
        policy.model.lm_head.weight = policy.model.model.embed_tokens.weight
    copy = SamplingCopy(policy, dtype)
    assert any(isinstance(m, PackedLinear) for m in copy.policy.model.modules())
    assert {n: (p.shape, p.dtype) for n, p in copy.policy.named_parameters()} == {
        n: (p.shape, dtype) for n, p in policy.named_parameters()
    }
    own = {p.data_ptr() for p in policy.parameters()}
    assert own.isdisjoint(x.data_ptr() for x in copy.weights())
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = copy.policy.model(ids, use_cache=False).logits
        for parameter in policy.model.parameters():
            parameter.mul_(0.8)  # larger ones would make roundings too large to compare
        copy.give_back()
        assert copy.weights() == []
        copy.refresh()
        fast = copy.policy.model(ids, use_cache=False).logits
        assert not torch.allclose(fast, before, atol=0.02)
        kernels.use(False)
        plain = SamplingCopy(policy, dtype)
        assert not any(isinstance(m, PackedLinear) for m in plain.policy.model.modules())
        near = {"atol": 0.1, "rtol": 0.05} if dtype == torch.bfloat16 else {"atol": 1e-5, "rtol": 1e-5}
        torch.testing.assert_close(fast, plain.policy.model(ids, use_cache=False).logits, **near)


@pytest.mark.parametrize("dtype", PRODUCTS)
@pytest.mark.parametrize("biased", [False, True])
def test_layers_of_one_input_are_one_product(monkeypatch, dtype, biased):
    """And give what they give by themselves, bit for bit."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=50, hidden_size=64, intermediate_size=72, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2,
    )  # fmt: skip
    policy = Policy(Qwen2ForCausalLM(config).eval(), dtype)
    for layer in policy.model.model.layers:
        for name in ("q_proj", "k_proj", "v_proj"):
            part = getattr(layer.self_attn, name)
            part.bias = torch.nn.Parameter(torch.randn(part.out_features)) if biased else None
    copy = SamplingCopy(policy, dtype)
    monkeypatch.setattr(packed_linear, "SIBLINGS", ())
    apart = SamplingCopy(policy, dtype)
    layer = copy.policy.model.model.layers[0]
    assert layer.self_attn.q_proj.packed is layer.self_attn.v_proj.packed
    assert layer.mlp.gate_proj.packed is layer.mlp.up_proj.packed
    calls = []
    with torch.no_grad(), kernels.heard(calls):
        layer.mlp(torch.ones(1, 3, 64, dtype=dtype))
    assert [function.__name__ for function, _, _ in calls] == [f"multiply_{kernels.NAMES[dtype]}"] * 2
    for rows in (1, 40, 300):
        ids = torch.arange(rows)[None] % 50
        with torch.no_grad():
            for parameter in policy.model.parameters():
                parameter.mul_(0.9)
            copy.refresh()
            apart.refresh()
            assert torch.equal(*(x.policy.model(ids, use_cache=False).logits for x in (copy, apart)))


@pytest.mark.parametrize("dtype", PRODUCTS)
def test_a_model_that_looks_at_its_layers_weights_is_given_them(dtype):
    class Looks(torch.nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return torch.nn.functional.linear(x, self.layer.weight)

    policy = Policy(network("llama", double=False), dtype)
    mlp = policy.model.model.layers[0].mlp
    mlp.down_proj = Looks(mlp.down_proj)
    ids = torch.tensor([[5, 6, 7]])
    near = {"atol": 0.1, "rtol": 0.05} if dtype == torch.bfloat16 else {"atol": 1e-5, "rtol": 1e-5}
    for _ in range(2):  # found out once, then known
        copy = SamplingCopy(policy, dtype)
        assert not any(p.isnan().any() for p in copy.policy.parameters())
        with torch.no_grad():
            policy.model.model.embed_tokens.weight.data = 0.2 * torch.randn(
                policy.model.model.embed_tokens.weight.shape
            )
            mlp.down_proj.layer.weight.mul_(0.5)
            copy.refresh()
            fast, plain = both(lambda copy=copy: copy.policy.model(ids, use_cache=False).logits)
            torch.testing.assert_close(fast, plain, **near)
            own = policy.model(ids, use_cache=False).logits.float()  # in fp32
            torch.testing.assert_close(fast.float(), own, atol=max(near["atol"], 1e-5) * 5, rtol=near["rtol"])


@needs_tiles
def test_no_memory_for_the_first_answer_is_no_verdict(monkeypatch):
    policy = Policy(network("llama", double=False), torch.bfloat16)

    def full(*args, **kw):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    with monkeypatch.context() as patch:
        patch.setattr(type(policy.model.base_model), "forward", full)
        with pytest.raises(RuntimeError, match="can't allocate"):
            SamplingCopy(policy, torch.bfloat16)
    assert any(p.isnan().any() for p in SamplingCopy(policy, torch.bfloat16).policy.parameters())  # not all are held


@pytest.mark.parametrize("dtype", PRODUCTS)
def test_buffers_that_change_are_sampled_with(dtype):
    policy, ids = Policy(network("llama", double=False), dtype), torch.tensor([[5, 6, 7]])
    copy = SamplingCopy(policy, dtype)
    policy.model.model.rotary_emb.inv_freq.mul_(0.5)
    copy.refresh()
    with torch.no_grad():
        assert torch.equal(*(x.policy.model(ids, use_cache=False).logits for x in (copy, SamplingCopy(policy, dtype))))


def test_nothing_is_compiled_where_kernels_are_not_used(monkeypatch):
    def library() -> None:
        raise AssertionError("compiled")

    kernels.use(False)
    monkeypatch.setattr(kernels, "_library", library)
    SamplingCopy(Policy(network("llama", double=False), torch.float32), torch.bfloat16).refresh()


@needs_compiler
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2"])
def test_the_engine_samples_the_same_with_and_without(kind):
    policy = Policy(network(kind, vocab=512, double=False), torch.float32)
    tokenizer = tiny_tokenizer(make().model.tiny)
    prompts = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]

    def sampled() -> list[list[int]]:
        engine = NativeEngine(batch_size=4)
        return engine.generate(policy, tokenizer, prompts, 3, Sampling(1.0, 12), Noise(0, "train")).completion_ids

    fast, plain = both(sampled)
    assert fast == plain


def test_without_a_compiler_all_goes_through_torch(monkeypatch, capsys):
    monkeypatch.setattr(build, "compiler", lambda: None)
    kernels._library.cache_clear()
    kernels._has_products.cache_clear()
    try:
        assert not kernels.available()
        assert not products.multiplies(torch.zeros(1, 1))
        assert kernels.fingerprint() is None
        assert capsys.readouterr().err.count("no C compiler") == 1
        assert not kernels.take(torch.zeros(1))
        tokens, _ = draw(torch.zeros(2, 4), Sampling(1.0, 1), torch.tensor([0.1, 0.9], dtype=torch.float64))
        assert tokens.tolist() == [0, 3]
    finally:
        kernels._library.cache_clear()
        kernels._has_products.cache_clear()


def test_a_compiler_that_fails_is_none(monkeypatch, tmp_path):
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build.tempfile, "tempdir", str(tmp_path))
    with pytest.raises(subprocess.SubprocessError):
        build.load()
    assert [p.name for p in (tmp_path / "grpo_bench" / "kernels").iterdir() if p.suffix != ".lock"] == []


@needs_compiler
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="a flag of x86")
def test_flags_that_a_compiler_refuses_are_told_of_once(monkeypatch, tmp_path, capsys):
    picky = tmp_path / "cc"
    picky.write_text(
        f"""#!/bin/sh
case "$*" in *prefer-vector-width*) echo "unknown flag: the wide one" >&2; exit 1;; esac
exec {build.compiler()} "$@"
"""
    )
    picky.chmod(0o755)
    monkeypatch.setenv("CC", str(picky))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not build.load()[1].endswith("-0")
    told = capsys.readouterr().err
    assert told.count("unknown flag: the wide one") == 1
    assert told.startswith("kernels are compiled with ")
    build.load()
    assert capsys.readouterr().err == ""


@needs_compiler
def test_kernels_can_be_compiled_without_torch(monkeypatch, tmp_path):
    """As a sweep does while its jobs' process imports it; the job then finds the library."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = str(build.HERE / "build.py")
    lines = f"import runpy, sys; sys.modules['torch'] = None; runpy.run_path({file!r}, None, '__main__')"
    command = [sys.executable, "-P", "-c", lines]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": ""}, timeout=200)
    (made,) = (tmp_path / "grpo_bench" / "kernels").glob("*.so")
    monkeypatch.setattr(build, "_compile", None)
    assert build.load()[1] == made.stem


def test_every_source_is_in_the_library_s_name():
    """Else a library compiled before a change would be taken for one compiled after it."""
    sources = {path.name for path in build.HERE.iterdir() if path.suffix in {".c", ".h"}}
    assert sources == {*build.UNITS, *build.HEADERS}


@needs_compiler
def test_values_narrower_than_keys_go_through_torch():
    """As in models with latent attention: the kernel knows one width."""
    cache = SharedPrefixCache(1, 3, 2, 4)
    cache.put_prompts(0, 0, torch.randn(1, 2, 3, 12), torch.randn(1, 2, 3, 8))
    where = Where(torch.tensor([1, 1]), torch.tensor([3, 3]), torch.tensor([0, 0]), None, None)
    plan = DecodePlan(cache, Shape(2, 1, 2, 3, 1, True), where)
    query, key, value = torch.randn(1, 2, 2, 12), torch.randn(1, 2, 2, 12), torch.randn(1, 2, 2, 8)
    assert plan.attend(0, query, key, value, 0.3).shape == (1, 2, 2, 8)
    prompt = PrefillPlan([3], cache, 0, torch.device("cpu"))
    query, key, value = torch.randn(1, 2, 3, 12), torch.randn(1, 2, 3, 12), torch.randn(1, 2, 3, 8)
    assert prompt.attend(0, query, key, value, 0.3).shape == (1, 3, 2, 8)


@needs_compiler
def test_a_norm_of_one_plus_weights_keeps_small_weights_in_bfloat16():
    """1 + 0.0034 is 1 in bfloat16. In fp32 it lengthens what it multiplies by that much, roundings averaged."""
    x, weight = torch.randn(64, 512).bfloat16(), torch.full((512,), 0.0034).bfloat16()
    exact = torch.rms_norm(x.double(), (512,))
    for out in both(lambda: norms.rms_norm(x, weight, 0.0, 1.0)):
        assert float((out.double() * exact).sum() / exact.square().sum()) == pytest.approx(1.0034, abs=2e-4)
