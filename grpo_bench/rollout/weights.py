"""The model that is sampled from: the trained one itself, or a copy of it in a lower precision."""

from __future__ import annotations

import copy
import weakref
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from grpo_bench import kernels
from grpo_bench.policy import Policy
from grpo_bench.policy.linear import TrainedLinear
from grpo_bench.policy.memory import is_out_of_memory
from grpo_bench.policy.network import widen
from grpo_bench.rollout import pages

FEW_ROWS = 256  # above them a library's products with weights that are not packed are as fast
PROBE = list(range(1, 9))  # tokens
_look: weakref.WeakKeyDictionary[Policy, bool] = weakref.WeakKeyDictionary()  # policies that look at layers' weights


class SamplingCopy:
    """A policy's model with its parameters in ``dtype``, adapters included; ``refresh`` takes over what was trained.

    Costs the parameters once more, in ``dtype``. Linear layers that are packed for a processor hold nothing else: they
    cost twice only where an embedding has the same weights (a tied head), or where a model looks at these itself.
    Buffers (rotary frequencies) keep their precision.
    """

    def __init__(self, policy: Policy, dtype: torch.dtype) -> None:
        self.dtype, self.given_back = dtype, False
        self.packs = packs(policy, dtype)  # where it does not, as when kernels are switched off, it is of no more use
        self._make(policy, dense=not self.packs or _look.get(policy, False))
        if self.packs and policy not in _look:
            if _answer(policy) is None:  # weights that are not finite: nothing is learnt
                self._make(policy, dense=True)
                return
            _look[policy] = _answer(self.policy) is None
            if _look[policy]:
                self._make(policy, dense=True)

    def _make(self, policy: Policy, dense: bool) -> None:
        self._pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
        self._packed: list[_Packed] = []
        only = set() if dense else _only_multiplied(policy.model)
        memo: dict[int, nn.Parameter] = {}  # deepcopy takes these instead of copying in full precision first
        masters: dict[int, nn.Parameter] = {}  # by what stands for them in the copy
        for master in policy.model.parameters():
            low = self.dtype if master.is_floating_point() else master.dtype
            if id(master) in only:  # who computes with it is found out
                made = torch.full((), torch.nan, dtype=low, device=master.device).expand(master.shape)
            else:
                made = master.detach().to(low, copy=True, memory_format=torch.contiguous_format)
            memo[id(master)] = made = nn.Parameter(made, requires_grad=False)
            if id(master) not in only:
                self._pairs.append((master, made))
            masters[id(made)] = master if id(master) in only else made
        self.policy = Policy(copy.deepcopy(policy.model, memo).eval(), self.dtype, like=policy)
        if self.packs:
            self._packed = _pack_linears(self.policy.model, masters, dense)
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


def packs(policy: Policy, dtype: torch.dtype) -> bool:
    """Whether linear layers of a copy in ``dtype`` are packed."""
    return dtype == torch.bfloat16 and any(
        _is_plain(m) and kernels.multiplies(m.weight) for m in policy.model.modules()
    )


def _is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    return type(module) in (nn.Linear, TrainedLinear)


def _only_multiplied(model: nn.Module) -> set[int]:
    """Weights, by id, that only plain linear layers have which are packed: not an embedding's."""
    found, others = set[int](), set[int]()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            mine = name == "weight" and _is_plain(module) and kernels.multiplies(parameter)
            (found if mine else others).add(id(parameter))
    return found - others


class _Packed:
    """Weights of linear layers of one input, packed in one place: one behind the other, or in turns."""

    def __init__(self, weights: list[nn.Parameter], columns: list[int], turns: bool) -> None:
        """``weights``: where they are taken from at each ``pack``."""
        self.sources, self.columns, self.turns = weights, columns, turns
        self.room: Tensor
        self.readers: list[Any] = []  # what is to know the room: not this object, which holds what is trained

    @property
    def shape(self) -> tuple[int, int]:
        """Of what is packed."""
        one = kernels.TILE
        width = len(self.columns) * -(-self.columns[0] // one) * one if self.turns else sum(self.columns)
        return width, self.sources[0].shape[1]

    def pack(self) -> None:
        if len(self.sources) == 1:
            kernels.pack(self.sources[0].detach(), self.room)
            return
        first = 0
        for source, columns in zip(self.sources, self.columns, strict=True):
            kernels.pack(source.detach(), self.room, first, len(self.sources) if self.turns else 1)
            first += 1 if self.turns else columns // kernels.TILE


class PackedLinear(nn.Linear):
    """A linear layer that is sampled from, through weights ``packed`` for that.

    Where it holds the weights as they are too (``dense``), only few rows at a time go through the packed ones.
    """

    packed: Tensor
    dense: bool

    def forward(self, input: Tensor) -> Tensor:
        if (given := self._given(input)) is None:
            return super().forward(input)
        return kernels.multiply(given, self.packed, self.out_features, self.bias)

    def _given(self, input: Tensor) -> Tensor | None:
        """The input as packed weights take it; None where they do not."""
        if input.dtype != torch.bfloat16:
            if self.dense or not torch.is_autocast_enabled("cpu"):
                return None
            input = input.to(torch.bfloat16)
        few = input.numel() <= FEW_ROWS * self.in_features and kernels.multiplies(self.weight)
        return None if self.dense and not few else input


class PackedSiblings:
    """Packed layers of one input as one product: the first that is asked computes all, the others take their part."""

    def __init__(self, columns: list[int], bias: Tensor | None) -> None:
        self.columns, self.bias = columns, bias
        self.packed: Tensor
        self._input: Tensor | None = None
        self._parts: list[Tensor | None] = []

    def part(self, number: int, input: Tensor, given: Tensor) -> Tensor:
        """What the ``number``-th layer makes of ``input``, which is ``given`` to the product."""
        if self._input is not input or self._parts[number] is None:
            made = kernels.multiply(given, self.packed, sum(self.columns), self.bias)
            self._parts, self._input = list(made.split(self.columns, dim=-1)), input
        out, self._parts[number] = self._parts[number], None
        if not any(part is not None for part in self._parts):
            self._input = None
        assert out is not None
        return out


class PackedPart(PackedLinear):
    """A linear layer whose product is a part of a larger one, see ``PackedSiblings``."""

    siblings: PackedSiblings
    number: int

    def forward(self, input: Tensor) -> Tensor:
        if (given := self._given(input)) is None:
            return nn.Linear.forward(self, input)
        return self.siblings.part(self.number, input, given)


_GATED: dict[type[nn.Module], type[nn.Module]] = {}


def _gated(own: type[nn.Module]) -> type[nn.Module]:
    """A layer that ``policy.gates`` knows, with the products of its gate and of what that lets through as one."""
    if own not in _GATED:

        def forward(self: Any, x: Tensor) -> Tensor:
            gate = self.gate_proj
            if (given := gate._given(x)) is None:
                plain: Tensor = own.forward(self, x)
                return plain
            out: Tensor = self.down_proj(kernels.multiply(given, gate.packed, gate.out_features, gated=True))
            return out

        _GATED[own] = type(own.__name__, (own,), {"forward": forward, "__module__": own.__module__})
    return _GATED[own]


def _pack_linears(model: nn.Module, masters: dict[int, nn.Parameter], dense: bool) -> list[_Packed]:
    """Pack the plain linear layers of a model that is only sampled from; their weights are those of ``masters``.

    What two layers share is packed once.
    """
    found: dict[tuple[int, ...], _Packed] = {}

    def packed(layers: list[nn.Linear], turns: bool = False) -> _Packed:
        key = tuple(id(layer.weight) for layer in layers)
        if key not in found:
            found[key] = _Packed([masters[i] for i in key], [x.out_features for x in layers], turns)
        for layer in layers:
            layer.__class__ = PackedLinear
            assert isinstance(layer, PackedLinear)
            layer.dense = dense
        found[key].readers += layers
        return found[key]

    # where a layer may go another way than its siblings, as with weights kept beside, each goes by itself
    for module in () if dense else model.modules():
        for names in SIBLINGS:
            layers = [layer for name in names if _is_plain(layer := getattr(module, name, None))]  # type: ignore[arg-type]
            if len(layers) < len(names) or len({(x.in_features, x.bias is None) for x in layers}) > 1:
                continue
            if not all(kernels.multiplies(layer.weight) for layer in layers):
                continue
            biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
            if any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers):
                continue  # each has to be called
            if names == GATES and hasattr(type(module), "faster") and not biases:
                if len({layer.out_features for layer in layers}) == 1:
                    packed(layers, turns=True)
                    module.__class__ = _gated(type(module))
            elif all(layer.out_features % kernels.TILE == 0 for layer in layers[:-1]):
                siblings = PackedSiblings([layer.out_features for layer in layers], None)
                packed(layers).readers.append(siblings)
                for number, layer in enumerate(layers):
                    layer.__class__ = PackedPart
                    assert isinstance(layer, PackedPart)
                    layer.siblings, layer.number = siblings, number
                if biases:
                    siblings.bias = torch.cat(biases)
                    for layer, part in zip(layers, siblings.bias.split([len(x) for x in biases]), strict=True):
                        layer.bias.data = part  # the same parameter, elsewhere: a refresh writes there
    for module in model.modules():
        if _is_plain(module) and kernels.multiplies(module.weight):
            packed([module])
    every = list(found.values())
    for one, room in zip(every, kernels.packed_room([one.shape for one in every]), strict=True):
        one.room = room
        for reader in one.readers:
            reader.packed = room
        one.readers = []
    return every


class Together:
    """Linear layers of one input as one product: the first that is asked computes all, the others take their part."""

    def __init__(self, layers: list[nn.Linear]) -> None:
        self.sizes = [layer.out_features for layer in layers]
        self.weight = torch.cat([layer.weight.detach() for layer in layers])
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        self.bias = torch.cat(biases) if biases else None
        self._input: Tensor | None = None
        self._parts: list[Tensor | None] = []

    def part(self, number: int, input: Tensor) -> Tensor:
        """What the ``number``-th layer makes of ``input``."""
        if self._input is not input or self._parts[number] is None:
            self._parts = list(nn.functional.linear(input, self.weight, self.bias).split(self.sizes, dim=-1))
            self._input = input
        out, self._parts[number] = self._parts[number], None
        if not any(part is not None for part in self._parts):
            self._input = None
        assert out is not None
        return out


class MergedLinear(nn.Linear):
    """A linear layer whose weights are rows of a larger one's, see ``Together``."""

    together: Together
    number: int

    def forward(self, input: Tensor) -> Tensor:
        return self.together.part(self.number, input)


GATES = ("gate_proj", "up_proj")
SIBLINGS = (("q_proj", "k_proj", "v_proj"), GATES)  # layers of one input, by their usual names


@torch.no_grad()
def merge_linears(model: nn.Module) -> int:
    """Let layers of one input in a model that is only sampled from share a product; returns how many products.

    On a GPU the products of a decode step are too small to fill it, and each takes a launch.
    """
    found, seen = 0, set[int]()
    for module in model.modules():
        for names in SIBLINGS:
            layers = [getattr(module, name, None) for name in names]
            if not all(type(layer) in (nn.Linear, TrainedLinear) for layer in layers):
                continue
            same = {(layer.in_features, layer.weight.dtype, layer.bias is None) for layer in layers}  # type: ignore[union-attr]
            held = {id(layer.weight) for layer in layers}  # type: ignore[union-attr]
            if len(same) > 1 or held & seen:  # of modules that share weights the first keeps them
                continue
            seen |= held
            together = Together(layers)  # type: ignore[arg-type]
            biases = [None] * len(layers) if together.bias is None else together.bias.split(together.sizes)
            parts = zip(layers, together.weight.split(together.sizes), biases, strict=True)
            for number, (layer, weight, bias) in enumerate(parts):
                assert isinstance(layer, nn.Linear)
                layer.weight.data = weight  # the same parameter, elsewhere: a refresh writes there
                if bias is not None:
                    layer.bias.data = bias
                layer.__class__ = MergedLinear
                assert isinstance(layer, MergedLinear)
                layer.together, layer.number = together, number
            found += 1
    return found


def needs_copy(policy: Policy, dtype: torch.dtype) -> bool:
    """Whether ``dtype`` is lower than the precision of the weights; a higher one would add nothing."""
    weights = next(policy.model.parameters()).dtype
    return torch.finfo(dtype).bits < 32 and torch.finfo(dtype).bits < torch.finfo(weights).bits
