"""All answer rules: extraction and equality, one module for training and evaluation alike."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Grade:
    """strict: the marked answer (``#### n``, ``\\boxed{}``) is right; flexible: the last number or expression is."""

    strict: bool
    flexible: bool
    extracted: str | None  # the strictly extracted answer, else the flexible one, else None
