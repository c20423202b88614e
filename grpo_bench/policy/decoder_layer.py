"""A decoder layer of training on a CPU as one operation, put in the place of the model's own.

Norm, attention, norm and gate, each added to what came in: the layer of Llama (arXiv 2302.13971, §2.2), Qwen2, Mistral
and others. As modules it is some forty operations of autograd's, forward and backward, each with its Python, dispatch
and context: with 70 tokens of a 3.2M Llama these took three quarters of a forward and backward pass (measured), and
beside another lane's they wait for the interpreter. Here it is the same products and kernels in the same order, called
one after the other, so results are the same bits; sums of residuals are written by the norms' passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules import module as hooks

from grpo_bench import kernels
from grpo_bench.kernels import attention, layers, products
from grpo_bench.kernels.attention import Sequences
from grpo_bench.policy import rotary
from grpo_bench.policy.attention import Plan, planned
from grpo_bench.policy.linear import TrainedLinear, input_gradient
from grpo_bench.policy.norms import norm_eps
from grpo_bench.policy.packed import Packed, pack

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LINEARS = (
    ("self_attn", "q_proj"), ("self_attn", "k_proj"), ("self_attn", "v_proj"), ("self_attn", "o_proj"),
    ("mlp", "gate_proj"), ("mlp", "up_proj"), ("mlp", "down_proj"),
)  # fmt: skip
NORMS = ("input_layernorm", "post_attention_layernorm")
ARGUMENTS = {"attention_mask", "position_ids", "past_key_values", "use_cache", "position_embeddings", "plan"}
NEAR = 1e-4  # of what a layer adds, in fp32


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a layer computes with beside its weights."""

    eps: tuple[float, float]  # of its norms
    shifts: tuple[float, float]  # added to their weights
    width: int  # of a head
    scaling: float
    window: int | None


class _DecoderLayer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, cosines: Tensor, sines: Tensor, sequences: Sequences, recipe: Recipe,
        lows: Sequence[Tensor], *parameters: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """(1,N,h) fp32, fp32 (N,d) twice, the weights of ``LINEARS`` in the products' type -> (1,N,h) fp32.

        ``parameters``: the two norms' weights, then the weights of ``LINEARS`` and their biases or Nones.
        """
        first, second, *linears = parameters
        assert first is not None
        assert second is not None
        dtype, x, count = lows[0].dtype, hidden[0], len(LINEARS)
        biases = [None if bias is None else bias.to(dtype) for bias in linears[count:]]

        def made(number: int, x: Tensor) -> Tensor:
            return F.linear(x, lows[number], biases[number])

        with torch.autocast("cpu", enabled=False):
            inner = layers.normed(x, first, recipe.eps[0], recipe.shifts[0], dtype)
            query, key, value = (_by_head(made(number, inner), recipe.width) for number in range(3))
            query, key = layers.rotate(query, key, cosines, sines)
            seen, lse = attention.attend(query, key, value, sequences, recipe.scaling, recipe.window, sums=True)
            of_attention = made(3, seen.flatten(1))
            x2, inner = layers.sum_normed(x, of_attention, second, recipe.eps[1], recipe.shifts[1])
            gate, up = made(4, inner), made(5, inner)
            out = layers.summed(x2, made(6, layers.gate(gate, up)))
        # what norms make of x and of that sum is made again: a fifth of what would be kept
        ctx.save_for_backward(
            x, query, key, value, seen, lse, of_attention, gate, up, first, second, cosines, sines, *lows
        )
        ctx.sequences, ctx.recipe = sequences, recipe
        ctx.biased = [bias is not None for bias in biases]
        return out[None]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        x, query, key, value, seen, lse, of_attention, gate, up, first, second, cosines, sines, *lows = (
            ctx.saved_tensors
        )
        recipe: Recipe = ctx.recipe
        eps, shifts, dtype, count = recipe.eps, recipe.shifts, lows[0].dtype, len(LINEARS)
        wide = dtype == torch.float32
        of_weights: list[Tensor | None] = [None] * count
        of_biases: list[Tensor | None] = [None] * count

        def learn(numbers: Sequence[int], grads: Sequence[Tensor], x: Tensor) -> None:
            for number, made in zip(numbers, _weight_gradients(grads, x), strict=True):
                of_weights[number] = made
            for number, grad in zip(numbers, grads, strict=True):
                if ctx.biased[number]:
                    of_biases[number] = grad.sum(0, dtype=torch.float32)

        with torch.autocast("cpu", enabled=False):
            total = grads[0][0].contiguous()
            grad = total.to(dtype)
            product = grad @ lows[6]  # the gate's gradient, which it overwrites
            of_gate, of_up = layers.gate_gradient(gate, up, product, product)
            learn([6], [grad], product)
            del grad, product
            of_inner = input_gradient([of_gate, of_up], lows[4:6], dtype)
            x2, inner = layers.sum_normed(x, of_attention, second, eps[1], shifts[1])
            learn([4, 5], [of_gate, of_up], inner)
            del of_gate, of_up, inner
            low = None if wide else torch.empty_like(of_inner)
            total, of_second = layers.norm_gradient(x2, second, of_inner, eps[1], shifts[1], total, low)
            grad = total if low is None else low
            of_seen = (grad @ lows[3]).view(seen.shape)
            learn([3], [grad], seen.flatten(1))
            del grad, low, of_inner, x2
            of_query, of_key, of_value = attention.attend_gradient(
                query, key, value, seen, lse, of_seen, ctx.sequences, recipe.scaling, recipe.window
            )
            of_query, of_key = layers.rotate(of_query, of_key, cosines, sines, back=True)
            parts = [part.transpose(0, 1).flatten(1) for part in (of_query, of_key, of_value)]
            del of_seen, of_query, of_key, of_value
            # as autograd would: where it sums, in fp32, the last layer comes first
            of_inner = input_gradient(*((parts[::-1], lows[2::-1]) if wide else (parts, lows[:3])), dtype)
            learn([0, 1, 2], parts, layers.normed(x, first, eps[0], shifts[0], dtype))
            of_x, of_first = layers.norm_gradient(x, first, of_inner, eps[0], shifts[0], total)
        return of_x[None], None, None, None, None, None, of_first, of_second, *of_weights, *of_biases


def _by_head(x: Tensor, width: int) -> Tensor:
    """(N,H·d) -> (H,N,d)."""
    return x.view(len(x), -1, width).transpose(0, 1)


def _weight_gradients(grads: Sequence[Tensor], x: Tensor) -> list[Tensor]:
    """(n,m) for each of some layers of one input (n,k) -> each layer's (m,k), fp32."""
    if x.dtype == torch.float32:
        return [grad.t() @ x for grad in grads]
    return products.weight_gradients(grads, x)


_MADE: dict[type[nn.Module], type[nn.Module]] = {}


def _as_one(own: type[nn.Module]) -> type[nn.Module]:
    """A subclass, since a deep copy of a model must take it along."""
    if own not in _MADE:

        def forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            if not args and torch.is_grad_enabled() and _takes(self, hidden_states, kwargs):
                return _computed(self, hidden_states, kwargs["position_embeddings"], kwargs["plan"])
            return own.forward(self, hidden_states, *args, **kwargs)

        made = {"forward": forward, "__module__": own.__module__, "as_one": True}
        _MADE[own] = type(own.__name__, (own,), made)
    return _MADE[own]


def _parts(layer: Any) -> tuple[list[Any], list[Any]]:
    """Its norms and its linear layers."""
    return [getattr(layer, name) for name in NORMS], [getattr(getattr(layer, of), name) for of, name in LINEARS]


def _takes(layer: Any, hidden: Tensor, given: dict[str, Any]) -> bool:
    """Whether a forward pass with these arguments, which trains, is what ``_DecoderLayer`` computes."""
    plan, angles = given.get("plan"), given.get("position_embeddings")
    if not isinstance(plan, Packed) or plan.sequences is None or not kernels.take(hidden) or hidden.dim() != 3:
        return False
    if hidden.dtype != torch.float32 or hidden.device.type != "cpu" or hidden.shape[:2] != (1, len(plan.ids)):
        return False
    if given.keys() - ARGUMENTS or given.get("past_key_values") is not None or given.get("use_cache"):
        return False
    shape = (1, len(plan.ids), layer.recipe.width)
    if not isinstance(angles, tuple) or any(x.shape != shape or x.requires_grad for x in angles):
        return False
    if any(x.dtype not in kernels.NAMES for x in angles):
        return False
    norms, linears = _parts(layer)
    low = torch.is_autocast_enabled("cpu")
    if low and not (torch.get_autocast_dtype("cpu") == torch.bfloat16 and linears[0].trains(hidden)):
        return False
    for part in linears:
        if type(part) is not TrainedLinear or not part.weight.requires_grad or part.weight.dtype != torch.float32:
            return False
    own = [*norms, *linears, layer.self_attn, layer.mlp]
    return (
        all(norm.weight.requires_grad for norm in norms)
        and not any(map(_is_watched, own))
        and not (hooks._has_any_global_hook())
    )


def _is_watched(module: Any) -> bool:
    """Whether somebody waits for what this module computes, or computes in its place."""
    seen = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(seen) or "forward" in module.__dict__


def _computed(layer: Any, hidden: Tensor, angles: tuple[Tensor, Tensor], plan: Packed) -> Tensor:
    norms, linears = _parts(layer)
    weights = [part.weight for part in linears]
    lows = weights
    if torch.is_autocast_enabled("cpu"):
        lows = [part.weight.to(torch.bfloat16) if part.low is None else part.low for part in linears]
    out: Tensor = _DecoderLayer.apply(
        hidden, *(rotary.wide(x) for x in angles), plan.sequences, layer.recipe, [x.detach() for x in lows],
        *(norm.weight for norm in norms), *weights, *(part.bias for part in linears),
    )  # fmt: skip
    return out


class _Asked:
    """A plan that writes down what attention was asked for."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.found: list[tuple[int, float, int | None, float | None]] = []

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor:  # fmt: skip
        """See ``Plan``."""
        self.found.append((query.shape[-1], scaling, window, softcap))
        return self.plan.attend(layer, query, key, value, scaling, window, softcap)


@torch.no_grad()
def install(model: PreTrainedModel) -> int:
    """Replace the decoder layers that compute this; returns how many. ``model`` takes plans.

    Each is asked, with random states: one that answers otherwise, such as one that scales what it adds, stays as it is.
    """
    found = 0
    if not kernels.take(torch.empty(0, device=model.device)) or model.device.type != "cpu":
        return found
    words = torch.arange(12)
    plan = pack([words[:4]], torch.zeros(2, dtype=torch.long), words[4:].view(2, 4), torch.tensor([4, 4]))
    for module in model.modules():
        if hasattr(type(module), "as_one") or not _has_parts(module):
            continue
        recipe = _recipe(module, plan)
        if recipe is not None:
            module.__class__ = _as_one(type(module))
            module.recipe = recipe  # type: ignore[assignment]
            found += 1
    return found


def _has_parts(module: nn.Module) -> bool:
    """Whether it consists of the two norms and ``LINEARS`` and of nothing else that has weights, all of it fp32."""
    named = dict(module.named_modules())
    wanted = {*NORMS, *(".".join(path) for path in LINEARS)}
    if not wanted <= named.keys() or not type(module).__module__.startswith("transformers.models."):
        return False
    if not all(hasattr(type(named[name]), "shift") for name in NORMS) or not hasattr(type(named["mlp"]), "faster"):
        return False
    if not all(type(named[".".join(path)]) is TrainedLinear for path in LINEARS):
        return False
    owners = {name.rpartition(".")[0] for name, _ in [*module.named_parameters(), *module.named_buffers()]}
    return owners == wanted and all(p.dtype == torch.float32 for p in module.parameters())


def _recipe(module: Any, plan: Packed) -> Recipe | None:
    """What ``module`` computes with, as it tells; None where it does not compute what ``_DecoderLayer`` does."""
    (first, second), linears = _parts(module)
    width = getattr(module.self_attn, "head_dim", None)
    tokens, size = len(plan.ids), linears[0].in_features
    if not isinstance(width, int) or width % 2 or any(part.out_features % width for part in linears[:3]):
        return None
    hidden = torch.randn(1, tokens, size, generator=torch.Generator().manual_seed(0))
    angles = torch.linspace(0.0, 4.0, tokens * width).view(1, tokens, width)
    given = {**planned(plan, plan.positions), "past_key_values": None}
    given["position_embeddings"] = (angles.cos(), angles.sin())
    asked = given["plan"] = _Asked(plan)
    try:
        expected = module(hidden, **given)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, KeyError):  # of another calling convention
        return None
    if not isinstance(expected, Tensor) or expected.shape != hidden.shape or len(asked.found) != 1:
        return None
    seen, scaling, window, softcap = asked.found[0]
    if seen != width or softcap is not None:
        return None
    eps = (norm_eps(first) or 0.0, norm_eps(second) or 0.0)
    recipe = Recipe(eps, (type(first).shift, type(second).shift), width, scaling, window)
    module.recipe = recipe
    try:
        ours = _computed(module, hidden, given["position_embeddings"], plan)
    except (AssertionError, RuntimeError):
        return None
    finally:
        del module.recipe
    added = (expected - hidden).abs().max()
    return recipe if added > 0 and bool((ours - expected).abs().max() <= NEAR * added) else None
