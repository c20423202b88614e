"""Write the table of parity: ``python tests/parity/table.py into=results/parity`` (README.md and parity.json)."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]  # the tests' own helpers, as pytest has it
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import peer_verl  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from cells import SETTINGS, SYSTEMS, Cell, cells, compare, undone  # noqa: E402
from peers import BATCHES, Missing  # noqa: E402

from grpo_bench.algos import ALGORITHMS  # noqa: E402

HEAD = """# Parity with released implementations

The same batch, computed here and by an independent implementation: the largest difference in
**advantage / loss / gradient** (by log-prob and, with a critic, by value) over {batches} batches in double precision
({names}).
Each is divided by the largest magnitude compared where that exceeds 1. What is compared is the system's own code,
called and not copied, with `dialect=` set to its name here; the reference is written from the papers and compared with
the algorithms as their YAML has them. Clips, temperatures, λ and the KL coefficient (0.04) are given to both; ddof, ε,
guards, clamps, aggregation, whitening, place and estimator of the KL are each side's own.
Written by `python tests/parity/table.py into=results/parity`.

"""

TAIL = """
What is left is rounding: OpenRLHF computes its KL, and the mean and deviation for whitening, in single precision; verl
adds 1e-8 to token counts; the reference's gradients are central differences.
Beyond the YAML's numbers the reference is compared in: {settings}.
Where an algorithm has no KL, TRL and verl are compared without and with one in the loss. The gradient of a model's
weights, through TRL's own forward and through ours, is compared in the tests.

## Without the dialect

The largest difference in the gradient on graded rewards when the algorithm is left as its YAML has it: what a table
that compares two systems under one name compares beside the algorithms.

{undone}

## What no dialect sets

{known}

## Skipped

{skipped}
"""

KNOWN = (
    "verl, grpo with one completion per prompt: its advantage is the raw reward; here it is 0 and a run warns.",
    "OpenRLHF clamps an answer's reward to ±10 after the group is normalised: that binds for a lone winner among more "
    "than 102 answers.",
    "OpenRLHF floors the variance at 1e-8 where we add 1e-8: apart only where all advantages are equal to about 1e-4.",
    "verl clamps log s of gspo at 10 from above alone; here also at −10, where the ratio is 5e-5.",
    "TRL divides its token mean by the mean number of tokens of an update of the rollout, not by the update's own: the "
    "same with one update per rollout, a few per cent apart with several.",
    "TRL's entropy bonus is a mean over tokens whatever the loss; here it follows the aggregation.",
    "verl, remax and opo: " + next(iter(peer_verl.ON_POLICY.values())) + ".",
    "ppo in TRL: its last release with a PPO trainer puts the reward one place behind the end token; `dialect=trl` of "
    "ppo has that trainer's numbers, and is not compared.",
)


def number(x: float) -> str:
    return "0" if x == 0 else f"{x:.0e}".replace("e-0", "e-")


def versions() -> dict[str, str]:
    found = {}
    for name, system in SYSTEMS.items():
        try:
            found[name] = system.version()
        except Missing as e:
            found[name] = f"not compared: {e}"
    return found


def entry(group: list[Cell], notes: dict[str, str]) -> str:
    """A cell of the table: the worst over the settings of one algorithm; a mark where it is skipped or partial."""
    compared = [cell.found for cell in group if cell.found is not None]
    why = group[0].reason or group[0].partial
    mark = "" if not why else "<sup>" + notes.setdefault(why, chr(ord("a") + len(notes))) + "</sup>"
    if not compared:
        return "–" + mark
    loss = "–" if group[0].partial else number(max(found.loss for found in compared))
    both = (number(max(getattr(found, part) for found in compared)) for part in ("advantages", "gradient"))
    advantages, gradient = both
    return f"{advantages} / {loss} / {gradient}{mark}"


def rows(head: list[str], lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines]) + "\n"


def write(into: Path) -> dict[str, Any]:
    """README.md and parity.json in ``into``; returns what the latter holds."""
    found = [compare(name, *what) for name in SYSTEMS for what in cells(name)]
    seen = versions()
    notes: dict[str, str] = {}
    grid, without = [], []
    for algorithm in ALGORITHMS:
        groups = {n: [c for c in found if (c.algorithm, c.system) == (algorithm, n)] for n in SYSTEMS}
        grid.append([f"`{algorithm}`", *(entry(group, notes) for group in groups.values())])
        apart = [undone(n, algorithm) if groups[n][0].found else None for n in list(SYSTEMS)[1:]]
        if any(x is not None for x in apart):
            without.append([f"`{algorithm}`", *("–" if x is None else number(x) for x in apart)])
    head = ["algorithm", *(f"{name} {seen[name]}" if seen[name][0].isdigit() else name for name in SYSTEMS)]
    settings = "; ".join(
        f"`{name}` " + ", ".join("+".join(f"{k.replace('__', '.')}={v}" for k, v in knobs.items()) for knobs in given)
        for name, given in SETTINGS.items()
    )
    names = ", ".join(name.replace("_", " ") for name in BATCHES)
    text = HEAD.format(batches=len(BATCHES), names=names) + rows(head, grid)
    text += TAIL.format(
        settings=settings,
        undone=rows(["algorithm", *list(SYSTEMS)[1:]], without),
        known="\n".join(f"- {line}" for line in KNOWN),
        skipped="\n".join(f"- <sup>{mark}</sup> {why}" for why, mark in notes.items())
        + f"\n\nWith torch {torch.__version__.partition('+')[0]}, transformers {transformers.__version__}.",
    )
    result = {"versions": seen, "batches": list(BATCHES), "cells": [asdict(cell) for cell in found]}
    into.mkdir(parents=True, exist_ok=True)
    (into / "README.md").write_text(text)
    (into / "parity.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return result


if __name__ == "__main__":
    given = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
    if set(given) != {"into"}:
        sys.exit("give one argument: into=FOLDER")
    write(Path(given["into"]))
