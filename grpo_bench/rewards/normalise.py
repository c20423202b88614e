"""Parts and weights -> one reward per row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from grpo_bench import ops

Mode = Literal["none", "before", "after"]

DDOF, EPS = 0, 1e-8  # as the group advantage of the arms has them


def combine(
    parts: Mapping[str, Sequence[float]], weights: Mapping[str, float], mode: Mode = "none", group_size: int = 1
) -> list[float]:
    """Σ w_k·r_k per row, its parts or itself normalised in each group of ``group_size`` rows by choice of ``mode``.

    ``before``: Σ w_k·(r_k − μ_k)/(σ_k + ε), so that a weight compares parts whatever their scales are (GDPO,
    arXiv:2601.05242). ``after``: (R − μ)/(σ + ε) of the sum R. σ with ddof 0, ε = 1e-8; a part or a sum that is flat in
    a group (max − min ≤ 1e-6) is 0 there. Differs: GDPO normalises its sum over the batch once more and takes that for
    the advantage; here the algorithm's own advantage comes next.
    """
    if mode == "before":
        parts = {name: _zscore(values, group_size) for name, values in parts.items()}
    total = [0.0] * len(next(iter(parts.values())))
    for name, values in parts.items():
        total = [t + weights[name] * v for t, v in zip(total, values, strict=True)]
    return _zscore(total, group_size) if mode == "after" else total


def _zscore(values: Sequence[float], group_size: int) -> list[float]:
    import torch  # here, so that checking a configuration does not cost it

    return ops.group_zscore(torch.tensor(values, dtype=torch.float64), group_size, DDOF, EPS).tolist()
