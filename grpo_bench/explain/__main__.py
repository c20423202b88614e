"""``python -m grpo_bench.explain [KEY=VALUE ...]``; it trains nothing and writes only what it is told to."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from grpo_bench.config import Config, parse
from grpo_bench.config_errors import ConfigError
from grpo_bench.process import prepare_process
from grpo_bench.types import UserError

HELP = """usage: python -m grpo_bench.explain [KEY=VALUE ...] [plot=FILE.png|FILE.svg]
       python -m grpo_bench.explain table [into=FILE.md]

What a run computes: its formula with the run's numbers in it, paper and equation, what differs from GRPO and from PPO,
a worked example, and warnings about settings that are inert or half-configured. Nothing is trained.

  python -m grpo_bench.explain algo=dr_grpo group_size=8
  python -m grpo_bench.explain algo=grpo dialect=verl
  python -m grpo_bench.explain arm=ppo_tuned,grpo_g8                 several, one after the other
  python -m grpo_bench.explain algo=dapo plot=dapo.png              its surrogate beside GRPO's and PPO's
  python -m grpo_bench.explain table into=README.md                 the tables of algorithms, arms and dialects

plot=FILE       draw the surrogate, its gradient and the lone winner's advantage
table           all algorithms, arms and dialects as Markdown; into=FILE.md puts them between its markers
--config-dir DIR, --config-name NAME   as for a run: configurations of your own beside conf/, a sweep file
Keys are those of python -m grpo_bench.
"""
PLOTS = (".png", ".svg")


@dataclass(frozen=True, slots=True)
class Arguments:
    """The command line, sorted."""

    overrides: list[str] = field(default_factory=list)
    plot: Path | None = None
    table: bool = False
    into: Path | None = None
    config_dir: str | None = None
    config_name: str = "config"


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on stderr for bad input."""
    words = sys.argv[1:] if argv is None else argv
    if any(word in ("-h", "--help") for word in words):
        print(HELP, end="")
        return 0
    prepare_process()
    try:
        given = arguments(words)
        if given.table:
            print(_tables(given.into), end="")
        else:
            print(_explanations(given), end="")
    except UserError as error:
        lines = error.lines if isinstance(error, ConfigError) else [str(error)]
        for line in lines:
            print(f"error: {line}", file=sys.stderr)
        return 2
    return 0


def arguments(words: list[str]) -> Arguments:
    """The command line, sorted; UserError for what cannot be meant."""
    own: dict[str, str] = {}
    overrides: list[str] = []
    rest = iter(words)
    for word in rest:
        key, equals, value = word.partition("=")
        if word == "table":
            own["table"] = "yes"
        elif key in ("--config-dir", "-cd", "--config-name", "-cn"):
            name = "config_dir" if key in ("--config-dir", "-cd") else "config_name"
            own[name] = value if equals else next(rest, "")
            if not own[name]:
                raise UserError(f"{key} has no value")
        elif key in ("plot", "into"):
            if not value:
                raise UserError(f"{key}= has no value; give a file")
            own[key] = value
        elif word.startswith("-") and word not in ("-m", "--multirun"):
            raise UserError(f"unknown option {word}; see python -m grpo_bench.explain --help")
        elif not word.startswith("-"):
            overrides.append(word)
    if "table" in own and (overrides or "plot" in own):
        raise UserError("table is of all algorithms as their YAML has them; drop the rest, or drop table")
    if "into" in own and "table" not in own:
        raise UserError("into= takes the tables; write python -m grpo_bench.explain table into=FILE.md")
    plot = Path(own["plot"]) if "plot" in own else None
    if plot is not None and plot.suffix not in PLOTS:
        raise UserError(f"plot={plot}: give a file that ends in .png or .svg")
    if plot is not None and plot.is_dir():
        raise UserError(f"plot={plot} is a folder; give a file in it")
    if plot is not None and not plot.absolute().parent.is_dir():
        raise UserError(f"plot={plot}: there is no folder {plot.parent}")
    return Arguments(
        overrides, plot, "table" in own, Path(own["into"]) if "into" in own else None,
        own.get("config_dir"), own.get("config_name", "config"),
    )  # fmt: skip


def runs(given: Arguments) -> list[Config]:
    """The runs of a command line, seeds apart, each checked as a run would be; ConfigError for what a run refuses."""
    from grpo_bench.preflight import preflight

    try:
        # what lies on disk is no matter here: resume=false
        plan = preflight([*given.overrides, "resume=false"], given.config_name, given.config_dir, multirun=True)
    except ConfigError as error:  # a report over jobs: their problems alone, each once
        problems = [line.strip() for line in error.lines if line.startswith("    ")]
        raise ConfigError(list(dict.fromkeys(problems)) or error.lines) from None
    found: dict[str, Config] = {}
    for job in plan.jobs:
        same = job.config.model_copy(update={"seed": 0})
        found.setdefault(same.model_dump_json(), same)
    return list(found.values())


def usual(name: str) -> Config:
    """A run of an algorithm as its YAML has it; inside ``composing``."""
    from grpo_bench.compose import compose

    return parse(compose(["device=cpu", f"algo={name}"]))


def _explanations(given: Arguments) -> str:
    from grpo_bench.compose import composing
    from grpo_bench.explain.text import explain

    several = runs(given)
    with composing():
        grpo, ppo = usual("grpo"), usual("ppo")
    rule = "\n" + "─" * 118 + "\n\n"
    text = rule.join(explain(cfg, grpo, ppo) for cfg in several)
    if given.plot is not None:
        from grpo_bench.explain.plot import draw

        draw(several, [grpo, ppo], given.plot)
        print(f"wrote {given.plot}", file=sys.stderr)
    return text


def _tables(into: Path | None) -> str:
    from grpo_bench.explain.tables import everything, insert, tables

    found = tables(everything())
    if into is not None:
        insert(into, found)
        print(f"wrote {into}", file=sys.stderr)
    return "\n\n".join(found.values()) + "\n"


if __name__ == "__main__":
    sys.exit(main())
