"""The record of one run: a folder that is the truth, survives a kill at any point, and can be continued.

Order of events that makes it so: a checkpoint remembers how long every jsonl file was; continuing cuts them back to
there and the same steps are written again. ``result.json`` is the last thing written: its presence means complete.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from filelock import FileLock, Timeout

from grpo_bench import checkpoint as checkpoints
from grpo_bench import provenance
from grpo_bench.checkpoint import Checkpoint, DamagedError, flatten_optimizer, restore_optimizer
from grpo_bench.files import Journal, disk_errors, remove_tree, sync_folder, write_atomic, write_json
from grpo_bench.metrics import check_metrics, check_timing, finite
from grpo_bench.types import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_bench.config import Config

__all__ = ["Checkpoint", "RunRecord", "flatten_optimizer", "read_json", "restore_optimizer"]

JOURNALS = ("metrics.jsonl", "timing.jsonl", "eval.jsonl", "samples.jsonl")
DIAGNOSIS = "diagnosis.json"
FOLDERS = ("tensorboard", "export")  # written beside the record, of the run that it holds
EVAL_KEYS = frozenset(
    {"step", "split", "mode", "id", "sample", "response", "extracted", "strict", "flexible", "correct", "length"}
    | {"finished"}
)
_IDENTITY = ("run_id", "study", "arm", "row", "algo", "model", "task", "seed", "status", "config_hash")
_SAME = ("config_hash", "prompt_stream_hash", "fingerprints")  # what a checkpoint must share with its run


def read_json(path: Path) -> Any:
    """Content of a JSON file of a record, None when it is absent; UserError when it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        raise UserError(f"{path} is not valid JSON: delete it, or start the run anew with resume=false") from None


class RunRecord:
    """Writer of a run's folder.

    ``meta`` names the run: run_id, arm, row, algo, model, task, study, seed, config_hash, prompt_stream_hash and
    fingerprints ({data, grader, model, warmstart}). Use as ``record.start()``, then ``step``, ``evals``, ``samples``
    and ``checkpoint`` as they come, then ``finish`` or ``stop``, and ``close`` in any case. ``device``: what the run
    computes on, cpu or cuda, for its provenance.
    """

    def __init__(self, directory: Path, cfg: Config, *, meta: dict[str, Any], device: str | None = None) -> None:
        self.directory = Path(directory)
        self.cfg = cfg
        self.meta = meta
        self.device = device
        self._step = 0
        self._root = self.directory / "checkpoints"
        self._journals = {name: Journal(self.directory / name) for name in JOURNALS}
        self._lock: FileLock | None = None

    # ------------------------------------------------------------------ start

    def start(self) -> Checkpoint | None:
        """Take the folder and bring it to a state that can be written on.

        Returns the newest intact checkpoint, or None for a run from the beginning. Damaged checkpoints are named on
        stderr and passed over. A complete run is reopened to be extended: its result and final answers are kept as
        ``result-<samples>.json`` and ``eval-<samples>.jsonl.gz``. UserError when another process has the folder, the
        disk cannot be written, a checkpoint is of other settings or data, or a complete run cannot be extended.
        """
        try:
            with disk_errors(self.directory):
                return self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> Checkpoint | None:
        self._root.mkdir(parents=True, exist_ok=True)
        self._take()
        checkpoints.clean(self._root)
        for leftover in self.directory.glob(".*.tmp"):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()
        if not self.cfg.resume:
            self._wipe()
        plain, zipped = self.directory / "eval.jsonl", self.directory / "eval.jsonl.gz"
        unzipped = not plain.exists() and zipped.exists() and _unzip(zipped, plain)
        found, marks = self._newest()
        if (self.directory / "result.json").exists():
            if found is None:
                if unzipped:
                    plain.unlink()
                raise UserError(
                    f"{self.directory} is complete and has no intact checkpoint to extend it from; "
                    "resume=false starts it anew"
                )
            self._keep_result()
        zipped.unlink(missing_ok=True)  # of the two, the plain one is never older
        for name, journal in self._journals.items():
            journal.rewind(marks[name] if found else None)
        self._step = found.step if found else 0
        # those beyond are damaged, and the rows they count on are gone now
        checkpoints.drop(self._root, [s for s in checkpoints.steps_in(self._root) if s > self._step])
        self._write_config()
        self._write_provenance(found)
        self._write_state("running", pid=os.getpid(), host=provenance.host())
        return found

    def _take(self) -> None:
        lock = FileLock(self._root / "lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            state = read_json(self.directory / "state.json") or {}
            owner = f" (process {state['pid']})" if "pid" in state else ""
            raise UserError(f"another process{owner} is writing {self.directory}; wait for it or stop it") from None
        self._lock = lock  # the system drops it with the process, kill -9 included

    def _wipe(self) -> None:
        # result.json first: a folder without it is an unfinished run, whatever else is still there
        names = ["result.json", "state.json", "provenance.json", "config.yaml", "eval.jsonl.gz", DIAGNOSIS, *JOURNALS]
        kept = [p.name for pattern in ("result-*.json", "eval-*.jsonl.gz") for p in self.directory.glob(pattern)]
        for name in names + kept:
            (self.directory / name).unlink(missing_ok=True)
        for name in FOLDERS:
            if (self.directory / name).is_dir():
                remove_tree(self.directory / name)
        checkpoints.drop(self._root, checkpoints.steps_in(self._root))

    def _newest(self) -> tuple[Checkpoint | None, dict[str, Any]]:
        for step in reversed(checkpoints.steps_in(self._root)):
            folder = checkpoints.folder_of(self._root, step)
            try:
                found, manifest = checkpoints.load(self._root, step)
                for name, journal in self._journals.items():
                    if not journal.matches(manifest["journals"][name]):
                        raise DamagedError(f"{name} no longer begins as it did when the checkpoint was written")
            except (DamagedError, OSError) as error:
                print(f"warning: damaged checkpoint {folder.name} is skipped: {error}", file=sys.stderr, flush=True)
                continue
            if other := _other(manifest["run"], self._same()):
                what = "code or packages that graded it" if other == "fingerprints (grader)" else "what changed"
                raise UserError(
                    f"{folder} was written with another {other}; restore {what}, "
                    "or start the run anew with resume=false"
                )
            return found, manifest["journals"]
        return None, {}

    def _same(self) -> dict[str, Any]:
        return json.loads(json.dumps({key: self.meta.get(key) for key in _SAME}))  # as a manifest gives it back

    def _keep_result(self) -> None:
        result = read_json(self.directory / "result.json")
        samples = (result.get("cost") or {}).get("samples", f"step{self._step}")
        zipped = self.directory / "eval.jsonl.gz"
        if zipped.exists():
            write_atomic(self.directory / f"eval-{samples}.jsonl.gz", zipped.read_bytes())
        os.replace(self.directory / "result.json", self.directory / f"result-{samples}.json")
        (self.directory / DIAGNOSIS).unlink(missing_ok=True)  # of the result that has just been put aside
        sync_folder(self.directory)

    # ------------------------------------------------------------------ while running

    def step(self, step: int, metrics: dict[str, Any], timing: dict[str, Any]) -> None:
        """Append one step: ``metrics`` under glossary names, ``timing`` {elapsed_s, seconds, peak_memory_bytes, …}.

        NaN and infinity become null. KeyError or ValueError for a name that the glossary does not allow there.
        """
        check_metrics(metrics)
        check_timing(timing)
        self._journals["metrics.jsonl"].append({"step": step, **finite(metrics)})
        self._journals["timing.jsonl"].append({"step": step, **finite(timing)})
        self._step = step

    def evals(self, rows: list[dict[str, Any]]) -> None:
        """Append one row per problem and sample (keys: ``EVAL_KEYS``)."""
        for row in rows:
            if missing := EVAL_KEYS - row.keys():
                raise KeyError(f"eval row without {', '.join(sorted(missing))}")
        self._journals["eval.jsonl"].append(*map(finite, rows))

    def samples(self, rows: list[dict[str, Any]]) -> None:
        """Append training completions to look at, each with its ``step``."""
        self._journals["samples.jsonl"].append(*map(finite, rows))

    def checkpoint(self, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        """Write a checkpoint of everything up to ``step``; keeps ``checkpoint.keep`` of them.

        ``tensors`` are named groups (``policy``, ``critic``, ``policy_optimizer``); ``state`` is JSON with string
        keys. UserError when the disk is full: the previous checkpoint stays as it is.
        """
        extra = {
            "run": self._same(),
            "journals": {name: journal.mark() for name, journal in self._journals.items()},
        }
        checkpoints.save(self._root, step, tensors, state, extra, self.cfg.checkpoint.keep)
        self._step = step
        self._write_state("running", pid=os.getpid(), host=provenance.host())

    # ------------------------------------------------------------------ end

    def finish(self, result: dict[str, Any]) -> dict[str, Any]:
        """Close the run as complete (or as its ``status`` says: diverged) and return the content of ``result.json``.

        ``result`` (``eval``, ``cost``, ``stability``, …) is put after the run's identity; its ``reason``, if any, says
        in ``state.json`` too why the run ended before its budget. eval.jsonl is gzipped with
        no time in its header, so equal rows give equal bytes.
        """
        with disk_errors(self.directory):
            for journal in self._journals.values():
                journal.mark()
            self._zip()
            whole = {**self.meta, "status": "complete", "git_sha": provenance.git_sha()}
            identity = {key: whole[key] for key in _IDENTITY if key in whole}
            rest = {k: v for k, v in whole.items() if k not in identity and k != "fingerprints"}
            content = finite({**identity, **rest, **result})
            # one is enough to extend a complete run from; weights are large
            checkpoints.drop(self._root, checkpoints.steps_in(self._root)[:-1])
            self._write_state(content["status"], reason=content.get("reason"), exit_code=0)
            write_json(self.directory / "result.json", content)
        return content

    def diagnosis(self, findings: list[dict[str, Any]]) -> None:
        """Write ``diagnosis.json``: what the finished record shows, [] for a healthy run."""
        write_json(self.directory / DIAGNOSIS, finite(findings))

    def _zip(self) -> None:
        journal, zipped = self._journals["eval.jsonl"], self.directory / "eval.jsonl.gz"
        journal.close()
        work = self.directory / ".eval.jsonl.gz.tmp"
        with open(journal.path, "rb") as source, open(work, "wb") as target:
            with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=target, mtime=0) as packed:
                shutil.copyfileobj(source, packed)
            target.flush()
            os.fsync(target.fileno())
        os.replace(work, zipped)
        sync_folder(self.directory)
        journal.path.unlink()

    def stop(self, status: Literal["failed", "diverged"], reason: str, exit_code: int) -> None:
        """Say why the run ended before its budget; it can be continued from its last checkpoint."""
        if self._lock is None:
            return  # never started: the folder may be another process's
        first = reason.strip().splitlines()[0] if reason.strip() else status
        try:
            self._write_state(status, reason=provenance.base_names(first), exit_code=exit_code)
        except UserError as error:  # the disk that ended the run may refuse this too; the reason must not be masked
            print(f"warning: {error}", file=sys.stderr)

    def close(self) -> None:
        """Release the files and the folder; harmless when called twice."""
        for journal in self._journals.values():
            journal.close()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    # ------------------------------------------------------------------ small files

    def _write_config(self) -> None:
        content = provenance.without_places(self.cfg.model_dump(mode="json", by_alias=True))
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
        write_atomic(self.directory / "config.yaml", text.encode())

    def _write_provenance(self, found: Checkpoint | None) -> None:
        path = self.directory / "provenance.json"
        attempts = (read_json(path) or {}).get("attempts", []) if path.exists() else []
        entry = provenance.collect(
            {**self.meta, "device": self.device}, len(attempts) + 1, found.step if found else None
        )
        if found and attempts and (changed := provenance.changed(attempts[-1], entry)):
            print(f"note: continuing with another {changed}: numbers may differ in their last bits", file=sys.stderr)
        write_json(path, {"attempts": [*attempts, entry]})

    def _write_state(self, status: str, reason: str | None = None, exit_code: int | None = None, **more: Any) -> None:
        state = {"status": status, "reason": reason, "exit_code": exit_code, "step": self._step}
        write_json(self.directory / "state.json", {**state, "updated": provenance.now(), **more})


def _unzip(zipped: Path, plain: Path) -> bool:
    work = plain.with_name(f".{plain.name}.tmp")
    try:
        with gzip.open(zipped) as source, open(work, "wb") as target:
            shutil.copyfileobj(source, target)
            target.flush()
            os.fsync(target.fileno())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        # without these rows no checkpoint that counts on them is intact; the search for one says so
        print(f"warning: {zipped.name} is damaged: {error}", file=sys.stderr, flush=True)
        work.unlink()
        return False
    os.replace(work, plain)
    sync_folder(plain.parent)
    return True


def _other(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What a checkpoint does not share with its run: "config_hash", "fingerprints (grader)"; "" for nothing. A
    fingerprint that only one of them knows, since the other is from before it was taken, differs in nothing."""
    prints = now["fingerprints"] or {}, before["fingerprints"] or {}
    known = [name for name in prints[0] if name in prints[1] and prints[0][name] != prints[1][name]]
    if known:
        return f"fingerprints ({', '.join(known)})"
    return ", ".join(key for key in _SAME if key != "fingerprints" and before[key] != now[key])
