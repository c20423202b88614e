"""The model that is sampled from: the trained one itself, or a copy of it in a lower precision."""

from __future__ import annotations

import copy

import torch
from torch import nn

from grpo_bench.policy import Policy


class SamplingCopy:
    """A policy's model with its parameters in ``dtype``, adapters included; ``refresh`` takes over what was trained.

    Costs the parameters once more, in ``dtype``. Buffers (rotary frequencies) keep their precision.
    """

    def __init__(self, policy: Policy, dtype: torch.dtype) -> None:
        self._pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
        memo: dict[int, nn.Parameter] = {}  # deepcopy takes these instead of copying in full precision first
        for master in policy.model.parameters():
            low = dtype if master.is_floating_point() else master.dtype
            memo[id(master)] = nn.Parameter(master.detach().to(low, copy=True), requires_grad=False)
            self._pairs.append((master, memo[id(master)]))
        self.policy = Policy(copy.deepcopy(policy.model, memo).eval(), dtype)

    @torch.no_grad()
    def refresh(self) -> None:
        """In place: what was captured of the copy stays valid."""
        for master, low in self._pairs:
            low.copy_(master)


def needs_copy(policy: Policy, dtype: torch.dtype) -> bool:
    """Whether ``dtype`` is lower than the precision of the weights; a higher one would add nothing."""
    weights = next(policy.model.parameters()).dtype
    return torch.finfo(dtype).bits < 32 and torch.finfo(dtype).bits < torch.finfo(weights).bits
