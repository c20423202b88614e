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
from grpo_bench.rollout import Ended, Progress, Sampling
from grpo_bench.rollout.finish import cut, end_tokens
from grpo_bench.rollout.noise import Noise
from grpo_bench.rollout.sampling import draw
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
    """Leaves each row the one word that its random number draws, so that a greedy search takes it.

    ``logps`` has an entry (b,) per token: the log-probs of what was drawn.
    """

    def __init__(self, sampling: Sampling, uniforms: Tensor, width: int) -> None:
        self.sampling, self.uniforms, self.width = sampling, uniforms, width
        self.logps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(b, width + t) ids, (b,V) logits -> (b,V): 0 for the token drawn, −inf for the others."""
        tokens, logps = draw(scores, self.sampling, self.uniforms[:, input_ids.shape[1] - self.width])
        self.logps.append(logps)
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

    def kept_weights(self, policy: Policy) -> list[Tensor]:
        """See ``Engine``."""
        return []

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
        ended: Ended | None = None,
    ) -> Rollouts:
        """See ``Engine``."""
        model: Any = policy.model
        rows = [prompt for prompt in prompt_ids for _ in range(group_size)]
        most = [sampling.limit(p) for p in range(len(prompt_ids)) for _ in range(group_size)]
        ends = set() if sampling.ignore_end else end_tokens(tokenizer, policy)
        stop = [] if sampling.ignore_end else list(sampling.stop)
        ids: list[list[int]] = [[]] * len(rows)
        logps: list[list[float]] = [[]] * len(rows)
        texts, finished = [""] * len(rows), [False] * len(rows)
        done = 0
        for places in self._batches(most):
            part, length = [rows[i] for i in places], most[places[0]]
            width = max(map(len, part))
            padded = torch.tensor([[tokenizer.pad_token_id] * (width - len(p)) + p for p in part], device=policy.device)
            visible = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in part], device=policy.device)
            uniforms = np.zeros((len(places), length))
            if sampling.temperature > 0:
                uniforms = np.stack([noise.uniforms(i, length) for i in places])
            drawing = Draw(sampling, torch.from_numpy(uniforms).to(policy.device), width)
            with policy.autocast(), _own_rules_off(model):
                out = model.generate(
                    input_ids=padded,
                    attention_mask=visible,
                    max_new_tokens=length,
                    eos_token_id=sorted(ends) or None,
                    pad_token_id=min(ends, default=0),  # behind a row's first end token, where it is cut
                    stop_strings=stop or None,
                    tokenizer=tokenizer,
                    do_sample=False,
                    logits_processor=LogitsProcessorList([drawing]),
                )
            parts = cut(out[:, width:].tolist(), tokenizer, ends, sampling)
            scores = torch.stack(drawing.logps, dim=1).tolist()
            for i, own, text, end, score in zip(places, *parts, scores, strict=True):
                ids[i], texts[i], finished[i], logps[i] = own, text, end, score[: len(own)]
                if ended is not None:
                    ended(i, text, end)
            done += len(places)
            if progress is not None:
                progress(done)
        return Rollouts(prompt_ids, ids, texts, finished, group_size, logps)
