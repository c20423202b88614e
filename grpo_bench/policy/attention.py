"""The one door through which faster layouts reach a model: an attention function registered with transformers.

transformers looks up a model's attention by name and hands it queries, keys and values with the rotary embedding
applied. A forward that carries a plan has its attention computed by the plan, which knows who may see whom; all else
is the model's own code. Without a plan the model attends as it did before.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "grpo_bench_{0}"  # beside what the model used before: sdpa, eager, flash_attention_2, ...


class Plan(Protocol):
    """Who attends to whom in one forward."""

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        """(1,H,N,d) queries and (1,K,N,d) keys and values of N tokens -> (1,N,H,d).

        ``window``: a token sees itself and the ``window`` - 1 positions before it. ``softcap``: scores s become
        softcap · tanh(s / softcap). NotImplementedError where a plan cannot do these.
        """


def install(model: PreTrainedModel) -> bool:
    """Let ``model`` take plans; False where its attention does not go through transformers' interface."""
    config = model.config.get_text_config(decoder=True)
    before = config._attn_implementation
    if before.startswith(NAME.format("")):
        return True
    if before not in ("sdpa", "eager") and before not in ALL_ATTENTION_FUNCTIONS:
        return False
    if before == "eager" or not getattr(model, "_supports_attention_backend", False):
        return False  # eager functions are the modelling files' own: none is registered
    name = NAME.format(before)
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, _dispatch(ALL_ATTENTION_FUNCTIONS[before]))
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[before])
    config._attn_implementation = name
    return True


def planned(plan: Plan, positions: Tensor) -> dict[str, Any]:
    """Arguments of a forward of N tokens in one row: (N,) positions, the plan, and a mask that is not looked at.

    A mask of four dimensions is taken as it is: without one transformers would make its own.
    """
    unread = _unread(positions.device)
    return {"position_ids": positions[None], "attention_mask": unread, "plan": plan, "use_cache": False}


@cache
def _unread(device: torch.device) -> Tensor:
    return torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=device)


def _dispatch(original: Any) -> Any:
    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *args: Any, **kwargs: Any
    ) -> Any:
        plan: Plan | None = kwargs.pop("plan", None)
        if plan is None:
            return original(module, query, key, value, attention_mask, *args, **kwargs)
        for unplanned in ("s_aux", "position_bias"):
            if kwargs.get(unplanned) is not None:
                raise NotImplementedError(f"attention with {unplanned}")
        window, softcap = kwargs.get("sliding_window"), kwargs.get("softcap")
        return plan.attend(module.layer_idx, query, key, value, kwargs["scaling"], window, softcap), None

    return attend
