"""Sampling alone: this project's engines and transformers' continuous batching on the same prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from grpo_bench.cost import Meter
from grpo_bench.policy import choose_device, load_model, load_tokenizer
from grpo_bench.rollout import Noise, Sampling
from grpo_bench.speed.child import Clock, Spec
from grpo_bench.speed.ours import build, config_of, described, task_of

BLOCK = 32  # tokens of a block of the cache
BATCH_TOKENS = 1024  # of one forward: prompts are prefilled in pieces
Sample = Callable[[list[list[int]], int], list[int]]  # prompts and the step's number -> tokens of each completion


def run(spec: Spec) -> dict[str, Any]:
    """Rollouts without rewards and updates; low-precision sampling as each engine does it."""
    kind = spec.contender.removeprefix("decode-")
    if kind == "continuous":
        return _measure(spec, *_continuous(spec))
    parts = build(replace(spec, contender=kind))
    policy, tokenizer = parts.models.policy, parts.tokenizer

    def sample(prompts: list[list[int]], number: int) -> list[int]:
        noise = Noise(parts.cfg.seed, "train", number)
        sampling = Sampling(1.0, spec.tokens)
        made = parts.engine.generate(policy, tokenizer, prompts, spec.group_size, sampling, noise)
        return [len(ids) for ids in made.completion_ids]

    return _measure(spec, sample, parts.task, tokenizer, parts.meter)


def _continuous(spec: Spec) -> tuple[Sample, Any, Any, Meter]:
    """transformers' continuous batching, in the precision itself; blocks of equal prompts share their cache."""
    cfg = config_of(spec)
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    device = choose_device(cfg)
    task, tokenizer = task_of(cfg, spec.prompt_tokens), load_tokenizer(cfg.model)
    task.fit(tokenizer)
    model: Any = load_model(cfg.model, device).to(getattr(torch, spec.dtype))
    config = GenerationConfig(
        max_new_tokens=spec.tokens, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, eos_token_id=-1, pad_token_id=0
    )

    def room(prompts: list[list[int]]) -> ContinuousBatchingConfig | None:
        """A cache for exactly this batch on a CPU, where it would take most of the memory; by itself on a GPU."""
        if device.type == "cuda":
            return None
        longest = max(map(len, prompts)) + spec.tokens
        blocks = len(prompts) * spec.group_size * -(-longest // BLOCK)
        return ContinuousBatchingConfig(block_size=BLOCK, num_blocks=blocks + 1, max_batch_tokens=BATCH_TOKENS)

    @torch.no_grad()
    def sample(prompts: list[list[int]], number: int) -> list[int]:
        repeated = [prompt for prompt in prompts for _ in range(spec.group_size)]
        out = model.generate_batch(
            repeated, generation_config=config, continuous_batching_config=room(prompts), progress_bar=False
        )
        return [len(answer.generated_tokens) for answer in out.values()]

    return sample, task, tokenizer, Meter(device)


def _measure(spec: Spec, sample: Sample, task: Any, tokenizer: Any, meter: Meter) -> dict[str, Any]:
    """Time ``sample`` on each step's prompts; RuntimeError when it made other lengths than were asked for."""
    clock, rows = Clock(meter, spec), spec.prompts * spec.group_size
    for number in range(spec.warmup + spec.steps):
        problems = [task.train_problem(number * spec.prompts + i) for i in range(spec.prompts)]
        prompts = task.prompt_ids(problems, tokenizer)
        clock.begin()
        with clock.phase("rollout"):
            made = sample(prompts, number)
        if made != [spec.tokens] * rows:
            raise RuntimeError(f"{len(made)} completions of {min(made, default=0)} to {max(made, default=0)} tokens")
        clock.end(samples=rows, tokens=sum(made), prompt_lengths=[len(ids) for ids in prompts])
    return {
        "steps": clock.steps,
        "peak_bytes": meter.peak_memory(),
        "device": described(meter.device),
        "states": f"sampling only, {spec.dtype}",
    }
