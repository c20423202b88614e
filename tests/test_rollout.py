"""Sampling: the native engine against transformers and against a plain loop, token for token; how answers end."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from model_data import ARCHITECTURES, make, network
from scipy import stats

from grpo_bench.collect import make_batch
from grpo_bench.policy import Policy
from grpo_bench.rollout import Noise, Sampling, make_engine
from grpo_bench.rollout.finish import end_tokens, finish
from grpo_bench.rollout.hf import HFEngine
from grpo_bench.rollout.native import NativeEngine
from grpo_bench.rollout.noise import generator
from grpo_bench.rollout.probe import why_no_plans
from grpo_bench.rollout.sampling import choose
from grpo_bench.tiny import tiny_tokenizer
from grpo_bench.types import Rollouts

VOCAB = 512
PROMPTS = [[40, 41, 42], [50], [60, 61, 62, 63, 64, 65, 66], [70, 71, 72]]
NOISE = Noise(seed=3, stream="train", step=5)
SAMPLED = Sampling(temperature=0.8, max_new_tokens=12)
GREEDY = Sampling(temperature=0.0, max_new_tokens=12)


def tokenizer() -> Any:
    tiny = make().model.tiny
    assert tiny is not None
    return tiny_tokenizer(tiny)


def model(kind: str = "llama", ends: int = 40) -> Policy:
    """A random policy for which one word in ``VOCAB / ends`` ends an answer, so that rows leave at different times."""
    net = network(kind, vocab=VOCAB)
    net.generation_config.eos_token_id = list(range(VOCAB - ends, VOCAB))
    return Policy(net, torch.float32)


def plain_loop(
    policy: Policy, tok: Any, prompts: list[list[int]], group: int, sampling: Sampling, noise: Noise
) -> list[list[int]]:
    """The definition: every token from a whole forward of its own unpadded row."""
    ends, rows = end_tokens(tok, policy), []
    for row in range(len(prompts) * group):
        ids, uniforms = list(prompts[row // group]), noise.uniforms(row, sampling.limit(row // group))
        completion: list[int] = []
        for u in uniforms:
            with torch.no_grad():
                logits = policy.model(input_ids=torch.tensor([ids + completion])).logits[:, -1]
            completion.append(int(choose(logits, sampling, torch.tensor([u]))))
            if completion[-1] in ends:
                break
        rows.append(completion)
    return rows


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_these_architectures_are_decoded_through_plans(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert why_no_plans(model(kind)) is None


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_native_samples_are_those_of_a_plain_loop_however_rows_are_batched(kind: str) -> None:
    policy, tok = model(kind), tokenizer()
    expected = plain_loop(policy, tok, PROMPTS, 3, SAMPLED, NOISE)
    lengths = {len(row) for row in expected}
    assert len(lengths) > 3  # rows leave the batch at different times
    for batch_size in (None, 1, 5):  # 5: groups of 3 are split between batches
        out = NativeEngine(batch_size).generate(policy, tok, PROMPTS, 3, SAMPLED, NOISE)
        assert out.completion_ids == expected
        assert out.prompt_ids == PROMPTS
        assert out.group_size == 3


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_prompts_may_have_limits_of_their_own(kind: str) -> None:
    """Prompts that hold a part of the answer; the longest ends at the last position that a network has."""
    policy, tok = model(kind, ends=8), tokenizer()
    prompts = [[40, 41, 42], [50 + i for i in range(90)], [60, 61, 62, 63, 64, 65, 66]]  # GPT-2 here: 96 positions
    sampling = Sampling(0.8, 12, limits=(12, 6, 1))
    expected = plain_loop(policy, tok, prompts, 3, sampling, NOISE)
    assert [max(map(len, expected[p * 3 : p * 3 + 3])) for p in range(3)] == [12, 6, 1]
    for engine in (NativeEngine(None), NativeEngine(2), HFEngine(None), HFEngine(2)):
        out = engine.generate(policy, tok, prompts, 3, sampling, NOISE)
        assert out.completion_ids == expected
        ends = end_tokens(tok, policy)
        assert out.finished == [ids[-1] in ends for ids in expected]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_greedy_is_that_of_transformers_token_for_token(kind: str) -> None:
    policy, tok = model(kind, ends=8), tokenizer()
    native = NativeEngine(None).generate(policy, tok, PROMPTS, 1, GREEDY, NOISE)
    assert native == HFEngine(None).generate(policy, tok, PROMPTS, 1, GREEDY, NOISE)
    for prompt, completion in zip(PROMPTS, native.completion_ids, strict=True):
        ids = torch.tensor([prompt])
        out = policy.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0,
            eos_token_id=sorted(end_tokens(tok, policy)),
        )  # fmt: skip
        assert out[0, len(prompt) :].tolist() == completion


def test_prompts_of_one_length_need_no_attention_mask() -> None:
    policy, tok = model(), tokenizer()
    prompts = [[40, 41, 42], [50, 51, 52]]
    out = NativeEngine(None).generate(policy, tok, prompts, 2, SAMPLED, NOISE)
    assert out.completion_ids == plain_loop(policy, tok, prompts, 2, SAMPLED, NOISE)


def test_generation_rules_of_a_chat_model_do_not_reach_the_samples() -> None:
    policy, tok = model(ends=1), tokenizer()
    want = HFEngine(None).generate(policy, tok, PROMPTS, 1, GREEDY, NOISE)
    policy.model.generation_config.repetition_penalty = 5.0
    policy.model.generation_config.no_repeat_ngram_size = 1
    kept = policy.model.generation_config
    assert HFEngine(None).generate(policy, tok, PROMPTS, 1, GREEDY, NOISE) == want
    assert policy.model.generation_config is kept


def test_engines_are_named_by_the_config() -> None:
    assert isinstance(make_engine(make().rollout), NativeEngine)
    assert isinstance(make_engine(make("rollout=hf").rollout), HFEngine)


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("sampling", [SAMPLED, Sampling(0.9, 12, top_p=0.7, top_k=40)])
def test_hf_samples_are_the_native_ones_however_rows_are_batched(kind: str, sampling: Sampling) -> None:
    policy, tok = model(kind), tokenizer()
    native = NativeEngine(None).generate(policy, tok, PROMPTS, 3, sampling, NOISE)
    assert len({len(row) for row in native.completion_ids}) > 3
    for batch_size in (None, 5):
        assert HFEngine(batch_size).generate(policy, tok, PROMPTS, 3, sampling, NOISE) == native


@pytest.mark.parametrize("batch_size", [None, 5])
def test_engines_tell_how_many_completions_have_ended(batch_size: int | None) -> None:
    policy, tok = model(), tokenizer()
    for engine in (NativeEngine(batch_size), HFEngine(batch_size)):
        seen: list[int] = []
        engine.generate(policy, tok, PROMPTS, 3, SAMPLED, NOISE, seen.append)
        assert seen == sorted(set(seen))
        assert seen[-1] == 12
        assert batch_size is None or isinstance(engine, NativeEngine) or {5, 10, 12} <= set(seen)


def test_hf_samples_follow_seed_and_step_and_leave_torchs_randomness_alone() -> None:
    policy, tok = model(), tokenizer()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    out = [
        HFEngine(4).generate(policy, tok, PROMPTS, 2, SAMPLED, noise) for noise in (NOISE, NOISE, Noise(3, "train", 6))
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert out[0] == out[1] != out[2]


# --- choosing one token ---


def test_choose_inverts_the_cumulative_distribution() -> None:
    # p = (0.5, 0.25, 0.25): cumulative 0.5, 0.75, 1; a uniform on a border belongs to the next word
    logits = torch.tensor([[2.0, 1.0, 1.0]], dtype=torch.float64).log().expand(6, 3)
    uniforms = torch.tensor([0.0, 0.4999, 0.5, 0.7499, 0.75, 0.9999], dtype=torch.float64)
    assert choose(logits, Sampling(1.0, 1), uniforms).tolist() == [0, 0, 1, 1, 2, 2]


def test_sampled_frequencies_are_the_softmax_at_the_temperature() -> None:
    n = 50_000
    logits = torch.tensor([1.0, -0.5, 0.3, 2.0, -2.0, 0.0])
    expected = torch.softmax(logits.double() / 0.7, dim=0).numpy()
    uniforms = torch.from_numpy(np.random.default_rng(0).random(n))
    tokens = choose(logits.expand(n, -1), Sampling(0.7, 1), uniforms)
    counts = np.bincount(tokens.numpy(), minlength=6)
    assert stats.chisquare(counts, n * expected).pvalue > 0.01


def test_frequencies_of_whole_rollouts_are_the_policys() -> None:
    policy, tok = model(), tokenizer()
    n = 4000
    out = NativeEngine(1000).generate(policy, tok, [[40, 41, 42]], n, Sampling(0.5, 1), NOISE)
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([[40, 41, 42]])).logits[0, -1]
    probs = torch.softmax(logits / 0.5, dim=0).numpy()
    likely = np.flatnonzero(n * probs >= 5)  # chi-square needs some counts in every cell; the rest is one cell
    counts = np.bincount([row[0] for row in out.completion_ids], minlength=VOCAB)
    seen = np.append(counts[likely], n - counts[likely].sum())
    want = np.append(n * probs[likely], n * (1 - probs[likely].sum()))
    assert len(likely) > 5
    assert stats.chisquare(seen, want).pvalue > 0.01


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(1.0, 1, top_k=2), {0: 2 / 3, 1: 1 / 3}),  # 0.5 : 0.25
        (Sampling(1.0, 1, top_p=0.6), {0: 2 / 3, 1: 1 / 3}),  # 0.5 < 0.6: the next word crosses it and stays
        (Sampling(1.0, 1, top_p=0.5), {0: 1.0}),  # 0.5 is reached by the first word alone
        (Sampling(1.0, 1, top_k=1), {0: 1.0}),
        (Sampling(1.0, 1, top_k=9), {0: 0.5, 1: 0.25, 2: 0.15, 3: 0.1}),  # more than there are: all
        (Sampling(1.0, 1, top_k=3, top_p=0.8), {0: 2 / 3, 1: 1 / 3}),  # of 0.9: 0.556, 0.833 >= 0.8
    ],
)
def test_top_k_and_top_p_keep_the_likeliest_words(sampling: Sampling, kept: dict[int, float]) -> None:
    order = [2, 0, 3, 1]  # the likeliest word is not the first one
    probs = torch.tensor([0.5, 0.25, 0.15, 0.1], dtype=torch.float64)
    logits = torch.empty(4, dtype=torch.float64)
    logits[order] = probs.log()
    n = 3000
    uniforms = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    counts = np.bincount(choose(logits.expand(n, -1), sampling, uniforms).numpy(), minlength=4) / n
    for i, word in enumerate(order):
        assert counts[word] == pytest.approx(kept.get(i, 0.0), abs=1e-3)


def test_the_least_likely_of_many_words_can_be_drawn() -> None:
    # fp32 sums of 10^5 probabilities end near, not at 1: the last words would be drawn too often or never
    logits = torch.zeros(1, 100_000)
    assert choose(logits, Sampling(1.0, 1), torch.tensor([1 - 1e-6], dtype=torch.float64)).item() == 99_999
    assert choose(logits, Sampling(1.0, 1), torch.tensor([0.5 + 1e-7], dtype=torch.float64)).item() == 50_000


def test_noise_is_keyed_by_seed_stream_step_and_row() -> None:
    first = NOISE.uniforms(7, 10)
    assert np.array_equal(first, Noise(3, "train", 5).uniforms(7, 10))
    assert np.array_equal(first[:4], NOISE.uniforms(7, 4))  # a longer answer begins alike
    others = [Noise(4, "train", 5), Noise(3, "dev", 5), Noise(3, "train", 6)]
    assert all(not np.intersect1d(first, other.uniforms(7, 10)).size for other in others)
    assert not np.intersect1d(first, NOISE.uniforms(8, 10)).size
    assert (first >= 0).all()
    assert (first < 1).all()


def test_draws_of_a_step_differ_and_rows_may_be_named() -> None:
    first, again = (Noise(3, "train", 5, draw) for draw in (0, 1))
    assert first == NOISE
    assert first.uniforms(2, 8).tolist() == NOISE.uniforms(2, 8).tolist()
    assert not set(first.uniforms(2, 8)) & set(again.uniforms(2, 8))
    named = Noise(3, "train", 5, rows=(7, 2))
    assert named.uniforms(1, 8).tolist() == NOISE.uniforms(2, 8).tolist()
    assert named.uniforms(0, 4).tolist() == NOISE.uniforms(7, 8).tolist()[:4]
    assert not set(Noise(3, "branch", 5).uniforms(2, 8)) & set(NOISE.uniforms(2, 8))


def test_rows_and_steps_are_no_continuations_of_each_other() -> None:
    rows = np.concatenate([Noise(0, "train", step).uniforms(row, 500) for step in range(4) for row in range(20)])
    assert len(np.unique(rows)) == len(rows)
    assert generator(0, "shuffle", 1, 2).random() != generator(0, "shuffle", 2, 1).random()


# --- how answers end ---


def test_the_end_token_is_inside_the_mask_when_it_is_the_padding_token_too() -> None:
    policy, tok = model(), tokenizer()
    tok.pad_token = tok.eos_token
    end = tok.eos_token_id
    ended = [50, 51, end]
    out = finish([[40, 41], [42]], [[*ended, end, end, end], [60] * 6], 1, tok, policy, Sampling(1.0, 6))
    assert out.completion_ids == [ended, [60] * 6]
    assert out.finished == [True, False]  # the second was cut at the limit
    batch = make_batch(out, [1.0, 0.0], [True, False], torch.device("cpu"))
    assert batch.mask.tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]]
    assert batch.tokens[0, 2:5].tolist() == ended


def test_all_end_tokens_of_a_model_end_an_answer() -> None:
    policy, tok = model(ends=1), tokenizer()
    policy.model.config.eos_token_id = [5, 6]
    ends = {tok.eos_token_id, 5, 6, VOCAB - 1}  # of tokenizer, config, generation config
    assert end_tokens(tok, policy) == ends
    out = finish([[1]] * 4, [[50, end, 51] for end in sorted(ends)], 1, tok, policy, GREEDY)
    assert out.completion_ids == [[50, end] for end in sorted(ends)]
    assert out.finished == [True] * 4


def test_an_answer_that_ends_at_the_limit_is_finished() -> None:
    policy, tok = model(), tokenizer()
    out = finish([[1]] * 2, [[50, 51, tok.eos_token_id], [50, 51, 52]], 1, tok, policy, Sampling(1.0, 3))
    assert out.finished == [True, False]


def test_stop_strings_cut_tokens_after_and_text_before_them() -> None:
    policy, tok = model(), tokenizer()
    text = "7 + 5 = 12 ; #### 12\n\nAnn has more"
    ids = tok(text, add_special_tokens=False)["input_ids"]
    out = finish([[1]], [ids], 1, tok, policy, Sampling(1.0, 40, stop=("\n\n", "more")))
    assert out.texts == ["7 + 5 = 12 ; #### 12"]
    assert out.finished == [True]
    cut = out.completion_ids[0]
    assert ids[: len(cut)] == cut
    assert "\n\n" in tok.decode(cut)
    assert "\n\n" not in tok.decode(cut[:-1])  # the token that completes the string is the last


def test_a_stop_string_after_the_end_token_is_not_seen() -> None:
    policy, tok = model(), tokenizer()
    ids = [*tok("12", add_special_tokens=False)["input_ids"], tok.eos_token_id, *tok("stop")["input_ids"]]
    out = finish([[1]], [ids], 1, tok, policy, Sampling(1.0, 40, stop=("stop",)))
    assert out.texts == ["12"]
    assert out.completion_ids[0][-1] == tok.eos_token_id


@pytest.mark.parametrize("length", [10, 24])
def test_engines_stop_at_the_same_token(length: int) -> None:
    policy, tok = model(ends=1), tokenizer()
    free = NativeEngine(None).generate(policy, tok, PROMPTS, 1, Sampling(0.0, length), NOISE)
    stop = tok.decode(free.completion_ids[0][4:6])  # a string that one answer holds within
    assert stop.strip()
    sampling = Sampling(0.0, length, stop=(stop,))
    native = NativeEngine(None).generate(policy, tok, PROMPTS, 1, sampling, NOISE)
    assert native == HFEngine(None).generate(policy, tok, PROMPTS, 1, sampling, NOISE)
    assert native.finished[0]
    assert len(native.completion_ids[0]) <= 6
    assert native.texts[0] == free.texts[0][: free.texts[0].index(stop)]
    for before, after in zip(free.texts, native.texts, strict=True):
        assert after == before.partition(stop)[0]


# --- memory ---


def test_batches_are_sized_by_the_cache_and_repeat_on_resume() -> None:
    policy = model()
    # a row's cache is 2 tensors · 2 layers · 1 head · 8 wide · 4 bytes · 100 positions = 12,800 bytes, and choosing its
    # token takes 512 words · 34 bytes = 17,408: of 2 GiB, 2^31 / 30,208 = 71,089
    assert NativeEngine(None).rows_at_once(policy, 100) == 71_089
    assert NativeEngine(6).rows_at_once(policy, 100) == 6


def test_generating_leaves_the_policy_as_it_was() -> None:
    policy, tok = model(), tokenizer()
    before = copy.deepcopy(policy.model.state_dict())
    out = NativeEngine(None).generate(policy, tok, PROMPTS, 2, SAMPLED, NOISE)
    assert isinstance(out, Rollouts)
    assert all(torch.equal(before[name], x) for name, x in policy.model.state_dict().items())
    assert all(p.grad is None for p in policy.parameters())
