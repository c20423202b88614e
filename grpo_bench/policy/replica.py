"""The same weights under modules of their own: what one lane computes with beside another.

A module holds what its forward pass leaves for the next layer, and a weight has one gradient; threads that compute at
the same time need each their own. The weights themselves lie where the original's lie, and nothing is copied.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

from torch import Tensor, nn

from grpo_bench.policy.critic import Critic
from grpo_bench.policy.load import Models
from grpo_bench.policy.network import Policy

Pairs = list[tuple[nn.Parameter, nn.Parameter]]


@dataclass(frozen=True)
class Lane:
    """The networks of one lane. ``pairs``: each weight of the originals and what stands for it here; of the originals'
    own lane there are none."""

    policy: Policy
    critic: Critic | None
    pairs: Pairs = field(default_factory=list)

    def networks(self) -> list[Policy]:
        """Its policy and, where the critic has a trunk of its own, that."""
        trunk = None if self.critic is None else self.critic.trunk
        return [self.policy] if trunk is None else [self.policy, trunk]

    def holds(self) -> bool:
        """Whether weights still lie where they lay, and the same of them are trained."""
        return all(p.data_ptr() == q.data_ptr() and p.requires_grad == q.requires_grad for p, q in self.pairs)

    def gradients(self) -> dict[nn.Parameter, Tensor]:
        """Its gradients, by the originals' weights; it lets them go."""
        found = {original: own.grad for original, own in self.pairs if own.grad is not None}
        self.forget()
        return found

    def forget(self) -> None:
        """Let its gradients go."""
        for _, own in self.pairs:
            own.grad = None

    def release(self) -> None:
        """See ``Policy.release``."""
        for network in self.networks():
            network.release()


def remembers(model: nn.Module) -> bool:
    """Whether a forward pass changes the model, or may, as in code that came with it: then it matters who computes."""
    for module in model.modules():
        kinds = str(getattr(module, "rope_type", ""))  # one, or one of each kind of layer
        if type(module).__module__.startswith("transformers_modules.") or "dynamic" in kinds or "longrope" in kinds:
            return True
    return False


def replica(models: Models) -> Lane:
    """Another lane's networks on the weights of ``models``."""
    policy, pairs = _policy(models.policy)
    if models.critic is None:
        return Lane(policy, None, pairs)
    critic, more = _critic(models.critic)
    return Lane(policy, critic, pairs + more)


def _policy(policy: Policy) -> tuple[Policy, Pairs]:
    pairs = [(p, _on(p)) for p in policy.model.parameters()]
    memo: dict[int, object] = {id(p): own for p, own in pairs}  # deepcopy takes these instead of copying
    memo |= {id(buffer): buffer for buffer in policy.model.buffers()}
    model = copy.deepcopy(policy.model, memo)
    return Policy(model, policy.dtype, peft_model=policy.peft_model[0], like=policy), pairs


def _critic(critic: Critic) -> tuple[Critic, Pairs]:
    trunk, pairs = (None, []) if critic.trunk is None else _policy(critic.trunk)
    heads = [(p, _on(p)) for p in critic.head.parameters()]
    memo: dict[int, object] = {id(p): own for p, own in heads}
    if trunk is not None:
        memo[id(critic.trunk)] = trunk
    return copy.deepcopy(critic, memo), pairs + heads


def _on(p: nn.Parameter) -> nn.Parameter:
    """A parameter in the same place."""
    return nn.Parameter(p.detach(), requires_grad=p.requires_grad)
