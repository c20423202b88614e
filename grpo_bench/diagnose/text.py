"""Findings as lines for a terminal or a log."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from grpo_bench.diagnose.rule import Finding

WIDTH = 118


def lines(finding: Finding, which: str = "") -> str:
    """``kind (seeds): text`` and its knob, wrapped."""
    where = f" ({which})" if which else ""
    text = textwrap.fill(f"{finding.kind}{where}: {finding.text}", WIDTH, initial_indent="  ", subsequent_indent="    ")
    knob = textwrap.fill(f"turn: {finding.knob}", WIDTH, initial_indent="    ", subsequent_indent="      ")
    return f"{text}\n{knob}"


def as_lines(findings: Iterable[Finding]) -> list[str]:
    """The end of a run: a heading and its findings, nothing for a healthy run."""
    made = [lines(finding) for finding in findings]
    return ["diagnosis:", *made] if made else []
