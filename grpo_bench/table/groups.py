"""What a group of G completions tells: signal and advantages from the policy before RL, beside those while training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from grpo_bench.records import read_json
from grpo_bench.table.arms import Arm, mean_of
from grpo_bench.table.compare import Comparison
from grpo_bench.table.layout import NONE, Sheet, grouped
from grpo_bench.table.measures import Reading
from grpo_bench.types import UserError

FILE = "advantage_error.json"  # written by python -m grpo_bench.advantage_error


def estimates(folder: Path) -> dict[str, Any] | None:
    """The content of a study's advantage_error.json; None without one. UserError where it is not what it should be."""
    if not (folder / FILE).is_file():
        return None
    found = read_json(folder / FILE)
    entries = found.get("groups") if isinstance(found, dict) else None
    if not isinstance(entries, list) or not all(isinstance(e, dict) and "group_size" in e for e in entries):
        raise UserError(f"malformed {folder / FILE}: it lacks its groups; remove it and measure again")
    return found


def groups_sheet(c: Comparison) -> Sheet | None:
    """A row per group size: share of groups without signal, measured and expected, and the error of the advantage;
    None where it was not measured for this study."""
    found = estimates(c.study.folder)
    if found is None:
        return None
    reading = Reading(c.arms)
    shares = ["measured [95 %]", "p^G + (1 − p)^G", "unbiased", "at the mean p"]
    header = ["G", *grouped("groups without signal, before RL %", shares), "groups without signal, training %"]
    header += grouped("advantage against all, (r − μ)/σ", ["error [95 %]", "correlation [95 %]"])
    header += grouped("advantage against all, r − μ", ["error [95 %]", "correlation [95 %]"])
    rows = []
    for entry in found["groups"]:
        expected = entry.get("zero_signal_expected") or {}
        row = [str(entry["group_size"]), _share(entry.get("zero_signal"), entry.get("zero_signal_interval"))]
        row += [_share(expected.get(key), None) for key in ("formula", "unbiased", "at_mean")]
        row.append(_training(c, reading, int(entry["group_size"])))
        for kind in ("zscore", "center"):
            one = entry.get(kind) or {}
            row += [_number(one.get(key), one.get(f"{key}_interval")) for key in ("rmse", "correlation")]
        rows.append(row)
    n, problems = found.get("reference_group", "?"), found.get("problems", "?")
    notes = [
        f"Before RL: {n} completions of each of {problems} training problems from the {found.get('policy')} policy, "
        f"cut into groups of G; the advantage in a group against the one among all {n} completions of its problem: "
        "root mean square error and correlation; intervals from resampled problems. p: each problem's share of right "
        "completions; unbiased: the same drawn without replacement.",
        "Training: mean over the steps of the rows of that group size, by arm.",
    ]
    return Sheet("groups", "What a group tells", header, rows, notes)


def _training(c: Comparison, reading: Reading, size: int) -> str:
    arms: list[Arm] = [arm for arm in c.arms if arm.config.get("group_size") == size and arm.scored]
    cells = [
        f"{arm.label} {100 * value:.1f}"
        for arm in arms
        if (value := mean_of([reading.value("zero_signal", run) for run in arm.scored], skip=True)) is not None
    ]
    return ", ".join(cells) or NONE


def _share(value: Any, bounds: Any) -> str:
    if value is None:
        return NONE
    return f"{100 * value:.1f}" + (f" [{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]" if bounds else "")


def _number(value: Any, bounds: Any) -> str:
    return NONE if value is None else f"{value:.3f}" + (f" [{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else "")


def advantage_errors(folder: Path) -> str:
    """The errors in a few words, "G = 2: 0.61, …"; "" where they were not measured."""
    try:
        found = estimates(folder)
    except UserError as error:
        return str(error)
    if found is None:
        return ""
    cells = [
        f"G = {entry['group_size']}: {entry['zscore']['rmse']:.2f}"
        for entry in found["groups"]
        if (entry.get("zscore") or {}).get("rmse") is not None
    ]
    n = found.get("reference_group", "?")
    return f"error of the advantage against that of {n} completions, {', '.join(cells)}" if cells else ""
