"""How much of a device's memory a part of the run may take, and the user's one line when it was too much."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from grpo_bench.cost import KEPT_ELEMENTS
from grpo_bench.types import UserError

KEPT_SHARE = 0.08  # of a GPU's memory, for probabilities over the vocabulary


def share_of_memory(device: torch.device, share: float, cpu: int) -> int:
    """Bytes: ``share`` of a GPU's total memory, ``cpu`` bytes on a CPU.

    Of the total and not of what is free just now, so that a resumed run on the same kind of GPU makes the same batches.
    """
    if device.type != "cuda":
        return cpu
    return int(share * torch.cuda.get_device_properties(device).total_memory)


def kept_elements(device: torch.device, dtype: torch.dtype) -> int:
    """Probabilities over the vocabulary, in ``dtype``, that are kept from an update's forward to its backward.

    More are made again. Twice as many in bfloat16 as in fp32: the room is the same.
    """
    return share_of_memory(device, KEPT_SHARE, 4 * KEPT_ELEMENTS) // dtype.itemsize


def is_out_of_memory(e: BaseException) -> bool:
    """Whether a GPU's or the CPU's allocator had no more: torch has a class for the one and texts for the other.

    oneDNN, whose products torch calls, has a text that other errors only begin with.
    """
    text = str(e)
    told = "can't allocate memory" in text or "bad_alloc" in text or text.endswith("could not create a primitive")
    return isinstance(e, torch.OutOfMemoryError | MemoryError) or told


@contextmanager
def memory_errors() -> Iterator[None]:
    """UserError instead of an allocator's error; as ``with memory_errors():`` or ``@memory_errors()``."""
    try:
        yield
    except (RuntimeError, MemoryError) as e:  # torch.OutOfMemoryError is a RuntimeError
        if not is_out_of_memory(e):
            raise
        raise UserError(
            "out of memory; set a smaller rollout.batch_size (sampling) or micro_batch_tokens (update), "
            "or model.gradient_checkpointing=true"
        ) from None


def smaller(tokens: int, e: BaseException) -> int:
    """Half of the micro-batches that ran out of memory; the error again where there is nothing left to halve."""
    if tokens <= 1:
        raise e
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    print(f"out of memory: micro-batches of {tokens // 2} instead of {tokens} tokens from here on", file=sys.stderr)
    return tokens // 2
