"""The softmax over the vocabulary, forward and backward, without autograd; see the package for where it is used."""

from __future__ import annotations

import torch
from torch import Tensor

from grpo_bench.kernels import NAMES, _call, _threads, gpu


def soften(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(n,V) logits, dense, become probabilities at ``temperature``, in place -> (n,) log-probs of ``targets`` and
    entropies, fp32. Rows with a NaN or an infinite largest logit become NaN."""
    if gpu.serves(logits):
        from grpo_bench.kernels.gpu import head as on_gpu

        return on_gpu.soften(logits, targets, temperature)
    rows, words = logits.shape
    targets = targets.to(torch.long).contiguous()
    if rows and not 0 <= int(targets.min()) <= int(targets.max()) < words:
        raise IndexError(f"a target of {int(targets.min())} to {int(targets.max())} is not one of {words} words")
    logps, entropies = torch.empty(rows), torch.empty(rows)
    threads = _threads(logits.numel())
    scratch = torch.empty(threads, words)
    _call(
        f"soften_{NAMES[logits.dtype]}",
        logits.data_ptr(), rows, words, targets.data_ptr(), temperature, logps.data_ptr(),
        entropies.data_ptr(), scratch.data_ptr(), threads,
    )  # fmt: skip
    return logps, entropies


def logp_gradient(probs: Tensor, targets: Tensor, scales: Tensor) -> None:
    """(n,V) probabilities, dense, become ``scales`` (n,) times (1 at the target - p), in place.

    ``targets`` are those that ``soften`` took.
    """
    if gpu.serves(probs):
        from grpo_bench.kernels.gpu import head as on_gpu

        return on_gpu.logp_gradient(probs, targets, scales)
    scales, targets = scales.float().contiguous(), targets.to(torch.long).contiguous()
    _call(
        f"logp_gradient_{NAMES[probs.dtype]}",
        probs.data_ptr(), *probs.shape, targets.data_ptr(), scales.data_ptr(), _threads(probs.numel()),
    )  # fmt: skip
