"""What a run's own configuration should cost by arithmetic: FLOPs of its phases and bytes of its model states.

FLOPs: a forward is 2 per parameter that multiplies and token, plus attention, a backward twice that; a prompt counts
once per group and logits at sampled tokens only (``cost.Size``). Model states: 16 bytes per trained parameter (weight,
gradient and AdamW's two moments in float32), 2 or 4 per frozen one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from grpo_bench.cost import Size
from grpo_bench.records import Run

PHASES = ("rollout", "old log-probs", "reference", "values", "actor", "critic")
TRAINED_BYTES = 16  # per parameter: master weight, gradient, two moments, 4 bytes each
# hidden size, layers, heads, key-value heads, width of the MLP, vocabulary: the models' published config.json
PUBLISHED: dict[str, tuple[int, int, int, int, int, int]] = {
    "smollm2-135m": (576, 30, 9, 3, 1536, 49152),
    "smollm2-360m": (960, 32, 15, 5, 2560, 49152),
    "qwen2.5-0.5b": (896, 24, 14, 2, 4864, 151936),
    "qwen2.5-1.5b": (1536, 28, 12, 2, 8960, 151936),
}
TOLERANCE = 0.05  # between the parameters of a shape and those recorded: biases, norms, adapters


@dataclass(frozen=True, slots=True)
class Theory:
    """Of one run: FLOPs by phase, whole run; ``states`` in bytes; ``prompt_tokens`` is the mean prompt they rest on."""

    flops: dict[str, float]
    states: float | None
    prompt_tokens: float
    solved: bool  # the prompt length was not recorded but solved from the recorded FLOPs
    shaped: bool  # the model's shape is known; else its parameters stand for everything that multiplies

    @property
    def total(self) -> float:
        return sum(self.flops.values())


def shape_of(model: Mapping[str, Any]) -> Sequence[int] | None:
    """As ``PUBLISHED`` has them; None for a model that is not known here."""
    tiny = model.get("tiny")
    if not tiny:
        return PUBLISHED.get(str(model.get("name")))
    names = ("hidden_size", "layers", "heads", "kv_heads", "intermediate_size", "vocab_size")
    return [int(tiny[name]) for name in names] if all(name in tiny for name in names) else None


def size_of(model: Mapping[str, Any], parameters: float) -> tuple[Size, bool]:
    """The model's shape from its configuration, checked against the recorded number of parameters; without one, all
    parameters multiply and attention is left out."""
    shape = shape_of(model)
    if shape is not None:
        hidden, layers, heads, kv_heads, inner, vocabulary = shape
        trunk = layers * (2 * hidden * hidden * (1 + kv_heads / heads) + 3 * hidden * inner)
        head = hidden * vocabulary
        if abs(trunk + head - parameters) <= TOLERANCE * parameters:
            return Size(int(trunk), head, layers, hidden), True
    return Size(int(parameters), 0, 0, 0), False


def phases(run: Run, size: Size, prompt: float) -> dict[str, float]:
    """FLOPs of the whole run by phase, at a mean prompt of ``prompt`` tokens and the recorded mean answer.

    How much of what was sampled was trained on (dropped rows, groups without signal, steps stopped early) is the
    record's; the rest is the configuration's.
    """
    cost, config = run.cost, run.config
    samples = float(cost.get("samples") or 0)
    answer = float(cost.get("generated_tokens") or 0) / max(samples, 1)
    own = samples - float(cost.get("extra_samples") or 0)
    own_tokens = float(cost.get("generated_tokens") or 0) - float(cost.get("extra_tokens") or 0)
    group = float(config.get("group_size") or 1)
    passes = float(config.get("epochs") or 1)
    updates = passes * float(config.get("minibatches") or 1)
    networks = cost.get("parameters") or {}
    critic = (config.get("model") or {}).get("critic") if networks.get("critic") else None

    def forward(rows: float, headed: bool) -> float:
        """One pass over ``rows`` answers, each prompt once per group."""
        whole, alone = size.forward([prompt + answer], 0), size.forward([prompt], 0)  # type: ignore[list-item]
        return rows / group * alone + rows * (whole - alone) + (2.0 * size.head * answer * rows if headed else 0.0)

    trained = float(cost.get("trained_tokens") or 0) / max(own_tokens, 1)  # epochs' worth of the samples
    looked = own * min(trained / passes, 1.0)  # rows that are scored: those without signal are not
    backward = 2.0 if (config.get("model") or {}).get("lora") else 3.0
    old = updates > 1
    keeps = critic == "separate" and updates == 1  # the values' forward is the critic's own
    return {
        "rollout": forward(samples, True),
        "old log-probs": forward(looked, True) if old else 0.0,
        "reference": forward(looked, True) if networks.get("reference") else 0.0,
        "values": forward(own, False) if critic == "separate" or (critic == "shared" and not old) else 0.0,
        "actor": backward * forward(own, True) * trained,
        "critic": (backward - keeps) * forward(own, False) * passes if critic == "separate" else 0.0,
    }


def states(run: Run, size: Size) -> float | None:
    """Bytes of the model states: trained networks at 16 a parameter, a frozen reference at 2 or 4; None under LoRA,
    whose trained share is not recorded."""
    networks = run.cost.get("parameters") or {}
    model = run.config.get("model") or {}
    if not networks.get("policy") or model.get("lora"):
        return None
    trained = float(networks["policy"]) + float(networks.get("critic") or 0)
    frozen = float(networks.get("reference") or 0)
    # linear layers are kept in the compute precision, embeddings in float32
    linear = min(float(size.trunk), frozen)
    width = 2 if model.get("dtype") == "bfloat16" else 4
    return TRAINED_BYTES * trained + width * linear + 4 * (frozen - linear)


def prompt_length(runs: Sequence[Run]) -> tuple[float, bool] | None:
    """Mean tokens of a prompt: recorded, else the one at which theory gives the recorded FLOPs, median over the runs
    (they draw from one stream); None where neither can be had. Runs with one answer per prompt are preferred there:
    with a group's prompts shared, FLOPs hardly depend on their length."""
    recorded = [
        float(run.cost["prompt_tokens"]) / float(run.cost["prompts"])
        for run in runs
        if run.cost.get("prompt_tokens") and run.cost.get("prompts")
    ]
    if recorded:
        return sum(recorded) / len(recorded), False
    alone = [run for run in runs if run.config.get("group_size") == 1]
    for some in (alone, runs):
        solved = [length for run in some if (length := _solve(run)) is not None]
        if solved:
            return median(solved), True
    return None


def theory(run: Run, prompt: float, solved: bool) -> Theory | None:
    """None where the run recorded no sizes or tokens."""
    parameters = (run.cost.get("parameters") or {}).get("policy")
    if not parameters or not run.cost.get("generated_tokens"):
        return None
    size, shaped = size_of(run.config.get("model") or {}, float(parameters))
    return Theory(phases(run, size, prompt), states(run, size), prompt, solved, shaped)


def _solve(run: Run) -> float | None:
    """FLOPs grow with the prompt, so bisection finds it; None where no length of prompt gives what was recorded."""
    parameters, recorded = (run.cost.get("parameters") or {}).get("policy"), run.cost.get("flops")
    if not parameters or not recorded or not run.cost.get("generated_tokens"):
        return None
    size, _ = size_of(run.config.get("model") or {}, float(parameters))
    scorer = (run.cost.get("reward_model") or {}).get("flops") or 0.0
    low, high = 0.0, float((run.config.get("task") or {}).get("max_prompt_tokens") or 4096)

    def over(prompt: float) -> bool:
        return sum(phases(run, size, prompt).values()) + scorer > recorded

    if over(low) or not over(high):
        return None
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if over(middle) else (middle, high)
    return high
