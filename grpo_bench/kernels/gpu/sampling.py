"""One token for each row from its logits: see ``kernels.sampling.draw``."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096  # words at once
WARPS = 8


@triton.jit
def _below(x):
    """The next smaller number than a positive one in double."""
    return (x.to(tl.int64, bitcast=True) - 1).to(tl.float64, bitcast=True)


@triton.jit
def _weights(x, start, word, words, divisor, top):
    a = tl.load(x + start + word, mask=start + word < words, other=-float("inf")).to(tl.float32) / divisor
    return tl.exp(a - top)


@triton.jit
def _draw(
    logits, stride, uniforms, tokens, logps, words, divisor, GREEDY: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums of a block of words are in fp32, of blocks, and of the words of the block that is chosen, in double."""
    row = tl.program_id(0).to(tl.int64)
    x = logits + row * stride
    word = tl.arange(0, BLOCK)
    top, best = -float("inf"), 0
    for start in range(0, words, BLOCK):
        a = tl.load(x + start + word, mask=start + word < words, other=-float("inf")).to(tl.float32) / divisor
        here, where = tl.max(a, axis=0, return_indices=True)
        if GREEDY:
            best = tl.where(here > top, start + where, best)
        top = tl.maximum(top, here)
    total = tl.zeros((1,), tl.float64)
    for start in range(0, words, BLOCK):
        total += tl.sum(_weights(x, start, word, words, divisor, top), axis=0).to(tl.float64)
    if GREEDY:
        token = best
    else:
        target = tl.minimum(tl.load(uniforms + row).to(tl.float64) * total, _below(total))
        before, so_far = tl.zeros((1,), tl.float64), tl.zeros((1,), tl.float64)
        block = tl.zeros((1,), tl.int32)
        for start in range(0, words, BLOCK):
            after = so_far + tl.sum(_weights(x, start, word, words, divisor, top), axis=0).to(tl.float64)
            chosen = (so_far <= target) & (after > target)
            before = tl.where(chosen, so_far, before)
            block = tl.where(chosen, start, block)
            so_far = after
        start = tl.sum(block, axis=0)
        weights = _weights(x, start, word, words, divisor, top).to(tl.float64)
        inner = tl.cumsum(weights, axis=0)
        rest = tl.minimum(target - before, _below(tl.max(inner, axis=0)))
        # sums of a parallel scan may differ in their last bit where the weight between them is 0
        token = start + tl.min(tl.where((inner > rest) & (weights > 0.0), word, BLOCK - 1), axis=0)
        token = tl.minimum(token, words - 1)
    logp = tl.load(x + token).to(tl.float32) / divisor - top
    tl.store(tokens + row, token)
    tl.store(logps + row, (logp.to(tl.float64) - tl.log(tl.sum(total, axis=0))).to(tl.float32))


def draw(logits: Tensor, temperature: float, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """See ``kernels.sampling.draw``; the logits may also be in bfloat16."""
    if logits.stride(-1) != 1:
        logits = logits.contiguous()
    rows, words = logits.shape
    tokens = torch.empty(rows, dtype=torch.long, device=logits.device)
    logps = torch.empty(rows, dtype=torch.float32, device=logits.device)
    if rows:
        block = min(BLOCK, triton.next_power_of_2(words))
        _draw[(rows,)](
            logits, logits.stride(0), uniforms.to(torch.float64).contiguous(), tokens, logps, words,
            temperature or 1.0, temperature == 0, block, num_warps=WARPS,
        )  # fmt: skip
    return tokens, logps
