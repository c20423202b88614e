"""``python -m grpo_bench.explain``: what a run computes, in words and numbers; and the tables of all algorithms."""

from grpo_bench.explain.cells import cells, differences
from grpo_bench.explain.text import explain

__all__ = ["cells", "differences", "explain"]
