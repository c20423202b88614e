"""A decoder layer of training on a CPU as one operation, put in the place of the model's own.

Norm, attention, norm and gate, each added to what came in: the layer of Llama (arXiv 2302.13971, §2.2), Qwen2, Mistral
and others. As modules it is some forty operations of autograd's, forward and backward, each with its Python, dispatch
and context: with 70 tokens of a 3.2M Llama these took three quarters of a forward and backward pass (measured), and
beside another lane's they wait for the interpreter. Here it is the same products and kernels in the same order, called
one after the other by compiled code (``kernels.decoder_layer``): in fp32 results are the same bits. In bfloat16 layers
of one input are one product, rounded once.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules import module as hooks

from grpo_bench import kernels
from grpo_bench.kernels import decoder_layer, gpu
from grpo_bench.kernels.attention import Sequences
from grpo_bench.kernels.decoder_layer import OF_INPUT, Layer, Recipe
from grpo_bench.policy import rotary
from grpo_bench.policy.attention import Plan, planned
from grpo_bench.policy.linear import TrainedLinear, low_of
from grpo_bench.policy.memory import is_out_of_memory
from grpo_bench.policy.norms import norm_eps
from grpo_bench.policy.packed import Packed, pack

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LINEARS = (  # in the order in which they compute
    ("self_attn", "q_proj"), ("self_attn", "k_proj"), ("self_attn", "v_proj"), ("self_attn", "o_proj"),
    ("mlp", "gate_proj"), ("mlp", "up_proj"), ("mlp", "down_proj"),
)  # fmt: skip
NORMS = ("input_layernorm", "post_attention_layernorm")
ARGUMENTS = {"attention_mask", "position_ids", "past_key_values", "use_cache", "position_embeddings", "plan"}
NEAR = 1e-4  # of what a layer adds, in fp32
FAR = 2**24  # positions: further than any model's


class _DecoderLayer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        cosines: Tensor,
        sines: Tensor,
        sequences: Sequences,
        recipe: Recipe,
        lows: list[Tensor] | None,
        *parameters: Tensor | None,
    ) -> Tensor:
        """(1,N,h) fp32, fp32 (N,d) twice -> (1,N,h) fp32.

        ``lows``: for products in bfloat16, of the layers of each input their weights in it, as one. ``parameters``: the
        two norms' weights, then the weights of all linear layers and their biases or Nones.
        """
        first, second, *linears = parameters
        masters, biases = linears[: len(LINEARS)], linears[len(LINEARS) :]
        assert first is not None
        assert second is not None
        all_masters = [weight for weight in masters if weight is not None]
        weights, sizes = all_masters if lows is None else lows, [len(weight) for weight in all_masters]
        x = hidden[0].contiguous()
        own = Layer.of(x, (cosines, sines), sequences, recipe, (first, second), weights, sizes)
        given: list[Tensor | None] = list(biases)
        if lows is not None:
            given = [_joint([biases[i] for i in some], lows[0].dtype) for some in OF_INPUT]
        out, kept, lse = decoder_layer.forward(own, given)
        ctx.save_for_backward(x, first, second, cosines, sines, kept, lse, *weights)
        ctx.sequences, ctx.recipe, ctx.sizes, ctx.used = sequences, recipe, sizes, False
        ctx.biased = [bias is not None for bias in biases]
        return out[None]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Gradients of what is kept are written in its place."""
        if ctx.used:
            raise RuntimeError("a decoder layer's backward pass was made before: it writes over what it needs")
        ctx.used = True
        x, first, second, cosines, sines, kept, lse, *weights = ctx.saved_tensors
        own = Layer.of(x, (cosines, sines), ctx.sequences, ctx.recipe, (first, second), weights, ctx.sizes)
        of_x, of_norms, of_weights, of_biases = decoder_layer.backward(own, kept, lse, grads[0][0], ctx.biased)
        return of_x[None], None, None, None, None, None, *of_norms, *of_weights, *of_biases


def _joint(biases: list[Tensor | None], dtype: torch.dtype) -> Tensor | None:
    """Of layers of one input, which all have one or none."""
    given = [bias.to(dtype) for bias in biases if bias is not None]
    return torch.cat(given) if given else None


_MADE: dict[type[nn.Module], type[nn.Module]] = {}


def _as_one(own: type[nn.Module]) -> type[nn.Module]:
    """A subclass, since a deep copy of a model must take it along."""
    if own not in _MADE:

        def forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            if not args and torch.is_grad_enabled() and _takes(self, hidden_states, kwargs):
                return _computed(self, self.recipe, hidden_states, kwargs["position_embeddings"], kwargs["plan"])
            return own.forward(self, hidden_states, *args, **kwargs)

        made = {"forward": forward, "__module__": own.__module__, "as_one": True}
        _MADE[own] = type(own.__name__, (own,), made)
    return _MADE[own]


def _parts(layer: Any) -> tuple[list[Any], list[Any]]:
    """Its norms and its linear layers."""
    return [getattr(layer, name) for name in NORMS], [getattr(getattr(layer, of), name) for of, name in LINEARS]


def _on_cpu(x: Tensor) -> bool:
    """Whether the kernels for processors compute with such tensors, which alone write to a place that is given."""
    return x.device.type == "cpu" and kernels.take(x) and not gpu.serves(x)


def _told(layer: Any) -> tuple[Any, ...]:
    """What a layer's forward pass looks at beside its weights, and its parts' classes: where it is another than when
    the layer was asked, so may be what it computes."""
    attention = layer.self_attn
    kinds = [type(getattr(layer, name)) for name in (*NORMS, "self_attn", "mlp")]
    eps = [norm_eps(getattr(layer, name)) for name in NORMS]
    windows = [getattr(x, "sliding_window", None) for x in (attention, getattr(attention, "config", None))]
    return *kinds, *eps, getattr(attention, "scaling", None), *windows


def _takes(layer: Any, hidden: Tensor, given: dict[str, Any]) -> bool:
    """Whether a forward pass with these arguments, which trains, is what ``_DecoderLayer`` computes."""
    recipe: Recipe = layer.recipe
    plan, angles = given.get("plan"), given.get("position_embeddings")
    if not isinstance(plan, Packed) or plan.sequences is None or not _on_cpu(hidden) or hidden.dim() != 3:
        return False
    if hidden.dtype != torch.float32 or hidden.shape[:2] != (1, len(plan.ids)):
        return False
    if given.keys() - ARGUMENTS or given.get("past_key_values") is not None or given.get("use_cache"):
        return False
    shape = (1, len(plan.ids), recipe.width)
    if not isinstance(angles, tuple) or any(x.shape != shape or x.requires_grad for x in angles):
        return False
    if any(x.dtype not in kernels.NAMES for x in angles) or _told(layer) != layer.told:
        return False
    norms, linears = _parts(layer)
    for part, size in zip(linears, layer.shapes, strict=True):
        if type(part) is not TrainedLinear:
            return False
        weight, bias = part.weight, part.bias
        if not weight.requires_grad or not _is_plain(weight, size):
            return False
        if bias is not None and not _is_plain(bias, size[:1]):
            return False
    if not all(_is_plain(norm.weight, hidden.shape[2:]) for norm in norms):
        return False
    low = torch.is_autocast_enabled("cpu")
    if low and not (torch.get_autocast_dtype("cpu") == torch.bfloat16 and linears[0].trains(hidden)):
        return False
    if not _biased_alike(linears) or not all(norm.weight.requires_grad for norm in norms):
        return False
    own = [*norms, *linears, layer.self_attn, layer.mlp]
    return not any(map(_is_watched, own)) and not hooks._has_any_global_hook()


def _is_plain(x: Tensor, shape: torch.Size) -> bool:
    """Whether compiled code may read these weights as they lie."""
    return type(x) is nn.Parameter and x.dtype == torch.float32 and x.shape == shape and x.is_contiguous()


def _biased_alike(linears: list[Any]) -> bool:
    """Whether of the layers of one input all have a bias or none."""
    return all(len({linears[i].bias is None for i in some}) == 1 for some in OF_INPUT)


def _is_watched(module: Any) -> bool:
    """Whether somebody waits for what this module computes, or computes in its place."""
    seen = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(seen) or "forward" in module.__dict__


def _computed(layer: Any, recipe: Recipe, hidden: Tensor, angles: tuple[Tensor, Tensor], plan: Packed) -> Tensor:
    norms, linears = _parts(layer)
    lows = None
    if torch.is_autocast_enabled("cpu"):
        lows = [low_of([linears[i] for i in some]) for some in OF_INPUT]
    out: Tensor = _DecoderLayer.apply(
        hidden, *(rotary.wide(x) for x in angles), plan.sequences, recipe, lows,
        *(norm.weight for norm in norms), *(part.weight for part in linears), *(part.bias for part in linears),
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
    found, failed = 0, list[str]()
    if not _on_cpu(torch.empty(0, device=model.device)) or not decoder_layer.available():
        return found
    words = torch.arange(12)
    plan = pack([words[:4]], torch.zeros(2, dtype=torch.long), words[4:].view(2, 4), torch.tensor([4, 4]))
    for module in model.modules():
        if hasattr(type(module), "as_one") or not _has_parts(module):
            continue
        recipe = _recipe(module, plan, failed)
        if recipe is not None:
            module.__class__ = _as_one(type(module))
            module.recipe, module.told = recipe, _told(module)  # type: ignore[assignment]
            module.shapes = [part.weight.shape for part in _parts(module)[1]]  # type: ignore[assignment]
            found += 1
    if failed:
        print(f"{len(failed)} decoder layers train by their modules, more slowly: {failed[0]}", file=sys.stderr)
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


def _recipe(module: Any, plan: Packed, failed: list[str]) -> Recipe | None:
    """What ``module`` computes with, as it tells; None where it does not compute what ``_DecoderLayer`` does, or where
    that fails, which joins ``failed``."""
    (first, second), linears = _parts(module)
    width = getattr(module.self_attn, "head_dim", None)
    tokens, size = len(plan.ids), linears[0].in_features
    if not isinstance(width, int) or width % 2 or any(part.out_features % width for part in linears[:3]):
        return None
    if linears[1].out_features != linears[2].out_features or not _biased_alike(linears):
        return None
    hidden = torch.randn(1, tokens, size, generator=torch.Generator().manual_seed(0))
    angles = torch.linspace(0.0, 4.0, tokens * width).view(1, tokens, width)
    given = {**planned(plan, plan.positions), "past_key_values": None}
    given["position_embeddings"] = (angles.cos(), angles.sin())
    asked = given["plan"] = _Asked(plan)
    try:
        expected = module(hidden, **given)
    except Exception as e:  # of another calling convention
        if is_out_of_memory(e):
            raise
        return None
    try:  # angles are given: one that looks at positions besides, such as to scale far queries, answers otherwise
        elsewhere = module(hidden, **{**given, "position_ids": given["position_ids"] + FAR})
    except Exception:
        return None
    if not isinstance(expected, Tensor) or expected.shape != hidden.shape or not torch.equal(expected, elsewhere):
        return None
    if len(asked.found) != 2 or asked.found[0] != asked.found[1]:
        return None
    seen, scaling, window, softcap = asked.found[0]
    if seen != width or softcap is not None:
        return None
    eps = (norm_eps(first) or 0.0, norm_eps(second) or 0.0)
    recipe = Recipe(eps, (type(first).shift, type(second).shift), width, scaling, window)
    try:
        ours = _computed(module, recipe, hidden, given["position_embeddings"], plan)
    except (AssertionError, TypeError, ValueError, IndexError):  # of sizes that the kernels do not take
        return None
    except (RuntimeError, MemoryError) as e:  # its modules have just computed the same
        failed.append(str(e))
        return None
    added = (expected - hidden).abs().max()
    return recipe if added > 0 and bool((ours - expected).abs().max() <= NEAR * added) else None
