"""Bytes of a run's model states, counted tensor by tensor: weights, gradients, AdamW's moments, copies of weights.

Model states are what ZeRO calls so (Rajbhandari et al. 2020, arXiv:1910.02054, §3.1): what a network needs whatever is
computed with it. Activations, logits and the sampler's cache are none, nor are buffers (rotary frequencies); a reward
model's weights stand with its own cost.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from grpo_bench.policy import Models
    from grpo_bench.rollout import Engine
    from grpo_bench.update import Learner


def model_states(models: Models, learner: Learner, engine: Engine) -> dict[str, int]:
    """Bytes by kind, 0 for what a run does not have; memory that two share counts once, with the first of them.

    ``policy``, ``critic`` (its head alone on a shared trunk), ``reference`` (0 where it is the policy without its
    adapters): weights. ``gradients``: of all that was trained, as an update holds them. ``optimizer``: AdamW's moments
    and counts. ``sampler``: weights that the engine keeps beside the policy's between rollouts. The same after an
    interruption: it is read off what a checkpoint restores, and a gradient is as large as its weight.
    """
    seen: set[tuple[str, int]] = set()

    def weights(network: nn.Module | None) -> Iterable[Tensor]:
        return () if network is None else network.parameters()

    optimisers = [one.adamw for one in (learner.policy, learner.critic) if one is not None]
    # moments stand for those parameters alone that ever had a gradient
    trained = [parameter for adamw in optimisers for parameter, state in adamw.state.items() if state]
    moments = [x for adamw in optimisers for state in adamw.state.values() for x in state.values()]
    return {
        "policy": _bytes(weights(models.policy), seen),
        "critic": _bytes(weights(models.critic), seen),
        "reference": _bytes(weights(models.reference), seen),
        "gradients": _bytes(trained, set()),
        "optimizer": _bytes((x for x in moments if isinstance(x, Tensor)), seen),
        "sampler": _bytes(engine.kept_weights(models.policy), seen),
    }


def _bytes(tensors: Iterable[Tensor], seen: set[tuple[str, int]]) -> int:
    """Bytes of tensors whose memory (device and address) is not in ``seen``, which it joins."""
    total = 0
    for x in tensors:
        place = str(x.device), x.data_ptr()
        if place not in seen:
            seen.add(place)
            total += x.numel() * x.element_size()
    return total
