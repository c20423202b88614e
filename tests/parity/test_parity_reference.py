"""Every algorithm against the same equations in NumPy."""

from __future__ import annotations

from typing import Any

import pytest
import reference
from cells import cells, compare, label

from grpo_bench.algos import ALGORITHMS


@pytest.mark.parametrize(("algorithm", "knobs"), cells(reference.NAME), ids=label)
def test_an_algorithm_is_its_papers_equations(algorithm: str, knobs: dict[str, Any]) -> None:
    cell = compare(reference.NAME, algorithm, knobs)
    assert cell.found is not None, f"{algorithm} has no reference: write it in tests/parity/reference.py"
    assert cell.found.advantages < 1e-12
    assert cell.found.loss < 1e-12
    assert cell.found.gradient < 1e-7  # of central differences


def test_every_algorithm_is_compared() -> None:
    assert {algorithm for algorithm, _ in cells(reference.NAME)} == set(ALGORITHMS)
