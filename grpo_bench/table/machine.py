"""What else a study's machine did while its runs ran: a note beside their seconds."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from grpo_bench.table.arms import Arm


def machine_note(arms: Sequence[Arm]) -> str | None:
    """One sentence, with medians and ranges over runs; None where no run recorded it."""
    runs = [run for arm in arms for run in arm.scored if run.cost]
    found = [load for run in runs if (load := run.cost.get("machine"))]
    others = [load["others"] for load in found if load.get("others") is not None]
    stolen = [load["stolen"] for load in found if load.get("stolen") is not None]
    said = [f"other processes used {_spread(others)} of its cores (jobs of this sweep among them)"] if others else []
    said += [f"its host took {_spread(stolen)} for other guests"] if stolen else []
    if not said:
        return None
    partly = f" (recorded by {len(found)} of {len(runs)})" if len(found) < len(runs) else ""
    return (
        f"Seconds depend on what else the machine does. While these runs ran{partly}, {' and '.join(said)}: medians of "
        "runs, with the least and the most."
    )


def _spread(shares: Sequence[float]) -> str:
    low, middle, high = (100 * value for value in (min(shares), median(shares), max(shares)))
    return f"{middle:.0f} % [{low:.0f}, {high:.0f}]"
