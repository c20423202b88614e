"""What a study asks of measures, checked before its first run: that each exists, and that sameness has a margin."""

from __future__ import annotations

from grpo_bench.config_errors import nearest
from grpo_bench.config_study import StudyConfig


def study_problems(study: StudyConfig) -> list[str]:
    """One line for each hypothesis that no table could judge."""
    if not study.hypotheses:
        return []
    from grpo_bench.table.measures import MEASURES  # here, since it costs scipy, and most runs declare nothing

    problems = []
    for one in study.hypotheses:
        measure = MEASURES.get(one.measure)
        if measure is None:
            problems.append(f"hypothesis {one.id}: no measure {one.measure!r}{nearest(one.measure, set(MEASURES), 1)}")
        elif one.expect in ("equal", "flat") and one.at_most is None and measure.unit != "fraction":
            problems.append(
                f"hypothesis {one.id}: expect={one.expect} needs at_most=...: the study's margin is of fractions, and "
                f"{one.measure} is in {measure.unit}"
            )
    return problems
