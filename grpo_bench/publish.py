"""``python -m grpo_bench.publish results/<study>-<task>``: a study's tables, figures and page to Weights & Biases.

The records are the truth and the files made of them the tables; this shows them beside the runs that the tracker
mirrored. Nothing else imports wandb to make a table.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_bench.files import disk_errors
from grpo_bench.provenance import git_sha
from grpo_bench.report import NAME as PAGE
from grpo_bench.table import Table, build
from grpo_bench.table.layout import Sheet
from grpo_bench.trackers import INIT_SECONDS, TAG_LIMIT
from grpo_bench.types import UserError

HELP = """usage: python -m grpo_bench.publish results/<study>-<task> [project=NAME] [entity=NAME] [mode=MODE]

Sends a study's tables (table.md, .csv, .tex, .json), figures and report.html, as they lie in the folder, to Weights &
Biases: all files as one artifact of type "study", each sheet as a table, each figure as an image. The runs themselves
are there when they ran with tracker=wandb: filter the workspace by the study's tag, they are grouped by row.

project=NAME    as the runs' tracker.project (grpo_bench)
entity=NAME     a team; without it, the account's own
mode=MODE       auto, online or offline. auto: WANDB_MODE if set, else online with an account and offline without.
                Offline everything is written below the study's folder, for wandb sync

A page with questions of GSM8K, MATH or a data set of one's own stays where it is: a project may be public.
"""
FILES = ("table.md", "table.csv", "table.tex", "table.json", PAGE)
BESIDE = ("*.png", "*.svg", "tables/*.csv")
MODES = ("auto", "online", "offline")


@dataclass(frozen=True, slots=True)
class Arguments:
    folder: Path
    project: str = "grpo_bench"
    entity: str | None = None
    mode: str = "auto"


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on stderr for bad input and for a wandb that refuses."""
    words = sys.argv[1:] if argv is None else argv
    if any(word in ("-h", "--help") for word in words):
        print(HELP, end="")
        return 0
    try:
        print(publish(arguments(words)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def arguments(words: list[str]) -> Arguments:
    """The command line, sorted; UserError for what cannot be meant."""
    own: dict[str, Any] = {}
    folders = []
    for word in words:
        key, given, value = word.partition("=")
        if given and key in ("project", "entity", "mode"):
            if not value or (key == "mode" and value not in MODES):
                raise UserError(f"{word}: give {' or '.join(MODES) if key == 'mode' else f'{key}=NAME'}")
            own[key] = value
        elif word.startswith("-") or (given and key.isidentifier()):
            raise UserError(f"unknown argument {word}; keys are project=, entity= and mode=")
        else:
            folders.append(word)
    if len(folders) != 1:
        raise UserError(f"{'no' if not folders else 'more than one'} study folder given: results/<study>-<task>")
    return Arguments(Path(folders[0]), **own)


def files_of(folder: Path) -> list[Path]:
    """The tables, page and figures that lie in a study's folder; UserError where the tables were never made."""
    found = [folder / name for name in FILES if (folder / name).is_file()]
    if folder / "table.md" not in found:
        raise UserError(f"no table.md in {folder}; make the tables first: python -m grpo_bench.table {folder}")
    return found + sorted(path for pattern in BESIDE for path in folder.glob(pattern))


def publish(given: Arguments) -> str:
    """Send what lies in the folder; one line that says where it went. Raises UserError for a folder without tables,
    a missing package, and a server that refuses what is asked of it by mode=online."""
    table = build(given.folder)
    files = files_of(given.folder)
    kept = _kept_back(files, table)
    files = [path for path in files if not (kept and path.name == PAGE)]
    folder = given.folder.resolve()
    # what waits for wandb sync lies in one place, and not below the home of whoever made it
    os.environ.setdefault("WANDB_DATA_DIR", str(folder / "wandb"))
    try:
        import wandb
    except ImportError:
        raise UserError("publish needs a package: pip install -e '.[wandb]'") from None
    with disk_errors(folder / "wandb"):
        (folder / "wandb").mkdir(exist_ok=True)
    run = _start(wandb, given, folder, table)
    url, offline, where = run.url, run.offline, Path(run.dir).parent
    exit_code = 1
    try:
        _send(wandb, run, given.folder, table, files)
        exit_code = 0
    except Exception as error:  # whatever wandb or its server says of what it is sent
        raise UserError(
            f"not all was sent ({_reason(error)}); run the same command again, or give mode=offline"
        ) from error
    finally:  # also when interrupted: a run that stays open looks as if it were still sending
        _finish(wandb, run, exit_code)
    what = f"{len(files)} files and {len(table.sheets)} tables"
    if offline:
        return f"offline: {what} wait in {_below(where)}; wandb sync {_below(where)} sends them{kept}"
    return f"{what} sent to {url}{kept}"


def _kept_back(files: list[Path], table: Table) -> str:
    """What is said of a page that holds questions which are not ours to publish; "" where it may be sent."""
    page = next((path for path in files if path.name == PAGE), None)
    if page is None:
        return ""
    from grpo_bench.report.page import asks, withheld  # jinja2 is for pages alone

    tasks = withheld(table.comparison)
    if not tasks or not asks(page):
        return ""
    return f"; {PAGE} stays here, since it holds questions of {' and '.join(tasks)}"


def _send(wandb: Any, run: Any, folder: Path, table: Table, files: list[Path]) -> None:
    name = folder.resolve().name
    artifact = wandb.Artifact(name, type="study", metadata={"git_sha": git_sha(), "baseline": _baseline(table)})
    for path in files:
        artifact.add_file(str(path), name=str(path.relative_to(folder)))
    for sheet in table.sheets:
        run.log({f"tables/{sheet.name}": wandb.Table(columns=columns_of(sheet), data=rows_of(sheet))})
    for path in files:
        if path.suffix == ".png":
            run.log({f"figures/{path.stem}": wandb.Image(str(path))})
    run.log_artifact(artifact)


def _finish(wandb: Any, run: Any, exit_code: int) -> None:
    """End the run; a failure to do so is an error only where all else went well."""
    try:
        run.finish(exit_code=exit_code)
        wandb.teardown()  # only this writes the last block of an offline file
    except Exception as error:
        if exit_code == 0:
            raise UserError(f"wandb did not finish ({_reason(error)}); run the same command again") from error


def _reason(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def columns_of(sheet: Sheet) -> list[str | int]:
    """The header of a sheet as wandb takes it: every column has a name, and one of its own."""
    names: list[str | int] = []
    for name in sheet.header:
        name = name.strip() or "row"
        names.append(name if name not in names else f"{name} ({len(names) + 1})")
    return names


def rows_of(sheet: Sheet) -> list[list[str]]:
    """Cells as plain text: bold is this project's own kind of string."""
    return [[str.__str__(cell) for cell in row] for row in sheet.rows]


def _start(wandb: Any, given: Arguments, folder: Path, table: Table) -> Any:
    from grpo_bench.wandb_process import mode_of

    order: dict[str, Any] = {
        "project": given.project,
        "entity": given.entity,
        "name": f"{folder.name} tables",
        "group": folder.name,
        "job_type": "tables",
        "tags": [part[:TAG_LIMIT] for part in dict.fromkeys((folder.name, folder.name.rpartition("-")[0])) if part],
        "config": {"study": folder.name, "baseline": _baseline(table)},
        "dir": str(folder),
        "settings": wandb.Settings(init_timeout=INIT_SECONDS, silent=True, console="off"),
    }
    wandb.setup(settings=wandb.Settings(silent=True))
    mode = mode_of(wandb, given.mode)
    if mode == "disabled":
        raise UserError("WANDB_MODE=disabled sends nothing; give mode=online or mode=offline")
    try:
        return wandb.init(mode=mode, **order)
    except Exception as error:  # whatever a server says; by default it is to be sent later
        if given.mode == "online" or mode != "online":
            raise UserError(
                f"wandb refuses ({_reason(error)}); log in with wandb login, or give mode=offline"
            ) from None
        print(f"warning: wandb is offline ({_reason(error)})", file=sys.stderr)
        wandb.teardown()
    try:
        return wandb.init(mode="offline", **order)
    except Exception as error:
        raise UserError(f"wandb cannot write below {folder} ({_reason(error)})") from None


def _baseline(table: Table) -> str | None:
    return table.comparison.baseline


def _below(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    sys.exit(main())
