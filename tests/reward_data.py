"""Completions as the parts of a reward see them, written down instead of sampled; and very small reward models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from model_data import make
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
)

from grpo_bench.rewards import Scored
from grpo_bench.tasks.grading import Grade
from grpo_bench.tiny import tiny_tokenizer
from grpo_bench.types import Problem

RIGHT, WRONG = Grade(True, True, "1", True), Grade(False, False, "2", True)
UNMARKED = Grade(False, True, "1", False)  # right, but not behind the marker


def rows(
    *responses: str,
    grades: Sequence[Grade] | None = None,
    finished: Sequence[bool] | None = None,
    lengths: Sequence[int] | None = None,
    ids: Sequence[Sequence[int]] | None = None,
    group_size: int = 1,
    max_new_tokens: int = 100,
    seed: int = 0,
    step: int = 0,
    draw: int = 0,
) -> Scored:
    """One row per response; right and finished unless told otherwise. ``lengths`` stand for tokens 0, 1, 2, ..."""
    n = len(responses)
    tokens = ids if ids is not None else [list(range(length)) for length in lengths or [1] * n]
    return Scored(
        problems=[Problem(f"p/{i}", f"question {i}", "1") for i in range(n)],
        prompts=[f"question {i} answer:" for i in range(n)],
        responses=list(responses),
        grades=list(grades or [RIGHT] * n),
        finished=list(finished or [True] * n),
        seed=seed,
        step=step,
        token_ids=list(tokens),
        max_new_tokens=max_new_tokens,
        group_size=group_size,
        draw=draw,
    )


SIZES: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "initializer_range": 0.4,
}  # fmt: skip


def network(kind: str, **more: Any) -> PreTrainedModel:
    """A random classifier of 2 layers x 16; its end token is 0, its padding token 1 where it names one."""
    common: dict[str, Any] = {"vocab_size": 512, "num_labels": 1, "eos_token_id": 0, "bos_token_id": None, **more}
    torch.manual_seed(3)
    if kind == "bert":
        return BertForSequenceClassification(BertConfig(**SIZES, **common, pad_token_id=1)).eval()
    if kind == "gpt2":
        config = GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=256, initializer_range=0.4, **common)
        return GPT2ForSequenceClassification(config).eval()
    pad = {"llama": 1, "llama without padding": None, "llama padded with its end": 0}[kind]
    config = LlamaConfig(**SIZES, **{**common, "pad_token_id": pad}, num_key_value_heads=1, max_position_embeddings=256)
    return LlamaForSequenceClassification(config).eval()


def saved(folder: Path, kind: str = "llama", chat: str | None = None, **more: Any) -> Path:
    tiny = make().model.tiny
    assert tiny is not None
    tokenizer = tiny_tokenizer(tiny.model_copy(update={"vocab_size": 512}))
    tokenizer.chat_template = chat
    tokenizer.save_pretrained(folder)
    network(kind, **more).save_pretrained(folder)
    return folder
