"""What is measured, as data: model, prompts, lengths and precisions by name; each field yields to the command line."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from grpo_bench.types import UserError

DTYPES = ("float32", "bfloat16")
TURNS = ("visits", "steps")


@dataclass(frozen=True, slots=True)
class Workload:
    """One step: ``prompts`` x ``group_size`` completions of exactly ``tokens`` tokens each.

    ``shape`` builds a random Llama where no weights are named; ``config`` chooses the files of a run. ``prompt_tokens``
    makes every prompt that long; None leaves the task's own lengths.
    """

    name: str
    title: str
    prompts: int
    group_size: int
    tokens: int
    dtypes: tuple[str, ...]
    contenders: tuple[str, ...]
    shape: dict[str, int | float] = field(default_factory=dict)
    config: tuple[str, ...] = ()
    prompt_tokens: int | None = None
    repetitions: int = 3
    steps: int = 2  # measured ones of each process, after one that warms it up
    seconds: float | None = None  # no repetition starts that would not end within
    turns: str = "visits"  # or "steps": all contenders stay in memory and take one step each in turns

    @property
    def rows(self) -> int:
        return self.prompts * self.group_size


def llama(
    vocab: int, hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, positions: int = 1024
) -> dict[str, int | float]:
    """Fields of ``model.tiny`` of a random Llama."""
    return {
        "vocab_size": vocab, "hidden_size": hidden, "layers": layers, "heads": heads, "kv_heads": kv_heads,
        "intermediate_size": intermediate, "max_positions": positions, "init_std": 0.02,
    }  # fmt: skip


SMOLLM2 = llama(49152, 576, 30, 9, 3, 1536)  # huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct, config.json
LLAMA3M = llama(512, 256, 4, 4, 4, 688)
LLAMA05B = llama(151936, 896, 24, 14, 2, 4864)  # the shape of Qwen2.5-0.5B (arXiv 2412.15115, table 1), as a Llama
GSM8K_PROMPT = 150  # tokens, where no GSM8K is given: about what its questions have in this project's template

OURS = ("native", "hf", "ppo", "ppo-shared")
PEERS = ("trl", "trl-pure", "trl-ppo")
WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            "tiny", "the embedded model and task", 16, 8, 40, ("float32",), (*OURS, "trl", "trl-ppo"), steps=3
        ),
        Workload(
            "llama3m", "a random Llama of 3.2M parameters on the embedded task", 32, 8, 64, DTYPES,
            ("native", "hf", "ppo", "ppo-shared", *PEERS), LLAMA3M,
        ),
        Workload(
            "smollm2", "SmolLM2-135M on GSM8K prompts", 4, 8, 64, DTYPES,
            ("native", "ppo", "ppo-shared", *PEERS, "trl+accumulation4", "trl-pure+accumulation4"), SMOLLM2,
            ("model=smollm2-135m", "task=gsm8k"), GSM8K_PROMPT, steps=1,
        ),
        Workload(
            "gpu", "SmolLM2-135M, 512 completions of 256 tokens", 64, 8, 256, ("bfloat16",),
            ("native", "trl+accumulation8", "trl-pure+accumulation8", "decode-continuous"), SMOLLM2,
            ("model=smollm2-135m", "task=gsm8k"), GSM8K_PROMPT, seconds=540,
        ),
        Workload(
            "llama05b", "a random Llama of 0.5B parameters", 2, 4, 16, ("bfloat16",), ("native",), LLAMA05B,
            prompt_tokens=GSM8K_PROMPT, repetitions=2, steps=1,
        ),
    )
}  # fmt: skip
CURVES = {
    "group": "group size, one token each: the prompts' work",
    "prompt": "prompt tokens",
    "completion": "completion tokens",
    "batch": "completions in a step",
    "size": "model parameters",
}
SIZES = ("tiny", "smollm2", "llama05b")  # of the curve against model size


def choose(name: str, changes: dict[str, Any]) -> Workload:
    """The workload of that name with these fields changed; UserError for an unknown name or an impossible value."""
    if name not in WORKLOADS:
        raise UserError(f"workload={name} is not known; choose one of {', '.join(WORKLOADS)}")
    workload = replace(WORKLOADS[name], **changes)
    for number in fields(Workload):
        value = getattr(workload, number.name)
        if number.name in ("prompts", "group_size", "tokens", "prompt_tokens", "repetitions", "steps") and (
            value is not None and value < 1
        ):
            raise UserError(f"{number.name}={value}: should be at least 1")
    if workload.turns not in TURNS:
        raise UserError(f"turns={workload.turns} is not known; choose from {', '.join(TURNS)}")
    if bad := [dtype for dtype in workload.dtypes if dtype not in DTYPES]:
        raise UserError(f"dtype={','.join(bad)} is not known; choose from {', '.join(DTYPES)}")
    return workload


def overrides(workload: Workload, given: dict[str, str]) -> list[str]:
    """The configuration's overrides for the workload's model and prompts.

    ``given`` are the command line's own (``model.path=...``); without weights of their own the model is random but of
    the same shape, and without data the embedded task asks, its prompts stretched to ``prompt_tokens``: what is
    measured does not depend on what the tokens say.
    """
    weights = any(key in given for key in ("model", "model.path", "model.id"))
    data = any(key in given for key in ("task", "task.path"))
    chosen = {line.partition("=")[0]: line.partition("=")[2] for line in workload.config}
    lines = [f"task={chosen.get('task', 'arithmetic')}"] if data and "task" not in given else []
    if weights:
        lines += [f"model={chosen['model']}"] if "model" in chosen and "model" not in given else []
    elif workload.shape:
        lines += [f"model.tiny.{key}={value}" for key, value in workload.shape.items()]
    return [*lines, "model.warmstart.steps=0", *(f"{key}={value}" for key, value in given.items())]


def stretched(workload: Workload, given: dict[str, str]) -> int | None:
    """Tokens that prompts are made to have: None where real prompts are measured as they are."""
    real = "task" in given or "task.path" in given
    return None if real and workload.config else workload.prompt_tokens


def named(words: str) -> list[str]:
    """``curves=group,size`` or ``curves=all``; UserError for an unknown one."""
    kinds = list(CURVES) if words == "all" else [word for word in words.split(",") if word]
    if bad := [kind for kind in kinds if kind not in CURVES]:
        raise UserError(f"curves={','.join(bad)} is not known; choose from {', '.join(CURVES)} or all")
    return kinds
