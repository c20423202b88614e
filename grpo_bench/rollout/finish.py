"""How a completion ends: at an end token, at a stop string, or cut at the limit. One rule for all engines."""

from __future__ import annotations

from typing import Any

from grpo_bench.policy import Policy
from grpo_bench.rollout import Sampling
from grpo_bench.types import Rollouts


def end_tokens(tokenizer: Any, policy: Policy) -> set[int]:
    """All ids that end an answer: models may have several (chat models end turns with another than the tokenizer's)."""
    ends = {tokenizer.eos_token_id}
    for config in (policy.model.config, getattr(policy.model, "generation_config", None)):
        ids = getattr(config, "eos_token_id", None)
        ends |= set(ids) if isinstance(ids, list) else {ids}
    return {int(i) for i in ends if i is not None}


def finish(
    prompt_ids: list[list[int]],
    completions: list[list[int]],
    group_size: int,
    tokenizer: Any,
    policy: Policy,
    sampling: Sampling,
) -> Rollouts:
    """Cut each completion after its first end token or stop string, and say whether it ended by itself.

    A row ended by a stop string keeps the token that completes the string, and its text ends before the string.
    """
    ends = end_tokens(tokenizer, policy)
    ids, finished = [], []
    for completion in completions:
        cut = next((i + 1 for i, token in enumerate(completion) if token in ends), None)
        ids.append(completion[:cut])
        finished.append(cut is not None)
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    for i, text in enumerate(texts):
        if any(s in text for s in sampling.stop):
            ids[i] = ids[i][: _tokens_until_stop(tokenizer, ids[i], sampling.stop)]
            finished[i] = True
            whole = tokenizer.decode(ids[i], skip_special_tokens=True)
            texts[i] = whole[: min(at for s in sampling.stop if (at := whole.find(s)) >= 0)]
    return Rollouts(prompt_ids, ids, texts, finished, group_size)


def _tokens_until_stop(tokenizer: Any, ids: list[int], stop: tuple[str, ...]) -> int:
    """The fewest tokens whose text holds a stop string."""
    low, high = 1, len(ids)
    while low < high:
        middle = (low + high) // 2
        text = tokenizer.decode(ids[:middle], skip_special_tokens=True)
        low, high = (low, middle) if any(s in text for s in stop) else (middle + 1, high)
    return low
