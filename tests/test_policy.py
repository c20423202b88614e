"""Log-probs, entropies and values against the plain forward; reference, critic and adapters; what may be loaded."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from model_data import ARCHITECTURES, VOCAB, batch_of, make, make_double, network, policy, ragged, same, snapshot
from torch import Tensor

from grpo_bench.config import LoraConfig
from grpo_bench.policy import Policy, layout, make_models, spread
from grpo_bench.policy import network as network_module
from grpo_bench.policy.network import _select
from grpo_bench.policy.score import micro_batches, score
from grpo_bench.types import Batch, Rollouts

CPU = torch.device("cpu")
LORA = LoraConfig(r=2, alpha=4.0, targets=None)


def by_rows(model: torch.nn.Module, rollouts: Rollouts, temperature: float) -> tuple[list[Tensor], list[Tensor]]:
    """Log-probs and entropies of each completion from one unpadded forward with all logits."""
    logps, entropies = [], []
    for i, completion in enumerate(rollouts.completion_ids):
        prompt = rollouts.prompt_ids[i // rollouts.group_size]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + completion])).logits[0]
        logp = torch.log_softmax(logits[len(prompt) - 1 : -1] / temperature, dim=-1)
        logps.append(logp[torch.arange(len(completion)), torch.tensor(completion)])
        entropies.append(-(logp.exp() * logp).sum(-1))
    return logps, entropies


def widened(batch: Batch, left: int, right: int) -> Batch:
    """More padding on both sides, with a token that means something."""
    rows = len(batch.tokens)
    tokens = torch.cat([torch.full((rows, left), 7), batch.tokens, torch.full((rows, right), 7)], dim=1)
    return replace(batch, tokens=tokens, mask=torch.cat([batch.mask, batch.mask.new_zeros(rows, right)], dim=1))


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_and_entropies_are_those_of_the_plain_forward(kind: str, temperature: float) -> None:
    model = policy(kind)
    rollouts = ragged(6, group_size=2)
    batch = batch_of(rollouts)
    logps, entropies = by_rows(model.model, rollouts, temperature)
    logp, entropy = model.logp(layout(batch, torch.arange(6)), temperature)
    for i, completion in enumerate(rollouts.completion_ids):
        torch.testing.assert_close(logp[i, : len(completion)], logps[i], rtol=0, atol=1e-9)
        torch.testing.assert_close(entropy[i, : len(completion)], entropies[i], rtol=0, atol=1e-9)
        assert not logp[i, len(completion) :].any()
        assert not entropy[i, len(completion) :].any()


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_trunk_and_head_reproduce_every_architecture(kind: str) -> None:
    assert policy(kind).head_is_plain  # else the chunked head is never used and memory is that of all logits


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_scores_do_not_depend_on_micro_batches_or_padding(kind: str, critic: str) -> None:
    models = make_double(kind, make(f"model.critic={critic}"), critic=True, reference=True)
    assert models.reference is not None
    with torch.no_grad():
        models.reference.model.get_input_embeddings().weight.add_(0.1)  # else it equals the policy
    batch = batch_of(ragged(7, seed=3))
    whole = score(batch, models, 0.8, 10_000, old=True, values=True)
    assert whole.old_logp is not None
    assert whole.old_logp.dtype == torch.float64
    assert not torch.equal(whole.old_logp, whole.ref_logp)
    for tokens in (1, 20, 40):
        part = score(batch, models, 0.8, tokens, old=True, values=True)
        for name in ("old_logp", "ref_logp", "values"):
            torch.testing.assert_close(getattr(part, name), getattr(whole, name), rtol=0, atol=1e-9)
    wide = score(widened(batch, 5, 3), models, 0.8, 20, old=True, values=True)
    for name in ("old_logp", "ref_logp", "values"):
        torch.testing.assert_close(getattr(wide, name)[:, :-3], getattr(whole, name), rtol=0, atol=1e-9)
        assert not getattr(wide, name)[:, -3:].any()


def test_micro_batches_hold_each_row_once_within_the_limit() -> None:
    batch = batch_of(ragged(9, seed=2))
    assert batch.prompt_lengths is not None
    lengths = batch.prompt_lengths + batch.mask.sum(1).long()
    for packed in (False, True):
        parts = list(micro_batches(batch, torch.arange(9), 24, packed))
        assert sorted(torch.cat(parts).tolist()) == list(range(9))
        for part in parts:
            cost = lengths[part].sum() if packed else len(part) * lengths[part].max()  # padded to the part's longest
            assert len(part) == 1 or int(cost) <= 24
        assert [len(p) for p in micro_batches(batch, torch.arange(9), 1, packed)] == [1] * 9  # a row is never split


def test_packed_micro_batches_count_a_prompt_once_and_split_a_group_only_where_it_must() -> None:
    # two groups of 3, prompts of 4 and 2 tokens, completions of 3, 1, 2 and 1, 1, 1: whole groups cost 4 + 6 = 10 and
    # 2 + 3 = 5
    rollouts = Rollouts([[1, 2, 3, 4], [5, 6]], [[7, 7, 7], [7], [7, 7], [8], [8], [8]], [""] * 6, [True] * 6, 3)
    batch = batch_of(rollouts)

    def parts(tokens: int) -> list[list[int]]:
        return [p.tolist() for p in micro_batches(batch, torch.arange(6), tokens, packed=True)]

    assert parts(15) == [[0, 1, 2, 3, 4, 5]]
    assert parts(14) == [[0, 1, 2], [3, 4, 5]]
    assert parts(8) == [[0, 1], [2], [3, 4, 5]]  # 4 + 3 + 1 = 8; then 4 + 2 = 6, and a group of 5 has no room beside it
    assert parts(7) == [[0], [1, 2], [3, 4, 5]]  # 4 + 3; 4 + 1 + 2


def test_packed_micro_batches_are_much_alike() -> None:
    """Eight groups of 4 + 6 tokens: 75 would hold seven and leave one, whose products would be small."""
    rollouts = Rollouts([[1, 2, 3, 4]] * 8, [[7, 7, 7]] * 16, [""] * 16, [True] * 16, 2)
    batch = batch_of(rollouts)
    sizes = {t: [len(p) // 2 for p in micro_batches(batch, torch.arange(16), t, True)] for t in (75, 35, 80)}
    assert sizes == {75: [4, 4], 35: [3, 3, 2], 80: [8]}


def test_rows_without_tokens_are_left_out_of_scoring() -> None:
    models = make_double("llama", make(), critic=True, reference=False)
    batch = batch_of(ragged(4))
    full = score(batch, models, 1.0, 100, old=True, values=True)
    part = score(replace(batch, mask=batch.mask * torch.tensor([1.0, 0, 1, 0])[:, None]), models, 1.0, 100, True, True)
    assert full.old_logp is not None
    assert part.old_logp is not None
    torch.testing.assert_close(part.old_logp[::2], full.old_logp[::2], rtol=0, atol=1e-12)
    assert not part.old_logp[1::2].any()


@pytest.mark.parametrize("entropy_grad", [False, True])
def test_chunks_of_the_head_give_the_same_values_and_gradients(
    entropy_grad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = policy("gemma2")
    batch = batch_of(ragged(5))
    rows = layout(batch, torch.arange(5))

    def loss() -> tuple[Tensor, dict[str, Tensor]]:
        model.zero_grad()
        logp, entropy = model.logp(rows, 0.9, entropy_grad=entropy_grad)
        total = (logp * torch.arange(logp.numel()).view_as(logp)).sum() + (entropy.sum() if entropy_grad else 0.0)
        total.backward()
        return total.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain, plain_grads = loss()
    monkeypatch.setattr(network_module, "LOGIT_ELEMENTS", 3 * VOCAB)  # three tokens at a time
    chunked, chunked_grads = loss()
    torch.testing.assert_close(chunked, plain, rtol=1e-12, atol=0)
    assert plain_grads.keys() == chunked_grads.keys()
    for name, grad in plain_grads.items():
        torch.testing.assert_close(chunked_grads[name], grad, rtol=1e-10, atol=1e-12)


def test_a_model_whose_head_does_more_takes_the_plain_forward() -> None:
    model = network("llama")
    forward = model.forward

    def shifted(*args: object, **kwargs: object) -> object:
        out = forward(*args, **kwargs)
        out.logits = out.logits + torch.arange(VOCAB)  # nothing that trunk and head alone would show
        return out

    model.forward = shifted  # type: ignore[method-assign]
    own = Policy(model, torch.float32)
    assert not own.head_is_plain
    rollouts = ragged(4)
    logps, _ = by_rows(model, rollouts, 0.7)
    logp, _ = own.logp(layout(batch_of(rollouts), torch.arange(4)), 0.7)
    for i, expected in enumerate(logps):
        torch.testing.assert_close(logp[i, : len(expected)], expected, rtol=0, atol=1e-9)


def test_log_prob_and_entropy_by_hand() -> None:
    # logits (ln 3, 0) at temperature 1/2 are (ln 9, 0): p = (0.9, 0.1), log p = ln 0.9,
    # H = -(0.9 ln 0.9 + 0.1 ln 0.1) = 0.0948244644 + 0.2302585093 = 0.3250829734
    logits = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)
    logp, entropy = _select(logits, torch.tensor([0]), 0.5, False)
    assert float(logp) == pytest.approx(-0.1053605157, abs=1e-9)
    assert float(entropy) == pytest.approx(0.3250829734, abs=1e-9)


def test_equal_logits_are_ln_v_whatever_the_temperature() -> None:
    model = policy("qwen2")
    torch.nn.init.zeros_(model.model.get_output_embeddings().weight)
    batch = batch_of(ragged(3))
    logp, entropy = model.logp(layout(batch, torch.arange(3)), 0.3)
    torch.testing.assert_close(logp, -math.log(VOCAB) * batch.mask, rtol=0, atol=1e-12)
    torch.testing.assert_close(entropy, math.log(VOCAB) * batch.mask, rtol=0, atol=1e-12)


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_values_see_the_prompt_and_earlier_tokens_only(critic: str) -> None:
    models = make_double("llama", make(f"model.critic={critic}"), critic=True, reference=False)
    rollouts = Rollouts([[3, 4, 5]], [[10, 11, 12, 13, 14]], [""], [True], 1)
    other = replace(rollouts, completion_ids=[[10, 11, 50, 13, 14]])  # differs at t = 2
    a = score(batch_of(rollouts), models, 1.0, 100, old=True, values=True)
    b = score(batch_of(other), models, 1.0, 100, old=True, values=True)
    assert a.values is not None
    assert b.values is not None
    assert a.old_logp is not None
    assert b.old_logp is not None
    assert torch.equal(a.values[:, :3], b.values[:, :3])  # V_2 is the value before token 2
    assert not torch.isclose(a.values[:, 3:], b.values[:, 3:]).any()
    assert torch.equal(a.old_logp[:, :2], b.old_logp[:, :2])
    assert not torch.isclose(a.old_logp[:, 2:], b.old_logp[:, 2:]).any()


def test_values_are_the_head_on_the_state_before_each_token() -> None:
    models = make_double("gpt2", make("model.critic=separate"), critic=True, reference=False)
    assert models.critic is not None
    assert models.critic.trunk is not None
    rollouts = ragged(4)
    values = score(batch_of(rollouts), models, 1.0, 30, old=False, values=True).values
    assert values is not None
    for i, completion in enumerate(rollouts.completion_ids):
        prompt = rollouts.prompt_ids[i]
        with torch.no_grad():
            states = models.critic.trunk.trunk(input_ids=torch.tensor([prompt + completion])).last_hidden_state[0]
            expected = models.critic.head(states[len(prompt) - 1 : -1]).squeeze(-1)
        torch.testing.assert_close(values[i, : len(completion)], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_a_new_critic_says_exactly_zero(critic: str) -> None:
    models = make_models(
        network("llama", double=False), make(f"model.critic={critic}").model, torch.bfloat16, True, False
    )
    values = score(batch_of(ragged(5)), models, 1.0, 100, old=False, values=True).values
    assert values is not None
    assert not values.any()


def test_parameters_of_each_network() -> None:
    # qwen2 has a head of its own, V·h weights, which the critic does not keep; llama's is its embedding
    for kind in ("qwen2", "llama"):
        model = network(kind, double=False)
        count = sum(p.numel() for p in model.parameters())
        untied = VOCAB * 16 if kind == "qwen2" else 0
        models = make_models(copy.deepcopy(model), make("model.critic=separate").model, torch.float32, True, True)
        assert models.parameters() == {"policy": count, "critic": count - untied + 16 + 1, "reference": count}
        models = make_models(copy.deepcopy(model), make("model.critic=shared").model, torch.float32, True, False)
        assert models.parameters() == {"policy": count, "critic": 16 + 1, "reference": 0}


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kl_to_a_new_reference_is_exactly_zero(kind: str, dtype: torch.dtype) -> None:
    models = make_models(network(kind, double=False), make().model, dtype, critic=False, reference=True)
    assert models.reference is not None
    assert not any(p.requires_grad for p in models.reference.parameters())
    batch = score(batch_of(ragged(6)), models, 0.9, 60, old=True, values=False)
    assert batch.old_logp is not None
    assert batch.ref_logp is not None
    assert batch.old_logp.any()
    assert torch.equal(batch.old_logp, batch.ref_logp)


def test_the_reference_stays_where_the_policy_was() -> None:
    models = make_models(network("llama", double=False), make().model, torch.float32, critic=False, reference=True)
    assert models.reference is not None
    before = snapshot(models.reference)
    with torch.no_grad():
        for p in models.policy.parameters():
            p.add_(0.5)
    assert same(before, models.reference)


def test_bf16_computes_in_bf16_from_fp32_weights() -> None:
    model = network("llama", double=False)
    batch = batch_of(ragged(6))
    rows = layout(batch, torch.arange(6))
    with torch.no_grad():
        fine, _ = Policy(model, torch.float32).logp(rows, 1.0)
        coarse, _ = Policy(model, torch.bfloat16).logp(rows, 1.0)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert coarse.dtype == torch.float32
    assert not torch.equal(fine, coarse)
    torch.testing.assert_close(coarse, fine, rtol=0.1, atol=0.3)


def test_spread_puts_flat_values_back_in_place() -> None:
    mask = torch.tensor([[1.0, 1, 0], [0, 0, 0], [1, 1, 1]])
    expected = torch.tensor([[1.0, 2, 0], [0, 0, 0], [3, 4, 5]])
    assert torch.equal(spread(torch.arange(1.0, 6.0), mask), expected)


def test_layout_moves_rows_to_the_left_edge() -> None:
    # prompts (5), (6 7); completions (8 9), (4): rows 5 8 9 and 6 7 4. The states that predict 8, 9 stand at 0, 1 of
    # row 0, the one that predicts 4 at 1 of row 1, which is 3 + 1 of the flat six.
    rows = layout(batch_of(Rollouts([[5], [6, 7]], [[8, 9], [4]], ["", ""], [True, True], 1)), torch.arange(2))
    ids, states = rows.padded
    assert ids.tolist() == [[5, 8, 9], [6, 7, 4]]
    assert states.tolist() == [0, 1, 4]
    assert rows.targets.tolist() == [8, 9, 4]
