"""What a process sets before torch computes, and that a caller's own settings are spared."""

from __future__ import annotations

import pytest

from grpo_bench import process


@pytest.mark.parametrize("kept", [True, False])
def test_defaults_are_set_where_the_caller_set_none(kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors ask for large pages themselves where the heap does not."""
    monkeypatch.setattr(process.os, "environ", {"GOMP_SPINCOUNT": "3"})
    monkeypatch.setattr(process.heap, "keep", lambda: kept)
    process.prepare_process()
    assert process.os.environ == {"GOMP_SPINCOUNT": "3"} | ({} if kept else {"THP_MEM_ALLOC_ENABLE": "1"})


def test_a_callers_large_pages_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process.os, "environ", {"THP_MEM_ALLOC_ENABLE": "0"})
    monkeypatch.setattr(process.heap, "keep", lambda: False)
    process.prepare_process()
    assert process.os.environ == {"THP_MEM_ALLOC_ENABLE": "0", "GOMP_SPINCOUNT": "20000"}
