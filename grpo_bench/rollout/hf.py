"""The plain reference engine: transformers' ``generate``, prompts repeated for every member of a group.

Tokens are chosen as the native engine chooses them, with the same random number for a row's token: the two engines
give the same samples, whatever the batch size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from grpo_bench.policy import Policy, memory_errors
from grpo_bench.rollout import Progress, Sampling
from grpo_bench.rollout.finish import end_tokens, finish
from grpo_bench.rollout.native import choose
from grpo_bench.rollout.noise import Noise
from grpo_bench.types import Rollouts


@contextlib.contextmanager
def _own_rules_off(model: Any) -> Iterator[None]:
    """Without the model's generation defaults: ``generate`` would add a repetition penalty and the like."""
    kept, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = kept


class Draw(LogitsProcessor):
    """Leaves each row the one word that its random number draws, so that a greedy search takes it."""

    def __init__(self, sampling: Sampling, uniforms: Tensor, width: int) -> None:
        self.sampling, self.uniforms, self.width = sampling, uniforms, width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(b, width + t) ids, (b,V) logits -> (b,V): 0 for the token drawn, −inf for the others."""
        tokens = choose(scores, self.sampling, self.uniforms[:, input_ids.shape[1] - self.width])
        return torch.full_like(scores, -torch.inf).scatter(1, tokens[:, None], 0.0)


class HFEngine:
    """``batch_size`` completions at once, 64 unless told."""

    def __init__(self, batch_size: int | None) -> None:
        self.batch_size = batch_size

    def _batches(self, most: list[int]) -> Iterator[list[int]]:
        """Places of the rows that go together: of one limit, which is all that ``generate`` knows."""
        size = self.batch_size or 64
        for limit in dict.fromkeys(most):
            alike = [i for i, own in enumerate(most) if own == limit]
            yield from (alike[start : start + size] for start in range(0, len(alike), size))

    @memory_errors()
    @torch.no_grad()
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
        """See ``Engine``."""
        model: Any = policy.model
        rows = [prompt for prompt in prompt_ids for _ in range(group_size)]
        most = [sampling.limit(p) for p in range(len(prompt_ids)) for _ in range(group_size)]
        ends = sorted(end_tokens(tokenizer, policy))
        completions: list[list[int]] = [[] for _ in rows]
        done = 0
        for places in self._batches(most):
            part, length = [rows[i] for i in places], most[places[0]]
            width = max(map(len, part))
            ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(p)) + p for p in part], device=policy.device)
            visible = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in part], device=policy.device)
            processors = LogitsProcessorList()
            if sampling.temperature > 0:
                drawn = [noise.uniforms(i, length) for i in places]
                processors.append(Draw(sampling, torch.from_numpy(np.stack(drawn)).to(policy.device), width))
            with policy.autocast(), _own_rules_off(model):
                out = model.generate(
                    input_ids=ids,
                    attention_mask=visible,
                    max_new_tokens=length,
                    eos_token_id=ends,
                    pad_token_id=ends[0],  # rows are cut at their first end token, padding after it is never read
                    stop_strings=list(sampling.stop) or None,
                    tokenizer=tokenizer,
                    do_sample=False,
                    logits_processor=processors,
                )
            for i, completion in zip(places, out[:, width:].tolist(), strict=True):
                completions[i] = completion
            done += len(places)
            if progress is not None:
                progress(done)
        return finish(prompt_ids, completions, group_size, tokenizer, policy, sampling)
