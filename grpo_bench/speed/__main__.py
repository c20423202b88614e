"""``python -m grpo_bench.speed``."""

import sys

from grpo_bench.speed.cli import main

sys.exit(main())
