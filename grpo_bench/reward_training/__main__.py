"""``python -m grpo_bench.reward_training``, see cli.py."""

import sys

from grpo_bench.process import start_again

if __name__ == "__main__":
    start_again()
    from grpo_bench.reward_training.cli import main

    sys.exit(main())
