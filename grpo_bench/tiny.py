"""The embedded model: a Llama of under a million parameters and its byte-level tokenizer, built from config."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from grpo_bench.config import TinyConfig

END = "<|end|>"
PAD = "<|pad|>"


@lru_cache(maxsize=4)
def _tokenizer_json(vocab_size: int) -> str:
    """Byte-level BPE trained on the embedded task's own words: any text encodes, these words as one token each."""
    from grpo_bench.tasks.arithmetic import vocabulary

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(vocabulary(), trainer)
    return tokenizer.to_str()


def tiny_tokenizer(cfg: TinyConfig) -> PreTrainedTokenizerFast:
    """The tokenizer of the embedded model; its end and padding tokens differ."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_tokenizer_json(cfg.vocab_size)),
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def tiny_model(cfg: TinyConfig) -> LlamaForCausalLM:
    """A freshly initialised model: the same weights for the same ``init_seed``, whatever was drawn before."""
    tokenizer = tiny_tokenizer(cfg)
    config = LlamaConfig(
        vocab_size=cfg.vocab_size,
        hidden_size=cfg.hidden_size,
        intermediate_size=cfg.intermediate_size,
        num_hidden_layers=cfg.layers,
        num_attention_heads=cfg.heads,
        num_key_value_heads=cfg.kv_heads,
        max_position_embeddings=cfg.max_positions,
        tie_word_embeddings=True,
        initializer_range=cfg.init_std,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.init_seed)
        return LlamaForCausalLM(config)
