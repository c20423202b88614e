"""The tables of all algorithms, of the arms and of the dialects, as Markdown, read from what runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from grpo_bench.algos import ALGORITHMS
from grpo_bench.algos.dialects import SYSTEMS, dialects_of
from grpo_bench.compose import compose, composing
from grpo_bench.config import parse
from grpo_bench.explain.cells import cells, text
from grpo_bench.explain.text import changes
from grpo_bench.files import write_atomic
from grpo_bench.paths import conf_dir
from grpo_bench.tuned import RATES, tuned_rate
from grpo_bench.types import UserError

if TYPE_CHECKING:
    from grpo_bench.config import Config

# of an arm's configuration: what its name says, what is resolved by task and model, and what a run's identity adds
APART = ("arm", "row", *RATES, "study", "results")


class Everything(NamedTuple):
    """Every algorithm as its YAML has it and every arm, by name."""

    algorithms: dict[str, Config]
    arms: dict[str, Config]


def everything() -> Everything:
    """Composed, which takes a fifth of a second each."""
    with composing():
        return Everything(
            {name: _composed(f"algo={name}") for name in ALGORITHMS},
            {file.stem: _composed(f"arm={file.stem}") for file in sorted((conf_dir() / "arm").glob("*.yaml"))},
        )


def tables(found: Everything) -> dict[str, str]:
    """Name of a marker -> table: ``algorithms``, ``arms``, ``dialects``."""
    return {
        "algorithms": algorithms(found.algorithms),
        "arms": forms(found.arms, found.algorithms),
        "dialects": dialects(),
    }


def algorithms(usual: dict[str, Config]) -> str:
    """One row per algorithm at its YAML's values."""
    header, rows = [], []
    for name, cfg in usual.items():
        row = cells(cfg)
        header = ["", "algo=", *row]
        rows.append([cfg.algo.card().title, f"`{name}`", *row.values()])
    return markdown(header, rows)


def forms(arms: dict[str, Config], usual: dict[str, Config]) -> str:
    """One row per arm: its algorithm, and what it sets other than that algorithm's YAML."""
    rows = []
    for name, cfg in arms.items():
        changed = [f"`{key}={value}`" for key, value in _changes(cfg, usual[cfg.algo.name])]
        if changed or name != cfg.algo.name:  # else it is that algorithm's row
            rows.append([f"`{name}`", f"`{cfg.algo.name}`", ", ".join(changed) or "nothing"])
    return markdown(["arm=", "algo=", "changes"], rows)


def dialects() -> str:
    """System by algorithm: the knobs that a dialect changes; a dash where the system has no such algorithm."""
    systems = [system for system in SYSTEMS if system != "paper"]
    rows = []
    for name, found in ALGORITHMS.items():
        known = dialects_of(found, name)
        changed = {system: changes(found, name, system) for system in systems if system in known}
        row = [", ".join(f"{c.what} {c.there}" for c in changed[s]) if s in changed else "–" for s in systems]
        if any(cell != "–" for cell in row):
            rows.append([f"`{name}`", *row])
    return markdown(["algo=", *(f"dialect={system}" for system in systems)], rows)


def insert(page: Path, found: dict[str, str]) -> None:
    """Put each table into a page, between ``<!-- table:NAME -->`` and ``<!-- /table -->``.

    Raises UserError when the page or one of the markers is missing; the page is then as it was.
    """
    try:
        content = page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"into={page} cannot be read ({error}); give a Markdown file") from None
    for name, table in found.items():
        begin, end = f"<!-- table:{name} -->", "<!-- /table -->"
        before, opened, rest = content.partition(begin)
        _, closed, after = rest.partition(end)
        if not opened or not closed:
            raise UserError(f"into={page}: no {begin} followed by {end} there; write both where the table should stand")
        content = f"{before}{begin}\n\n{table}\n\n{end}{after}"
    write_atomic(page, content.encode())


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, [":---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _composed(override: str) -> Config:
    return parse(compose(["device=cpu", override]))


def _changes(cfg: Config, usual: Config) -> list[tuple[str, str]]:
    """Keys that an arm sets otherwise; of a group that it chooses (reward=..., model=...) the name alone."""
    mine, theirs = cfg.model_dump(mode="json"), usual.model_dump(mode="json")
    found = [pair for key in mine if key not in APART for pair in _differing(key, mine[key], theirs[key])]
    for key in RATES:  # as a multiple of the tuned one, which is another with every task and model
        if mine[key] and (times := mine[key] / tuned_rate(key, cfg)) != 1:
            found.append((key, f"{times:g}x"))
    return found


def _differing(key: str, mine: Any, theirs: Any) -> list[tuple[str, str]]:
    if mine == theirs:
        return []
    if not (isinstance(mine, dict) and isinstance(theirs, dict)):
        return [(key, text(mine))]
    if mine.get("name") != theirs.get("name"):
        return [(key, str(mine["name"]))]
    found: list[tuple[str, str]] = []
    for part in dict.fromkeys([*mine, *theirs]):
        found += _differing(f"{key}.{part}", mine.get(part), theirs.get(part))
    return found
