"""``python -m grpo_bench.study plan|status|retry STUDY``."""

import sys

from grpo_bench.study.cli import main

sys.exit(main())
