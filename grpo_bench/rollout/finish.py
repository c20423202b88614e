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
    logps: list[list[float]] | None = None,
) -> Rollouts:
    """Cut each completion after its first end token or stop string, and say whether it ended by itself.

    A row ended by a stop string keeps the token that completes the string, and its text ends before the string.
    ``logps`` are the sampler's, of the tokens before the cut; with ``ignore_end`` nothing is cut and nothing finished.
    """
    ids, texts, finished = cut(completions, tokenizer, end_tokens(tokenizer, policy), sampling)
    if logps is not None:
        logps = [own[: len(kept)] for own, kept in zip(logps, ids, strict=True)]
    return Rollouts(prompt_ids, ids, texts, finished, group_size, logps)


def cut(
    completions: list[list[int]], tokenizer: Any, ends: set[int], sampling: Sampling
) -> tuple[list[list[int]], list[str], list[bool]]:
    """The completions as ``finish`` leaves them: ids, texts, whether each ended by itself."""
    if sampling.ignore_end:
        texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
        return completions, texts, [False] * len(completions)
    ids, finished = [], []
    for completion in completions:
        end = next((i + 1 for i, token in enumerate(completion) if token in ends), None)
        ids.append(completion[:end])
        finished.append(end is not None)
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    for i, text in enumerate(texts):
        if any(s in text for s in sampling.stop):
            ids[i] = ids[i][: _tokens_until_stop(tokenizer, ids[i], sampling.stop)]
            finished[i] = True
            whole = tokenizer.decode(ids[i], skip_special_tokens=True)
            texts[i] = whole[: min(at for s in sampling.stop if (at := whole.find(s)) >= 0)]
    return ids, texts, finished


def stopped(tokenizer: Any, completions: list[list[int]], new: int, stop: tuple[str, ...]) -> list[int]:
    """Which completions hold a stop string that their last ``new`` tokens completed.

    Only ends are decoded, and whole texts only where an end holds a string: a text may begin otherwise than its parts.
    A string spread over very many tokens may be missed; ``cut`` finds where each truly ends.
    """
    tail = new + max(len(s.encode()) for s in stop)  # a token of less than a byte does not count
    texts = tokenizer.batch_decode([ids[-tail:] for ids in completions], skip_special_tokens=True)
    likely = [i for i, text in enumerate(texts) if any(s in text for s in stop)]
    whole = tokenizer.batch_decode([completions[i] for i in likely], skip_special_tokens=True) if likely else []
    return [i for i, text in zip(likely, whole, strict=True) if any(s in text for s in stop)]


def _tokens_until_stop(tokenizer: Any, ids: list[int], stop: tuple[str, ...]) -> int:
    """The fewest tokens whose text holds a stop string."""
    low, high = 1, len(ids)
    while low < high:
        middle = (low + high) // 2
        text = tokenizer.decode(ids[:middle], skip_special_tokens=True)
        low, high = (low, middle) if any(s in text for s in stop) else (middle + 1, high)
    return low
