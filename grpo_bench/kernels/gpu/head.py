"""Softmax over a vocabulary and its gradient, in place: see ``kernels.head``."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096  # words at once
WARPS = 8


@triton.jit
def _soften(logits, targets, logps, entropies, words, divisor, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    x = logits + row * words
    word = tl.arange(0, BLOCK)
    # with m the largest so far: total = Σ e^(x−m), mean = Σ (x−m)·e^(x−m)
    top, total, mean = -float("inf"), 0.0, 0.0
    for start in range(0, words, BLOCK):
        a = tl.load(x + start + word, mask=start + word < words, other=-float("inf")).to(tl.float32) / divisor
        higher = tl.maximum(top, tl.max(a, axis=0))
        less = tl.where(top == -float("inf"), 0.0, top - higher)
        factor = tl.where(top == -float("inf"), 0.0, tl.exp(less))
        a = a - tl.where(higher == -float("inf"), 0.0, higher)  # of a block without a possible word
        e = tl.exp(a)
        mean = factor * (mean + less * total) + tl.sum(tl.where(e > 0.0, a * e, e), axis=0)
        total = factor * total + tl.sum(e, axis=0)
        top = higher
    target = tl.load(targets + row)
    known = (target >= 0) & (target < words)  # a loss that is not a number is seen; an address that is not is not
    own = tl.load(x + target, mask=known, other=float("nan")).to(tl.float32) / divisor
    tl.store(logps + row, own - top - tl.log(total))
    tl.store(entropies + row, tl.log(total) - mean / total)
    scale = 1.0 / total
    tl.debug_barrier()  # the target's logit is read before probabilities stand there
    for start in range(0, words, BLOCK):
        inside = start + word < words
        a = tl.load(x + start + word, mask=inside, other=-float("inf")).to(tl.float32) / divisor
        tl.store(x + start + word, (tl.exp(a - top) * scale).to(logits.dtype.element_ty), mask=inside)


def soften(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """See ``kernels.head``; the log-prob of a target beyond the words is NaN: to raise would wait for the GPU."""
    assert logits.is_contiguous()
    rows, words = logits.shape
    logps = torch.empty(rows, dtype=torch.float32, device=logits.device)
    entropies = torch.empty_like(logps)
    if rows:
        block = min(BLOCK, triton.next_power_of_2(words))
        _soften[(rows,)](logits, targets.contiguous(), logps, entropies, words, temperature, block, num_warps=WARPS)
    return logps, entropies


@triton.jit
def _logp_gradient(probs, targets, scales, words, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    word = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    target, scale = tl.load(targets + row), tl.load(scales + row)
    at = probs + row * words + word
    p = tl.load(at, mask=word < words, other=0.0).to(tl.float32)
    tl.store(at, (tl.where(word == target, scale, 0.0) - scale * p).to(probs.dtype.element_ty), mask=word < words)


def logp_gradient(probs: Tensor, targets: Tensor, scales: Tensor) -> None:
    """See ``kernels.head``."""
    assert probs.is_contiguous()
    rows, words = probs.shape
    if rows:
        block = min(BLOCK, triton.next_power_of_2(words))
        grid = (rows, triton.cdiv(words, block))
        _logp_gradient[grid](probs, targets.contiguous(), scales.float().contiguous(), words, block, num_warps=WARPS)
