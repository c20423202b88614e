"""What a diagnosis looks at: the recorded steps of one run, its outcome and its configuration. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from grpo_bench.records import Run, read_jsonl

TESTED = "test problems"
CONFIDENT = 1.96  # standard errors; two-sided 5 %


@dataclass(frozen=True, slots=True)
class Change:
    """An accuracy before and after, as fractions; ``se`` is the standard error of the difference over problems."""

    before: float
    after: float
    se: float
    n: int
    of: str  # TESTED, or "training completions" where no final test was reached

    @property
    def gain(self) -> float:
        return self.after - self.before

    @property
    def rose(self) -> bool:
        return self.gain > CONFIDENT * self.se

    @property
    def fell(self) -> bool:
        return self.gain < -CONFIDENT * self.se

    def __str__(self) -> str:
        half = f" ± {100 * CONFIDENT * self.se:.1f}" if self.se else ""
        return (
            f"{100 * self.before:.1f} % to {100 * self.after:.1f} % of {self.n:,} {self.of} "
            f"({100 * self.gain:+.1f}{half} points)"
        )


@dataclass(frozen=True)
class Evidence:
    """A run as its rules see it. *Early* and *late* are the first and the last quarter of the steps, at least one."""

    run: Run

    @cached_property
    def steps(self) -> list[dict[str, Any]]:
        """Metric lines of the steps, without the evaluation before the first."""
        return [line for line in self.run.metrics if line.get("step", 0) > 0]

    @cached_property
    def _quarter(self) -> int:
        return max(1, len(self.steps) // 4)

    @cached_property
    def last_step(self) -> int:
        return int(self.steps[-1]["step"]) if self.steps else 0

    def series(self, name: str) -> list[float]:
        """A metric step by step; steps without it, or with a null, are left out."""
        return [float(line[name]) for line in self.steps if line.get(name) is not None]

    def mean(self, name: str) -> float | None:
        return _mean(self.series(name))

    def early(self, name: str) -> float | None:
        return _mean([float(s[name]) for s in self.steps[: self._quarter] if s.get(name) is not None])

    def late(self, name: str) -> float | None:
        return _mean([float(s[name]) for s in self.steps[-self._quarter :] if s.get(name) is not None])

    def knob(self, path: str) -> Any:
        """A value of the configuration by its dotted key, None where there is none."""
        node: Any = self.run.config
        for part in path.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        return node

    @cached_property
    def parts(self) -> set[str]:
        """What the reward is made of: the parts with a weight."""
        return {name for name, weight in (self.knob("reward.parts") or {}).items() if weight}

    @cached_property
    def updates_per_step(self) -> int:
        return int(self.knob("epochs") or 1) * int(self.knob("minibatches") or 1)

    @cached_property
    def change(self) -> Change | None:
        """Accuracy before and after RL on the final test; without one, of the first and last quarter's completions."""
        return self._tested() or self._trained()

    @property
    def learned(self) -> bool:
        """Accuracy rose by more than its noise."""
        return self.change is not None and self.change.rose

    def _tested(self) -> Change | None:
        evals = (self.run.result or {}).get("eval") or {}
        before = ((evals.get("base") or evals.get("pretrained") or {}).get("greedy")) or {}
        after = (evals.get("final") or {}).get("greedy") or {}
        if before.get("acc") is None or after.get("acc") is None:
            return None
        n = int(after.get("n") or 0)
        old, new = self.run.baseline_scores(self.start), self.run.scores
        if old is not None and new is not None and old.ids == new.ids and len(new.ids) > 1:
            difference = new.by["acc"] - old.by["acc"]
            se = float(np.std(difference, ddof=1) / math.sqrt(len(difference)))
        else:
            se = math.hypot(float(before.get("stderr") or 0), float(after.get("stderr") or 0))
        return Change(float(before["acc"]), float(after["acc"]), se, n, TESTED)

    @cached_property
    def start(self) -> str:
        """Which of the two models before RL this run began from."""
        return "base" if ((self.run.result or {}).get("eval") or {}).get("base") else "pretrained"

    def _trained(self) -> Change | None:
        before, after = self.early("reward/correct"), self.late("reward/correct")
        if before is None or after is None or len(self.steps) < 2:
            return None
        samples = self.mean("cost/samples") or 0.0
        n = max(1, round(samples * self._quarter))
        # completions of one prompt resemble each other: the design effect is at most the group size
        effective = max(1.0, n / float(self.knob("group_size") or 1))
        se = math.sqrt((before * (1 - before) + after * (1 - after)) / effective)
        return Change(before, after, se, n, "training completions")

    @cached_property
    def dev(self) -> list[tuple[int, float, float]]:
        """Greedy evaluations while training: (step, accuracy, standard error)."""
        name = "eval/dev/greedy/"
        return [
            (int(line["step"]), float(line[name + "acc"]), float(line.get(name + "stderr") or 0.0))
            for line in self.run.metrics
            if line.get(name + "acc") is not None
        ]

    @cached_property
    def unchanged(self) -> float | None:
        """Fraction of the greedy test answers that are word for word those of the model before RL."""
        name = ((self.run.result or {}).get("baselines") or {}).get(self.start)
        before = _answers(self.run.directory.parent / "baselines" / name) if name else {}
        after = _answers(self.run.directory)
        both = before.keys() & after.keys()
        return sum(before[key] == after[key] for key in both) / len(both) if both else None

    @cached_property
    def rewards(self) -> tuple[list[float], list[float]]:
        """Rewards of right and of wrong completions among those that the record kept for reading."""
        rows = [row for row in read_jsonl(self.run.directory / "samples.jsonl") if row.get("reward") is not None]
        right = [float(row["reward"]) for row in rows if row.get("correct")]
        return right, [float(row["reward"]) for row in rows if not row.get("correct")]


def _answers(directory: Any) -> dict[str, str]:
    rows = read_jsonl(directory / "eval.jsonl", ('"test"', '"greedy"'))
    return {row["id"]: row["response"] for row in rows if row["split"] == "test" and row["mode"] == "greedy"}


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
