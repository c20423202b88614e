"""How much of a device's memory a part of the run may take, and the user's one line when it was too much."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from grpo_bench.types import UserError


def share_of_memory(device: torch.device, share: float, cpu: int) -> int:
    """Bytes: ``share`` of a GPU's total memory, ``cpu`` bytes on a CPU.

    Of the total and not of what is free just now, so that a resumed run on the same kind of GPU makes the same batches.
    """
    if device.type != "cuda":
        return cpu
    return int(share * torch.cuda.get_device_properties(device).total_memory)


@contextmanager
def memory_errors() -> Iterator[None]:
    """UserError instead of torch's OutOfMemoryError; as ``with memory_errors():`` or ``@memory_errors()``."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError(
            "the GPU is out of memory; set a smaller rollout.batch_size (sampling) or micro_batch_tokens (update), "
            "or model.gradient_checkpointing=true"
        ) from None
