"""Whether a model can be decoded through plans: tried once, on a few tokens, against its own plain forward."""

from __future__ import annotations

import torch

from grpo_bench.policy import Policy
from grpo_bench.policy.attention import install
from grpo_bench.policy.network import widen
from grpo_bench.rollout import Sampling
from grpo_bench.rollout.decode import Decoder

PROMPTS = [[1, 2, 3, 4, 5], [6, 7, 8]]  # of two lengths: a layer that mixes what is packed shows


@torch.no_grad()
def why_no_plans(policy: Policy) -> str | None:
    """None when prompts and a decode step through plans give the model's own logits, else what is in the way."""
    if not install(policy.model):
        return "its attention is not transformers' exchangeable one"
    if not policy.head_is_plain:
        return "its head does more than a product"
    try:
        with policy.autocast():
            decoder = Decoder(policy, Sampling(0.0, 3), set(), 3, 2, 5, 3, static=False)
            decoder.prefill([0, 1], PROMPTS)
            decoder.enter([0, 1, 2], [0, 0, 1], [3, 3, 3])
            decoder.advance()
            ours = decoder.logits(decoder.shape())
            for i, prompt in enumerate([PROMPTS[0], *PROMPTS]):
                ids = torch.tensor([prompt + decoder.out[i, :2].tolist()], device=policy.device)
                own = widen(policy.model(input_ids=ids, use_cache=False).logits[0, -1])
                far = (ours[i] - own).abs().max() / own.abs().max().clamp(min=1e-6)
                if not far < (0.1 if policy.dtype == torch.bfloat16 else 1e-2):
                    return f"a decode step is {far:.1%} from its own logits"
    except torch.OutOfMemoryError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as e:  # of another calling convention
        return f"{type(e).__name__}: {' '.join(str(e).split())[:120]}"
    return None
