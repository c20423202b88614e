"""The table that is committed, and the program that writes it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cells
import pytest
import table
from peers import Difference, Missing

from grpo_bench.algos import ALGORITHMS

RESULTS = Path(__file__).resolve().parents[2] / "results" / "parity"


def test_the_committed_table_has_every_algorithm_and_no_difference_that_matters() -> None:
    """Stale: write it anew with python tests/parity/table.py into=results/parity."""
    text = (RESULTS / "README.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", text.partition("## Without")[0], re.MULTILINE) == list(ALGORITHMS)
    found = json.loads((RESULTS / "parity.json").read_text())
    assert found["versions"].keys() == cells.SYSTEMS.keys()
    compared = [cell for cell in found["cells"] if cell["found"]]
    assert {cell["system"] for cell in compared} == set(cells.SYSTEMS)
    assert max(x for cell in compared for x in cell["found"].values()) < cells.TOLERANCE


def test_a_table_says_what_was_skipped_and_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Absent:
        NAME, DIALECT = "Absent", "trl"

        @staticmethod
        def version() -> str:
            raise Missing("absent is not installed")

    reference = cells.SYSTEMS["NumPy reference"]
    for module in (cells, table):
        monkeypatch.setattr(module, "SYSTEMS", {reference.NAME: reference, "Absent": Absent})
    monkeypatch.setattr(cells, "BATCHES", {})
    table.write(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "| `grpo` | 0 / 0 / 0 | –<sup>a</sup> |" in text
    assert "- <sup>a</sup> absent is not installed" in text


def test_a_cell_is_its_worst_setting() -> None:
    one = cells.Cell("grpo", "TRL", {}, Difference(1e-9, 0.0, 3e-12))
    other = cells.Cell("grpo", "TRL", {"ddof": 1}, Difference(2e-10, 4e-8, 0.0))
    assert table.entry([one, other], {}) == "1e-9 / 4e-8 / 3e-12"
