"""The model that is sampled from: the trained one itself, or a copy of it in a lower precision."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from grpo_bench import kernels
from grpo_bench.policy import Policy
from grpo_bench.policy.linear import TrainedLinear

FEW_ROWS = 256  # above them a library's products are as fast: weights are no longer what takes the time


class SamplingCopy:
    """A policy's model with its parameters in ``dtype``, adapters included; ``refresh`` takes over what was trained.

    Costs the parameters once more, in ``dtype``, and packed linear layers twice.
    Buffers (rotary frequencies) keep their precision.
    """

    def __init__(self, policy: Policy, dtype: torch.dtype) -> None:
        self._pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
        memo: dict[int, nn.Parameter] = {}  # deepcopy takes these instead of copying in full precision first
        for master in policy.model.parameters():
            low = dtype if master.is_floating_point() else master.dtype
            memo[id(master)] = nn.Parameter(master.detach().to(low, copy=True), requires_grad=False)
            self._pairs.append((master, memo[id(master)]))
        self.policy = Policy(copy.deepcopy(policy.model, memo).eval(), dtype, like=policy)
        self._packed = _pack_linears(self.policy.model) if dtype == torch.bfloat16 else []
        if policy.device.type == "cuda":
            merge_linears(self.policy.model)

    @torch.no_grad()
    def refresh(self) -> None:
        """In place: what was captured of the copy stays valid."""
        for master, low in self._pairs:
            low.copy_(master)
        for linear in self._packed:
            linear.pack()

    def weights(self) -> list[Tensor]:
        """All that it holds beside the policy's own weights."""
        return [low for _, low in self._pairs] + [linear.packed for linear in self._packed]


class PackedLinear(nn.Linear):
    """A linear layer that is sampled from: few rows at a time go through weights ``packed`` for that."""

    packed: Tensor

    def pack(self) -> None:
        kernels.pack(self.weight, self.packed)

    def forward(self, input: Tensor) -> Tensor:
        few = input.numel() <= FEW_ROWS * self.in_features and input.dtype == torch.bfloat16
        if not few or not kernels.multiplies(self.weight):
            return super().forward(input)
        return kernels.multiply(input, self.packed, self.out_features, self.bias)


def _pack_linears(model: nn.Module) -> list[PackedLinear]:
    """Pack the plain linear layers of a model that is only sampled from, where the machine multiplies so."""
    found: list[PackedLinear] = []
    for module in model.modules():
        if type(module) not in (nn.Linear, TrainedLinear):
            continue
        assert isinstance(module, nn.Linear)
        if kernels.multiplies(module.weight):
            module.__class__ = PackedLinear
            assert isinstance(module, PackedLinear)
            found.append(module)
    if not found:  # nothing is compiled where nothing is multiplied here
        return found
    for linear, room in zip(found, kernels.packed_room([linear.weight for linear in found]), strict=True):
        linear.packed = room
        linear.pack()
    return found


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


SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # layers of one input, by their usual names


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
