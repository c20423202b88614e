"""The benchmark: step time, memory and efficiency beside peers that are installed. ``python -m grpo_bench.speed``."""
