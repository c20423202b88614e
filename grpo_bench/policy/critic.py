"""The critic: values of states, as a network of its own or as a head on the policy's trunk."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from grpo_bench.policy.layout import Layout, spread
from grpo_bench.policy.network import Policy


class Critic(nn.Module):
    """V_t of the prompt and the tokens before t: a zero-initialised linear head on a trunk.

    ``trunk`` is a network of its own, or None: the head then reads the policy's states (``model.critic=shared``).
    """

    def __init__(self, hidden_size: int, trunk: Policy | None, device: torch.device) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(hidden_size, 1, device=device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def values(self, rows: Layout, states: Tensor | None = None) -> Tensor:
        """(b,T); ``states`` are the policy's, for a shared trunk."""
        if self.trunk is not None:
            states = self.trunk.states(rows)
        assert states is not None
        return spread(self.head(states.to(self.head.weight.dtype)).squeeze(-1), rows.mask)
