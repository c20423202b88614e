"""Packed rows with shared prompts, the fused head and the norms: each beside the plain way, in double precision."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from kernel_data import kernels_on, needs_compiler  # noqa: F401 (a fixture)
from model_data import ARCHITECTURES, batch_of, network, policy, ragged
from torch import Tensor, nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from grpo_bench import kernels
from grpo_bench.policy import Policy, head, layout, memory, norms, shared_prompt
from grpo_bench.policy import packed as packing
from grpo_bench.policy.network import _select
from grpo_bench.policy.packed import filler, pack
from grpo_bench.types import Rollouts

SHAPE = {
    "vocab_size": 61, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.4, "bos_token_id": None, "eos_token_id": 0,
    "pad_token_id": None,
}  # fmt: skip


def gradients(model: Policy, rollouts: Rollouts, rows: Tensor, plans: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probs and the gradient of a sum in which each has a weight of its own."""
    model.takes_plans = plans
    model.zero_grad()
    logp, _ = model.logp(layout(batch_of(rollouts), rows), 0.9)
    (logp * torch.linspace(-1, 1, logp.numel(), dtype=logp.dtype).view_as(logp)).sum().backward()
    return logp.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def agree(model: Policy, rollouts: Rollouts, rows: Tensor) -> None:
    logp, grads = gradients(model, rollouts, rows, plans=True)
    plain, expected = gradients(model, rollouts, rows, plans=False)
    torch.testing.assert_close(logp, plain, rtol=0, atol=1e-9)
    assert grads.keys() == expected.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[name], rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4, 5, 6, 7], [5, 0, 7, 2], [3], [1, 6]])
def test_packed_rows_give_the_log_probs_and_gradients_of_padded_ones(kind: str, rows: list[int]) -> None:
    model = policy(kind)
    assert model.takes_plans
    agree(model, ragged(8, group_size=4, seed=3), torch.tensor(rows))


@pytest.mark.parametrize("longest", [1, 2])
def test_completions_of_one_token_need_no_forward_of_their_own(longest: int) -> None:
    agree(policy("llama"), ragged(6, group_size=3, longest=longest), torch.arange(6))


@pytest.mark.parametrize(
    ("config", "model"),
    [(Qwen3Config, Qwen3ForCausalLM), (GemmaConfig, GemmaForCausalLM), (Gemma3TextConfig, Gemma3ForCausalLM)],
)
def test_further_architectures_take_plans(config: type, model: type) -> None:
    torch.manual_seed(0)
    more = (
        {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]} if "Gemma3" in str(model) else {}
    )
    own = Policy(model(config(**SHAPE, **more)).double().eval(), torch.float32)
    assert own.takes_plans
    agree(own, ragged(8, group_size=4, seed=1), torch.arange(8))


def test_a_layer_that_mixes_tokens_otherwise_takes_no_plans() -> None:
    model = network("llama")
    layer = model.model.layers[0].mlp  # type: ignore[union-attr]
    forward: Callable[[Tensor], Tensor] = layer.forward
    layer.forward = lambda x: forward(x) + x.roll(1, dims=1)
    assert not Policy(model, torch.float32).takes_plans


def test_packing_by_hand() -> None:
    # prompts (1 2) and (3); completions (4 5 6), (7) and (8 9). No state is needed after 6, 7 and 9: packed are
    # 1 2 | 3 | 4 5 | – | 8 at positions 0 1 | 0 | 2 3 | – | 1. 4 and 7 are predicted by token 1 (the 2), 5 by token 3,
    # 6 by token 4, 8 by token 2 and 9 by token 5
    completions = torch.tensor([[4, 5, 6], [7, 0, 0], [8, 9, 0]])
    packed = pack(
        [torch.tensor([1, 2]), torch.tensor([3])], torch.tensor([0, 0, 1]), completions, torch.tensor([3, 1, 2])
    )
    assert packed.ids.tolist() == [1, 2, 3, 4, 5, 8]
    assert packed.positions.tolist() == [0, 1, 0, 2, 3, 1]
    assert packed.states.tolist() == [1, 3, 4, 1, 2, 5]
    assert packed.firsts.tolist() == [0, 3, 4]
    assert packed.predicts.tolist() == [1, 2, 5]  # targets that 4, 5 and 8 predict: 5, 6 and 9


@pytest.mark.parametrize(("tokens", "more"), [(0, 0), (100, 0), (127, 0), (129, 1), (1000, 0), (2601, 23), (8191, 1)])
def test_few_counts_of_tokens_occur(tokens: int, more: int) -> None:
    assert filler(tokens) == more  # multiples of 1, 1, 1, 2, 8, 32 and 64


def test_a_filler_is_at_most_one_token_in_64() -> None:
    assert all(64 * filler(n) <= n for n in range(20_000))
    assert len({n + filler(n) for n in range(4096, 8193)}) <= 65


def test_a_filler_stands_behind_the_prompts_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "filler", lambda tokens: -tokens % 4)  # 6 tokens as in the test before: 2 more
    completions = torch.tensor([[4, 5, 6], [7, 0, 0], [8, 9, 0]])
    packed = pack(
        [torch.tensor([1, 2]), torch.tensor([3])], torch.tensor([0, 0, 1]), completions, torch.tensor([3, 1, 2]), True
    )
    assert packed.ids.tolist() == [1, 2, 3, 1, 1, 4, 5, 8]  # no longer than the longest prompt
    assert packed.positions.tolist() == [0, 1, 0, 0, 1, 2, 3, 1]
    assert packed.states.tolist() == [1, 5, 6, 1, 2, 7]
    assert packed.predicts.tolist() == [1, 2, 5]
    assert packed.lengths.tolist() == [2, 1, 2]


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("compiled", [True, False])
def test_a_filler_changes_neither_log_probs_nor_gradients(
    kind: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "filler", lambda tokens: -tokens % 16 or 16)
    monkeypatch.setattr(Policy, "tokens_of", lambda self, rows: rows.rounded)
    model = policy(kind)
    if compiled:  # the kernels are of fp32
        model = Policy(model.model.float(), torch.float32)
    rollouts, rows = ragged(8, group_size=4, seed=3), torch.tensor([5, 0, 7, 2, 1])
    logp, grads = gradients(model, rollouts, rows, plans=True)
    plain, expected = gradients(model, rollouts, rows, plans=False)
    bound = 1e-4 if compiled else 1e-9
    torch.testing.assert_close(logp, plain, rtol=0, atol=bound)
    assert grads.keys() == expected.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[name], rtol=10 * bound, atol=bound)


def test_a_filler_is_cut_where_prompts_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model may have no more positions than it needs for them."""
    monkeypatch.setattr(packing, "filler", lambda tokens: 11)
    prompts, completions = [torch.tensor([1, 2]), torch.tensor([3, 4, 5])], torch.full((2, 3), 9)
    packed = pack(prompts, torch.arange(2), completions, torch.tensor([3, 3]), True)
    assert packed.lengths.tolist() == [2, 3, 3, 3, 3, 2]
    assert packed.ids.tolist() == [1, 2, 3, 4, 5, *[3] * 11, 9, 9, 9, 9]
    assert packed.positions.tolist() == [0, 1, 0, 1, 2, *[0, 1, 2] * 3, 0, 1, 2, 3, 3, 4]


@needs_compiler
@pytest.mark.parametrize(
    ("dtype", "softcap", "on", "rounded"),
    [
        (torch.bfloat16, None, True, True),
        (torch.float32, None, True, False),
        (torch.bfloat16, 50.0, True, False),
        (torch.bfloat16, None, False, False),
    ],
)
def test_counts_are_rounded_where_kernels_attend_in_bfloat16(
    dtype: torch.dtype, softcap: float | None, on: bool, rounded: bool
) -> None:
    kernels.use(on)
    model = Policy(network("llama").float(), dtype)
    model.model.config.attn_logit_softcapping = softcap
    rows = layout(batch_of(ragged(5)), torch.arange(5))
    assert (model.tokens_of(rows) is rows.rounded) == rounded


def test_a_group_with_two_prompts_is_an_error() -> None:
    batch = batch_of(ragged(4, group_size=2))
    tokens = batch.tokens.clone()
    tokens[1, tokens.shape[1] - batch.mask.shape[1] - 1] += 1  # the last token of the second row's prompt
    with pytest.raises(ValueError, match="different prompts"):
        policy("llama").logp(layout(replace(batch, tokens=tokens), torch.arange(4)), 1.0)


@pytest.mark.parametrize("shared", [True, False])
def test_the_three_ways_to_attend_agree(shared: bool) -> None:
    torch.manual_seed(0)
    P, K, M, r, T, S, d = 2, 2, 3, 2, 4, 5, 6

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    q, ko, vo = random(P, K, M, r, T, d), random(P, K, M, T, d), random(P, K, M, T, d)
    prompt = (random(P, K, S, d), random(P, K, S, d)) if shared else None
    seen = torch.ones(P, T, T, dtype=torch.bool).tril()
    if shared:
        prompts = torch.ones(P, T, S, dtype=torch.bool)
        prompts[1, :, 3:] = False  # the second prompt is shorter
        seen = torch.cat([prompts, seen], dim=-1)
    bias = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, -torch.inf)
    inputs = [q, ko, vo, *(prompt or ())]
    weights = torch.randn(P, K, M, r, T, d, dtype=torch.float64)
    expected = shared_prompt._plain(q, prompt, (ko, vo), bias, None)
    wanted = torch.autograd.grad(expected, inputs, weights)
    for way in (shared_prompt.attend, lambda *a: shared_prompt._blockwise(*a[:4])):
        out = way(q, prompt, (ko, vo), bias, None)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
        for got, want in zip(torch.autograd.grad(out, inputs, weights), wanted, strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_large_scores_are_computed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_prompt, "LARGEST_SCORES", 1)
    agree(policy("qwen2"), ragged(8, group_size=4, seed=5), torch.arange(8))


@pytest.mark.parametrize("kept", [2**25, 3 * 61])
@pytest.mark.parametrize("block", [2**20, 2 * 61])
def test_the_fused_head_gives_the_plain_values_and_gradients(
    kept: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "KEPT_ELEMENTS", kept)
    monkeypatch.setattr(head, "BLOCK_ELEMENTS", {"cpu": block})
    torch.manual_seed(0)
    hidden = torch.randn(11, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(61, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 61, (11,))
    scale = torch.randn(11, dtype=torch.float64)
    logp, entropy = head.head_logp(hidden, weight, targets, 0.7)
    plain, plain_entropy = _select(hidden @ weight.mT, targets, 0.7, False)
    torch.testing.assert_close(logp, plain, rtol=0, atol=1e-12)
    torch.testing.assert_close(entropy, plain_entropy, rtol=0, atol=1e-12)
    for got, want in zip(
        torch.autograd.grad(logp, [hidden, weight], scale),
        torch.autograd.grad(plain, [hidden, weight], scale),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_the_fused_head_in_fp32_and_under_autocast() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(7, 32, requires_grad=True), torch.randn(50, 32, requires_grad=True)
    targets = torch.randint(0, 50, (7,))
    exact = _select((hidden.double() @ weight.double().mT).detach(), targets, 1.0, False)[0]
    torch.testing.assert_close(head.head_logp(hidden, weight, targets, 1.0)[0].double(), exact, rtol=0, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logp, _ = head.head_logp(hidden, weight, targets, 1.0)
    assert logp.dtype == torch.float32
    logp.sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32  # gradients of master weights are fp32
    assert float((logp.detach().double() - exact).abs().max()) < 0.3  # logits of about 30 in bf16 are this coarse


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_norms_compute_the_formula_and_its_gradient(kind: str) -> None:
    model = network(kind, double=False)
    plain = copy.deepcopy(model)
    assert norms.install(model) > 0
    assert norms.install(model) == 0  # once is enough
    faster = [m for m in model.modules() if hasattr(type(m), "faster")]
    own = [m for m in plain.modules() if type(m).__name__.endswith("RMSNorm")]
    assert len(faster) == len(own)
    assert type(copy.deepcopy(model).model.norm).__name__ == type(plain.model.norm).__name__  # type: ignore[union-attr]
    for ours, theirs in zip(faster, own, strict=True):
        for module in (ours, theirs):
            nn.init.normal_(module.weight, std=0.5, generator=torch.Generator().manual_seed(1))
        x = torch.randn(5, 16, generator=torch.Generator().manual_seed(2), requires_grad=True)
        weights = torch.randn(5, 16, generator=torch.Generator().manual_seed(3))
        y, expected = ours(x), theirs(x)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
        for got, want in zip(
            torch.autograd.grad(y, [x, ours.weight], weights),
            torch.autograd.grad(expected, [x, theirs.weight], weights),
            strict=True,
        ):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_the_norms_gradient_is_exact_in_double_precision() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, w: norms.rms_norm(a, w, 1e-6), (x, weight))


def test_a_norm_that_computes_something_else_is_left_alone() -> None:
    class OddRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.ones(16)), 1e-6

        def forward(self, x: Tensor) -> Tensor:
            return self.weight * x / x.abs().mean(-1, keepdim=True)

    model = network("llama", double=False)
    model.model.norm = OddRMSNorm()  # type: ignore[union-attr]
    norms.install(model)
    assert type(model.model.norm) is OddRMSNorm  # type: ignore[union-attr]


def test_dropped_rows_leave_the_packed_ones_as_they_are() -> None:
    model = policy("llama")
    batch = batch_of(ragged(6, group_size=3))
    whole, _ = model.logp(layout(batch, torch.arange(6)), 1.0)
    keep = torch.tensor([True, False, True, False, False, True])
    part, _ = model.logp(layout(replace(batch, mask=batch.mask * keep[:, None]), keep.nonzero().squeeze(1)), 1.0)
    torch.testing.assert_close(part, whole[keep], rtol=0, atol=1e-12)
