"""What a study declared before its runs: that of the run begun first. What later runs say otherwise was said knowing
how others ended."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from grpo_bench.records import Run, Study

Hypothesis = dict[str, Any]
WORDING = ("claim", "source")  # said for people; the rest of a hypothesis decides how it is judged


def settings_of(study: Study) -> dict[str, Any]:
    """``study`` of the configuration of the run begun first; of the first by name where no record says when."""
    run = _first(study)
    return run.config["study"] if run is not None else {}


def hypotheses_of(study: Study) -> tuple[list[Hypothesis], list[Hypothesis]]:
    """Those of the run begun first, and those of later runs that it did not declare, or not so. Where no record says
    when a run began, the first by name that declares any has them, and no others are known to be later."""
    runs, first = _dated(study), _first(study)
    if first is None or not runs:
        return next((found for config in study.configs if (found := declared_in(config))), []), []
    declared = declared_in(first.config)
    known = [_decides(one) for one in declared]
    later: list[Hypothesis] = []
    for run in runs:
        for one in declared_in(run.config):
            if _decides(one) not in known:
                known.append(_decides(one))
                later.append(one)
    return declared, later


def disagreements(study: Study) -> list[str]:
    """What decides the verdicts must have stood before the first run: runs that say otherwise are named."""
    lines = []
    first = _first(study)
    named = {"margin": "margin", "contrasts": "declared contrasts", "baseline": "baseline", "hypotheses": "hypotheses"}
    for key, words in named.items():
        said: dict[str, list[str]] = {}
        for run in ([first] if first else []) + [run for run in study.runs if run is not first]:
            if run.config.get("study"):
                value = declared_in(run.config) if key == "hypotheses" else run.config["study"].get(key)
                said.setdefault(json.dumps(value), []).append(run.run_id)
        if len(said) > 1:
            used, *others = said.values()
            begun = ", begun first, " if first is not None and first.started else " "
            lines.append(
                f"The study's {words} changed between its runs: {used[0]}'s{begun}are used, "
                f"{sum(map(len, others))} runs have others ({others[0][0]}, …)."
            )
    return lines


def declared_in(config: Mapping[str, Any]) -> list[Hypothesis]:
    """The hypotheses of a run's configuration, without options that say nothing: a record from before an option was
    there says the same."""
    declared = (config.get("study") or {}).get("hypotheses") or []
    return [{key: value for key, value in one.items() if value is not None} for one in declared]


def _dated(study: Study) -> list[Run]:
    """Runs of a study's configuration that say when they began, the earliest first."""
    return sorted((run for run in study.runs if run.config.get("study") and run.started), key=lambda run: run.started)


def _first(study: Study) -> Run | None:
    dated = _dated(study)
    return dated[0] if dated else next((run for run in study.runs if run.config.get("study")), None)


def _decides(one: Hypothesis) -> Hypothesis:
    return {key: value for key, value in one.items() if key not in WORDING}
