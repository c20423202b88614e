"""Mirrors of the record: wandb and tensorboard. They may fail, hang or be absent without harm to a run.

The record's files are the truth and no table reads a mirror, so everything here happens on a thread of its own: a
call costs the run a copy of a dict, the first error turns the mirror off with one warning, and the end of the run
waits at most ``FINISH_SECONDS`` for it.
"""

from __future__ import annotations

import json
import os
import queue
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from grpo_bench.files import write_atomic
from grpo_bench.metrics import timing_metrics
from grpo_bench.provenance import without_places
from grpo_bench.tasks.withheld import WITHHELD
from grpo_bench.types import UserError

if TYPE_CHECKING:
    from grpo_bench.config import Config
    from grpo_bench.types import Problem

INIT_SECONDS = 15.0  # for a server that does not answer; then offline
FINISH_SECONDS = 30.0  # for what is still unsent when the run is over
GROUP_LIMIT, TAG_LIMIT = 128, 64  # characters that wandb takes
QUEUE = 10_000  # calls waiting on a mirror that does not keep up; more are dropped


class Tracker(Protocol):
    """Where a run is shown while it runs. As a context manager it finishes, as failed, a run that did not finish it."""

    def __enter__(self) -> Tracker: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None: ...

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Scalars of one step under glossary names; a ``timing.jsonl`` line may be mixed in as it is."""

    def completions(self, rows: list[dict[str, Any]], step: int) -> None:
        """A table of completions to look at; the keys of the first row are its columns."""

    def finish(self, exit_code: int, summary: dict[str, Any]) -> None:
        """Send what is left and close; ``summary`` is the run's result, nested or not. A second call does nothing."""


def make_tracker(cfg: Config, directory: Path, run_id: str, resumed: bool) -> Tracker:
    """The tracker that ``cfg.tracker`` names.

    ``resumed``: the run continues from a checkpoint, so it continues its curve there too; otherwise it begins a new
    one. UserError when the package is not installed; nothing else that goes wrong is the run's concern.
    """
    match cfg.tracker.name:
        case "none":
            return Nothing()
        case "wandb":
            _require("wandb")
            return Mirror("wandb", lambda: Wandb(cfg, directory, run_id, resumed))
        case "tensorboard":
            _require("tensorboard")
            return Mirror("tensorboard", lambda: Tensorboard(cfg, directory, resumed))


def _require(package: str) -> None:
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise UserError(f"tracker={package} needs a package: pip install -e '.[{package}]', or tracker=none")


class Closing:
    """The context manager's half of every tracker."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self.finish(1, {})  # without effect after the run's own finish

    def finish(self, exit_code: int, summary: dict[str, Any]) -> None: ...


class Nothing(Closing):
    """No tracker: the record alone."""

    def log(self, metrics: dict[str, Any], step: int) -> None: ...

    def completions(self, rows: list[dict[str, Any]], step: int) -> None: ...


class ToldError(Exception):
    """A tracker has ended and said why itself."""


class Mirror(Closing):
    """A tracker on its own daemon thread, built there by ``start``; never raises, never blocks but to finish."""

    def __init__(self, name: str, start: Callable[[], Tracker], finish_seconds: float | None = None) -> None:
        self._name = name
        self._finish_seconds = FINISH_SECONDS if finish_seconds is None else finish_seconds
        self._calls: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(QUEUE)
        self._off = False
        self._finished = False
        self._tracker: Tracker | None = None
        self._thread = threading.Thread(target=self._work, args=(start,), name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def log(self, metrics: dict[str, Any], step: int) -> None:
        copy = dict(metrics)
        self._put(lambda tracker: tracker.log(copy, step))

    def completions(self, rows: list[dict[str, Any]], step: int) -> None:
        copies = [dict(row) for row in rows]
        self._put(lambda tracker: tracker.completions(copies, step))

    def finish(self, exit_code: int, summary: dict[str, Any]) -> None:
        if self._finished:
            return
        self._finished = True
        self._put(lambda tracker: tracker.finish(exit_code, summary))
        self._put(None)
        self._thread.join(self._finish_seconds + 2)  # a tracker with a limit of its own is to meet that first
        if self._thread.is_alive():
            self._turn_off(f"did not finish within {self._finish_seconds:.0f} s")
            if isinstance(self._tracker, Wandb):
                self._tracker.kill()

    def _put(self, call: Callable[[Tracker], None] | None) -> None:
        if self._off and call is not None:
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._turn_off("does not keep up")

    def _work(self, start: Callable[[], Tracker]) -> None:
        try:
            self._tracker = start()
            while (call := self._calls.get()) is not None:
                call(self._tracker)
        except ToldError:
            self._off = True
        except BaseException as error:  # a mirror's sys.exit must not reach the run either
            reason = str(error).strip().partition("\n")[0]
            self._turn_off(f"failed ({type(error).__name__}: {reason})")

    def _turn_off(self, what: str) -> None:
        if not self._off:
            self._off = True
            line = f"warning: {self._name} {what}; it is off for this run, the record on disk goes on"
            print(line, file=sys.stderr, flush=True)


class Wandb(Closing):
    """Weights & Biases in a process of its own; online with an account and a server that answers, else offline."""

    def __init__(self, cfg: Config, directory: Path, run_id: str, resumed: bool) -> None:
        arguments: dict[str, Any] = {
            **{"project": cfg.tracker.project, "entity": cfg.tracker.entity, "name": run_id, **place_of(cfg)},
            "id": _attempt_id(directory, run_id, resumed),
            "dir": str(directory.resolve()),
            "config": without_places(cfg.model_dump(mode="json", by_alias=True)),
        }
        code = "from grpo_bench.wandb_process import main; main()"
        package = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C ends the run, and the run then finishes this
        )
        limits = {"init_seconds": INIT_SECONDS, "finish_seconds": FINISH_SECONDS}
        self._send({"init": arguments, "mode": cfg.tracker.mode, "pid": os.getpid(), "program": "grpo_bench", **limits})

    def log(self, metrics: dict[str, Any], step: int) -> None:
        self._send({"log": {"step": step, **_scalars(metrics)}})

    def completions(self, rows: list[dict[str, Any]], step: int) -> None:
        if rows:
            columns = list(rows[0])
            table = {"columns": columns, "rows": [[row.get(column) for column in columns] for row in rows]}
            self._send({"completions": table})

    def finish(self, exit_code: int, summary: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._send({"finish": {"exit_code": exit_code, "summary": _flatten(summary)}})
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._ended()

    def kill(self) -> None:
        self._process.kill()

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message, default=str) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._ended()

    def _ended(self) -> None:
        code = self._process.wait()  # it has a limit of its own
        if code == 1:
            raise ToldError
        if code:
            raise ConnectionError(f"its process ended with exit code {code}")


def withholds(cfg: Config) -> bool:
    """Whether the completions table goes without questions and gold answers: a project on a server may be public, and
    they are not ours to publish. Event files stay in the run's folder."""
    return cfg.tracker.name == "wandb" and cfg.tracker.completions > 0 and cfg.task.name in WITHHELD


def completion_rows(cfg: Config, rows: Iterable[dict[str, Any]], asked: Iterable[Problem]) -> list[dict[str, Any]]:
    """Rows of the completions table: those of the record, which has ids alone, with what was asked."""
    if withholds(cfg):
        return list(rows)
    return [{**row, "question": p.question, "gold": p.answer} for row, p in zip(rows, asked, strict=False)]


def place_of(cfg: Config) -> dict[str, Any]:
    """Where a run stands in its project, so that a workspace of a study shows what the study's tables compare.

    ``group``: the row of the table, so that its seeds become one curve with a band, below its study and task, since
    rows of other studies in the project have the same names; ``job_type``: what kind of run it is; ``tags``: the
    user's own, and study, task, arm, algorithm and model to filter by.
    """
    row = cfg.row or cfg.arm or cfg.algo.name
    group = f"{cfg.study.name}-{cfg.task.name} {row}" if cfg.study.name else row
    tags = [*cfg.tracker.tags, cfg.study.name, cfg.task.name, cfg.arm, cfg.algo.name, cfg.model.name]
    return {
        "group": group[:GROUP_LIMIT],
        "job_type": "train",
        "tags": list(dict.fromkeys(tag[:TAG_LIMIT] for tag in tags if tag)),
    }


class Tensorboard(Closing):
    """Event files in the run's folder; no account, no network. The x-axis is samples."""

    def __init__(self, cfg: Config, directory: Path, resumed: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = directory / "tensorboard"
        self._resumed = resumed
        self._make = SummaryWriter
        self._writer: Any = None
        self._x = 0
        self._config = without_places(cfg.model_dump(mode="json", by_alias=True))

    def log(self, metrics: dict[str, Any], step: int) -> None:
        scalars = _scalars(metrics)
        self._x = int(scalars.get("samples", step))
        writer = self._open()
        for name, value in {"step": step, **scalars}.items():
            writer.add_scalar(name, value, self._x)

    def completions(self, rows: list[dict[str, Any]], step: int) -> None:
        for index, row in enumerate(rows):
            text = "\n".join(f"**{key}**\n\n{_indented(value)}\n" for key, value in row.items())
            self._open().add_text(f"completions/{index}", text, self._x)

    def finish(self, exit_code: int, summary: dict[str, Any]) -> None:
        for name, value in _flatten(summary).items():
            if isinstance(value, int | float):
                self._open().add_scalar(f"result/{name}", value, self._x)
        self._open().add_text("exit_code", str(exit_code), self._x)
        self._open().close()

    def _open(self) -> Any:
        if self._writer is None:
            # steps after the checkpoint are written again: what an earlier attempt said of them is struck out
            purge = self._x if self._resumed else None
            self._writer = self._make(str(self._folder), purge_step=purge)
            lines = [f"    {name}: {value}" for name, value in _flatten(self._config).items()]
            self._writer.add_text("config", "\n".join(lines), self._x)
        return self._writer


def _indented(value: Any) -> str:
    return "\n".join(f"    {line}" for line in str(value).splitlines())  # Markdown must not interpret an answer


def _attempt_id(directory: Path, run_id: str, resumed: bool) -> str:
    """The id of this attempt's curve: the one before when it continues, else a fresh one."""
    path = directory / "wandb" / "id"
    if resumed and path.exists():
        return path.read_text(encoding="utf-8").strip()
    fresh = f"{run_id[:50]}-{secrets.token_hex(4)}"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, fresh.encode())
    return fresh


def _scalars(metrics: dict[str, Any]) -> dict[str, Any]:
    # timing_metrics renames the fields of a timing line and passes glossary names through; null is no point of a curve
    return {k: v for k, v in timing_metrics(metrics).items() if isinstance(v, int | float)}


def _flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}/")
        elif value is not None:
            flat[f"{prefix}{key}"] = value
    return flat
