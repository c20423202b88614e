"""How much of a step's policy gradient is noise: its variance over independent parts of the step's completions.

A step's B completions are split into C equal parts of whole groups, which are independent of each other (but
for what an algorithm normalises over the whole batch). With g_c the gradient of part c, scaled so that the step's
gradient is their mean ḡ, S = Σ |g_c − ḡ|² / (C − 1) estimates the trace of a part's covariance, and S/C that of the
step's: the expected squared distance of ḡ from the gradient that endless completions of endless prompts would give.
|ḡ|² − S/C estimates that gradient's squared length without bias. Both as in McCandlish et al. 2018 (arXiv:1812.06162,
appendix A.1), from C parts in place of two batch sizes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from grpo_bench.policy import layout
from grpo_bench.policy.score import micro_batches
from grpo_bench.types import Batch
from grpo_bench.update import Learner, take

PARTS = 16  # at most: each costs a backward of its own, and 15 degrees of freedom estimate a variance to a third


def parts(groups: int, most: int = PARTS) -> list[range]:
    """Groups 0..groups-1 in the largest number of equal consecutive parts that is no more than ``most``."""
    count = max(n for n in range(1, most + 1) if groups % n == 0)
    size = groups // count
    return [range(start, start + size) for start in range(0, groups, size)]


def spread(gradients: Iterable[Tensor]) -> dict[str, float]:
    """Metrics of the (n,) gradients g_1..g_C of independent parts; {} where there are fewer than two.

    ``policy/grad_variance`` S/C, ``policy/grad_signal`` |ḡ|² − S/C (below 0 where noise hides it) and
    ``policy/grad_noise`` (S/C) / |ḡ|², about 1 where there is nothing but noise. One pass (Welford 1962): two vectors
    are kept, however many parts there are.
    """
    mean, squares, count = None, 0.0, 0
    for gradient in gradients:
        count += 1
        if mean is None:
            mean = gradient.clone()
            continue
        before = gradient - mean
        mean += before / count
        squares += float(before @ (gradient - mean))
    if mean is None or count < 2:
        return {}
    variance, length = squares / (count - 1) / count, float(mean @ mean)
    found = {"policy/grad_variance": variance, "policy/grad_signal": length - variance}
    return found | ({"policy/grad_noise": variance / length} if length > 0 else {})


def gradient_noise(learner: Learner, batch: Batch) -> dict[str, float]:
    """``spread`` of a step's policy gradient (penalties in the loss included, the critic's loss not), at the policy
    that sampled; weights and their gradients are left as they were found: zero."""
    return spread(part_gradients(learner, batch))


def part_gradients(learner: Learner, batch: Batch) -> Iterator[Tensor]:
    """(n,) of each part: the gradient of C times its share of the step's loss, so that the mean is the step's."""
    algo, policy = learner.algo, learner.models.policy
    splits = parts(len(batch.mask) // batch.group_size)
    weights = algo.token_weights(batch.mask) * len(splits)
    without = learner.without_signal(batch)
    for groups in splits:
        rows = torch.arange(groups.start * batch.group_size, groups.stop * batch.group_size, device=batch.mask.device)
        rows = rows[batch.mask[rows].any(1) & ~without[rows]]
        for some in micro_batches(batch, rows, learner.tokens, policy.takes_plans):
            part, some_rows = take(batch, some), layout(batch, some)
            logp, entropy = policy.logp(some_rows, learner.cfg.rollout.temperature, None, algo.needs_entropy)
            if part.old_logp is None:  # one update per rollout: the policy is the one that sampled
                part = replace(part, old_logp=logp.detach())
            loss = algo.token_loss(logp, part, entropy if algo.needs_entropy else None)
            (weights[some] * loss).sum().backward()
        parameters = learner.policy.parameters
        yield torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters])
        learner.policy.adamw.zero_grad(set_to_none=True)
