"""Choosing tokens: exact against the plain inversion in float64, distributions by chi-square, log-probs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from grpo_bench.rollout import Sampling
from grpo_bench.rollout import sampling as module
from grpo_bench.rollout.sampling import choose, draw, restrict

CASES = [
    Sampling(1.0, 1),
    Sampling(0.6, 1),
    Sampling(1.3, 1, top_p=0.8),
    Sampling(1.0, 1, top_k=4),
    Sampling(0.9, 1, top_p=0.7, top_k=40),
]


def by_inversion(logits: Tensor, sampling: Sampling, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """The definition in float64: the first word whose cumulative probability exceeds the uniform number."""
    logp = torch.log_softmax(restrict(logits.double() / sampling.temperature, sampling), dim=-1)
    tokens = torch.searchsorted(logp.exp().cumsum(-1), uniforms[:, None], right=True).clamp(max=logits.shape[-1] - 1)
    return tokens.squeeze(1), logp.gather(1, tokens).squeeze(1)


@pytest.mark.parametrize("sampling", CASES)
@pytest.mark.parametrize("words", [2, 5, 16, 17, 512, 1000, 4099])
def test_blocks_give_the_token_of_the_whole_inversion(sampling: Sampling, words: int) -> None:
    rng = torch.Generator().manual_seed(words)
    logits = torch.randn(400, words, generator=rng, dtype=torch.float64) * 3
    logits[:100] = logits[:100].round()  # ties
    logits[200:300, ::2] = -torch.inf  # words that cannot be
    uniforms = torch.rand(400, generator=rng, dtype=torch.float64)
    tokens, logps = draw(logits, sampling, uniforms)
    expected, expected_logps = by_inversion(logits, sampling, uniforms)
    assert torch.equal(tokens, expected)
    assert torch.allclose(logps, expected_logps, atol=1e-9, rtol=0)


def test_fp32_gives_the_same_tokens_but_for_rounding_and_log_probs_to_1e_4() -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 49_152, generator=rng) * 2
    uniforms = torch.rand(64, generator=rng, dtype=torch.float64)
    tokens, logps = draw(logits, Sampling(0.8, 1), uniforms)
    expected, expected_logps = by_inversion(logits, Sampling(0.8, 1), uniforms)
    assert torch.equal(tokens, expected)
    assert torch.allclose(logps.double(), expected_logps, atol=1e-4, rtol=0)


@pytest.mark.parametrize("words", [5, 300, 512])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_word_of_probability_zero_is_never_drawn(words: int, dtype: torch.dtype) -> None:
    """First and last words are impossible, and the uniform number is as near to 0 and to 1 as it can be."""
    logits = torch.full((6, words), -torch.inf, dtype=dtype)
    logits[:, 1:4] = torch.tensor([0.3, -1.0, 0.1], dtype=dtype)
    logits[3:, 2] = -200.0  # of no weight in fp32
    edge = [0.0, 5e-324, 1 - 2**-53]
    tokens, logps = draw(logits, Sampling(1.0, 1), torch.tensor(edge * 2, dtype=torch.float64))
    assert tokens.tolist() == [1, 1, 3, 1, 1, 3]
    assert logps.isfinite().all()


def test_restricted_words_are_not_drawn_at_the_ends_either() -> None:
    logits = torch.tensor([[0.0, 2.0, 3.0, 1.0]]).expand(2, -1)
    edge = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert choose(logits, Sampling(1.0, 1, top_k=2), edge).tolist() == [1, 2]


def test_log_probs_are_worked_by_hand() -> None:
    # weights 4, 2, 1, 1: log-prob of the first ln 4/8; of the two likeliest ln 4/6; squared (T = 0.5) ln 16/22
    logits = torch.tensor([[4.0, 2.0, 1.0, 1.0]], dtype=torch.float64).log()
    u = torch.zeros(1, dtype=torch.float64)
    assert draw(logits, Sampling(1.0, 1), u)[1].item() == pytest.approx(math.log(4 / 8))
    assert draw(logits, Sampling(1.0, 1, top_k=2), u)[1].item() == pytest.approx(math.log(4 / 6))
    assert draw(logits, Sampling(0.5, 1), u)[1].item() == pytest.approx(math.log(16 / 22))
    token, logp = draw(logits, Sampling(0.0, 1), u)
    assert (token.item(), logp.item()) == (0, pytest.approx(math.log(4 / 8)))  # greedy: at temperature 1


@pytest.mark.parametrize("sampling", CASES)
@pytest.mark.parametrize("words", [5, 512, 49_152])
def test_frequencies_are_the_distribution(sampling: Sampling, words: int) -> None:
    n = 20_000 if words < 1000 else 1_000
    rng = torch.Generator().manual_seed(1)
    logits = torch.randn(words, generator=rng) * 4
    uniforms = torch.from_numpy(np.random.default_rng(words).random(n))
    tokens = torch.cat([choose(logits.expand(len(u), -1), sampling, u) for u in uniforms.split(250)])
    probs = torch.softmax(restrict(logits[None].double() / sampling.temperature, sampling)[0], dim=-1).numpy()
    counts = np.bincount(tokens.numpy(), minlength=words)
    assert (counts[probs == 0] == 0).all()
    likely = np.flatnonzero(n * probs >= 5)  # chi-square needs some counts in every cell; the rest is one cell
    seen = np.append(counts[likely], n - counts[likely].sum())
    want = np.append(n * probs[likely], n * max(1 - probs[likely].sum(), 0.0))
    seen, want = seen[want > 1e-6], want[want > 1e-6]
    assert len(seen) > 1
    assert stats.chisquare(seen, want * seen.sum() / want.sum()).pvalue > 0.01


def test_rows_may_be_worked_on_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(2)
    logits, uniforms = torch.randn(7, 100, generator=rng), torch.rand(7, generator=rng, dtype=torch.float64)
    whole = draw(logits, CASES[0], uniforms)
    monkeypatch.setattr(module, "CACHED_LOGITS", 200)
    parts = draw(logits, CASES[0], uniforms)
    assert torch.equal(whole[0], parts[0])
    assert torch.equal(whole[1], parts[1])
