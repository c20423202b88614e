"""``python -m grpo_bench.diagnose FOLDER``: what the records of a run, or of a study's runs, say about learning."""

from __future__ import annotations

import sys
from pathlib import Path

from grpo_bench.diagnose import RULES, by_row, diagnose
from grpo_bench.diagnose.text import lines
from grpo_bench.records import load_run, load_study
from grpo_bench.types import UserError

HELP = """usage: python -m grpo_bench.diagnose FOLDER...
       python -m grpo_bench.diagnose rules

Why a run did not learn, in words, with the knob to turn; from its records alone, finished or not. Nothing is said of a
healthy run.

  python -m grpo_bench.diagnose results/zoo-arithmetic                          a study, row by row
  python -m grpo_bench.diagnose results/zoo-arithmetic/random_reward-s0-08891f6e    a run
  python -m grpo_bench.diagnose rules                                           every rule, its limit and the reason
"""


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 whatever was found, or 2 with one line on stderr for bad input."""
    words = sys.argv[1:] if argv is None else argv
    if any(word in ("-h", "--help") for word in words):
        print(HELP, end="")
        return 0
    try:
        if not words:
            raise UserError("no folder given; usage: python -m grpo_bench.diagnose results/<study>-<task>[/<run>]")
        if words == ["rules"]:
            print(rules(), end="")
            return 0
        for word in words:
            if word.startswith("-") or ("=" in word and not Path(word).exists()):
                raise UserError(f"unknown argument {word}; usage: python -m grpo_bench.diagnose FOLDER...")
            print(report(Path(word)), end="")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def report(folder: Path) -> str:
    """The findings of a run's folder, or of all runs of a study's, as text."""
    if any((folder / name).is_file() for name in ("config.yaml", "state.json", "result.json")):
        run = load_run(folder)
        found = diagnose(run)
        return "\n".join([f"{run.run_id} ({run.status})", *map(lines, found or []), *nothing(not found)]) + "\n"
    study = load_study(folder)
    begun = [run for run in study.runs if run.metrics]
    made = by_row(begun)
    shown: list[str] = [f"{study.name}: {len(begun)} run{'s' * (len(begun) != 1)}"]
    row = None
    for one in made:
        if one.row != row:
            shown.append(f"{one.row}")
            row = one.row
        all_of_them = len(one.seeds) == one.of
        which = "all seeds" if all_of_them and one.of > 1 else f"seed {', '.join(map(str, one.seeds))} of {one.of}"
        shown.append(lines(one.finding, which if one.of > 1 else ""))
    spoken = {one.row for one in made}
    silent = sum(run.row not in spoken for run in begun)
    shown += nothing(not made) if not made else [f"nothing to say of the other {silent} runs"] * bool(silent)
    return "\n".join(shown) + "\n"


def nothing(so: bool) -> list[str]:
    return ["  nothing to say: no symptom of a run that fails to learn"] if so else []


def rules() -> str:
    """Every rule with its limit and the reason for it, as Markdown."""
    out = ["| rule | limit | asked of | why this limit |", "| --- | --- | --- | --- |"]
    for rule in RULES:
        asked = "runs whose accuracy did not rise" if rule.stuck else "every run"
        out.append(
            f"| `{rule.kind}` | {rule.limit:g} {rule.unit} | {asked} | {rule.reason.replace('|', chr(92) + '|')} |"
        )
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    sys.exit(main())
