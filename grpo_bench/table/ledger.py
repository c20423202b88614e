"""The tuning ledger: every learning rate that was tried, on dev alone, and the one that each row takes from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from grpo_bench.files import write_atomic
from grpo_bench.table.arms import Arm, mean_of
from grpo_bench.table.compare import Comparison
from grpo_bench.table.curves import LAST_EVALS, end
from grpo_bench.table.layout import NONE, Bold, Sheet
from grpo_bench.types import UserError

RATES = ("lr", "critic_lr")


@dataclass(frozen=True)
class Trial:
    """One arm at one learning rate; ``dev`` is by seed (None: never evaluated); no ``mean`` where a seed is missing."""

    arm: str
    algo: str
    rates: tuple[float | None, float | None]
    dev: dict[int, float | None]
    diverged: int
    missing: int

    @property
    def mean(self) -> float | None:
        return None if self.missing else mean_of(list(self.dev.values()))


@dataclass(frozen=True)
class Choice:
    """The best trial of an arm; ``edges`` names the rates at an end of their grid: better ones may lie beyond."""

    best: Trial
    edges: list[str]


def trials(c: Comparison) -> list[Trial]:
    """Rows of arms that were tried at several learning rates; [] where the study is no such sweep."""
    found: list[Trial] = []
    tried: dict[tuple[str, str, Any], set[tuple[float | None, ...]]] = {}
    for arm in c.arms:
        if arm.config:
            rates = tuple(_rate(arm.config.get(name)) for name in RATES)
            # rates that were tuned for each model or task differ between those, and are no trials
            tried.setdefault((arm.arm, arm.model, (arm.config.get("task") or {}).get("name")), set()).add(rates)
            dev = {run.seed: end(run) for run in arm.runs if run.scored or run.status == "diverged"}
            diverged = sum(run.status == "diverged" for run in arm.runs)
            found.append(Trial(arm.arm, arm.algo, (rates[0], rates[1]), dev, diverged, _unfinished(arm)))
    several = {arm for (arm, _, _), rates in tried.items() if len(rates) > 1}
    return [trial for trial in found if trial.arm in several]


def choices(found: Sequence[Trial]) -> dict[str, Choice]:
    """By arm: the highest mean over seeds of dev accuracy; of equal ones the lowest rates. Arms without any rate that
    all of its seeds finished have none."""
    chosen: dict[str, Choice] = {}
    for arm in dict.fromkeys(trial.arm for trial in found):
        own = [trial for trial in found if trial.arm == arm]
        known = [trial for trial in own if trial.mean is not None]
        if known:
            best = max(known, key=lambda t: (t.mean or 0.0, [-(rate or 0.0) for rate in t.rates]))
            chosen[arm] = Choice(best, _edges(best, own))
    return chosen


def ledger_sheet(c: Comparison) -> Sheet | None:
    """A row per arm and learning rate with dev accuracy by seed; the chosen ones are bold."""
    found = trials(c)
    if not found:
        return None
    chosen = choices(found)
    seeds = sorted({seed for trial in found for seed in trial.dev})
    header = ["", *RATES, *[f"dev %: seed {seed}" for seed in seeds], "dev %: mean", "non-finite", "chosen"]
    rows, notes = [], []
    for trial in found:
        best = chosen.get(trial.arm)
        takes = best is not None and best.best is trial
        mean = NONE if trial.mean is None else f"{100 * trial.mean:.1f}"
        row = [trial.arm, *[NONE if rate is None else f"{rate:g}" for rate in trial.rates]]
        row += [NONE if (value := trial.dev.get(seed)) is None else f"{100 * value:.1f}" for seed in seeds]
        row += [Bold(mean) if takes else mean, str(trial.diverged)]
        word = "incomplete" if trial.missing else ""
        if takes and best is not None:
            word = "chosen" + (f", at the edge of the grid ({', '.join(best.edges)})" if best.edges else "")
        rows.append([*row, Bold(word) if takes else word])
    grids = {trial.arm: sorted({t.rates[0] for t in found if t.arm == trial.arm and t.rates[0]}) for trial in found}
    same = len({tuple(grid) for grid in grids.values()}) == 1
    notes.append(
        f"Chosen on dev alone, by the mean over seeds of the last {LAST_EVALS} evaluations; test results play no part. "
        + ("The same grid for every row." if same else "The grids differ between rows.")
    )
    edges = [f"{arm} ({', '.join(choice.edges)})" for arm, choice in chosen.items() if choice.edges]
    if edges:
        notes.append(f"At the edge of the grid, a better one may lie beyond: {'; '.join(edges)}.")
    return Sheet("ledger", "Tuning ledger", header, rows, notes)


def write_tuned(c: Comparison, file: Path, command: str) -> list[str]:
    """Write the chosen rates to ``conf/tuned/<task>-<model>.yaml``, by arm and by algorithm (whose value is that of the
    arm of its name, else of its first arm); other entries of the file stay. Returns one line per entry.

    Raises UserError where the study tried no rates, nothing can be chosen yet, the file is not this task's and model's
    (it would be read by nobody, or by the wrong runs), or what stands in it is no list of rates: it is left as it was.
    """
    found = trials(c)
    if not found:
        raise UserError(f"tuned={file}: {c.study.name} has no arm with more than one learning rate to choose from")
    chosen = choices(found)
    lacking = [arm for arm in dict.fromkeys(trial.arm for trial in found) if arm not in chosen]
    if lacking:
        raise UserError(
            f"tuned={file}: no rate of {', '.join(lacking)} has all of its seeds yet; finish the sweep first"
        )
    named = {f"{(run.config.get('task') or {}).get('name')}-{run.model}.yaml" for run in c.study.runs if run.config}
    if named != {file.name}:
        raise UserError(f"tuned={file}: these runs are read from {' and '.join(sorted(named))}; name the file so")
    entries = _entries(chosen)
    try:
        write_atomic(file, _text(c, found, chosen, _before(file) | entries, command).encode())
    except OSError as error:
        raise UserError(f"tuned={file}: {str(error).splitlines()[0]}") from None
    return [f"{name}: {_flow(rates)}" for name, rates in entries.items()]


def _before(file: Path) -> dict[str, Any]:
    """What stands in the file, {} where there is none; UserError where it is not rates by name."""
    try:
        content = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}) if file.exists() else {}
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: not UTF-8
        raise UserError(f"tuned={file} cannot be read: {str(error).splitlines()[0]}") from None
    entries = content.values() if isinstance(content, dict) else [None]
    if not all(isinstance(entry, dict) and all(map(_is_rate, entry.values())) for entry in entries):
        raise UserError(f"tuned={file} should hold lines such as grpo: {{lr: 1.0e-4}}; mend it or remove it")
    return dict(content)


def _is_rate(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _entries(chosen: dict[str, Choice]) -> dict[str, dict[str, float]]:
    def rates(choice: Choice) -> dict[str, float]:
        return {name: rate for name, rate in zip(RATES, choice.best.rates, strict=True) if rate is not None}

    algos = {choice.best.algo: choice for choice in reversed(chosen.values())}
    algos |= {arm: choice for arm, choice in chosen.items() if arm == choice.best.algo}
    return {name: rates(choice) for name, choice in sorted((algos | chosen).items())}


def _text(
    c: Comparison, found: Sequence[Trial], chosen: dict[str, Choice], entries: dict[str, Any], command: str
) -> str:
    grid = sorted({trial.rates[0] for trial in found if trial.rates[0] is not None})
    seeds = sorted({seed for trial in found for seed in trial.dev})
    lines = [
        "# Learning rates by arm, then by algorithm, then `default`, chosen on dev and written by",
        f"#   {command}",
        f"# out of lr {', '.join(f'{rate:g}' for rate in grid)}, seeds {', '.join(map(str, seeds))}; the ledger with",
        f"# every trial: results/{c.study.name}/table.md.",
    ]
    edges = [f"{arm} ({', '.join(choice.edges)})" for arm, choice in chosen.items() if choice.edges]
    lines += [f"# At the edge of the grid: {', '.join(edges)}."] if edges else []
    return "\n".join([*lines, *[f"{name}: {_flow(entry)}" for name, entry in entries.items()]]) + "\n"


def _flow(entry: dict[str, Any]) -> str:
    # 1.0e-04, not 1e-4: YAML reads a number without a point as text
    return "{" + ", ".join(f"{key}: {_number(value)}" for key, value in entry.items()) + "}"


def _number(value: float) -> str:
    mantissa, exponent = f"{value:.6e}".split("e")
    mantissa = mantissa.rstrip("0")
    return f"{mantissa}0e{int(exponent)}" if mantissa.endswith(".") else f"{mantissa}e{int(exponent)}"


def _edges(best: Trial, own: Sequence[Trial]) -> list[str]:
    edges = []
    for i, name in enumerate(RATES):
        grid = sorted({rate for trial in own if (rate := trial.rates[i]) is not None})
        if len(grid) > 1 and best.rates[i] in (grid[0], grid[-1]):
            edges.append(f"{name} {'lowest' if best.rates[i] == grid[0] else 'highest'}")
    return edges


def _unfinished(arm: Arm) -> int:
    return sum(not (run.scored or run.status == "diverged") for run in arm.runs)


def _rate(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
