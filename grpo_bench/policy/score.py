"""Micro-batches, and the pass without gradients that fills old and reference log-probs and values."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from grpo_bench.policy.layout import layout
from grpo_bench.policy.load import Models
from grpo_bench.policy.memory import memory_errors, share_of_memory
from grpo_bench.policy.network import LOGIT_ELEMENTS, Policy
from grpo_bench.types import Batch

ACTIVATION_SHARE = 0.3  # of a GPU's memory; the rest is weights, gradients, moments and the sampler's cache
ACTIVATION_BYTES = 4 * 2**30  # on a CPU
LOGIT_BYTES = 28  # per logit: bf16 and fp32 logits, probabilities, their product, and the gradients of these
CPU_TOKENS = 4096  # larger forwards of a small model fall out of the CPU's cache: 1.4 times slower, measured


def micro_batch_tokens(policy: Policy, configured: int | None) -> int:
    """Padded tokens of one forward with gradients: as configured, else what a fixed share of memory holds.

    About 34 bytes per token, layer and hidden unit in bf16 (Korthikanti et al. 2022, arXiv:2205.05198, §4.1), twice
    that in fp32, beside the logits: of one chunk, or of every token where the head cannot be split. A function of model
    and device alone, so that a resumed run splits its batches the same way.
    """
    if configured is not None:
        return configured
    config = policy.model.config.get_text_config()
    width = 2 if policy.dtype == torch.float32 else 1
    memory = share_of_memory(policy.device, ACTIVATION_SHARE, ACTIVATION_BYTES)
    per_token = 34 * width * config.hidden_size * config.num_hidden_layers
    if policy.head_is_plain:
        memory -= LOGIT_BYTES * LOGIT_ELEMENTS
    else:
        per_token += LOGIT_BYTES * config.vocab_size
    fits = memory // per_token
    return max(min(fits, CPU_TOKENS) if policy.device.type == "cpu" else fits, 1)


def micro_batches(batch: Batch, rows: Tensor, tokens: int) -> Iterator[Tensor]:
    """Split rows into parts of at most ``tokens`` padded tokens (at least one row), rows of like length together."""
    width = batch.tokens.shape[1] - batch.mask.shape[1]
    lengths = batch.mask[rows].sum(1).long()
    lengths = lengths + (batch.prompt_lengths[rows] if batch.prompt_lengths is not None else width)
    order = torch.argsort(lengths, descending=True, stable=True)
    sizes = lengths[order].tolist()
    start = 0
    while start < len(sizes):
        count = max(tokens // max(sizes[start], 1), 1)
        yield rows[order[start : start + count]]
        start += count


@memory_errors()
@torch.no_grad()
def score(batch: Batch, models: Models, temperature: float, tokens: int, old: bool, values: bool) -> Batch:
    """Fill ``old_logp``, ``values`` and (with a reference) ``ref_logp``, all (B,T)."""
    reference = models.has_reference
    shape, device = batch.mask.shape, batch.mask.device
    dtype = next(models.policy.parameters()).dtype  # of the master weights, whatever is computed in
    out = {name: torch.zeros(shape, dtype=dtype, device=device) for name in ("old_logp", "ref_logp", "values")}
    shared = models.critic is not None and models.critic.trunk is None
    for rows in micro_batches(batch, batch.mask.any(1).nonzero().squeeze(-1), tokens):
        part = layout(batch, rows)
        states = models.policy.states(part) if old or (values and shared) else None
        if old:
            out["old_logp"][rows] = models.policy.logp(part, temperature, states)[0]
        if reference:
            with models.policy.adapters_off() if models.reference_is_base else contextlib.nullcontext():
                out["ref_logp"][rows] = (models.reference or models.policy).logp(part, temperature)[0]
        if values and models.critic is not None:
            out["values"][rows] = models.critic.values(part, states if shared else None)
    return replace(
        batch,
        old_logp=out["old_logp"] if old else None,
        ref_logp=out["ref_logp"] if reference else None,
        values=out["values"] if values else batch.values,  # those that branches gave stay
    )
