"""Choosing one token per row from its logits: exact, with one uniform number per token, and with its log-prob."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from grpo_bench import kernels
from grpo_bench.kernels import sampling as compiled
from grpo_bench.rollout import Sampling

CACHED_LOGITS = 2**18  # per pass on a CPU: rows of a large vocabulary are worked on while they are in its cache


def choose(logits: Tensor, sampling: Sampling, uniforms: Tensor) -> Tensor:
    """(b,V) logits and (b,) uniforms in [0,1) -> (b,) tokens; see ``draw``."""
    return draw(logits, sampling, uniforms)[0]


def draw(logits: Tensor, sampling: Sampling, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """(b,V) logits and (b,) float64 uniforms in [0,1) -> (b,) tokens and (b,) log-probs of them.

    A token is the first word whose cumulative probability exceeds the uniform number; a word of probability 0 is never
    chosen. The log-prob is that of the distribution drawn from: at the temperature, and under ``top_k`` and ``top_p``
    that of the words which they leave. Greedy (temperature 0): the likeliest word, its log-prob at temperature 1.
    """
    whole = sampling.top_p >= 1 and (sampling.top_k is None or sampling.top_k >= logits.shape[-1])
    if whole and kernels.take(logits):
        return compiled.draw(logits, sampling.temperature, uniforms)
    if logits.dtype in (torch.bfloat16, torch.float16):  # too coarse to sum over a vocabulary
        logits = logits.float()
    size = max(CACHED_LOGITS // logits.shape[-1], 1)
    if logits.device.type != "cpu" or len(logits) <= size:
        return _draw(logits, sampling, uniforms)
    parts = [_draw(x, sampling, u) for x, u in zip(logits.split(size), uniforms.split(size), strict=True)]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def _draw(logits: Tensor, sampling: Sampling, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    if sampling.temperature == 0:
        best, tokens = logits.max(dim=-1, keepdim=True)
        return tokens.squeeze(-1), -(logits - best).exp_().sum(-1).log()
    if sampling.temperature != 1:
        logits = logits / sampling.temperature
    logits = restrict(logits, sampling)
    rows, words = logits.shape
    width = 1 << max(round(math.log2(words) / 2), 4)  # two short sums instead of one long: blocks, then words of one
    blocks = -(-words // width)
    top = logits.amax(-1, keepdim=True)
    if blocks * width == words:
        weights = (logits - top).exp_()
    else:
        weights = logits.new_zeros(rows, blocks * width)
        torch.sub(logits, top, out=weights[:, :words]).exp_()
    parts = weights.view(rows, blocks, width)
    cumulative = parts.sum(-1).double().cumsum(-1)  # in fp64: fp32 sums over 10^5 words lose the tail
    total = cumulative[:, -1:].contiguous()
    target = _below(uniforms[:, None] * total, total)
    block = torch.searchsorted(cumulative, target, right=True).clamp(max=blocks - 1)
    before = torch.where(block > 0, cumulative.gather(1, (block - 1).clamp(min=0)), 0.0)
    inner = parts.gather(1, block[:, :, None].expand(-1, -1, width)).squeeze(1).double().cumsum(-1)
    target = _below(target - before, inner[:, -1:])
    tokens = (block * width + torch.searchsorted(inner, target, right=True)).clamp(max=words - 1)
    logps = logits.gather(1, tokens) - top - total.log()
    return tokens.squeeze(-1), logps.squeeze(-1).to(logits.dtype)


def _below(target: Tensor, total: Tensor) -> Tensor:
    """``target``, less than ``total`` also where it was rounded up to it: else no word, or an impossible one."""
    return torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))


def restrict(logits: Tensor, sampling: Sampling) -> Tensor:
    """(b,V) logits with −inf at the words that ``top_k`` and then ``top_p`` leave out."""
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        smallest = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if sampling.top_p < 1:
        ordered, index = logits.sort(dim=-1, descending=True)
        probs = torch.softmax(ordered, dim=-1)
        outside = (probs.cumsum(-1) - probs) >= sampling.top_p  # the word that crosses top_p stays
        logits = logits.masked_fill(torch.zeros_like(outside).scatter(-1, index, outside), -torch.inf)
    return logits
