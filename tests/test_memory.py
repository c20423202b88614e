"""Batches sized to a device, and one line when its memory runs out."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from model_data import policy

from grpo_bench.policy import memory_errors
from grpo_bench.policy.memory import kept_elements, share_of_memory
from grpo_bench.policy.score import micro_batch_tokens
from grpo_bench.types import UserError


def test_a_gpus_share_is_of_its_total_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=24 * 2**30))
    assert share_of_memory(torch.device("cuda"), 0.25, 5) == 6 * 2**30
    assert share_of_memory(torch.device("cpu"), 0.25, 5) == 5


def test_micro_batches_leave_room_for_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grpo_bench.policy.score.CPU_TOKENS", 10**9)
    own = policy("llama")
    monkeypatch.setattr("grpo_bench.kernels.take", lambda x: False)
    assert micro_batch_tokens(own, None) == (2**31 - 2**28) // (80 * 16 * 2)
    monkeypatch.setattr("grpo_bench.kernels.take", lambda x: True)
    # 70 bytes · 16 hidden units · 2 layers = 2,240 bytes a token. Of 2 GiB, 4 bytes for each of the 2^26 probabilities
    # that are kept come first: (2,147,483,648 − 268,435,456) / 2,240 = 838,860.8
    assert micro_batch_tokens(own, None) == 838_860
    own.head_is_linear = False  # chunks by autograd: 28 · 2^24 bytes, (2,147,483,648 − 469,762,048) / 2,240 = 748,982.9
    assert micro_batch_tokens(own, None) == 748_982
    own.head_is_plain = False  # all logits at once: 2,240 + 28 · 61 words = 3,948 bytes a token
    assert micro_batch_tokens(own, None) == 2 * 2**30 // 3948
    assert micro_batch_tokens(own, 77) == 77


def test_a_gpu_keeps_more_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=100 * 2**30))
    assert kept_elements(torch.device("cpu"), torch.float32) == 2**26
    assert kept_elements(torch.device("cpu"), torch.bfloat16) == 2**27  # the same bytes
    assert kept_elements(torch.device("cuda"), torch.float32) == 2 * 2**30  # 8 GiB of fp32


def test_no_memory_is_one_line() -> None:
    @memory_errors()
    def work() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore lines")

    for _ in range(2):  # the decorator holds no state
        with pytest.raises(
            UserError, match=r"rollout\.batch_size .* micro_batch_tokens .* model\.gradient_checkpointing"
        ) as e:
            work()
        assert "\n" not in str(e.value)
    with pytest.raises(RuntimeError, match="another"), memory_errors():
        raise RuntimeError("another")
