"""G completions per problem, by engine.

An engine is a class with one method; which one is ``rollout=``. vLLM or another server would be a third.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from grpo_bench.rollout.noise import Noise
from grpo_bench.types import Rollouts

if TYPE_CHECKING:
    from grpo_bench.config import RolloutConfig
    from grpo_bench.policy import Policy


Progress = Callable[[int], None]  # called with the number of completions that are finished


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen; ``temperature: 0`` is greedy. A completion also ends where a stop string appears.

    ``limits`` has one entry per prompt, each at most ``max_new_tokens``: prompts that hold the beginning of an answer
    leave less of it.
    """

    temperature: float
    max_new_tokens: int
    top_p: float = 1.0
    top_k: int | None = None
    stop: tuple[str, ...] = ()
    limits: tuple[int, ...] | None = None

    def limit(self, prompt: int) -> int:
        """Most tokens of a completion of the ``prompt``-th prompt."""
        return self.max_new_tokens if self.limits is None else self.limits[prompt]


class Engine(Protocol):
    def generate(
        self,
        policy: Policy,
        tokenizer: Any,
        prompt_ids: list[list[int]],
        group_size: int,
        sampling: Sampling,
        noise: Noise,
        progress: Progress | None = None,
    ) -> Rollouts:
        """``group_size`` completions of each prompt; rows of a prompt stand together.

        Every engine draws row i's token t with the same uniform number, so that engines and batch sizes agree.
        """


def make_engine(cfg: RolloutConfig) -> Engine:
    """The engine that ``rollout.engine`` names."""
    if cfg.engine == "hf":
        from grpo_bench.rollout.hf import HFEngine

        return HFEngine(cfg.batch_size)
    from grpo_bench.rollout.native import NativeEngine

    return NativeEngine(cfg.batch_size)


__all__ = ["Engine", "Noise", "Progress", "Sampling", "make_engine"]
