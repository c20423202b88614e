"""``python -m grpo_bench.reward_training``, see cli.py."""

import sys

from grpo_bench.reward_training.cli import main

if __name__ == "__main__":
    sys.exit(main())
