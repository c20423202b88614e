"""What a group of G completions says of a prompt, against what a larger one says: pure functions of rewards.

``rewards`` is (P,N): N completions of each of P problems by one policy. Each is cut into N/G groups of G, as training
would have drawn them, and the advantages in those are compared with the advantages among all N.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from grpo_bench import ops

RESAMPLES = 2000  # of problems, for the 95 % intervals
EPS = 1e-8  # article: (r − μ)/(σ + 1e-8)
Floats = NDArray[np.float64]


def advantages(rewards: Tensor, group_size: int, kind: str) -> Tensor:
    """(P,N) -> (P,N): ``zscore`` as GRPO has it (ddof 0), ``center`` without the deviation; 0 in flat groups."""
    flat = rewards.reshape(-1)
    if kind == "zscore":
        return ops.group_zscore(flat, group_size, 0, EPS).view_as(rewards)
    return ops.group_center(flat, group_size).view_as(rewards)


def zero_signal(rewards: Tensor, group_size: int) -> Tensor:
    """(P,N) -> (P,): share of a problem's groups whose rewards are all equal."""
    return ops.flat_groups(rewards.reshape(-1), group_size).view(len(rewards), -1).double().mean(1)


def expected_zero_signal(correct: Tensor, drawn: int, group_size: int) -> dict[str, float]:
    """Shares of groups of G without signal that (P,) counts of right answers among ``drawn`` let expect.

    ``formula``: p^G + (1 − p)^G with p = correct/drawn, averaged over problems. It is a little too large: by Jensen's
    inequality, since p is itself estimated. ``unbiased``: the chance that G of the drawn ones, without replacement, are
    all right or all wrong. ``at_mean``: the formula at the mean p of all problems, which is no more than the first.
    """
    p = correct.double() / drawn
    mean = float(p.mean())
    whole = math.comb(drawn, group_size)
    both = [math.comb(c, group_size) + math.comb(drawn - c, group_size) for c in correct.long().tolist()]
    return {
        "formula": float((p**group_size + (1 - p) ** group_size).mean()),
        "unbiased": sum(both) / whole / len(both),
        "at_mean": mean**group_size + (1 - mean) ** group_size,
    }


def advantage_error(rewards: Tensor, group_size: int, kind: str, seed: int = 0) -> dict[str, Any]:
    """RMSE and Pearson correlation of the advantages in groups of G against those among all N completions.

    Over all completions of all problems, those without signal included; 95 % intervals from resampled problems
    (percentiles). ``correlation`` is None where one side does not vary. The reference has an error of its own, about
    sqrt(G/N) of that of G.
    """
    small = advantages(rewards.double(), group_size, kind).numpy()
    large = advantages(rewards.double(), rewards.shape[1], kind).numpy()
    sums = np.stack(
        [np.full(len(small), small.shape[1]), *(x.sum(1) for x in _moments(small, large))], axis=1
    )  # (P,7): whatever is wanted of any set of problems follows from these
    drawn = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=RESAMPLES)
    rmse, correlation = _from_sums(sums.sum(0, keepdims=True))
    rmses, correlations = _from_sums(drawn @ sums)
    return {
        "rmse": float(rmse[0]),
        "rmse_interval": _percentiles(rmses),
        "correlation": float(correlation[0]) if math.isfinite(correlation[0]) else None,
        "correlation_interval": _percentiles(correlations),
    }


def _moments(x: Floats, y: Floats) -> tuple[Floats, ...]:
    return (x - y) ** 2, x, y, x * x, y * y, x * y


def _from_sums(sums: Floats) -> tuple[Floats, Floats]:
    """(k,7) sums -> (k,) RMSE and (k,) correlation, NaN where one side does not vary."""
    n, error, x, y, xx, yy, xy = sums.T
    spread = np.sqrt(np.maximum(xx - x * x / n, 0) * np.maximum(yy - y * y / n, 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.sqrt(error / n), np.where(spread > 0, (xy - x * y / n) / spread, np.nan)


def _percentiles(values: Floats) -> list[float] | None:
    known = values[np.isfinite(values)]
    return [float(v) for v in np.percentile(known, [2.5, 97.5])] if len(known) else None


def summary(rewards: Tensor, correct: Tensor, group_sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """One entry per group size, see ``advantage_error.py`` for its keys; ``correct`` is (P,N) bool."""
    drawn = rewards.shape[1]
    counts = correct.sum(1)
    found = []
    for size in group_sizes:
        flat = zero_signal(rewards, size)
        picks = torch.from_numpy(np.random.default_rng(0).integers(len(flat), size=(RESAMPLES, len(flat))))
        entry: dict[str, Any] = {
            "group_size": size,
            "groups": rewards.numel() // size,
            "zero_signal": float(flat.mean()),
            "zero_signal_interval": _percentiles(flat[picks].mean(1).numpy()),
            "zero_signal_expected": expected_zero_signal(counts, drawn, size),
        }
        found.append(entry | {kind: advantage_error(rewards, size, kind) for kind in ("zscore", "center")})
    return found
