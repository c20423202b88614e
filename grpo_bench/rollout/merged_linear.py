"""Linear layers of one input as one product, in a model that is only sampled from on a GPU: fewer launches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from grpo_bench.policy.linear import SIBLINGS, Siblings, TrainedLinear


class Together(Siblings):
    """Linear layers of one input as one product."""

    def __init__(self, layers: list[nn.Linear]) -> None:
        super().__init__()
        self.sizes = [layer.out_features for layer in layers]
        self.weight = torch.cat([layer.weight.detach() for layer in layers])
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        self.bias = torch.cat(biases) if biases else None

    def compute(self, input: Tensor) -> Sequence[Tensor]:
        return nn.functional.linear(input, self.weight, self.bias).split(self.sizes, dim=-1)


class MergedLinear(nn.Linear):
    """A linear layer whose weights are rows of a larger one's, see ``Together``."""

    together: Together
    number: int

    def forward(self, input: Tensor) -> Tensor:
        return self.together.part(self.number, input)


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
