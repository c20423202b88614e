"""A reward model: any transformers sequence-classification model with one output, scoring prompt and answer.

Nothing of it is trained and nothing is kept between steps, so a checkpoint holds nothing of it but what it has cost.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor

from grpo_bench.cost import Meter, Size
from grpo_bench.policy.load import reach_hub
from grpo_bench.policy.memory import memory_errors
from grpo_bench.rewards.scored import Scored
from grpo_bench.types import UserError

if TYPE_CHECKING:
    from grpo_bench.config import Config
    from grpo_bench.config_reward import RewardModelConfig

CONSTANT = ("parameters", "weight_bytes", "peak_memory_bytes")  # of a cost; the other numbers add up


def part(rows: Scored, cfg: Config) -> list[float]:
    """The model's one output for each row."""
    return load(cfg).score(rows)


def load(cfg: Config) -> RewardModel:
    """The reward model of a run, loaded at the first call; UserError with one line when it cannot be had.

    The memory that scoring takes is measured here, on a full batch of the longest prompts and answers: so a run that
    is too large for its GPU ends before its first step.
    """
    knobs = cfg.reward.model
    name = cfg.device if knobs.device == "auto" else knobs.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if (knobs.dtype or cfg.model.dtype) == "bfloat16" else torch.float32
    return _load(knobs, torch.device(name), dtype, cfg.task.max_prompt_tokens + cfg.task.max_new_tokens)


def add_cost(total: Mapping[str, float], more: Mapping[str, float]) -> dict[str, float]:
    """Two costs as one: counters add up, what the model is stays what it is. Either may be {}."""
    return {**total, **{k: value if k in CONSTANT else total.get(k, 0.0) + value for k, value in more.items()}}


@functools.lru_cache(maxsize=1)
@memory_errors()
def _load(knobs: RewardModelConfig, device: torch.device, dtype: torch.dtype, longest: int) -> RewardModel:
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    if not sys.stderr.isatty():  # bars of a hundred lines each in a log
        transformers.utils.logging.disable_progress_bar()
    source, where = _source(knobs)
    named = f"reward.model.{'path' if knobs.path is not None else 'id'}={source}"
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **where)
        outputs = config.num_labels
        if outputs != 1:
            raise UserError(f"{named} has {outputs} outputs, a reward model has one (num_labels: 1 in its config.json)")
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **where)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            source, trust_remote_code=False, use_safetensors=True, dtype=dtype, output_loading_info=True, **where
        )
    except UserError:
        raise
    except Exception as e:  # transformers raises OSError, ValueError, KeyError, RuntimeError, ... here
        reason = " ".join(str(e).split())[:200]
        raise UserError(
            f"{named} cannot be loaded ({type(e).__name__}: {reason}); give a sequence-classification model with "
            "safetensors weights and a tokenizer"
        ) from None
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"{named} is no reward model: its weights lack {', '.join(missing[:3])}")
    if knobs.chat and not tokenizer.chat_template:
        raise UserError(f"reward.model.chat=true, but the tokenizer of {named} has no chat template; give chat=false")
    return RewardModel(model.to(device).eval().requires_grad_(False), tokenizer, knobs, longest)


def _source(knobs: RewardModelConfig) -> tuple[str, dict[str, Any]]:
    if knobs.path is not None:
        folder = Path(knobs.path).expanduser()
        if not (folder / "config.json").is_file():
            raise UserError(f"reward.model.path={knobs.path} holds no config.json; give a Hugging Face folder")
        return str(folder), {}
    if knobs.id is None:
        raise UserError("reward.parts.model needs reward.model.path=a folder or reward.model.id=owner/name")
    reach_hub(knobs.id, knobs.revision, "reward.model", "<folder>")
    return knobs.id, {"revision": knobs.revision} if knobs.revision else {}


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt with its answer in the reward model's own tokens."""

    ids: list[int]
    cut: bool  # lost its beginning to the model's longest input


class RewardModel:
    """A frozen sequence-classification model with its tokenizer, and what it has cost since it was last asked."""

    def __init__(self, model: Any, tokenizer: Any, knobs: RewardModelConfig, longest: int) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.knobs = knobs
        self.size = Size.of(model)
        config = model.config.get_text_config()
        positions = getattr(config, "max_position_embeddings", None)
        offered = [n for n in (knobs.max_length, positions, tokenizer.model_max_length) if n is not None]
        self.longest = min(offered)
        vocabulary = model.get_input_embeddings().num_embeddings
        pad = config.pad_token_id
        self.pad = pad if pad is not None and 0 <= pad < vocabulary else None
        self.vocabulary = vocabulary
        self.counters = dict.fromkeys(("seconds", "tokens", "flops", "completions", "cut"), 0.0)
        self.constants = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "weight_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
            "peak_memory_bytes": self._peak(min(longest, self.longest)),
        }

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @memory_errors()
    def score(self, rows: Scored) -> list[float]:
        """The model's output for each prompt with its answer, in order; the same however rows are batched.

        As it comes, or its sigmoid, by ``output``. Rows of like length share a batch, padded on the right. Raises
        UserError for a score that is not finite.
        """
        start = time.perf_counter()
        texts = self.texts(rows)
        encoded = [self.encode(text, ended) for text, ended in zip(texts, rows.finished, strict=True)]
        order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i].ids))  # the longest first: it needs the most
        scores = [0.0] * len(encoded)
        for first in range(0, len(order), self.knobs.batch_size):
            chunk = order[first : first + self.knobs.batch_size]
            for i, value in zip(chunk, self.forward([encoded[i].ids for i in chunk]).tolist(), strict=True):
                scores[i] = value
        lengths = [len(row.ids) for row in encoded]
        spent = (time.perf_counter() - start, sum(lengths), self.size.forward(lengths, 0), len(rows.responses))
        for key, value in zip(self.counters, (*spent, sum(row.cut for row in encoded)), strict=True):
            self.counters[key] += value
        for i, value in enumerate(scores):
            if value - value != 0:  # NaN or infinite
                raise UserError(
                    f"the reward model gave {value} for row {i} (problem {rows.problems[i].id}); "
                    "try reward.model.dtype=float32"
                )
        return scores if self.knobs.output == "logit" else torch.tensor(scores).double().sigmoid().tolist()

    def texts(self, rows: Scored) -> list[str]:
        """What the model reads of each row: prompt and response, or the question and the response as two turns of its
        own chat template."""
        if not self.knobs.chat:
            return [prompt + response for prompt, response in zip(rows.prompts, rows.responses, strict=True)]
        turns = [
            [{"role": "user", "content": problem.question}, {"role": "assistant", "content": response}]
            for problem, response in zip(rows.problems, rows.responses, strict=True)
        ]
        return [self.tokenizer.apply_chat_template(turn, tokenize=False) for turn in turns]

    def encode(self, text: str, ended: bool) -> Row:
        """A text in the model's tokens. A plain answer that ended by itself ends with the end token, where the
        tokenizer has one; what is longer than the model's input loses its beginning, special tokens apart."""
        end = self.tokenizer.eos_token_id if ended and not self.knobs.chat else None
        # a chat template writes special tokens itself; the tokenizer would warn of what is cut here
        ids = self.tokenizer(text, add_special_tokens=not self.knobs.chat, verbose=False)["input_ids"]
        if end is not None and (not ids or ids[-1] != end):
            ids = [*ids, end]
        over = max(len(ids) - self.longest, 0)
        head = self._leading(ids) if over else 0
        return Row([*ids[:head], *ids[head + over :]], over > 0)

    def _leading(self, ids: Sequence[int]) -> int:
        """Special tokens that a text begins with, such as BOS."""
        known = set(self.tokenizer.all_special_ids)
        return next((i for i, token in enumerate(ids) if token not in known), len(ids))

    @torch.inference_mode()
    def forward(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """(b,) outputs for b rows, without gradients."""
        return self.logits(ids)

    def logits(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """(b,) outputs for b rows, padded on the right; with gradients where the model is still to be trained.

        transformers reads a decoder's output at the last token that is not the padding token. Where the model names
        none (its authors scored one row at a time, the end token included), one that no row holds is lent to it.
        """
        longest, config = max(map(len, ids)), self.model.config.get_text_config()
        pad = self.pad if self.pad is not None else self._free(ids)
        tokens = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in ids], device=self.device)
        lengths = torch.tensor([len(row) for row in ids], device=self.device)
        mask = torch.arange(longest, device=self.device)[None] < lengths[:, None]
        before, config.pad_token_id = config.pad_token_id, pad
        try:
            logits = self.model(input_ids=tokens, attention_mask=mask.long()).logits
        finally:
            config.pad_token_id = before
        return logits.float().squeeze(-1)

    def _free(self, ids: Sequence[Sequence[int]]) -> int:
        used = {token for row in ids for token in row}
        return next(token for token in range(self.vocabulary - 1, -1, -1) if token not in used)

    def _peak(self, longest: int) -> float:
        """Bytes beyond what is held anyway that scoring a full batch of the longest rows takes."""
        meter = Meter(self.device)
        meter.forget_peak()
        before = meter.peak_memory()
        token = 0 if self.pad != 0 else 1
        self.forward([[token] * longest] * self.knobs.batch_size)
        return float(max(meter.peak_memory() - before, 0))

    def take_cost(self) -> dict[str, float]:
        """What scoring has cost since this was last called: seconds, tokens, FLOPs, completions, how many of them were
        cut; with the model's parameters, their bytes and the peak of scoring beside them."""
        taken = self.counters | self.constants
        self.counters = dict.fromkeys(self.counters, 0.0)
        return taken
