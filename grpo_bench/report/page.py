"""The page as one HTML file: tables as HTML that is readable without a script, pictures and answers as packed data."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from grpo_bench.report.charts import charts
from grpo_bench.report.completions import Answers, completions
from grpo_bench.report.pack import library, packed_json, unpacked_json
from grpo_bench.report.runs import diagnoses_sheet, runs_sheet
from grpo_bench.report.settings import settings
from grpo_bench.report.sheets import Shown, shown
from grpo_bench.table import Table
from grpo_bench.table.compare import Comparison
from grpo_bench.tasks.withheld import WITHHELD

ASSETS = Path(__file__).parent / "assets"
VERDICTS = ("contrasts", "hypotheses", "ppo_and_grpo", "article")  # tables that answer the study's question, first
LAST = ("card",)  # where the page ends
SCRIPTS = ("page.js", "theme.js", "charts.js", "knobs.js", "answers.js")


def render(table: Table, data: Path | None = None) -> tuple[str, list[str]]:
    """The whole file, and what whoever writes it should know. ``data``: the folder of the task's data set."""
    c = table.comparison
    answers = completions(c, data)
    groups: dict[str, list[Shown]] = {"verdicts": [], "tables": [], "card": []}
    for sheet in sorted(table.sheets, key=lambda sheet: _place(sheet.name)):
        where = "verdicts" if sheet.name in VERDICTS else "card" if sheet.name in LAST else "tables"
        groups[where].append(shown(sheet))
    pictures = charts(c)
    packed_library, version = library()
    environment = Environment(loader=FileSystemLoader(ASSETS), autoescape=True, undefined=StrictUndefined)
    environment.filters["code"] = code
    diagnoses = diagnoses_sheet(c)
    page = environment.get_template("page.html.j2").render(
        heading=table.heading,
        c=c,
        groups=groups,
        runs=shown(runs_sheet(c)),
        diagnoses=shown(diagnoses) if diagnoses.rows else None,
        settings=settings(c),
        answers=answers,
        pictures=pictures,
        charts=packed_json(pictures),
        answers_packed=packed_json(answers.as_data()),
        library=packed_library,
        version=version,
        style=_asset("page.css"),
        scripts=Markup("\n").join(_asset(name) for name in SCRIPTS),
    )
    return page, _notes(table, answers)


def code(text: str) -> Markup:
    """Text with what stands between backticks as code; everything else escaped."""
    parts = text.split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if i % 2 else Markup.escape(part) for i, part in enumerate(parts)
    )


def _place(name: str) -> int:
    return VERDICTS.index(name) if name in VERDICTS else len(VERDICTS)


def _asset(name: str) -> Markup:
    """A file of ours that goes into the page as it is."""
    return Markup((ASSETS / name).read_text(encoding="utf-8"))


def _notes(table: Table, answers: Answers) -> list[str]:
    tasks = withheld(table.comparison)
    if tasks and any(problem.question for problem in answers.problems):
        return [
            f"The page holds questions of {' and '.join(tasks)}: git ignores it (.gitignore), "
            "so pass it on only as their licence allows."
        ]
    return []


def withheld(c: Comparison) -> list[str]:
    """The tasks of a study whose questions are not ours to pass on."""
    return sorted({_name(config) for config in c.study.configs} & set(WITHHELD))


def asks(page: Path) -> bool:
    """A page holds questions; also one that cannot be read, since nobody knows what it holds."""
    packed = re.search(r'id="packed-answers">([^<]*)<', page.read_text(encoding="utf-8", errors="replace"))
    try:
        return any(problem["question"] for problem in unpacked_json(packed[1])["problems"]) if packed else True
    except (ValueError, EOFError, OSError, zlib.error, KeyError, TypeError):
        return True


def _name(config: dict[str, Any]) -> str:
    return str((config.get("task") or {}).get("name"))
