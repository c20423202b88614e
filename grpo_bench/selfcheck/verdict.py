"""What a check says: passed, red, not applicable or not declared, with what was expected and what was seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from grpo_bench.algos import Algorithm

Status = Literal["pass", "red", "n/a", "undeclared"]
TOLERANCE = 1e-12  # of double precision, relative to the largest number where that is above 1


class Red(Exception):
    """A property does not hold; the message is one line: what was expected, what was seen."""


class NotApplicable(Exception):
    """The algorithm has nothing that this check is about; the message says what is missing."""


class Undeclared(Exception):
    """The class does not say what it should be held to."""


@dataclass(frozen=True, slots=True)
class Subject:
    """An algorithm under check; ``as_yaml``: its knobs are those of its YAML, for which the class declares numbers."""

    label: str
    algo: Algorithm
    as_yaml: bool = True


@dataclass(frozen=True, slots=True)
class Check:
    """``run`` raises Red, NotApplicable or Undeclared; what it returns is a note on what a pass does not say."""

    name: str
    says: str
    run: Callable[[Subject], str | None]


@dataclass(frozen=True, slots=True)
class Outcome:
    status: Status
    detail: str = ""


def outcome(check: Check, subject: Subject) -> Outcome:
    """The verdict of one check; an error that the algorithm raises in it is a red one."""
    try:
        return Outcome("pass", check.run(subject) or "")
    except Red as e:
        return Outcome("red", str(e))
    except NotApplicable as e:
        return Outcome("n/a", str(e))
    except Undeclared as e:
        return Outcome("undeclared", str(e))
    except Exception as e:  # of the algorithm's own code: a counted outcome, the other checks still run
        first = (str(e).splitlines() or [""])[0]
        return Outcome("red", f"expected an answer, saw {type(e).__name__}" + (f": {first}" if first else ""))


def require(holds: bool | Tensor, what: str, expected: str, seen: object) -> None:
    """Raises Red unless it holds."""
    if not bool(holds):
        raise Red(f"{what}: expected {expected}, saw {seen}")


def close(what: str, seen: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    """Raises Red with the worst place where the two differ by more than the tolerance, or where one is not finite."""
    require(seen.shape == expected.shape, what, f"shape {tuple(expected.shape)}", tuple(seen.shape))
    if seen.numel() == 0:
        return
    apart = (seen - expected).abs()
    apart = torch.where(seen.isfinite() & expected.isfinite(), apart, torch.full_like(apart, torch.inf))
    if float(apart.max()) <= tolerance * max(1.0, float(expected.abs().max())):
        return
    worst = torch.unravel_index(apart.argmax(), apart.shape)
    place = "".join(f" {name} {int(i)}" for name, i in zip(("row", "token"), worst, strict=False))
    where = what + (f" at{place}" if place else "")
    raise Red(f"{where}: expected {float(expected[worst]):.9g}, saw {float(seen[worst]):.9g}")
