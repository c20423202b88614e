"""G completions per problem, by engine.

An engine is a class with one method; which one is ``rollout=``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from grpo_bench.rollout.noise import Noise
from grpo_bench.types import Rollouts

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_bench.config import RolloutConfig
    from grpo_bench.policy import Policy


Progress = Callable[[int], None]  # called with the number of completions that are finished
Ended = Callable[[int, str, bool], None]  # called once per row: its number, text, and whether it ended by itself


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen; ``temperature: 0`` is greedy. A completion also ends where a stop string appears.

    ``limits`` has one entry per prompt, each at most ``max_new_tokens``: prompts that hold the beginning of an answer
    leave less of it. ``ignore_end``: neither end tokens nor stop strings are looked at; every completion is as long as
    its limit and none is finished, as measurements of throughput need it.
    """

    temperature: float
    max_new_tokens: int
    top_p: float = 1.0
    top_k: int | None = None
    stop: tuple[str, ...] = ()
    limits: tuple[int, ...] | None = None
    ignore_end: bool = False

    def limit(self, prompt: int) -> int:
        """Most tokens of a completion of the ``prompt``-th prompt."""
        return self.max_new_tokens if self.limits is None else self.limits[prompt]


class Engine(Protocol):
    """Where completions come from.

    An engine is given the policy at every call and takes its weights over itself, in whatever form it samples from;
    ``Rollouts.logps`` are its own log-probs of what it drew. So a server with another copy of the weights (vLLM) fits
    in, and truncated importance sampling has the probabilities to weigh its samples by.
    """

    def generate(
        self,
        policy: Policy,
        tokenizer: Any,
        prompt_ids: list[list[int]],
        group_size: int,
        sampling: Sampling,
        noise: Noise,
        progress: Progress | None = None,
        ended: Ended | None = None,
    ) -> Rollouts:
        """``group_size`` completions of each prompt; rows of a prompt stand together.

        Every engine draws row i's token t with the same uniform number, so that engines and batch sizes agree. It
        calls ``ended`` as soon as it knows of a completion, for each row once, in any order: what judges completions
        can begin while others are sampled.
        """

    def kept_weights(self, policy: Policy) -> list[Tensor]:
        """Weights that it keeps between rollouts beside the policy's own; [] where it samples from these."""


def make_engine(cfg: RolloutConfig) -> Engine:
    """The engine that ``rollout.engine`` names."""
    if cfg.engine == "hf":
        from grpo_bench.rollout.hf import HFEngine

        return HFEngine(cfg.batch_size)
    import torch

    from grpo_bench.rollout.native import NativeEngine

    dtype = None if cfg.dtype is None else getattr(torch, cfg.dtype)
    return NativeEngine(cfg.batch_size, dtype, cfg.cuda_graph)


__all__ = ["Ended", "Engine", "Noise", "Progress", "Sampling", "make_engine"]
