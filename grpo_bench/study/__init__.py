"""A study's runs: what they will take, how they stand, and the failed ones again. ``python -m grpo_bench.study``."""
