"""What a run costs: estimated FLOPs by phase, seconds by phase, peak memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the benchmark's table reads Size and must not pay for torch
    import torch
    from transformers import PreTrainedModel

PARTS = ("old_logp", "reference", "values", "actor", "critic")  # of the phases score and update
KEPT_ELEMENTS = 2**26  # in fp32, of probabilities kept from a forward to its backward on a CPU, see policy/memory.py
Timed = Callable[[str], AbstractContextManager[None]]  # such as ``Meter.part``


def untimed(_: str) -> AbstractContextManager[None]:
    """A part of a phase whose seconds nobody asked for."""
    return contextlib.nullcontext()


@dataclass(frozen=True, slots=True)
class Size:
    """What the FLOPs of a dense transformer follow from."""

    trunk: int  # parameters of its matrix products, without the language-model head
    head: int  # hidden size x vocabulary
    layers: int
    width: int  # attention heads x head size

    @classmethod
    def of(cls, model: PreTrainedModel) -> Size:
        from torch import nn
        from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer

        config = model.config.get_text_config()
        output = model.get_output_embeddings()
        linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear | Conv1D))
        head = output.weight.numel() if isinstance(output, nn.Linear) else 0
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(linear - head, head, config.num_hidden_layers, config.num_attention_heads * size)

    def forward(self, lengths: Sequence[int], headed: int) -> float:
        """FLOPs of one causal forward over sequences of these lengths, the head on ``headed`` tokens.

        2·N per token, and 2·layers·width·T² per sequence for causal attention (half of the full 4·layers·width·T²).
        """
        tokens, squares = sum(lengths), sum(n * n for n in lengths)
        return 2.0 * self.trunk * tokens + 2.0 * self.head * headed + 2.0 * self.layers * self.width * squares

    def shared(self, prompts: Sequence[int], groups: Sequence[int], completions: Sequence[int], headed: int) -> float:
        """FLOPs of one forward over rows that share their groups' prompts: each group's prompt counts once.

        All sequences have one entry per row; the head works on ``headed`` tokens.
        """
        once = dict(zip(groups, prompts, strict=True))
        whole = [prompt + length for prompt, length in zip(prompts, completions, strict=True)]
        return self.forward(list(once.values()), headed) + self.forward(whole, 0) - self.forward(prompts, 0)

    def rollout(self, prompts: Sequence[int], group_size: int, completions: Sequence[int]) -> float:
        """FLOPs of sampling: each prompt once per group, then every sampled token against its cache."""
        decode = 0.0
        for i, length in enumerate(completions):
            prompt = prompts[i // group_size]
            decode += self.forward([prompt + length], 0) - self.forward([prompt], 0) + 2.0 * self.head * length
        return self.forward(prompts, 0) + decode


class Meter:
    """Seconds by phase, of this step and of the whole run (interruptions left out); of the whole run also by part."""

    def __init__(self, device: torch.device, total: dict[str, float] | None = None) -> None:
        self.device = device
        self.total: dict[str, float] = defaultdict(float, total or {})
        self.step: dict[str, float] = defaultdict(float)
        self.parts: dict[str, float] = defaultdict(float)
        self._marks: list[tuple[str, Any, Any]] = []  # CUDA events around parts of the phase

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.device)  # kernels run on after the call returns
            for part, begun, ended in self._marks:
                self.parts[part] += begun.elapsed_time(ended) / 1000
            self._marks = []
        seconds = time.perf_counter() - start
        self.total[name] += seconds
        self.step[name] += seconds

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Inside a phase: its seconds belong to ``name`` (one of ``PARTS``) too. A GPU is not waited for: two marks in
        its queue are read when the phase ends."""
        start = self._mark()
        try:
            yield
        finally:  # what ran out of memory took its time as well
            end = self._mark()
            if self.device.type == "cuda":
                self._marks.append((name, start, end))
            else:
                self.parts[name] += end - start

    def _mark(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def end_step(self) -> dict[str, float]:
        """Seconds of the step by phase; the next step begins."""
        step, self.step = dict(self.step), defaultdict(float)
        return step

    @property
    def training(self) -> float:
        """Seconds that count against a budget: all but evaluation and writing the record."""
        return sum(s for name, s in self.total.items() if name not in ("eval", "ckpt"))

    def forget_peak(self) -> None:
        """Let the peak count from now on: a warm start or baseline that this process made is not the run's cost."""
        gc.collect()
        if self.device.type == "cuda":
            import torch

            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        elif sys.platform == "linux":
            with contextlib.suppress(OSError, AttributeError):  # not every kernel and C library lets it be reset
                ctypes.CDLL(None).malloc_trim(0)
                Path("/proc/self/clear_refs").write_text("5")

    def peak_memory(self) -> int:
        """Bytes since ``forget_peak``: allocated on a GPU; on a CPU the process's largest resident set."""
        if self.device.type == "cuda":
            import torch

            return torch.cuda.max_memory_allocated(self.device)
        status = Path("/proc/self/status")
        if status.is_file():
            for line in status.read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
