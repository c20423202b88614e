"""``python -m grpo_bench``."""

from grpo_bench.cli import main

if __name__ == "__main__":
    main()
