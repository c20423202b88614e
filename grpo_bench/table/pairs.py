"""Which runs may be compared as a pair, and the estimates that pairs allow.

Three seeds or more: the seed is the unit (Student's t over seeds). Fewer: the problem is, and the interval holds for
these trained models only. Each estimate says which of the two it is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from grpo_bench import stats
from grpo_bench.records import METRICS, Run, Scores, training_seconds
from grpo_bench.stats import Interval

SEEDS_FOR_T = 3  # below, an interval over seeds says nothing (t of 1 degree of freedom: 12.7)
SEEDS_FOR_CLAIM = stats.SEEDS_FOR_VERDICT  # below, an estimate describes and no verdict is given

SPENT = {"samples": "samples", "tokens": "generated_tokens", "updates": "updates", "flops": "flops"}  # keys of cost

# what decides how the final greedy test asks and grades; how often dev is looked at may differ between arms
_TEST_SETTINGS = ("eval_split", "prompt", "stop", "answer", "max_new_tokens", "verify_seconds")


@dataclass(frozen=True, slots=True)
class Estimate:
    """An interval with the unit it varies over; ``problems`` is the number of test problems behind it."""

    interval: Interval
    unit: Literal["seeds", "problems", "none"]
    seeds: int
    problems: int

    @property
    def kind(self) -> str:
        """What kind of interval it is, in the words of the table's column."""
        if self.unit == "seeds":
            return f"seeds (n = {self.seeds}{'' if self.seeds >= SEEDS_FOR_CLAIM else ', descriptive'})"
        if self.unit == "problems":
            on = f", conditional on {self.seeds} seed{'s' * (self.seeds != 1)}" if self.seeds else ""
            return f"problems (n = {self.problems:,}{on})"
        return "none"


@dataclass(frozen=True, slots=True)
class Side:
    """One half of a pair: accuracies by metric and, where the final test was reached, the scores by problem."""

    means: dict[str, float]
    scores: Scores | None


def side(run: Run) -> Side:
    greedy = run.final["greedy"]
    means = {metric: float(greedy[metric]) for metric in METRICS if greedy.get(metric) is not None}
    return Side(means, run.scores if greedy["split"] == "test" else None)


def accuracy(sides: Sequence[Side], metric: str, problems: int) -> Estimate:
    """Accuracy of an arm from the final tests of its seeds (at least one)."""
    means = [s.means[metric] for s in sides]
    if len(means) >= SEEDS_FOR_T and np.ptp(means) > 0:
        t = stats.mean_t_interval(means)
        # accuracies end at 0 and 1; t does not know
        clipped = Interval(t.estimate, max(t.low, 0.0), min(t.high, 1.0), t.se, t.n)
        return Estimate(clipped, "seeds", len(means), problems)
    matrix = _matrix(sides, metric)
    if matrix is not None:
        return Estimate(stats.proportion(matrix.mean(axis=0)), "problems", len(means), matrix.shape[1])
    if len(means) == 1 and problems:
        p = means[0]
        low, high = stats.wilson(p * problems, problems)
        return Estimate(Interval(p, low, high, math.sqrt(p * (1 - p) / problems), problems), "problems", 1, problems)
    return Estimate(_point(float(np.mean(means)), len(means)), "none", len(means), problems)


def difference(pairs: Sequence[tuple[Side, Side]], metric: str, level: float = 0.95) -> Estimate:
    """Mean of first − second over pairs (one per seed, at least one), with its paired interval."""
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    xs, ys = ([s.means[metric] for s in sides] for sides in (first, second))
    a, b = _matrix(first, metric), _matrix(second, metric)
    problems = 0 if a is None else a.shape[1]
    # equal differences leave no spread to estimate from: a zero-width interval over seeds would claim certainty
    if len(pairs) >= SEEDS_FOR_T and np.ptp(np.subtract(xs, ys)) > 1e-12:
        return Estimate(stats.paired_t(xs, ys, level), "seeds", len(pairs), problems)
    if a is not None and b is not None and a.shape[1] == b.shape[1]:
        return Estimate(stats.paired_problems(a, b, level), "problems", len(pairs), problems)
    return Estimate(_point(float(np.mean(np.subtract(xs, ys))), len(pairs)), "none", len(pairs), problems)


def matrices(pairs: Sequence[tuple[Side, Side]], metric: str) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """(seeds, problems) scores of both sides, None where a final test is missing."""
    a, b = _matrix([x for x, _ in pairs], metric), _matrix([y for _, y in pairs], metric)
    return None if a is None or b is None or a.shape != b.shape else (a, b)


def refusal(a: Run, b: Run) -> str | None:
    """Why two runs of the same seed may not be compared; None where they may."""
    first, second = facts(a), facts(b)
    reasons = []
    for name, value in first.items():
        other = second[name]
        # a run that diverged before its record was written cannot state everything; what it states must agree
        if value is not None and other is not None and value != other:
            said = f" ({value} and {other})" if len(value) + len(other) < 80 else ""
            reasons.append(f"{name} differs{said}")
    if not reasons and a.scores is not None and b.scores is not None and a.scores.ids != b.scores.ids:
        reasons.append("test problems differ")
    return "; ".join(reasons) or None


def facts(run: Run) -> dict[str, str | None]:
    """What must be equal in both runs of a pair, in words; None where the record does not say."""
    result, config = run.result or {}, run.config
    task, model = config.get("task") or {}, config.get("model") or {}
    prints = run.provenance.get("fingerprints") or {}
    asked = {name: task[name] for name in _TEST_SETTINGS if name in task}
    if "eval" in config:
        asked["eval.test_n"] = config["eval"].get("test_n")
    return {
        "data": _short(prints.get("data")),
        "prompt stream": _short(result.get("prompt_stream_hash") or run.provenance.get("prompt_stream_hash")),
        "model": run.model,
        "initial weights": _short(prints.get("model")),
        "warm start": _short(prints.get("warmstart")),
        "warm-start settings": _warmstart(model),
        "task version": f"{task['name']} v{task.get('version')}" if task.get("name") else None,
        "verifier version": verifier(run),
        "grader": _short(prints.get("grader")),
        "budget": budget(run),
        "machine, whose seconds the budget counts,": _machine(run),
        "compute precision": model.get("dtype"),
        "rollout engine": (config.get("rollout") or {}).get("engine"),
        **{
            f"{name} of the test": json.dumps(asked[name], ensure_ascii=False) if name in asked else None
            for name in (*_TEST_SETTINGS, "eval.test_n")
        },
    }


def verifier(run: Run) -> str | None:
    """Version of the library that decides whether two answers are equal; None where the rule is our own."""
    if (run.config.get("task") or {}).get("answer") != "math":
        return None
    versions = run.provenance.get("packages") or {}
    if not versions.get("math-verify"):
        return None
    # what the library parses, SymPy decides
    under = f" on sympy {versions['sympy']}" if versions.get("sympy") else ""
    return f"math-verify {versions['math-verify']}{under}"


def budget(run: Run) -> str | None:
    """Such as "10,240 samples"; None where the record does not say."""
    declared = (run.result or {}).get("budget") or run.config.get("budget")
    return f"{float(declared['amount']):,.10g} {declared['unit']}" if declared else None


def overshoot(run: Run) -> float | None:
    """Share of the budget that the last step spent beyond it, 0.02 for 2 %."""
    declared = (run.result or {}).get("budget") or run.config.get("budget")
    if not declared:
        return None
    spent = training_seconds(run) if declared["unit"] == "seconds" else run.cost.get(SPENT[declared["unit"]])
    if spent is None:
        return None
    return float(spent) / float(declared["amount"]) - 1


def _machine(run: Run) -> str | None:
    """Processor, accelerators and threads where the budget is in seconds: elsewhere a machine decides no result."""
    declared = (run.result or {}).get("budget") or run.config.get("budget") or {}
    if declared.get("unit") != "seconds" or not run.provenance.get("cpu"):
        return None
    device = run.provenance.get("device") or {}
    parts = [run.provenance["cpu"], *(device.get("gpus") or [])]
    parts += [f"{device['torch_threads']} threads"] if device.get("torch_threads") else []
    return ", ".join(parts)


def _warmstart(model: dict[str, Any]) -> str | None:
    settings = model.get("warmstart")
    return ", ".join(f"{key} {value}" for key, value in settings.items()) if settings else None


def _short(value: Any) -> str | None:
    return str(value)[:12] if value else None


def _point(value: float, n: int) -> Interval:
    return Interval(value, math.nan, math.nan, math.nan, n)


def _matrix(sides: Sequence[Side], metric: str) -> NDArray[np.float64] | None:
    rows = [s.scores for s in sides if s.scores is not None]
    if len(rows) != len(sides) or len({scores.ids for scores in rows}) != 1:
        return None
    return np.stack([scores.by[metric] for scores in rows])
