"""Whether the answer has the asked-for form, right or wrong."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from grpo_bench.rewards.scored import Scored

if TYPE_CHECKING:
    from grpo_bench.config import Config


def part(rows: Scored, cfg: Config) -> list[float]:
    r"""1 for the form, else 0.

    ``reward.format.pattern`` is a regular expression that the whole response must match, spaces at its ends apart (the
    dot matches line breaks); DeepSeek-R1's form is in ``conf/reward/format_r1.yaml``. Null: the response carries an
    answer behind the marker that the task's grading looks for, ``#### n`` or ``\boxed{}``.
    """
    pattern = cfg.reward.format.pattern
    if pattern is None:
        return [float(grade.marked) for grade in rows.grades]
    form = re.compile(pattern, re.DOTALL)
    return [float(form.fullmatch(response.strip()) is not None) for response in rows.responses]
