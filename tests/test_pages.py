"""Memory that is given back to the system: what lies beside it stays as it is."""

from __future__ import annotations

import mmap

import pytest
import torch

from grpo_bench.rollout import pages

PAGE = mmap.PAGESIZE

pytestmark = pytest.mark.skipif(not pages.can_give_back(), reason="memory is not given back on this system")


def test_whole_pages_go_and_neighbours_stay() -> None:
    block = torch.ones(8 * PAGE, dtype=torch.uint8)
    start = -block.data_ptr() % PAGE + 100
    part = block[start : start + 3 * PAGE]  # two whole pages of three that it touches and a fourth's beginning
    assert pages.give_back([part])
    zeros = (block == 0).nonzero().flatten()
    assert zeros.tolist() == list(range(start - 100 + PAGE, start - 100 + 3 * PAGE))


def test_what_lies_side_by_side_goes_as_one() -> None:
    block = torch.ones(4 * PAGE, dtype=torch.uint8)
    start = -block.data_ptr() % PAGE
    middle = start + PAGE // 2
    first, second = block[start:middle], block[middle : start + PAGE]  # half a page each
    assert pages.give_back([second, first])
    assert int((block == 0).sum()) == PAGE
    block.fill_(1)
    pages.give_back([second])
    assert block.all()
