"""The plain reference engine: transformers' ``generate``, prompts repeated for every member of a group."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from transformers import GenerationConfig

from grpo_bench.policy import Policy
from grpo_bench.rollout import Sampling
from grpo_bench.rollout.finish import end_tokens, finish
from grpo_bench.rollout.noise import Noise, generator
from grpo_bench.types import Rollouts


@contextlib.contextmanager
def _own_rules_off(model: Any) -> Iterator[None]:
    """Without the model's generation defaults: ``generate`` would add a repetition penalty and the like."""
    kept, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = kept


class HFEngine:
    """Seeded per batch of rows: unlike the native engine's, its samples depend on the batch size."""

    def __init__(self, batch_size: int | None) -> None:
        self.batch_size = batch_size

    @torch.no_grad()
    def generate(
        self,
        policy: Policy,
        tokenizer: Any,
        prompt_ids: list[list[int]],
        group_size: int,
        sampling: Sampling,
        noise: Noise,
    ) -> Rollouts:
        """See ``Engine``."""
        model: Any = policy.model
        rows = [prompt for prompt in prompt_ids for _ in range(group_size)]
        limit = self.batch_size or 64
        ends = sorted(end_tokens(tokenizer, policy))
        options: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            options = {
                "do_sample": True,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k or 0,
            }
        completions: list[list[int]] = []
        for start in range(0, len(rows), limit):
            part = rows[start : start + limit]
            width = max(map(len, part))
            ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(p)) + p for p in part], device=policy.device)
            visible = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in part], device=policy.device)
            seed = int(generator(noise.seed, noise.stream, start, noise.step).integers(2**31))
            devices = [policy.device] if policy.device.type == "cuda" else []
            with torch.random.fork_rng(devices=devices), policy.autocast(), _own_rules_off(model):
                torch.manual_seed(seed)
                out = model.generate(
                    input_ids=ids,
                    attention_mask=visible,
                    max_new_tokens=sampling.max_new_tokens,
                    eos_token_id=ends,
                    pad_token_id=ends[0],  # rows are cut at their first end token, padding after it is never read
                    stop_strings=list(sampling.stop) or None,
                    tokenizer=tokenizer,
                    **options,
                )
            completions += out[:, width:].tolist()
        return finish(prompt_ids, completions, group_size, tokenizer, policy, sampling)
