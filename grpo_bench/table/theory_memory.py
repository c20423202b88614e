"""What a run's own configuration should hold in memory beside its model states: activations, logits, keys and values.

Activations: 34 bytes per token, layer and hidden unit in 16 bits with an attention that keeps no scores (Korthikanti et
al. 2022, arXiv:2205.05198, §4.1), twice that in 32. Logits: at sampled tokens only, in the products' precision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from grpo_bench.cost import KEPT_ELEMENTS
from grpo_bench.records import Run
from grpo_bench.table.theory import shape_of

TOKEN_BYTES = 34  # per layer and hidden unit, in 16 bits
CHECKPOINT_BYTES = 2  # the same where activations are computed again: a layer's input
HF_ROWS = 64  # that transformers' generate is given at once where the configuration does not say


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes: of a micro-batch's ``activations`` and ``logits``, of the ``cache`` of the rows sampled together."""

    activations: float
    logits: float
    cache: float

    @property
    def largest(self) -> float:
        """What is held at once: sampling and updating take turns."""
        return max(self.activations + self.logits, self.cache)


def memory_by_theory(run: Run, prompt: float) -> Memory | None:
    """At a mean prompt of ``prompt`` tokens and the recorded mean answer; None where the model's shape, or how many
    tokens a micro-batch had, is not known.

    Rows are packed, a group's prompt once in a micro-batch. A critic of its own follows the policy and takes no more
    room, but with one update per rollout its values are kept, with all that they were computed from, for the whole
    step.
    """
    config, cost = run.config, run.cost
    model, rollout = config.get("model") or {}, config.get("rollout") or {}
    limit = cost.get("micro_batch_tokens") or config.get("micro_batch_tokens")
    shape = shape_of(model)
    longest = (config.get("task") or {}).get("max_new_tokens")
    if not limit or shape is None or not longest or not cost.get("samples") or not cost.get("steps"):
        return None
    hidden, layers, heads, kv_heads, _, vocabulary = shape
    width = 2 if model.get("dtype") == "bfloat16" else 4

    rows = (cost["samples"] - (cost.get("extra_samples") or 0)) / cost["steps"]
    answer = cost["generated_tokens"] / cost["samples"]
    group = float(config.get("group_size") or 1)
    step = rows * (answer + prompt / group)
    updates = float(config.get("epochs") or 1) * float(config.get("minibatches") or 1)
    tokens = min(step / float(config.get("minibatches") or 1), max(float(limit), prompt + answer))
    sampled = tokens * answer / (answer + prompt / group)

    def activations(of: float) -> float:
        """Bytes of a forward of so many tokens, kept for its backward."""
        if model.get("gradient_checkpointing"):
            return of * hidden * (CHECKPOINT_BYTES * layers + TOKEN_BYTES) * width / 2
        return of * hidden * layers * TOKEN_BYTES * width / 2

    separate = model.get("critic") == "separate" and (cost.get("parameters") or {}).get("critic")
    return Memory(
        activations(tokens) + (activations(step) if separate and updates == 1 else 0.0),
        width * min(sampled * vocabulary, cost.get("kept_probabilities") or KEPT_ELEMENTS * 4 // width),
        _cache(rows, prompt, group, float(longest), rollout) * 2 * layers * kv_heads * (hidden / heads) * _width(run),
    )


def _cache(rows: float, prompt: float, group: float, longest: float, rollout: Mapping[str, Any]) -> float:
    """Tokens that the cache has room for; all rows of a step at once where the configuration does not say."""
    size = rollout.get("batch_size")
    if rollout.get("engine") == "hf":  # repeats a prompt for every member of its group
        return min(float(size or HF_ROWS), rows) * (prompt + longest)
    once = min(float(size or rows), rows)
    return once * longest + max(once / group, 1.0) * prompt


def _width(run: Run) -> int:
    """Bytes of a number that is sampled with."""
    dtype = (run.config.get("rollout") or {}).get("dtype") or (run.config.get("model") or {}).get("dtype")
    return 2 if dtype in ("bfloat16", "float16") else 4
