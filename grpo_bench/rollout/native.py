"""The default engine: each prompt computed once for its group, rows that end make room for rows that wait."""

from __future__ import annotations

import sys
import weakref
from collections import Counter, deque
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grpo_bench import heap, kernels
from grpo_bench.policy import Policy, memory_errors
from grpo_bench.policy.memory import share_of_memory
from grpo_bench.rollout import Ended, Progress, Sampling, pages
from grpo_bench.rollout.decode import Decoder
from grpo_bench.rollout.finish import cut, end_tokens, stopped
from grpo_bench.rollout.hf import HFEngine
from grpo_bench.rollout.noise import Noise
from grpo_bench.rollout.packed_linear import packs
from grpo_bench.rollout.probe import why_no_plans
from grpo_bench.rollout.shares import Found, Steps, in_lanes, shares
from grpo_bench.rollout.weights import SamplingCopy, needs_copy
from grpo_bench.types import Rollouts

CACHE_SHARE = 0.2  # of a GPU's memory, for the KV cache and what choosing tokens works on
CACHE_BYTES = 2 * 2**30  # the same on a CPU
# Of decoders and their models that are kept between rollouts on a CPU; what is given back is cleared before it is used
# again: SmolLM2's rollouts took 1.5 to 1.7 s with half of this room and 1.1 to 1.2 with it, at the same peak.
KEPT_BYTES = 2**29
KEPT_DECODERS = 4  # of each lane that are kept, some of them without their memory
CHOICE_BYTES = 34  # per logit in choosing: logits twice, a tape's, weights; with top_p also sorted, indices and sums
ENTER_SHARE = 4  # rows that wait enter when one in so many places is free: prompts are cheaper together
STOP_EVERY = 8  # steps between looks for a stop string
LOOK_EVERY = {"cpu": 1, "cuda": 8}  # steps between looks for rows that ended: a GPU must be waited for


class NativeEngine:
    """Batched decoding through transformers' own modules, with attention and cache of its own.

    ``dtype`` is what sampling computes in (None: what the policy does); where that is lower than the weights'
    precision, or packed weights are multiplied sooner, a copy of the model is kept in it. ``cuda_graph`` replays
    captured steps on a GPU; ``static`` uses their shapes without capturing.
    """

    def __init__(
        self,
        batch_size: int | None,
        dtype: torch.dtype | None = None,
        cuda_graph: bool = True,
        static: bool = False,
    ) -> None:
        self.batch_size, self.dtype, self.cuda_graph, self.static = batch_size, dtype, cuda_graph, static
        self._reasons: weakref.WeakKeyDictionary[Policy, str | None] = weakref.WeakKeyDictionary()
        self._copies: weakref.WeakKeyDictionary[Policy, SamplingCopy] = weakref.WeakKeyDictionary()
        self._kept: dict[Any, Decoder] = {}  # with captured or recorded steps, for rollouts of the same sizes

    def rows_at_once(self, policy: Policy, positions: int) -> int:
        """Completions decoded together: as configured, else as many as the cache's share of memory holds."""
        if self.batch_size is not None:
            return self.batch_size
        config = policy.model.config.get_text_config(decoder=True)
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = torch.finfo(self.dtype or policy.dtype).bits // 8
        row = 2 * config.num_hidden_layers * heads * head * width * positions + CHOICE_BYTES * config.vocab_size
        return max(share_of_memory(policy.device, CACHE_SHARE, CACHE_BYTES) // row, 1)

    def kept_weights(self, policy: Policy) -> list[Tensor]:
        """See ``Engine``; a copy is kept where captured or recorded steps read it."""
        return self._copies[policy].weights() if policy in self._copies else []

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
        if not self._takes_plans(policy):
            plain = HFEngine(self.batch_size)
            return plain.generate(policy, tokenizer, prompt_ids, group_size, sampling, noise, progress, ended)
        heap.make_room()
        total = len(prompt_ids) * group_size
        ends = set() if sampling.ignore_end else end_tokens(tokenizer, policy)
        sampled = self._sampled(policy)
        longest = max(len(prompt) + sampling.limit(p) for p, prompt in enumerate(prompt_ids))
        parts = shares(sampled, prompt_ids, group_size, sampling, min(self.rows_at_once(policy, longest), total))
        uniforms = None
        if sampling.temperature > 0:
            drawn = np.stack([noise.uniforms(row, sampling.max_new_tokens) for row in range(total)])
            uniforms = torch.from_numpy(drawn).to(policy.device)
        ids: list[list[int]] = [[]] * total
        logps: list[list[float]] = [[]] * total
        texts, finished = [""] * total, [False] * total
        done = 0

        def tell(lane: int, found: Found) -> None:
            nonlocal done
            numbers, tokens, scores = found
            told = _told(tokens, scores, tokenizer, ends, sampling)
            for number, own, score, text, end in zip(numbers, *told, strict=True):
                row = rows[lane][number]
                ids[row], logps[row], texts[row], finished[row] = own, score, text, end
                if ended is not None:
                    ended(row, text, end)
            done += len(numbers)
            if progress is not None:
                progress(done)

        rows = [[p * group_size + g for p in part for g in range(group_size)] for part in parts]
        decoders, steps = [], []
        try:
            for lane, part in enumerate(parts):  # each a rollout of its own, of the same model
                own = [prompt_ids[p] for p in part]
                limits = None if sampling.limits is None else tuple(sampling.limits[p] for p in part)
                of_part = replace(sampling, limits=limits)
                decoder = self._decoder(sampled, own, len(rows[lane]), of_part, ends, lane, len(parts))
                decoder.begin(None if uniforms is None else uniforms[rows[lane]])
                decoders.append(decoder)
                steps.append(_decode(decoder, tokenizer, own, group_size, of_part))
            in_lanes(steps, tell)
        except BaseException:
            self._kept.clear()  # the next one may have other sizes, and needs the memory
            self._copies.clear()
            raise
        finally:
            if decoders and decoders[0].captured is None:
                self._let_go()
        return Rollouts(prompt_ids, ids, texts, finished, group_size, logps)

    def _takes_plans(self, policy: Policy) -> bool:
        if policy not in self._reasons:
            self._reasons[policy] = reason = why_no_plans(policy)
            if reason is not None:
                kind = type(policy.model).__name__
                print(f"rollout: native cannot sample from {kind} ({reason}); hf does it", file=sys.stderr)
        return self._reasons[policy] is None

    def _sampled(self, policy: Policy) -> Policy:
        """What is sampled from, up to date."""
        dtype = self.dtype or policy.dtype
        if not needs_copy(policy, dtype):
            if self._copies.pop(policy, None) is not None:  # kernels were switched off
                self._kept.clear()
            return policy
        if policy in self._copies and self._copies[policy].packs != packs(policy.model, dtype):
            del self._copies[policy]  # kernels were switched on or off
        if policy not in self._copies:
            self._kept.clear()  # what was captured of another copy holds that copy and its cache
            self._copies[policy] = SamplingCopy(policy, dtype)
        else:
            self._copies[policy].refresh()
        return self._copies[policy].policy

    def _decoder(
        self, sampled: Policy, prompts: list[list[int]], total: int, sampling: Sampling, ends: set[int],
        lane: int = 0, lanes: int = 1,
    ) -> Decoder:  # fmt: skip
        """Room for a lane of this rollout; that of the one before where the sizes are the same."""
        width = max(map(len, prompts))
        longest = max(len(prompt) + sampling.limit(p) for p, prompt in enumerate(prompts))
        rows = min(self.rows_at_once(sampled, longest) // lanes, total)
        on_gpu = sampled.device.type == "cuda"
        static = self.static or (self.cuda_graph and on_gpu)
        places = min(len(prompts), rows + 1)  # one prompt may be held for members that wait
        compiled = kernels.take(next(sampled.model.parameters()))
        key = (id(sampled), replace(sampling, limits=None), frozenset(ends), rows, places, total, compiled, lanes, lane)
        decoder = self._kept.pop(key, None)
        if decoder is not None and decoder.cache.width < width:
            decoder = None  # its memory goes before the next one takes as much
        if static and on_gpu:
            self._kept.clear()
        if decoder is None:
            decoder = Decoder(sampled, sampling, ends, rows, places, width, total, static)
        self._kept[key] = decoder
        return decoder

    def _let_go(self) -> None:
        """Of what rollouts on a CPU used: the update that follows needs the memory, but to record costs several steps.

        Small copies stay, and decoders in the room beside them; larger ones stay where they are, and their memory goes
        to the system, which takes a while to give it again. A model that is not a copy keeps its own, which is counted.
        Whether a copy stays is for its size alone to say, not for the rollouts before: it is on record.
        """
        on_cpu = all(copy.policy.device.type == "cpu" for copy in self._copies.values())
        room, leaves = KEPT_BYTES, on_cpu and pages.can_give_back()
        copies = {id(copy.policy): copy for copy in self._copies.values()}
        for copy in copies.values() if leaves else ():
            if (size := sum(x.nbytes for x in copy.weights())) > room:
                copy.give_back()
            else:
                room -= size
        places = Counter[int]()  # by lane
        for key, decoder in reversed(list(self._kept.items())):  # the latest first
            *_, lane = key
            apart = leaves and id(decoder.policy) in copies  # its weights can go without it
            own = 0 if apart else sum(x.nbytes for x in self._weights(decoder.policy))
            size = own + decoder.size_bytes()
            places[lane] += 1
            if not decoder.records() or places[lane] > KEPT_DECODERS or (own if leaves else size) > room:
                del self._kept[key]
            elif size <= room:
                room -= size
            else:
                room -= own
                decoder.give_back()
        used = {id(decoder.policy) for decoder in self._kept.values()}
        for policy, copy in list(self._copies.items()):
            if id(copy.policy) not in used and not leaves:
                del self._copies[policy]

    def _weights(self, sampled: Policy) -> list[Tensor]:
        for copy in self._copies.values():
            if copy.policy is sampled:
                return copy.weights()
        return list(sampled.model.parameters())


def _told(
    tokens: list[list[int]], scores: list[list[float]], tokenizer: Any, ends: set[int], sampling: Sampling
) -> tuple[list[list[int]], list[list[float]], list[str], list[bool]]:
    """Ids, log-probs, texts and ends of completions that ended."""
    ids, texts, finished = cut(tokens, tokenizer, ends, sampling)
    return ids, [s[: len(i)] for s, i in zip(scores, ids, strict=True)], texts, finished


def _decode(decoder: Decoder, tokenizer: Any, prompts: list[list[int]], group_size: int, sampling: Sampling) -> Steps:
    """Sample all rows; yields at each look those that ended, if any: each row once.

    Rows enter in one order, the longest prompts first: little is padded, and too large a batch fails at once, not late.
    """
    order = sorted(range(len(prompts)), key=lambda p: (-len(prompts[p]), p))
    waiting = deque((p * group_size + g, p) for p in order for g in range(group_size))
    room, every = decoder.cache.rows, LOOK_EVERY[decoder.policy.device.type]
    looked = 0
    while waiting or decoder.alive:
        free = room - decoder.alive
        if waiting and free >= min(max(room // ENTER_SHARE, 1), len(waiting)):
            decoder.release({waiting[0][1]})
            some = [waiting.popleft() for _ in range(min(free, len(waiting)))]
            new = [p for p in dict.fromkeys(p for _, p in some) if p not in decoder.prompts]
            decoder.prefill(new, [prompts[p] for p in new])
            decoder.enter([row for row, _ in some], [p for _, p in some], [sampling.limit(p) for _, p in some])
        else:
            if decoder.is_loose():
                decoder.release({waiting[0][1]} if waiting else set())
            for _ in range(every):
                decoder.advance()
        if sampling.stop and not sampling.ignore_end and decoder.now - looked >= STOP_EVERY:
            _look_for_stops(decoder, tokenizer, decoder.now - looked, sampling.stop)
            looked = decoder.now
        places = decoder.ended()
        yield ([decoder.held[i].row for i in places], *_read(decoder, places)) if places else ([], [], [])


def _look_for_stops(decoder: Decoder, tokenizer: Any, new: int, stop: tuple[str, ...]) -> None:
    places = [i for i, h in enumerate(decoder.held) if h.running]
    if found := stopped(tokenizer, _read(decoder, places)[0], new + 1, stop):
        decoder.stop([places[i] for i in found])


def _read(decoder: Decoder, places: list[int]) -> tuple[list[list[int]], list[list[float]]]:
    """Tokens and log-probs of rows, given as places, up to their ends."""
    index = torch.tensor(places, device=decoder.policy.device)
    counts, rows = decoder.counts[index].tolist(), decoder.rows[index]

    def parts(x: Tensor) -> list[list[Any]]:
        return [own[:n] for own, n in zip(x[rows, : max(counts)].tolist(), counts, strict=True)]

    return parts(decoder.out), parts(decoder.logps)
