"""What a PPO step should cost beside a GRPO step, in FLOPs."""

from __future__ import annotations

from grpo_bench.cost import Size
from grpo_bench.speed.floors import Shape, step_flops


def dense_ratio(
    actor: float, critic: float, *, shared: bool = False, old: bool = False, reference: bool = False
) -> float:
    """PPO's FLOPs over GRPO's at equal sequences, one epoch, from the parameters that multiply.

    Per token an actor costs 2 to sample and 6 to train, 2 more for old and for reference log-probs; a critic 2 for
    values and 6 to train. ``shared``: the value head is on the actor's trunk, so that all it adds is the trunk's
    forward for values, and nothing where the old log-probs are scored in the same forward.
    """
    passes = 8 + 2 * old + 2 * reference
    extra = (0 if old else 2) if shared else 8
    return (passes * actor + extra * critic) / (passes * actor)


def ratio_of(size: Size, *, shared: bool) -> float:
    """``dense_ratio`` of a model and a critic of its trunk, without old and reference passes: one update, no KL."""
    return dense_ratio(size.trunk + size.head, size.trunk, shared=shared)


def ratio_as_run(shape: Shape, *, shared: bool) -> float:
    """The same with attention counted, a prompt once per group, and logits at sampled tokens only."""
    return step_flops(shape, "shared" if shared else "separate") / step_flops(shape)
