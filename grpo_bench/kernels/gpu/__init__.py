"""The compiled passes on a GPU, written in Triton, which a torch for CUDA brings along.

``kernels`` calls them where tensors lie on a GPU; what each computes is said there. Triton compiles a kernel at its
first call for the types and sizes it is called with.
"""

from __future__ import annotations

import hashlib
import importlib.util
from functools import cache
from importlib import metadata
from pathlib import Path

from torch import Tensor

_interpreted = False


def interpret(on: bool) -> None:
    """Let these passes be taken for tensors on the CPU too, by Triton's interpreter (``TRITON_INTERPRET=1``), as tests
    do."""
    global _interpreted
    _interpreted = on


@cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def serves(x: Tensor) -> bool:
    """Whether these passes are there for a tensor's device."""
    return (x.is_cuda or _interpreted) and _installed()


@cache
def fingerprint() -> str | None:
    """What these passes are compiled from and by; None where there is no Triton."""
    if not _installed():
        return None
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return f"triton-{metadata.version('triton')}-{hashlib.sha256(sources).hexdigest()[:16]}"
