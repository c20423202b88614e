"""The passes for a GPU equal their formulas: compiled where there is one, else by Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from model_data import make, network, ragged
from torch import Tensor

from grpo_bench import kernels
from grpo_bench.collect import make_batch
from grpo_bench.kernels import gpu, layers
from grpo_bench.kernels import head as compiled
from grpo_bench.policy import Policy, flash_attention, layout
from grpo_bench.policy.flash_attention import Part, Segments
from grpo_bench.policy.packed import pack
from grpo_bench.rollout import Noise, Sampling, weights
from grpo_bench.rollout.cache import SharedPrefixCache
from grpo_bench.rollout.decode import Decoder
from grpo_bench.rollout.hf import HFEngine
from grpo_bench.rollout.merged_linear import merge_linears
from grpo_bench.rollout.native import NativeEngine
from grpo_bench.rollout.plans import DecodePlan, Shape, Where
from grpo_bench.rollout.sampling import draw
from grpo_bench.rollout.weights import SamplingCopy
from grpo_bench.tiny import tiny_tokenizer

pytestmark = [
    pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # the interpreter is NumPy, which tells of infinities
]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def interpreted() -> Iterator[None]:
    allowed = kernels._allowed
    kernels.use(True)
    gpu.interpret(DEVICE.type == "cpu")
    yield
    gpu.interpret(False)
    kernels.use(allowed)


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


def near(own: Tensor, exact: Tensor, digits: float = 2e-6) -> bool:
    """To rounding: of what comes out, and of sums in fp32."""
    low = 2**-8 if own.is_cuda else 2**-7  # the interpreter rounds towards zero
    rounding = low if own.dtype == torch.bfloat16 else digits
    exact = exact.double().to(own.device)
    return bool(((own.double() - exact).abs() <= rounding * exact.abs() + digits * exact.abs().max()).all())


@pytest.mark.parametrize("shift", [0.0, 1.0])
@pytest.mark.parametrize(("x", "out"), [(TYPES[0], TYPES[0]), (TYPES[0], TYPES[1]), (TYPES[1], TYPES[1])])
@pytest.mark.parametrize(("rows", "width"), [(1, 5), (7, 576), (70, 64), (3, 5000)])
def test_norms(rows: int, width: int, x: torch.dtype, out: torch.dtype, shift: float) -> None:
    given, weight, grad = randn(rows, width, dtype=x), randn(width, seed=1), randn(rows, width, dtype=out, seed=2)
    exact, w = given.double().requires_grad_(), weight.double().requires_grad_()
    y = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + 1e-5) * (shift + w)
    y.backward(grad.double())
    assert exact.grad is not None
    assert w.grad is not None
    made = layers.normed(given, weight, 1e-5, shift, out)
    assert made.dtype == out
    assert near(made, y.detach())
    of_x, of_weight = layers.norm_gradient(given, weight, grad, 1e-5, shift)
    assert (of_x.dtype, of_weight.dtype) == (x, torch.float32)
    assert near(of_x, exact.grad, 1e-5)
    assert near(of_weight, w.grad, 1e-5)


def test_a_norm_of_many_rows_sums_the_gradient_of_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of few programs goes over several rows, the last over fewer."""
    from grpo_bench.kernels.gpu import layers as own

    monkeypatch.setattr(own, "PROGRAMS", 3)
    monkeypatch.setattr(own, "TILE", 64)
    x = randn(41, 16)
    _, of_weight = layers.norm_gradient(x, torch.ones(16, device=DEVICE), torch.ones_like(x), 1e-9, 0.0)
    assert near(of_weight, (x.double() * torch.rsqrt(x.double().square().mean(-1, keepdim=True))).sum(0), 1e-5)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(1, 9, 24), (3, 1536), (1, 1)])
def test_gates(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    both = randn(*shape[:-1], 2 * shape[-1], dtype=dtype)
    gate, up = both.split(shape[-1], -1)  # parts of a wider product
    grad = randn(*shape, dtype=dtype, seed=1)
    g, u = gate.double().requires_grad_(), up.double().requires_grad_()
    exact = torch.nn.functional.silu(g) * u
    exact.backward(grad.double())
    assert g.grad is not None
    assert u.grad is not None
    made = layers.gate(gate, up)
    assert made.shape == shape
    assert near(made, exact.detach())
    of_gate, of_up = layers.gate_gradient(gate, up, grad)
    assert near(of_gate, g.grad)
    assert near(of_up, u.grad)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("heads", "rows", "width"), [(3, 7, 64), (9, 130, 16), (1, 1, 6), (2, 5, 80)])
def test_rotations(heads: int, rows: int, width: int, dtype: torch.dtype) -> None:
    x = randn(rows, heads, width, dtype=dtype).transpose(0, 1)
    y = randn(rows, 2, width, dtype=dtype, seed=4).transpose(0, 1)
    angles = randn(rows, width, seed=1)
    cosines, sines = angles.cos(), angles.sin()  # of unequal halves: which one is read where shows
    for z, own in zip((x, y), layers.rotate(x, y, cosines, sines), strict=True):
        assert near(own, _turned(z, cosines, sines))
    for z, own in zip((x, y), layers.rotate(x, y, cosines, sines, back=True), strict=True):
        leaf = torch.zeros_like(z, dtype=torch.float64).requires_grad_()
        assert near(own, torch.autograd.grad(_turned(leaf, cosines, sines), leaf, z.double())[0])


def _turned(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    x, half = x.double(), x.shape[-1] // 2
    return x * cosines.double() + torch.cat([-x[..., half:], x[..., :half]], -1) * sines.double()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("words", [5, 512, 9000])
def test_softmax_over_the_vocabulary(words: int, dtype: torch.dtype, temperature: float) -> None:
    logits = randn(11, words, dtype=dtype) * 5
    logits[3, 1], logits[3, 2], logits[4], logits[5, 0] = -torch.inf, -1000, 0, 300
    logits[6], logits[6, words - 1] = -torch.inf, 2.0  # all mass on the last word
    targets = torch.randint(words, (11,)).to(DEVICE)
    targets[3], targets[5], targets[6] = 0, 0, words - 1
    exact = torch.log_softmax(logits.double() / temperature, -1)
    p = exact.exp()
    entropy = -torch.where(p > 0, p * exact, 0.0).sum(-1)
    probs = logits.clone()
    logp, own_entropy = compiled.soften(probs, targets, temperature)
    wanted = exact.gather(1, targets[:, None]).squeeze(1)
    assert torch.allclose(logp.double(), wanted, rtol=1e-6, atol=3e-6)
    assert torch.allclose(own_entropy.double(), entropy, rtol=1e-5, atol=1e-5)
    assert torch.allclose(probs.double(), p, rtol=2**-7 if dtype == torch.bfloat16 else 1e-5, atol=1e-12)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_what_is_not_a_number_shows(wrong: float) -> None:
    logits = torch.zeros(2, 40, device=DEVICE)
    logits[1, 7] = wrong
    logp, _ = compiled.soften(logits, torch.tensor([3, 3], device=DEVICE), 1.0)
    assert logp.isnan().tolist() == [False, True]


@pytest.mark.parametrize("dtype", TYPES)
def test_gradient_of_log_probs_by_hand(dtype: torch.dtype) -> None:
    probs = torch.tensor([[0.25, 0.5, 0.25], [1.0, 0.0, 0.0]], device=DEVICE).to(dtype)
    compiled.logp_gradient(probs, torch.tensor([1, 0], device=DEVICE), torch.tensor([2.0, 3.0], device=DEVICE))
    assert probs.tolist() == [[-0.5, 1.0, -0.5], [0.0, 0.0, 0.0]]


def torch_draw(logits: Tensor, sampling: Sampling, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    kernels.use(False)
    out = draw(logits, sampling, uniforms)
    kernels.use(True)
    return out


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("temperature", [1.0, 0.6, 0.0])
@pytest.mark.parametrize("words", [3, 512, 9000])
def test_choosing(words: int, temperature: float, dtype: torch.dtype) -> None:
    logits = (randn(40, words, seed=3) * 3).to(dtype)
    uniforms = torch.linspace(0, 0.9999, 40, dtype=torch.float64, device=DEVICE)
    sampling = Sampling(temperature, 1)
    tokens, logps = draw(logits, sampling, uniforms)
    expected, exact = torch_draw(logits, sampling, uniforms)
    assert torch.allclose(logps.double(), exact.double(), atol=1e-5)
    if temperature:
        assert tokens.tolist() == expected.tolist()
    else:
        assert torch.equal(logits.gather(1, tokens[:, None]), logits.gather(1, expected[:, None]))


def test_impossible_words_are_never_chosen() -> None:
    logits = torch.full((4, 5000), -torch.inf, device=DEVICE)
    logits[:, 4200], logits[:, 4301] = 0.0, 0.0
    uniforms = torch.tensor([0.0, 0.49, 0.5, 1 - 2**-53], dtype=torch.float64, device=DEVICE)
    tokens, logps = draw(logits, Sampling(1.0, 1), uniforms)
    assert tokens.tolist() == [4200, 4200, 4301, 4301]
    assert logps.tolist() == pytest.approx([-0.6931472] * 4)


def test_first_of_the_likeliest() -> None:
    logits = torch.zeros(1, 9000, device=DEVICE)
    logits[0, 5000], logits[0, 8000] = 2.0, 2.0
    assert draw(logits, Sampling(0.0, 1), torch.zeros(1, dtype=torch.float64, device=DEVICE))[0].item() == 5000


def decoded(dtype: torch.dtype, heads: int, kv: int, width: int, window: int | None, softcap: float | None) -> Tensor:
    """Seven rows of three prompts of unequal lengths, some of them with more tokens of their own than others."""
    places, counts = torch.tensor([2, 0, 0, 1, 2, 2, 1]), torch.tensor([3, 5, 1, 70, 130, 4, 5])
    lengths = torch.tensor([6, 150, 9])
    cache = SharedPrefixCache(3, 150, 7, 131)
    cache.put_prompts(0, 0, randn(3, kv, 150, width, dtype=dtype), randn(3, kv, 150, width, dtype=dtype, seed=1))
    held = cache.layers[0]
    held.own_keys[:], held.own_values[:] = randn(*held.own_keys.shape), randn(*held.own_keys.shape, seed=1)
    query = randn(1, 7, heads, width, dtype=dtype).transpose(1, 2)
    key, value = (randn(1, 7, kv, width, dtype=dtype, seed=seed).transpose(1, 2) for seed in (2, 3))
    cells = places * 4 + torch.tensor([0, 0, 1, 0, 1, 2, 1])
    grid = torch.zeros(12, dtype=torch.long)
    grid[cells] = torch.arange(7)
    where = Where(*(x.to(DEVICE) for x in (counts, lengths[places], places, cells, grid)))
    plan = DecodePlan(cache, Shape(7, 3, 4, 150, 130, False), where)
    out = plan.attend(0, query, key, value, 0.3, window, softcap)
    assert torch.equal(held.own_keys[1, :, 4], key[0, :, 1])  # row 1's fifth token of its own
    assert torch.equal(held.own_values[4, :, 129], value[0, :, 4])
    return out


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (4, None), (100, None), (None, 2.0)])
@pytest.mark.parametrize(("heads", "kv", "width"), [(4, 4, 32), (9, 3, 64), (7, 1, 80), (4, 2, 256), (40, 2, 16)])
@pytest.mark.parametrize("dtype", TYPES)
def test_attention_of_a_decode_step(
    heads: int, kv: int, width: int, dtype: torch.dtype, window: int | None, softcap: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if width == 64 and DEVICE.type == "cpu":  # in the blocks that bfloat16 has on a GPU, several members to a program
        from grpo_bench.kernels.gpu import attention

        monkeypatch.setattr(attention, "tile_sizes", lambda *_: (64, 64, 1))
    if dtype == torch.bfloat16 and DEVICE.type == "cpu":
        pytest.skip("the interpreter multiplies bfloat16 as integers")
    own = decoded(dtype, heads, kv, width, window, softcap)
    kernels.use(False)
    exact = decoded(torch.float32, heads, kv, width, window, softcap)
    far = (own.double() - exact.double()).abs().max() / exact.double().abs().max()
    assert own.shape == (1, 7, heads, width)
    assert far < (0.03 if dtype == torch.bfloat16 else 1e-5)


# --- attention of packed rows, flash attention itself being torch's, on a GPU alone ---


def plain(q: Tensor, k: Tensor, v: Tensor, part: Part, scaling: float) -> tuple[Tensor, Tensor]:
    """What flash attention gives, by the formula."""
    outs, lses, r = [], [], q.shape[1] // k.shape[1]
    for i in range(len(part.queries) - 1):
        a, b = (x[int(e[i]) : int(e[i + 1])].transpose(0, 1) for x, e in ((q, part.queries), (k, part.keys)))
        c = v[int(part.keys[i]) : int(part.keys[i + 1])].transpose(0, 1)
        assert a.shape[1] <= part.most_queries
        assert b.shape[1] <= part.most_keys
        b, c = b.repeat_interleave(r, 0), c.repeat_interleave(r, 0)
        scores = a.double() @ b.double().mT * scaling
        if part.causal:
            scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
        lses.append(torch.logsumexp(scores, -1))
        outs.append((torch.softmax(scores, -1) @ c.double()).transpose(0, 1))
    return torch.cat(outs).to(q.dtype), torch.cat(lses, 1).float()


def forward(q: Tensor, k: Tensor, v: Tensor, part: Part, scaling: float) -> tuple[Tensor, ...]:
    return *plain(q, k, v, part, scaling), torch.zeros(1), torch.zeros(1)


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, part: Part, scaling: float, *_: Any
) -> tuple[Tensor, ...]:
    """As flash attention's: probabilities from the log-sums it is given, not from these keys alone."""
    dq, dk, dv = (torch.zeros(x.shape, dtype=torch.float64, device=x.device) for x in (q, k, v))
    r = q.shape[1] // k.shape[1]
    delta = (grad.double() * out.double()).sum(-1)
    for i in range(len(part.queries) - 1):
        rows, keys = (slice(int(e[i]), int(e[i + 1])) for e in (part.queries, part.keys))
        a, g = q[rows].transpose(0, 1).double(), grad[rows].transpose(0, 1).double()
        b, c = (x[keys].transpose(0, 1).repeat_interleave(r, 0).double() for x in (k, v))
        p = torch.exp(a @ b.mT * scaling - lse[:, rows, None].double())
        if part.causal:
            p = p.masked_fill(torch.ones_like(p).triu(1).bool(), 0.0)
        s = p * (g @ c.mT - delta[rows].T[..., None]) * scaling
        dq[rows] = (s @ b).transpose(0, 1)
        for of, x in ((dk, s.mT @ a), (dv, p.mT @ g)):
            of[keys] = x.unflatten(0, (-1, r)).sum(1).transpose(0, 1)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


# lengths of prompts, and each row's length with the prompt that it continues; BARE: no row adds a token
GROUPS = ([5, 1, 17], [(0, 6), (0, 3), (0, 20), (1, 2), (2, 1), (2, 9), (2, 17)])
BARE = ([3, 20], [(0, 1), (1, 0)])


@pytest.mark.parametrize("rows", [GROUPS, BARE])
@pytest.mark.parametrize(("heads", "keys"), [(4, 4), (9, 3)])
def test_parts_of_the_keys_make_one_softmax(heads: int, keys: int, rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The algebra of the two parts, around stand-ins for flash attention, against the plan's plain way."""
    if DEVICE.type == "cpu":
        monkeypatch.setattr(flash_attention, "_forward", forward)
        monkeypatch.setattr(flash_attention, "_backward", backward)
        monkeypatch.setattr(kernels, "_allowed", False)  # of float64, which kernels do not take
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float64
    lengths, own = rows
    group, sizes = (torch.tensor(x, device=DEVICE) for x in zip(*own, strict=True))
    completions = torch.zeros(len(own), max(int(sizes.max()), 1), dtype=torch.long, device=DEVICE)
    packed = pack([torch.zeros(n, dtype=torch.long, device=DEVICE) for n in lengths], group, completions, sizes)
    segments = Segments.of(torch.tensor(lengths, device=DEVICE), group, (sizes - 1).clamp(min=0))
    assert segments is not None
    tokens = len(packed.ids)
    assert segments.tokens == tokens
    given = [randn(tokens, n, 16, seed=n).transpose(0, 1)[None].to(dtype) for n in (heads, keys, keys)]
    grad = randn(1, tokens, heads, 16, seed=5).to(dtype)
    found = []
    for flash in (True, False):
        leaves = [x.detach().double().to(dtype if flash else torch.float64).requires_grad_() for x in given]
        out = flash_attention.attend(*leaves, segments, 0.2) if flash else packed.attend(0, *leaves, 0.2)
        found.append([out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))])
    for ours, exact in zip(*found, strict=True):
        far = (ours.double() - exact.double()).abs().max() / exact.double().abs().max().clamp(min=1e-3)
        assert far < (0.03 if dtype == torch.bfloat16 else 1e-6)  # log-sums are in fp32


def test_rows_that_stand_apart_have_no_segments() -> None:
    group, lengths = torch.tensor([0, 1, 0]), torch.tensor([2, 2, 2])
    assert Segments.of(torch.tensor([3, 3]), group, lengths) is None
    assert Segments.of(torch.tensor([3, 3]), group.sort().values, lengths) is not None


def test_two_parts_as_one() -> None:
    from grpo_bench.kernels.gpu import attention

    one, two = randn(6, 3, 16), randn(6, 3, 16, seed=1)
    a, b = randn(3, 6, seed=2) * 30, randn(3, 6, seed=3) * 30
    out, lse = attention.merge(one, two, a, b)
    share = torch.sigmoid((a - b).double()).T[..., None]
    assert near(out, share * one.double() + (1 - share) * two.double())
    assert near(lse, torch.logaddexp(a.double(), b.double()))


def test_an_updates_gradient() -> None:
    """Log-probs, entropies and gradients of a model by these passes and by torch's."""
    rollouts = ragged(8, 4)
    tokens = make_batch(rollouts, [0.0] * 8, [False] * 8, DEVICE)
    found = []
    for on in (True, False):
        kernels.use(on)
        policy = Policy(network("llama", double=False).to(DEVICE), torch.float32)
        logp, entropy = policy.logp(layout(tokens, torch.arange(len(tokens.mask))), 0.9)
        (logp * torch.arange(1, logp.numel() + 1, device=DEVICE).view(logp.shape)).sum().backward()
        found.append([logp.detach(), entropy.detach(), *(p.grad for p in policy.parameters())])
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).norm() < 1e-5 * theirs.norm()


# --- sampling with them ---


def test_the_same_samples_as_the_reference_engine() -> None:
    """Rows of unequal prompts leave and enter; one captured shape would serve all steps of as many rows."""
    net = network("llama", vocab=512, double=False).to(DEVICE)
    net.generation_config.eos_token_id = list(range(472, 512))
    policy, tiny = Policy(net, torch.float32), make().model.tiny
    assert tiny is not None
    tok, sampling, noise = tiny_tokenizer(tiny), Sampling(0.8, 6), Noise(3, "train", 5)
    prompts = [[40, 41, 42], [50], [60, 61, 62, 63, 64, 65, 66]]
    want = HFEngine(None).generate(policy, tok, prompts, 3, sampling, noise)
    for slots in (4, None):
        engine = NativeEngine(slots, cuda_graph=False, static=True)
        assert engine.generate(policy, tok, prompts, 3, sampling, noise) == want


def test_sizes_of_a_static_step_do_not_grow_where_attention_reads_them() -> None:
    policy = Policy(network("llama", double=False).to(DEVICE), torch.float32)
    decoder = Decoder(policy, Sampling(1.0, 200), set(), 4, 2, 100, 4, static=True)
    decoder.begin(torch.rand(4, 200, dtype=torch.float64).to(DEVICE))
    decoder.prefill([0, 1], [[1, 2, 3], [4]])
    decoder.enter([0, 1, 2, 3], [0, 0, 1, 1], [200] * 4)
    decoder.advance()
    assert not decoder.sized
    assert decoder.shape() == Shape(4, 2, 2, 128, 200, False)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])  # without biases, and with
def test_layers_of_one_input_as_one_product(kind: str) -> None:
    policy = Policy(network(kind, double=False).to(DEVICE), torch.bfloat16)
    kernels.use(False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "merge_linears", lambda model: 0)  # as a GPU's copy would be
        copy, merged = SamplingCopy(policy, torch.bfloat16), SamplingCopy(policy, torch.bfloat16)
    assert merge_linears(merged.policy.model) == 4  # of each of two layers: queries, keys, values; gate and up
    assert merge_linears(merged.policy.model) == 0  # once
    ids = torch.arange(1, 9, device=DEVICE)[None]
    for _ in range(2):
        with torch.no_grad():
            a, b = (x.policy.model(input_ids=ids, use_cache=False).logits for x in (copy, merged))
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)
        with torch.no_grad():
            for parameter in policy.model.parameters():
                parameter.mul_(1.5)
        copy.refresh()
        merged.refresh()
    assert {n: p.shape for n, p in merged.policy.named_parameters()} == {
        n: p.shape for n, p in policy.named_parameters()
    }
    assert sum(w.nbytes for w in merged.weights()) == sum(w.nbytes for w in copy.weights())


@pytest.mark.gpu
def test_a_policy_in_bfloat16_on_a_gpu() -> None:
    """Flash attention by parts and all passes in one model: as near to fp32 as bfloat16 is, forward and backward."""
    rollouts = ragged(12, 4, longest=40)
    batch = make_batch(rollouts, [0.0] * 12, [False] * 12, DEVICE)
    found = []
    for dtype, on in ((torch.bfloat16, True), (torch.float32, False)):
        kernels.use(on)
        policy = Policy(network("llama", double=False).to(DEVICE), dtype)
        rows = layout(batch, torch.arange(12, device=DEVICE))
        assert rows.packed.segments is not None
        assert policy.takes_plans
        logp, entropy = policy.logp(rows, 1.0)
        (logp * torch.linspace(-1, 1, logp.numel(), device=DEVICE).view(logp.shape)).sum().backward()
        found.append([logp.detach(), entropy.detach(), *(p.grad for p in policy.parameters())])
    for ours, exact in zip(*found, strict=True):
        assert (ours.float() - exact).norm() < 0.05 * exact.norm()
