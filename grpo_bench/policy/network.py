"""The policy: per-token log-probs and entropies with fp32 master weights, and its export."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from grpo_bench import kernels
from grpo_bench.policy import decoder_layer, embedding, gates, linear, norms, rotary, rotary_table
from grpo_bench.policy.attention import install, planned
from grpo_bench.policy.head import head_logp
from grpo_bench.policy.layout import Layout, spread
from grpo_bench.policy.linear import TrainedLinear, TrainedSiblings
from grpo_bench.policy.packed import Packed, pack

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGIT_ELEMENTS = 2**24  # logits held at once, in elements: 64 MiB of fp32


class Policy(nn.Module):
    """A causal language model with fp32 master weights that computes in ``dtype``."""

    def __init__(
        self, model: PreTrainedModel, dtype: torch.dtype, *, peft_model: Any = None, like: Policy | None = None
    ) -> None:
        """``like``: a policy of which this is a copy; it is computed with in the same ways, and not asked again."""
        super().__init__()
        self.model = model
        self.dtype = dtype
        self.peft_model = (peft_model,)  # in a tuple: not a submodule, its parameters are the model's own
        self.siblings: list[TrainedSiblings] = []
        if like is not None:
            self.take_ways_of(like)  # a copy's layers are of the classes that its original's are
            self.siblings = linear.join(model)
            return
        norms.install(model)
        linear.install(model)
        self.siblings = linear.join(model)
        embedding.install(model)
        gates.install(model)
        rotary.install(model)
        rotary_table.install(model)
        # in full precision where it can be told apart from an error; a reference may hold weights in ``dtype``
        mixed = len({p.dtype for p in model.parameters()}) > 1
        with self.autocast() if mixed else contextlib.nullcontext():
            self.head_is_plain = _head_matches(model)
            self.takes_plans = _plans_match(model)
        if self.takes_plans:
            decoder_layer.install(model)
        self.head_is_linear = self.head_is_plain and _is_linear_head(model)

    def take_ways_of(self, other: Policy) -> None:
        """Compute as ``other`` does, of which this is a copy, whatever it answers in lower precision."""
        self.head_is_plain, self.head_is_linear = other.head_is_plain, other.head_is_linear
        self.takes_plans = other.takes_plans

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def trunk(self) -> nn.Module:
        """The model without its language-model head."""
        return self.model.base_model

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    @contextlib.contextmanager
    def _recomputing(self) -> Iterator[None]:
        """Gradient checkpointing, where the model was loaded with it, for a forward with gradients.

        transformers checkpoints the layers that are in train mode, and these drop the cache that sampling needs: so
        the model stays in eval mode outside, and inside only the layers themselves, not what is in them, leave it.
        """
        layers = [m for m in self.model.modules() if getattr(m, "gradient_checkpointing", False)]
        if not torch.is_grad_enabled():
            layers = []
        for layer in layers:
            layer.training = True
        try:
            yield
        finally:
            for layer in layers:
                layer.training = False

    def logits(self, hidden: Tensor, wide: bool = True) -> Tensor:
        """(N,h) states -> (N,V) logits as the model's own forward would give them; fp32, or the weights' float64.

        Without ``wide`` they may be in the products' precision, where nothing is done to them.
        """
        config = self.model.config
        logits = self.model.get_output_embeddings()(hidden)
        if not wide and self.head_is_linear:
            return logits
        logits = widen(logits)
        if (scale := getattr(config, "logits_scaling", None)) is not None:  # Granite
            logits = logits / scale
        if (scale := getattr(config, "logit_scale", None)) is not None:  # Cohere
            logits = logits * scale
        if (cap := getattr(config, "final_logit_softcapping", None)) is not None:  # Gemma 2
            logits = cap * torch.tanh(logits / cap)
        return logits

    def tokens_of(self, rows: Layout) -> Packed:
        """The rows' tokens as the trunk takes them.

        In bfloat16 on a CPU their number is rounded up: each number of rows that a product has not had yet costs the
        time and the memory of compiling it (measured: a twentieth of a small model's update), and activations of ever
        new sizes leave holes between them. Not where attention lays tokens out in a grid: a filler makes it larger.
        """
        config = self.model.config.get_text_config()
        plain = getattr(config, "attn_logit_softcapping", None) is None and kernels.available()
        low = self.device.type == "cpu" and self.dtype == torch.bfloat16
        return rows.rounded if low and plain else rows.packed

    def release(self) -> None:
        """Forget what a forward pass left that did not come to its end, with the activations that it holds."""
        for siblings in self.siblings:
            siblings.release()

    def _settle(self) -> None:
        for siblings in self.siblings:
            siblings.settle()

    def states(self, rows: Layout) -> Tensor:
        """(N,h): the states that predict the rows' completion tokens."""
        with self.autocast(), self._recomputing():
            if self.takes_plans:
                packed = self.tokens_of(rows)
                hidden = self.trunk(input_ids=packed.ids[None], **planned(packed, packed.positions)).last_hidden_state
                self._settle()
                return packed.states_of(hidden[0])
            ids, positions = rows.padded
            hidden = self.trunk(input_ids=ids, use_cache=False).last_hidden_state
            self._settle()
        return hidden.flatten(0, 1)[positions]

    def logp(
        self, rows: Layout, temperature: float, states: Tensor | None = None, entropy_grad: bool = False
    ) -> tuple[Tensor, Tensor]:
        """(b,T) log-probs of the completion tokens and (b,T) entropies, both at ``temperature``.

        The N×V logits are never held at once: chunks of them are recomputed in the backward pass.
        """
        if not self.head_is_plain:
            with self.autocast(), self._recomputing():
                ids, positions = rows.padded
                full = self.model(input_ids=ids, use_cache=False).logits
                self._settle()
            logp, entropy = _select(widen(full.flatten(0, 1)[positions]), rows.targets, temperature, entropy_grad)
            return spread(logp, rows.mask), spread(entropy, rows.mask)
        states = self.states(rows) if states is None else states

        head = self.model.get_output_embeddings()
        if self.head_is_linear and not (entropy_grad and torch.is_grad_enabled()):
            with self.autocast():
                logp, entropy = head_logp(states, head.weight, rows.targets, temperature, getattr(head, "low", None))
            return spread(logp, rows.mask), spread(entropy, rows.mask)

        def chunk(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
            with self.autocast():
                return _select(self.logits(hidden), targets, temperature, entropy_grad)

        size = max(LOGIT_ELEMENTS // self.model.config.get_text_config().vocab_size, 1)
        if len(rows.targets) <= size or not torch.is_grad_enabled():
            parts = [chunk(h, y) for h, y in zip(states.split(size), rows.targets.split(size), strict=True)]
        else:
            parts = [
                checkpoint(chunk, h, y, use_reentrant=False)
                for h, y in zip(states.split(size), rows.targets.split(size), strict=True)
            ]
        logp = torch.cat([p[0] for p in parts])
        entropy = torch.cat([p[1] for p in parts])
        return spread(logp, rows.mask), spread(entropy, rows.mask)

    @contextlib.contextmanager
    def adapters_off(self) -> Iterator[None]:
        """The model before RL when only LoRA adapters are trained: the reference costs no second copy."""
        if self.peft_model[0] is None:
            raise RuntimeError("adapters_off needs a LoRA policy")
        with self.peft_model[0].disable_adapter():
            yield

    def export(self, folder: Path, tokenizer: Any) -> None:
        """Write a Hugging Face folder that AutoModelForCausalLM loads; adapters are merged into a copy."""
        model = self.model
        if self.peft_model[0] is not None:
            model = copy.deepcopy(self.peft_model[0]).merge_and_unload()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _is_linear_head(model: PreTrainedModel) -> bool:
    """Whether logits are one product with the head's weight and nothing else."""
    head, config = model.get_output_embeddings(), model.config
    more = ("logits_scaling", "logit_scale", "final_logit_softcapping")
    return (
        type(head) in (nn.Linear, TrainedLinear)
        and head.bias is None
        and all(getattr(config, name, None) is None for name in more)
    )


def widen(x: Tensor) -> Tensor:
    """At least fp32: bf16 is too coarse to sum over a vocabulary; float64 stays what it is."""
    return x if x.dtype == torch.float64 else x.float()


def _select(logits: Tensor, targets: Tensor, temperature: float, entropy_grad: bool) -> tuple[Tensor, Tensor]:
    """(N,V) logits, (N,) targets -> log-probs and entropies, both (N,)."""
    logits = logits / temperature
    normaliser = torch.logsumexp(logits, dim=-1)
    logp = logits.gather(-1, targets[:, None]).squeeze(-1) - normaliser
    with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
        probs = torch.exp(logits - normaliser[:, None])
        entropy = normaliser - (probs * logits).sum(-1)
    return logp, entropy


@torch.no_grad()
def _head_matches(model: PreTrainedModel) -> bool:
    """Whether trunk + head give the model's own logits; if not, the plain forward with all logits is used."""
    ids = torch.arange(1, 9, device=next(model.parameters()).device)[None]
    try:
        own = model(input_ids=ids, use_cache=False).logits
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    except (TypeError, AttributeError, ValueError):  # a trunk with another calling convention
        return False
    probe = Policy.__new__(Policy)
    nn.Module.__init__(probe)
    probe.model = model
    return bool(torch.allclose(probe.logits(hidden[0]), widen(own[0]), atol=1e-3, rtol=1e-3))


@torch.no_grad()
def _plans_match(model: PreTrainedModel) -> bool:
    """Whether two completions packed behind their prompt get the states that they get alone.

    Asked of the model itself: a layer that mixes tokens other than by attention, or an attention that is not
    transformers', shows here and the padded forward is used.
    """
    if not install(model):
        return False
    device = next(model.parameters()).device
    words = torch.arange(1, 13, device=device) % model.config.get_text_config().vocab_size
    prompt, first, second = words[:4], words[4:9], words[9:]
    rows = torch.zeros(2, 5, dtype=torch.long, device=device)
    rows[0], rows[1, :3] = first, second
    packed = pack([prompt], torch.zeros(2, dtype=torch.long, device=device), rows, torch.tensor([5, 3], device=device))
    try:
        both = model.base_model(input_ids=packed.ids[None], **planned(packed, packed.positions)).last_hidden_state[0]
        alone = [
            model.base_model(input_ids=torch.cat([prompt, own])[None], use_cache=False).last_hidden_state[0, 3:-1]
            for own in (first, second)
        ]
    except torch.OutOfMemoryError:
        raise
    except (TypeError, AttributeError, ValueError, LookupError, RuntimeError):  # of another calling convention
        return False
    expected = torch.cat(alone).float()
    far = (both[packed.states].float() - expected).abs().max() / expected.abs().max().clamp(min=1e-6)
    low = both.dtype == torch.bfloat16 or torch.is_autocast_enabled(device.type)
    return bool(far < (0.1 if low else 1e-3))
