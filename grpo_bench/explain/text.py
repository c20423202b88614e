"""The explanation of one run as text."""

from __future__ import annotations

import textwrap
from itertools import groupby
from typing import TYPE_CHECKING

from grpo_bench.algos.dialects import as_written, at, dialects_of, leaves
from grpo_bench.config import warnings
from grpo_bench.explain.cells import Difference, differences, text
from grpo_bench.explain.formula import Lines, docstring, formula, per_step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from grpo_bench.algos import Algorithm
    from grpo_bench.config import Config

WIDTH = 118
LABEL = 16


def explain(cfg: Config, grpo: Config, ppo: Config) -> str:
    """A run in words and numbers: what it computes, what differs from ``grpo`` and ``ppo``, what is inert.

    ``grpo`` and ``ppo`` are runs of these algorithms as their YAML has them. Imports torch, for the worked example.
    """
    algo = cfg.algo
    card = algo.card()
    equation, departures = docstring(type(algo))
    parts = [
        _block(card.title, [("paper", card.paper), *_named(cfg)]),
        "\n".join(["Equation", *(f"  {line}".rstrip() for line in equation or ["its class has no docstring"])]),
        _block("This run", formula(cfg)),
        _block("Per step", per_step(cfg)),
        _worked(cfg),
        _compared("GRPO", differences(cfg, grpo)),
        _compared("PPO", differences(cfg, ppo)),
        _list("Differs from its paper, in its own dialect, in", departures, "nothing that its docstring names"),
        _block("Dialect", _dialect(cfg)),
        _list("Warnings", warnings(cfg), "none"),
    ]
    return "\n\n".join(parts) + "\n"


def changes(found: type[Algorithm], name: str, dialect: str) -> list[Difference]:
    """Knobs that a dialect changes: here as the YAML has them, there in the dialect."""
    written, spoken = as_written(found, name, "paper"), dialects_of(found, name)[dialect]
    return [
        Difference(".".join(path), text(at(written, path)), text(value))
        for path, value in leaves(spoken)
        if at(written, path) != value
    ]


def _named(cfg: Config) -> Lines:
    words = [f"algo={cfg.algo.name}"]
    words += [f"algo.class={cfg.algo.path}"] if cfg.algo.path else []
    words += [f"arm={cfg.arm}"] if cfg.arm else []
    words += [f"dialect={cfg.dialect}", f"task={cfg.task.name}", f"model={cfg.model.name}"]
    return [("run", " ".join(words))]


def _dialect(cfg: Config) -> Lines:
    found, name = type(cfg.algo), cfg.algo.name
    others = [other for other in dialects_of(found, name) if other != cfg.dialect]
    lines = [(cfg.dialect, f"the values of conf/algo/{name}.yaml" if not cfg.algo.path else "the YAML's values")]
    if cfg.dialect != "paper":
        changed = changes(found, name, cfg.dialect)
        lines = [(cfg.dialect, ", ".join(f"{c.what} {c.here} → {c.there}" for c in changed) or "changes nothing")]
    return lines + ([("others", ", ".join(others))] if others else [])


def _worked(cfg: Config) -> str:
    from grpo_bench.explain.example import example

    what, outcomes = example(cfg)
    head = f"Worked example: {what}, one token each; values, KL, greedy rewards and running means are 0"
    lines = []
    for found in outcomes:
        lines.append(("rewards", "[" + ", ".join(f"{r:g}{n}" for r, n in _repeated(found.rewards)) + "]"))
        lines.append(("  advantages", _signed(found.advantages)))
        lines.append(("  push on log π", _signed(found.pushes)))
        if not all(found.kept):
            lines.append(("  dropped", f"{found.kept.count(False)} of {len(found.kept)} answers"))
    return _block(head, lines)


def _signed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:+.4f}{n}" if value else f"0{n}" for value, n in _repeated(values))


def _repeated(values: Sequence[float]) -> list[tuple[float, str]]:
    """Neighbours that are equal to four digits, once, with their number; −0 is 0."""
    rounded = [round(value, 4) + 0.0 for value in values]
    runs = [(value, len(list(group))) for value, group in groupby(rounded)]
    return [(value, f" ×{n}" if n > 1 else "") for value, n in runs]


def _compared(other: str, found: list[Difference]) -> str:
    head = f"Differs from {other} (conf/algo/{other.lower()}.yaml) in"
    if not found:
        return f"{head}\n  nothing"
    rows = [Difference("", "this run", other), *found]
    first = max(len(row.what) for row in rows)
    second = min(max(len(row.here) for row in rows), (WIDTH - first - 6) // 2)
    lines = []
    for row in rows:
        left, right = (textwrap.wrap(cell, second) or [""] for cell in (row.here, row.there))
        for i in range(max(len(left), len(right))):
            a, b, c = (column[i] if i < len(column) else "" for column in ([row.what], left, right))
            lines.append(f"  {a:<{first}}  {b:<{second}}  {c}".rstrip())
    return "\n".join([head, *lines])


def _block(head: str, lines: Lines) -> str:
    out = [head]
    for label, words in lines:
        wrapped = textwrap.wrap(words, WIDTH - LABEL - 2, break_on_hyphens=False) or [""]
        out += [f"  {label if i == 0 else '':<{LABEL}}{line}" for i, line in enumerate(wrapped)]
    return "\n".join(out)


def _list(head: str, items: list[str], empty: str) -> str:
    if not items:
        return f"{head}\n  {empty}"
    wrapped = [textwrap.fill(item, WIDTH, initial_indent="  - ", subsequent_indent="    ") for item in items]
    return "\n".join([head, *wrapped])
