"""The model that is sampled from: the trained one itself, or a copy in a lower precision or with packed weights."""

from __future__ import annotations

import copy
import weakref

import torch
from torch import Tensor, nn

from grpo_bench.policy import Policy
from grpo_bench.policy.memory import is_out_of_memory
from grpo_bench.policy.network import widen
from grpo_bench.policy.replica import remembers
from grpo_bench.rollout import pages
from grpo_bench.rollout.merged_linear import merge_linears
from grpo_bench.rollout.packed_linear import Packed, only_multiplied, pack_linears, packs

PROBE = list(range(1, 9))  # tokens
_look: weakref.WeakKeyDictionary[Policy, bool] = weakref.WeakKeyDictionary()  # policies that look at layers' weights


class SamplingCopy:
    """A policy's model with its parameters in ``dtype``, adapters included; ``refresh`` takes over what was trained.

    Costs the parameters once more, in ``dtype``; in that of the weights not what is only looked up. Linear layers that
    are packed for a processor hold nothing else: they cost twice only where an embedding has the same weights (a tied
    head), or where a model looks at these itself. Buffers (rotary frequencies) keep their precision; on a CPU they are
    the policy's own, but for those of a model that changes them as it computes.
    """

    def __init__(self, policy: Policy, dtype: torch.dtype) -> None:
        self.dtype, self.given_back = dtype, False
        # where that changes, as when kernels are switched on or off, the copy is of no more use
        self.packs = packs(policy.model, dtype)
        self._make(policy, dense=not self.packs or _look.get(policy, False))
        if self.packs and policy not in _look:
            if _answer(policy) is None:  # weights that are not finite: nothing is learnt
                self._make(policy, dense=True)
                return
            # not by comparing: on words that stand nowhere together rounding alone moves a real model's logits as far
            _look[policy] = _answer(self.policy) is None
            if _look[policy]:
                self._make(policy, dense=True)

    def _make(self, policy: Policy, dense: bool) -> None:
        self._pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
        self._same: list[tuple[nn.Parameter, nn.Parameter]] = []  # these share their memory
        self._packed: list[Packed] = []
        only = set() if dense else only_multiplied(policy.model, self.dtype)
        memo: dict[int, Tensor] = {}  # deepcopy takes these instead of copying in full precision first
        if policy.device.type == "cpu" and not remembers(policy.model):
            memo |= {id(buffer): buffer for buffer in policy.model.buffers()}
        masters: dict[int, nn.Parameter] = {}  # by what stands for them in the copy
        for master in policy.model.parameters():
            low = self.dtype if master.is_floating_point() else master.dtype
            if id(master) in only:  # who computes with it is found out
                made = torch.full((), torch.nan, dtype=low, device=master.device).expand(master.shape)
            elif self.packs and low == master.dtype and master.dim() > 1:  # biases move when they are packed together
                made = master.detach()
            else:
                made = master.detach().to(low, copy=True, memory_format=torch.contiguous_format)
            made = nn.Parameter(made, requires_grad=False)
            memo[id(master)] = made
            if id(master) not in only:
                same = made.data_ptr() == master.data_ptr()
                (self._same if same else self._pairs).append((master, made))
            masters[id(made)] = master if id(master) in only else made
        self.policy = Policy(copy.deepcopy(policy.model, memo).eval(), self.dtype, like=policy)
        if self.packs:
            self._packed = pack_linears(self.policy.model, masters, dense, self.dtype)
            for packed in self._packed:
                packed.pack()
        if policy.device.type == "cuda":
            merge_linears(self.policy.model)

    @torch.no_grad()
    def refresh(self) -> None:
        """In place: what was captured or recorded of the copy stays valid."""
        self.given_back = False
        for master, low in self._pairs:
            low.copy_(master)
        for master, same in self._same:
            same.data = master.detach()
        for packed in self._packed:
            packed.pack()

    def weights(self) -> list[Tensor]:
        """All that it holds beside the policy's own weights."""
        if self.given_back:
            return []
        return [low for _, low in self._pairs] + [packed.room for packed in self._packed]

    def give_back(self) -> None:
        """Give its memory back to the system, where that takes it: of no use until it is refreshed."""
        self.given_back = pages.give_back(self.weights())


@torch.no_grad()
def _answer(policy: Policy) -> Tensor | None:
    """(8,V) logits of a few tokens; None where it gives no finite ones."""
    ids = torch.tensor([PROBE], device=policy.device) % policy.model.config.get_text_config().vocab_size
    try:
        with policy.autocast():
            found = widen(policy.logits(policy.trunk(input_ids=ids, use_cache=False).last_hidden_state[0]))
    except (TypeError, AttributeError, ValueError, LookupError, RuntimeError) as e:  # of another calling convention
        if is_out_of_memory(e):
            raise
        return None
    return found if bool(found.isfinite().all()) else None


def needs_copy(policy: Policy, dtype: torch.dtype) -> bool:
    """Whether ``dtype`` is lower than the precision of the weights, a higher one would add nothing, or the same and
    packed weights are multiplied sooner."""
    weights = next(policy.model.parameters()).dtype
    if dtype == weights == torch.float32:
        return packs(policy.model, dtype)
    return torch.finfo(dtype).bits < 32 and torch.finfo(dtype).bits < torch.finfo(weights).bits
