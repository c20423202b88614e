import sys

from grpo_bench.selfcheck.cli import main

if __name__ == "__main__":
    sys.exit(main())
