"""How much of a step's policy gradient is noise: its variance over independent parts of the step's completions.

A step's N groups are split into C parts of whole groups, which are independent of each other (but for what an algorithm
normalises over the whole batch); n_c groups each, alike to within one. With g_c the gradient of part c, scaled so that
the step's gradient is their mean by size ḡ = Σ n_c g_c / N, V = Σ n_c |g_c − ḡ|² / (N (C − 1)) estimates the trace of
the covariance of ḡ: its expected squared distance from the gradient that endless completions of endless prompts would
give. |ḡ|² − V estimates that gradient's squared length without bias. Both as in McCandlish et al. 2018
(arXiv:1812.06162, appendix A.1), from C parts in place of two batch sizes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from grpo_bench.policy import layout
from grpo_bench.policy.score import micro_batches
from grpo_bench.types import Batch
from grpo_bench.update import Learner, take

PARTS = 16  # at most: each costs a backward of its own, and 15 degrees of freedom estimate a variance to a third


def parts(groups: int, most: int = PARTS) -> list[range]:
    """Groups 0..groups-1 in ``most`` consecutive parts (or as many as there are groups), sizes alike to within one."""
    count = min(groups, most)
    bounds = [i * groups // count for i in range(count + 1)]
    return [range(start, stop) for start, stop in itertools.pairwise(bounds)]


def spread(gradients: Iterable[Tensor], sizes: Sequence[int]) -> dict[str, float]:
    """Metrics of the (n,) gradients g_1..g_C of independent parts of ``sizes``; {} where there are fewer than two.

    ``policy/grad_variance`` V, ``policy/grad_signal`` |ḡ|² − V (below 0 where noise hides it) and
    ``policy/grad_noise`` V / |ḡ|², about 1 where there is nothing but noise. One pass (West 1979): two vectors are
    kept, however many parts there are. Raises ValueError where there are not as many sizes as gradients.
    """
    mean, squares, total = None, 0.0, 0
    for gradient, size in zip(gradients, sizes, strict=True):
        total += size
        if mean is None:
            mean = gradient.clone()
            continue
        before = gradient - mean
        mean += before * (size / total)
        squares += size * float(before @ (gradient - mean))
    if mean is None or len(sizes) < 2:
        return {}
    variance, length = squares / (len(sizes) - 1) / total, float(mean @ mean)
    found = {"policy/grad_variance": variance, "policy/grad_signal": length - variance}
    return found | ({"policy/grad_noise": variance / length} if length > 0 else {})


def gradient_noise(learner: Learner, batch: Batch) -> dict[str, float]:
    """``spread`` of a step's policy gradient (penalties in the loss included, the critic's loss not), at the policy
    that sampled; weights and their gradients are left as they were found: zero."""
    return spread(part_gradients(learner, batch), [len(part) for part in parts(_groups(batch))])


def _groups(batch: Batch) -> int:
    return len(batch.mask) // batch.group_size


def part_gradients(learner: Learner, batch: Batch) -> Iterator[Tensor]:
    """(n,) of each part: the gradient of N/n_c times its share of the step's loss; their mean by size is the step's."""
    algo, policy = learner.algo, learner.models.policy
    weights = algo.token_weights(batch.mask) * _groups(batch)
    without = learner.without_signal(batch)
    for groups in parts(_groups(batch)):
        rows = torch.arange(groups.start * batch.group_size, groups.stop * batch.group_size, device=batch.mask.device)
        rows = rows[batch.mask[rows].any(1) & ~without[rows]]
        for some in micro_batches(batch, rows, learner.tokens, policy.takes_plans):
            part, some_rows = take(batch, some), layout(batch, some)
            logp, entropy = policy.logp(some_rows, learner.cfg.rollout.temperature, None, algo.needs_entropy)
            if part.old_logp is None:  # one update per rollout: the policy is the one that sampled
                part = replace(part, old_logp=logp.detach())
            loss = algo.token_loss(logp, part, entropy if algo.needs_entropy else None)
            (weights[some] * loss).sum().div(len(groups)).backward()
        parameters = learner.policy.parameters
        yield torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters])
        learner.policy.adamw.zero_grad(set_to_none=True)
