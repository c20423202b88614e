"""What an update shows of itself: sums over tokens, on the device until a minibatch ends, and a step's metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from grpo_bench import ops
from grpo_bench.types import Batch

if TYPE_CHECKING:
    from grpo_bench.algos import Algorithm


def observe(algo: Algorithm, part: Batch, logp: Tensor, entropy: Tensor, parts: dict[str, list[Tensor]]) -> None:
    """Sums over some rows' tokens of what a dashboard shows of the update.

    The ratio is the one that the algorithm clips: a whole answer's counts once for each of its tokens.
    """
    assert part.old_logp is not None
    assert part.advantages is not None
    mask = part.mask
    ratio = torch.exp(algo.log_ratio(logp, part))
    low, high = algo.clip_range
    on = mask.bool()
    if part.ref_logp is not None:
        for name, estimate in ops.KL_ESTIMATORS.items():
            parts[f"ref_{name}"].append((estimate(logp, part.ref_logp) * mask).sum())
    for name, value in {
        "tokens": mask,
        "entropy": entropy * mask,
        "ratio": ratio * mask,
        "k1": ops.kl_k1(part.old_logp, logp) * mask,
        "k2": ops.kl_k2(part.old_logp, logp) * mask,
        "k3": ops.kl_k3(part.old_logp, logp) * mask,
        "clip_low": ((part.advantages < 0) & (ratio < 1 - low)) * mask,
        "clip_high": ((part.advantages > 0) & (ratio > 1 + high)) * mask,
    }.items():
        parts[name].append(value.sum())
    parts["ratio_min"].append(torch.where(on, ratio, torch.inf).min())
    parts["ratio_max"].append(torch.where(on, ratio, -torch.inf).max())


def on_host(parts: dict[str, list[Tensor]]) -> dict[str, list[float]]:
    """The numbers of a minibatch's parts, by name; a GPU is waited for once, not after every part."""
    flat = [x.double() for values in parts.values() for x in values]
    numbers = iter(torch.stack(flat).tolist() if flat else ())
    return {name: [next(numbers) for _ in values] for name, values in parts.items()}


def metrics(
    seen: dict[str, list[float]], stopped: int, skipped: int, reference: bool, lr: float, value_lr: float
) -> dict[str, float]:
    """A step's, under the glossary's names, from what each of its minibatches gave."""

    def mean(name: str) -> float:
        return sum(seen[name]) / len(seen[name])

    out: dict[str, float] = {"health/skipped_updates": float(skipped)}
    if seen["loss"]:
        out["policy/loss"] = mean("loss")
    if seen["entropy"]:  # of the tokens that were computed
        out |= {
            "policy/entropy": mean("entropy"),
            "policy/ratio_mean": mean("ratio"),
            "policy/ratio_min": min(seen["ratio_min"]),
            "policy/ratio_max": max(seen["ratio_max"]),
            "policy/approx_kl_k1": mean("k1"),
            "policy/approx_kl_k2": mean("k2"),
            "policy/approx_kl_k3": mean("k3"),
            "policy/kl_old": seen["kl_old"][-1],
            **{f"kl/ref_{k}_token": mean(f"ref_{k}") for k in ("k1", "k2", "k3") if reference},
            "policy/kl_stopped": float(stopped),
            "policy/clip_frac_low": mean("clip_low"),
            "policy/clip_frac_high": mean("clip_high"),
            "policy/clip_frac": mean("clip_low") + mean("clip_high"),
        }
    if seen["grad_norm"]:
        out |= {
            "policy/grad_norm": mean("grad_norm"),
            "policy/grad_norm_max": max(seen["grad_norm"]),
            "policy/lr": lr,
        }
    out["policy/n_updates"] = sum(seen["n_updates"])
    if seen["value_loss"]:
        out["value/loss"] = mean("value_loss")
        out["value/lr"] = value_lr
        if seen["value_grad_norm"]:
            out["value/grad_norm"] = mean("value_grad_norm")
    return out
