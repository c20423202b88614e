"""Micro-batches, and the pass without gradients that fills old and reference log-probs and values."""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from grpo_bench import kernels
from grpo_bench.cost import Timed, untimed
from grpo_bench.lanes import side_by_side
from grpo_bench.policy.critic import Critic
from grpo_bench.policy.layout import layout
from grpo_bench.policy.load import Models
from grpo_bench.policy.memory import kept_elements, share_of_memory
from grpo_bench.policy.network import LOGIT_ELEMENTS, Policy
from grpo_bench.policy.replica import Lane
from grpo_bench.types import Batch

ACTIVATION_SHARE = 0.3  # of a GPU's memory; the rest is weights, gradients, moments and the sampler's cache
ACTIVATION_BYTES = 2 * 2**30  # on a CPU
# Per token, layer and hidden unit. Measured for SmolLM2's shape on a CPU: 22 (bfloat16, copies of weights aside) and 40
# are kept for the backward pass where a layer is one operation, 28 and 48 by modules, 34 and 59 where gates' products
# are too; the rest, chosen, is for what that makes on its way.
TOKEN_BYTES = {torch.float32: 70, torch.bfloat16: 40}
PLAIN_TOKEN_BYTES = 80  # where norms, gates and rotations are torch's and keep more
LOGIT_BYTES = 28  # per logit where autograd keeps all: logits, probabilities, their product, and gradients of these
CPU_TOKENS = 4096  # larger forwards of a small model fall out of the CPU's cache: 1.4 times slower, measured
# The same of each of two lanes, which have caches of their own. A 3.2M Llama's update took 0.92 (fp32) and 0.83
# (bfloat16) of the time of one lane; with 2048 tokens each 0.97 and 1.09: what a micro-batch costs whatever its size
# (its Python, the gradients of all weights) comes twice as often. More would pay, and take memory: two micro-batches of
# a lane instead of three took 0.94 of the time in bfloat16, and 0.07 GB; two instead of four 0.98 in fp32.
LANE_TOKENS = {torch.float32: 3072, torch.bfloat16: 4096}
UNEVEN = 1.1  # times its even share that a lane may have: the others wait for it


def memory_tokens(policy: Policy, lanes: int = 1) -> int:
    """Tokens whose activations a fixed share of memory holds, beside the logits of so many lanes.

    Korthikanti et al. 2022 (arXiv:2205.05198, §4.1) count 34 bytes per token, layer and hidden unit when all is 16 bit;
    ``TOKEN_BYTES`` is what this program's forward keeps. Beside them the logits: probabilities of one chunk, or all of
    every token where the head cannot be split. A function of model and device alone, so that a resumed run splits its
    batches the same way.
    """
    config = policy.model.config.get_text_config()
    memory = share_of_memory(policy.device, ACTIVATION_SHARE, ACTIVATION_BYTES)
    compiled = kernels.take(next(policy.model.parameters()))
    per_token = TOKEN_BYTES[policy.dtype] if compiled else PLAIN_TOKEN_BYTES
    per_token *= config.hidden_size * config.num_hidden_layers
    if policy.head_is_linear:
        memory -= lanes * 4 * kept_elements(policy.device, torch.float32)
    elif policy.head_is_plain:
        memory -= lanes * LOGIT_BYTES * LOGIT_ELEMENTS
    else:
        per_token += LOGIT_BYTES * config.vocab_size
    return max(memory // per_token, 1)


def micro_batch_tokens(policy: Policy, configured: int | None) -> int:
    """Tokens of one forward with gradients: as configured, else what memory holds, on a CPU no more than its caches."""
    if configured is not None:
        return configured
    fits = memory_tokens(policy)
    return min(fits, CPU_TOKENS) if policy.device.type == "cpu" else fits


def tokens_at_once(policy: Policy, tokens: int, configured: int | None, lanes: int) -> int:
    """Tokens that lanes compute at once, together, where one lane computes ``tokens``: never more than memory holds."""
    if configured is not None or lanes == 1:
        return tokens
    return max(tokens, min(tokens * lanes * LANE_TOKENS[policy.dtype] // CPU_TOKENS, memory_tokens(policy, lanes)))


def micro_batches(batch: Batch, rows: Tensor, tokens: int, packed: bool) -> Iterator[Tensor]:
    """Split rows into parts that cost at most ``tokens`` of a forward (at least one row), longest first.

    ``packed``: a prompt costs once for all rows of its group in a part, so groups stay together where they fit; else
    each row costs as much as the longest of its part.
    """
    width = batch.tokens.shape[1] - batch.mask.shape[1]
    sizes = batch.mask[rows].sum(1).long()
    prompts = batch.prompt_lengths[rows] if batch.prompt_lengths is not None else torch.full_like(sizes, width)
    if packed:
        for part in _fill(batch.group_ids[rows].tolist(), prompts.tolist(), sizes.tolist(), tokens):
            yield rows[torch.tensor(part, device=rows.device)]
        return
    lengths = sizes + prompts
    order = torch.argsort(lengths, descending=True, stable=True)
    longest = lengths[order].tolist()
    start = 0
    while start < len(longest):
        count = max(tokens // max(longest[start], 1), 1)
        yield rows[order[start : start + count]]
        start += count


def _fill(groups: list[int], prompts: list[int], sizes: list[int], tokens: int) -> Iterator[list[int]]:
    """Places of the rows of each part: groups whole where they fit, their prompts counted once; parts much alike."""
    members, costs = _costs(groups, prompts, sizes)
    total = sum(costs.values())
    share = total / max(-(-total // tokens), 1)
    part: list[int] = []
    spent = 0
    for group in sorted(members, key=lambda g: -costs[g]):
        whole, cost, prompt = members[group], costs[group], prompts[members[group][0]]
        if part and (spent + cost > tokens or spent >= share):
            yield part
            part, spent = [], 0
        if cost <= tokens:
            part, spent = part + whole, spent + cost
            continue
        spent = prompt
        for i in whole:
            if part and spent + sizes[i] > tokens:
                yield part
                part, spent = [], prompt
            part.append(i)
            spent += sizes[i]
    if part:
        yield part


def share_out(
    batch: Batch, rows: Tensor, tokens: int, packed: bool, lanes: int, at_once: int | None = None
) -> list[list[Tensor]]:
    """Micro-batches for each of at most ``lanes`` lanes, at most ``tokens`` in all that are computed at once.

    As many for each lane, of about as many tokens, groups whole. One lane where rows are not ``packed``, or where they
    cannot be shared out so. ``at_once``: of several lanes instead of ``tokens``, see ``tokens_at_once``.
    """
    if lanes > 1 and packed and len(rows) and batch.prompt_lengths is not None:
        sizes = batch.mask[rows].sum(1).long().tolist()
        groups, prompts = batch.group_ids[rows].tolist(), batch.prompt_lengths[rows].tolist()
        shares = _shared(groups, prompts, sizes, at_once or tokens, lanes)
        if shares is not None:
            return [[rows[torch.tensor(part, device=rows.device)] for part in parts] for parts in shares]
    return [list(micro_batches(batch, rows, tokens, packed))]


def _shared(
    groups: list[int], prompts: list[int], sizes: list[int], tokens: int, lanes: int
) -> list[list[list[int]]] | None:
    """Places of the rows of each part of each lane; None where no such parts are found."""
    members, costs = _costs(groups, prompts, sizes)
    total = sum(costs.values())
    for count in range(-(-total // tokens) * lanes, len(costs) + 1, lanes):
        parts: list[list[int]] = [[] for _ in range(count)]
        loads = [(0, number) for number in range(count)]  # a heap: the lightest first
        for group in sorted(members, key=lambda g: -costs[g]):
            load, number = loads[0]
            heapq.heapreplace(loads, (load + costs[group], number))
            parts[number] += members[group]
        if max(loads)[0] > tokens // lanes:
            continue
        shares: list[list[list[int]]] = [[] for _ in range(lanes)]
        spent = [0] * lanes
        for load, number in sorted(loads, key=lambda x: (-x[0], x[1])):
            lane = min(range(lanes), key=lambda i: (len(shares[i]) * lanes >= count, spent[i]))
            shares[lane].append(parts[number])
            spent[lane] += load
        return shares if max(spent) * lanes <= UNEVEN * total else None
    return None


def _costs(groups: list[int], prompts: list[int], sizes: list[int]) -> tuple[dict[int, list[int]], dict[int, int]]:
    """Places of each group's rows, and its tokens, the prompt counted once."""
    members: dict[int, list[int]] = {}
    for place, group in enumerate(groups):
        members.setdefault(group, []).append(place)
    return members, {group: prompts[own[0]] + sum(sizes[i] for i in own) for group, own in members.items()}


@torch.no_grad()
def score(
    batch: Batch,
    models: Models,
    temperature: float,
    tokens: int,
    old: bool,
    values: bool,
    timed: Timed = untimed,
    lanes: Sequence[Lane] = (),
) -> Batch:
    """Fill ``old_logp``, ``values`` and (with a reference) ``ref_logp``, all (B,T).

    ``lanes`` have the networks of ``models``, the first of them these themselves; ``timed`` gets the seconds of that
    one's parts.
    """
    reference = models.has_reference
    shape, device = batch.mask.shape, batch.mask.device
    dtype = next(models.policy.parameters()).dtype  # of the master weights, whatever is computed in
    out = {name: torch.zeros(shape, dtype=dtype, device=device) for name in ("old_logp", "ref_logp", "values")}
    shared = models.critic is not None and models.critic.trunk is None
    live = batch.mask.any(1).nonzero().squeeze(-1)
    needed = old or reference or (values and models.critic is not None)

    @torch.no_grad()  # a thread's own
    def fill(lane: Lane, micro_batches: Sequence[Tensor], timed: Timed) -> None:
        for rows in micro_batches:
            part = layout(batch, rows)
            states = None
            if old or (values and shared):
                with timed("old_logp" if old else "values"):
                    states = lane.policy.states(part)
            if old:
                with timed("old_logp"):
                    out["old_logp"][rows] = lane.policy.logp(part, temperature, states)[0]
            if reference:
                base = models.policy.adapters_off() if models.reference_is_base else contextlib.nullcontext()
                with timed("reference"), base:
                    out["ref_logp"][rows] = (models.reference or models.policy).logp(part, temperature)[0]
            if values and lane.critic is not None:
                with timed("values"):
                    out["values"][rows] = lane.critic.values(part, states if shared else None)

    lanes = lanes or [Lane(models.policy, models.critic)]
    if needed:
        # adapters are switched off in the model itself, not in a lane's
        count = 1 if models.reference_is_base else len(lanes)
        shares = share_out(batch, live, tokens, models.policy.takes_plans, count)
        side_by_side([
            partial(fill, lane, share, timed if i == 0 else untimed)
            for i, (lane, share) in enumerate(zip(lanes, shares, strict=False))
        ])  # fmt: skip
    return replace(
        batch,
        old_logp=out["old_logp"] if old else None,
        ref_logp=out["ref_logp"] if reference else None,
        values=out["values"] if values else batch.values,  # those that branches gave stay
    )


def live_values(batch: Batch, critic: Critic, micro_batches: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """A separate critic's values with their graphs: (rows, (b,T) values) of each part of the batch."""
    return [(rows, critic.values(layout(batch, rows))) for rows in micro_batches]
