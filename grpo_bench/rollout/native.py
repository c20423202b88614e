"""The default engine: prompts are prefilled once per group, finished rows leave, sampling is one pass over logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from grpo_bench.policy import Policy, memory_errors
from grpo_bench.policy.memory import share_of_memory
from grpo_bench.rollout import Progress, Sampling
from grpo_bench.rollout.cache import make_cache
from grpo_bench.rollout.finish import end_tokens, finish
from grpo_bench.rollout.noise import Noise
from grpo_bench.types import Rollouts

CACHE_SHARE = 0.2  # of a GPU's memory, for the KV cache and what ``choose`` works on
CACHE_BYTES = 2 * 2**30  # the same on a CPU
CHOICE_BYTES = 28  # per logit in ``choose``: logits twice and softmax in fp32, softmax and its sum in fp64
STOP_EVERY = 8  # tokens between looks for a stop string


def choose(logits: Tensor, sampling: Sampling, uniforms: Tensor) -> Tensor:
    """(b,V) logits and (b,) uniforms -> (b,) tokens, by inverting the cumulative distribution.

    Exact sampling with one random number per token; summed in float64, since fp32 sums over 10^5 words lose the tail.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits = logits / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        smallest = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if sampling.top_p < 1:
        ordered, index = logits.sort(dim=-1, descending=True)
        probs = torch.softmax(ordered, dim=-1)
        outside = (probs.cumsum(-1) - probs) >= sampling.top_p  # the word that crosses top_p stays
        logits = logits.masked_fill(torch.zeros_like(outside).scatter(-1, index, outside), -torch.inf)
    cumulative = torch.softmax(logits, dim=-1).double().cumsum(-1)
    target = uniforms[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)


class NativeEngine:
    """Batched decoding through transformers' own modules and cache interface."""

    def __init__(self, batch_size: int | None) -> None:
        self.batch_size = batch_size

    def rows_at_once(self, policy: Policy, positions: int) -> int:
        """Completions decoded together: as configured, else as many as the cache's share of memory holds."""
        if self.batch_size is not None:
            return self.batch_size
        config = policy.model.config.get_text_config(decoder=True)
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = torch.finfo(policy.dtype).bits // 8
        row = 2 * config.num_hidden_layers * heads * head * width * positions + CHOICE_BYTES * config.vocab_size
        return max(share_of_memory(policy.device, CACHE_SHARE, CACHE_BYTES) // row, 1)

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
        total = len(prompt_ids) * group_size
        longest = max(len(prompt) + sampling.limit(p) for p, prompt in enumerate(prompt_ids))
        limit = self.rows_at_once(policy, longest)
        # longest prompts first: little padding within a batch, and too large a batch fails at once, not late
        order = sorted(range(total), key=lambda row: (-len(prompt_ids[row // group_size]), row))
        completions: list[list[int]] = [[] for _ in range(total)]
        for start in range(0, total, limit):
            rows = order[start : start + limit]
            prompts = list(dict.fromkeys(row // group_size for row in rows))
            member_of = [prompts.index(row // group_size) for row in rows]

            def told(done: int, earlier: int = start) -> None:
                assert progress is not None
                progress(earlier + done)

            with policy.autocast():
                ids = self._decode(
                    policy, tokenizer, [prompt_ids[p] for p in prompts], [sampling.limit(p) for p in prompts],
                    member_of, rows, sampling, noise, None if progress is None else told,
                )  # fmt: skip
            for row, completion in zip(rows, ids, strict=True):
                completions[row] = completion
        return finish(prompt_ids, completions, group_size, tokenizer, policy, sampling)

    def _decode(
        self,
        policy: Policy,
        tokenizer: Any,
        prompts: list[list[int]],
        limits: list[int],
        member_of: list[int],
        rows: list[int],
        sampling: Sampling,
        noise: Noise,
        progress: Progress | None,
    ) -> list[list[int]]:
        device = policy.device
        width, length = max(map(len, prompts)), max(limits)
        lengths = torch.tensor([len(p) for p in prompts], device=device)
        padded = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=device)
        visible = torch.arange(width, device=device)[None] >= width - lengths[:, None]
        even = bool(visible.all())  # prompts of one length need no attention mask
        positions = (visible.long().cumsum(1) - 1).clamp(min=0)
        cache = make_cache(policy.model.config, width + length)
        hidden = policy.trunk(
            input_ids=padded,
            attention_mask=None if even else visible.long(),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        members = torch.tensor(member_of, device=device)
        most = torch.tensor(limits, device=device)[members]
        cache.batch_select_indices(members)
        hidden, lengths, visible = hidden[members], lengths[members], visible[members].long()
        if sampling.temperature > 0:
            uniforms = torch.from_numpy(np.stack([noise.uniforms(row, length) for row in rows])).to(device)
        else:
            uniforms = torch.zeros(len(rows), length, dtype=torch.float64, device=device)
        ends = torch.tensor(sorted(end_tokens(tokenizer, policy)), device=device)
        out = torch.zeros(len(rows), length, dtype=torch.long, device=device)
        counts = torch.zeros(len(rows), dtype=torch.long, device=device)
        active = torch.arange(len(rows), device=device)  # rows of ``out`` that the cache still holds
        running = torch.ones(len(rows), dtype=torch.bool, device=device)
        alive = len(rows)
        for t in range(length):
            tokens = choose(policy.logits(hidden), sampling, uniforms[active, t])
            out[active, t] = tokens
            counts[active] += running.long()
            running &= ~torch.isin(tokens, ends) & (most > t + 1)
            if sampling.stop and (t + 1) % STOP_EVERY == 0:
                running &= ~self._stopped(tokenizer, out[active, : t + 1], running, sampling.stop)
            before, alive = alive, int(running.sum())
            over = alive == 0 or t == length - 1
            if progress is not None and (alive < before or over):
                progress(len(rows) - (0 if over else alive))
            if over:
                break
            if alive <= 0.75 * len(active):
                keep = running.nonzero().squeeze(-1)
                cache.batch_select_indices(keep)
                active, tokens, lengths, visible = active[keep], tokens[keep], lengths[keep], visible[keep]
                running, most = running[keep], most[keep]
            attention = None
            if not even:
                visible = torch.cat([visible, visible.new_ones(len(active), 1)], dim=1)
                attention = visible
            hidden = policy.trunk(
                input_ids=tokens[:, None],
                attention_mask=attention,
                position_ids=(lengths + most.clamp(max=t + 1) - 1)[:, None],  # rows that ended reach no further
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, -1]
        return [row[:n] for row, n in zip(out.tolist(), counts.tolist(), strict=True)]

    @staticmethod
    def _stopped(tokenizer: Any, tokens: Tensor, running: Tensor, stop: tuple[str, ...]) -> Tensor:
        """(b,) rows whose text holds a stop string; where it exactly ends is for ``finish`` to find."""
        texts = tokenizer.batch_decode(tokens.tolist(), skip_special_tokens=True)
        return torch.tensor([any(s in text for s in stop) for text in texts], device=running.device)
