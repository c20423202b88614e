"""Linear layers whose weights are packed for a processor's products, in a model that is only sampled from."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from grpo_bench.kernels import products
from grpo_bench.policy.linear import GATES, SIBLINGS, Asked, Siblings, TrainedLinear

FEW_ROWS = 256  # above them a library's products with weights that are not packed are as fast
WIDE_PARAMETERS = 2**28  # at most, that are packed in fp32: beside the weights themselves


def is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    return type(module) in (nn.Linear, TrainedLinear)


def packs(model: nn.Module, dtype: torch.dtype) -> bool:
    """Whether linear layers of a copy in ``dtype`` are packed.

    In fp32 there need be no copy; measured, in turns with none: rollouts of the embedded model took 0.75 of the time,
    of a Llama of 3.2M parameters 0.83, of SmolLM2-135M 0.76.
    """
    layers = [m for m in model.modules() if is_plain(m) and products.multiplies(m.weight, dtype)]
    if dtype == torch.float32:
        return 0 < sum(m.weight.numel() for m in layers) <= WIDE_PARAMETERS
    return bool(layers)


def only_multiplied(model: nn.Module, dtype: torch.dtype) -> set[int]:
    """Weights, by id, that only plain linear layers have which are packed in ``dtype``: not an embedding's."""
    found, others = set[int](), set[int]()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            mine = name == "weight" and is_plain(module) and products.multiplies(parameter, dtype)
            (found if mine else others).add(id(parameter))
    return found - others


class Packed:
    """Weights of linear layers of one input, packed in one place: one behind the other, or in turns."""

    def __init__(self, weights: list[nn.Parameter], columns: list[int], turns: bool) -> None:
        """``weights``: where they are taken from at each ``pack``."""
        self.sources, self.columns, self.turns = weights, columns, turns
        self.room: Tensor
        self.readers: list[Any] = []  # what is to know the room: not this object, which holds what is trained

    @property
    def shape(self) -> tuple[int, int]:
        """Of what is packed."""
        one = products.TILE
        width = len(self.columns) * -(-self.columns[0] // one) * one if self.turns else sum(self.columns)
        return width, self.sources[0].shape[1]

    def pack(self) -> None:
        if len(self.sources) == 1:
            products.pack(self.sources[0].detach(), self.room)
            return
        first = 0
        for source, columns in zip(self.sources, self.columns, strict=True):
            products.pack(source.detach(), self.room, first, len(self.sources) if self.turns else 1)
            first += 1 if self.turns else columns // products.TILE


class PackedLinear(nn.Linear):
    """A linear layer that is sampled from, through weights ``packed`` for that.

    Where it holds the weights as they are too (``dense``), many rows at a time only go through the packed ones where a
    library is slower.
    """

    packed: Tensor
    dense: bool

    def forward(self, input: Tensor) -> Tensor:
        if not self._takes(input):
            return super().forward(input)
        return _multiplied(input, self.packed, self.out_features, self.bias)

    def _takes(self, input: Tensor) -> bool:
        """Whether packed weights are for this input: one of their type, or that becomes bfloat16 under autocast."""
        if input.dtype != self.packed.dtype and (
            self.dense or self.packed.dtype != torch.bfloat16 or not torch.is_autocast_enabled("cpu")
        ):
            return False
        if not self.dense:
            return True
        few = input.numel() <= FEW_ROWS * self.in_features or products.trains(self.weight, self.packed.dtype)
        return few and products.multiplies(self.weight, self.packed.dtype)


def _multiplied(x: Tensor, packed: Tensor, columns: int, bias: Tensor | None = None, gated: bool = False) -> Tensor:
    return products.multiply(x.to(packed.dtype), packed, columns, bias, gated)


class _AskedByThread(threading.local, Asked):
    """Each thread's own."""


class PackedSiblings(Siblings):
    """Packed layers of one input as one product; several threads may use them."""

    def __init__(self, columns: list[int], bias: Tensor | None) -> None:
        super().__init__(_AskedByThread())
        self.columns, self.bias = columns, bias
        self.packed: Tensor

    def compute(self, input: Tensor) -> Sequence[Tensor]:
        return _multiplied(input, self.packed, sum(self.columns), self.bias).split(self.columns, dim=-1)


class PackedPart(PackedLinear):
    """A linear layer whose product is a part of a larger one, see ``PackedSiblings``."""

    siblings: PackedSiblings
    number: int

    def forward(self, input: Tensor) -> Tensor:
        return self.siblings.part(self.number, input) if self._takes(input) else nn.Linear.forward(self, input)


_GATED: dict[type[nn.Module], type[nn.Module]] = {}


def _gated(own: type[nn.Module]) -> type[nn.Module]:
    """A layer that ``policy.gates`` knows, with the products of its gate and of what that lets through as one."""
    if own not in _GATED:

        def forward(self: Any, x: Tensor) -> Tensor:
            gate = self.gate_proj
            if not gate._takes(x):
                plain: Tensor = own.forward(self, x)
                return plain
            out: Tensor = self.down_proj(_multiplied(x, gate.packed, gate.out_features, gated=True))
            return out

        _GATED[own] = type(own.__name__, (own,), {"forward": forward, "__module__": own.__module__})
    return _GATED[own]


def pack_linears(model: nn.Module, masters: dict[int, nn.Parameter], dense: bool, dtype: torch.dtype) -> list[Packed]:
    """Pack the plain linear layers of a model that is only sampled from; their weights are those of ``masters``.

    What two layers share is packed once.
    """
    found: dict[tuple[int, ...], Packed] = {}

    def packed(layers: list[nn.Linear], turns: bool = False) -> Packed:
        key = tuple(id(layer.weight) for layer in layers)
        if key not in found:
            found[key] = Packed([masters[i] for i in key], [x.out_features for x in layers], turns)
        for layer in layers:
            layer.__class__ = PackedLinear
            assert isinstance(layer, PackedLinear)
            layer.dense = dense
        found[key].readers += layers
        return found[key]

    # where a layer may go another way than its siblings, as with weights kept beside, each goes by itself
    for module in () if dense else model.modules():
        for names in SIBLINGS:
            layers = [layer for name in names if is_plain(layer := getattr(module, name, None))]  # type: ignore[arg-type]
            if len(layers) < len(names) or len({(x.in_features, x.bias is None) for x in layers}) > 1:
                continue
            if not all(products.multiplies(layer.weight, dtype) for layer in layers):
                continue
            biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
            if any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers):
                continue  # each has to be called
            if names == GATES and hasattr(type(module), "faster") and not biases:
                if len({layer.out_features for layer in layers}) == 1:
                    packed(layers, turns=True)
                    module.__class__ = _gated(type(module))
            elif all(layer.out_features % products.TILE == 0 for layer in layers[:-1]):
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
        if is_plain(module) and products.multiplies(module.weight, dtype):
            packed([module])
    every = list(found.values())
    for one, room in zip(every, products.packed_room([one.shape for one in every], dtype), strict=True):
        one.room = room
        for reader in one.readers:
            reader.packed = room
        one.readers = []
    return every
