"""Studies whose truth is known: right and wrong answers of several arms and seeds on one set of problems.

Log-odds of a right answer = the problem's own + the arm's shift + which problems the arm is good at + how well the run
went + how well it went on this kind of problem. Problems are drawn once per study, and that set is the truth: the
accuracy of an arm is its expectation over runs on exactly these problems. So what seeds vary is apart from what other
problems would vary, as in a benchmark whose test set never changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import special

Array = NDArray[np.float64]
_SPAN, _STEP = 40.0, 0.01  # of the tables of expectations; beyond the span an answer is certain


@dataclass(frozen=True)
class World:
    """Sizes of the sources of variance, standard deviations in log-odds; ``easy`` is the mean log-odds.

    ``shared``: correlation of the run effects of two arms of one seed (they see the same prompts). ``collapse``: share
    of an arm's runs that fall by ``fall`` log-odds; the baseline's never do.
    """

    name: str
    words: str
    easy: float = 3.7
    difficulty: float = 4.0
    taste: float = 1.0
    runs: float = 0.15
    skills: float = 0.2
    shared: float = 0.5
    problems: int = 1000
    kinds: int = 8
    collapse: float = 0.0
    fall: float = 3.0

    @cached_property
    def baseline(self) -> Array:
        """Expected score of a problem over runs of the baseline, tabulated by its log-odds."""
        return _logistic_normal(_GRID, float(np.hypot(self.runs, self.skills)))

    @cached_property
    def over_runs(self) -> Array:
        """The same over runs of another arm."""
        fallen = _look_up(self.baseline, _GRID - self.fall)
        return (1 - self.collapse) * self.baseline + self.collapse * fallen

    @cached_property
    def slope(self) -> Array:
        """Its derivative by the log-odds."""
        return np.asarray(np.gradient(self.over_runs, _STEP))

    @cached_property
    def over_problems(self) -> Array:
        """Expected score of a run over all problems there could be, tabulated by its log-odds beside ``easy``."""
        return _logistic_normal(_GRID + self.easy, float(np.hypot(self.difficulty, self.taste)))

    def anywhere(self, gap: float) -> float:
        """Difference in accuracy over runs and over all problems there could be, at ``gap`` log-odds."""
        logits = self.easy + float(np.hypot(self.difficulty, self.taste)) * _NODES
        return float((_look_up(self.over_runs, logits + gap) - _look_up(self.baseline, logits)) @ _WEIGHTS)


@dataclass(frozen=True)
class Simulated:
    """One study: ``scores`` (arms, seeds, problems) of 0 and 1; ``truth`` (arms,) on this set of problems over runs;
    ``elsewhere`` (arms,) of these very runs over all problems there could be."""

    scores: NDArray[np.float32]
    truth: Array
    elsewhere: Array


def draw(world: World, seeds: int, rng: np.random.Generator, gaps: Sequence[float], exact: bool = False) -> Simulated:
    """A study of one arm more than ``gaps``: the first is the baseline, the others differ from it by them.

    A gap is in log-odds; with ``exact`` it is the true difference in accuracy on this set of problems, for which the
    arm's shift is solved.
    """
    arms, kinds = len(gaps) + 1, rng.integers(world.kinds, size=world.problems)
    own = rng.normal(world.easy, world.difficulty, world.problems)
    logits = own + rng.normal(0, world.taste, (arms, world.problems)) if world.taste else np.tile(own, (arms, 1))
    shifts = np.array([0.0, *([0.0] * len(gaps) if exact else gaps)])
    if exact:
        base = _expected(world.baseline, logits[0])
        shifts[1:] = [_shift(world, row, base + gap) for row, gap in zip(logits[1:], gaps, strict=True)]
    logits += shifts[:, None]
    run = np.sqrt(world.shared) * rng.normal(size=seeds) + np.sqrt(1 - world.shared) * rng.normal(size=(arms, seeds))
    went = world.runs * run
    went[1:] -= world.fall * (rng.random((arms - 1, seeds)) < world.collapse)
    by_kind = went[:, :, None] + world.skills * rng.normal(size=(arms, seeds, world.kinds))
    p = special.expit((logits[:, None, :] + by_kind[:, :, kinds]).astype(np.float32))
    scores = (rng.random(p.shape, dtype=np.float32) < p).astype(np.float32)
    elsewhere = _look_up(world.over_problems, by_kind + shifts[:, None, None]).mean(axis=(1, 2))
    truth = [_expected(world.over_runs if i else world.baseline, row) for i, row in enumerate(logits)]
    return Simulated(scores, np.array(truth), elsewhere)


def _expected(table: Array, logits: Array) -> float:
    return float(_look_up(table, logits).mean())


def _shift(world: World, logits: Array, target: float) -> float:
    """The shift at which these problems are solved at the rate ``target`` (Newton's steps, to 1e-7)."""
    shift = 0.0
    for _ in range(30):
        short = target - _expected(world.over_runs, logits + shift)
        if abs(short) < 1e-7:
            return shift
        shift += short / float(_look_up(world.slope, logits + shift).mean())
    raise ValueError(f"no shift solves these problems at the rate {target}")


def _look_up(table: Array, logits: Array) -> Array:
    """Straight lines between the entries of a table over the grid; error under 2e-6 at its step."""
    place = np.clip((logits + _SPAN) / _STEP, 0, len(table) - 1.001)
    below = place.astype(np.intp)
    return np.asarray(table[below] + (place - below) * (table[below + 1] - table[below]))


def _logistic_normal(mean: Array, sd: float) -> Array:
    """E[1 / (1 + exp(−x))], x ~ N(mean, sd²), by the trapezoid rule over ±8 sd."""
    return np.asarray(special.expit(mean[:, None] + sd * _NODES) @ _WEIGHTS)


_GRID = np.linspace(-_SPAN, _SPAN, round(2 * _SPAN / _STEP) + 1)
_NODES = np.linspace(-8, 8, 321)
_WEIGHTS = np.exp(-(_NODES**2) / 2) / np.exp(-(_NODES**2) / 2).sum()
