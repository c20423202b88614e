"""Shared fixtures: where real data lies, and that nothing here needs a network."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from grpo_bench.device import cuda_available

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if not cuda_available():  # Triton's interpreter, which must be chosen before anything imports Triton
    os.environ.setdefault("TRITON_INTERPRET", "1")

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with gsm8k/, math/ and math500/ as jsonl; the test is skipped where it is absent."""
    folder = Path(os.environ.get("GRPO_BENCH_DATA", REPO.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}; set GRPO_BENCH_DATA")
    return folder
