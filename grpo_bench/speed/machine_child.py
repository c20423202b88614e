"""The machine's own rates, measured in a process like a contender's."""

from __future__ import annotations

from typing import Any

import torch

from grpo_bench.device import resolve_device
from grpo_bench.speed import machine
from grpo_bench.speed.child import Spec
from grpo_bench.speed.ours import described


def run(spec: Spec) -> dict[str, Any]:
    """Rates of each precision in ``spec.dtype`` (comma-separated); ``device``: only what it is."""
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    chosen = next((line.partition("=")[2] for line in spec.overrides if line.startswith("device=")), "auto")
    device = torch.device(resolve_device(chosen))
    if spec.contender == "device":
        return {"device": described(device)}
    return {**machine.measure(spec.dtype.split(","), device), "device": described(device)}
