"""The compiled passes on a GPU, written in Triton, which a torch for CUDA brings along.

``kernels`` calls them where tensors lie on a GPU; what each computes is said there. Triton compiles a kernel at its
first call for the types and sizes it is called with, and what launches it by the machine's C compiler.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

LEAST = (8, 0)  # compute capability: matrix products in bfloat16
_interpreted = False


def interpret(on: bool) -> None:
    """Let these passes be taken for tensors on the CPU too, by Triton's interpreter (``TRITON_INTERPRET=1``), as tests
    do."""
    global _interpreted
    _interpreted = on


def serves(x: Tensor) -> bool:
    """Whether these passes are there for a tensor's device; a GPU is tried once."""
    return _works(x.device) if x.is_cuda else _interpreted


@cache
def _works(device: torch.device) -> bool:
    """Whether Triton's kernels run on a GPU; says why not."""
    reason = _why_not(device)
    if reason:
        print(f"sampling and training go through torch, more slowly: {reason}", file=sys.stderr)
    return not reason


def _why_not(device: torch.device) -> str:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if torch.cuda.get_device_capability(device) < LEAST:
        return f"{torch.cuda.get_device_name(device)} does not multiply in bfloat16"
    try:
        from grpo_bench.kernels.gpu import layers

        with torch.cuda.device(device):
            one = torch.ones(1, 16, device=device)
            right = torch.allclose(layers.gate(one, 2 * one), torch.nn.functional.silu(one) * 2)
    except Exception as e:  # no compiler, no headers, a driver too old: Triton raises classes of all sorts
        return f"Triton cannot be used here ({type(e).__name__}: {' '.join(str(e).split())[:160]})"
    return "" if right else "Triton computes otherwise here"


@cache
def fingerprint() -> str | None:
    """What these passes are compiled from and by; None where there is no Triton."""
    if importlib.util.find_spec("triton") is None:
        return None
    import triton

    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return f"triton-{triton.__version__}-{hashlib.sha256(sources).hexdigest()[:16]}"
