"""The record: what it writes, and that a run killed anywhere ends as an unbroken one does, byte for byte."""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import BaseModel

from grpo_bench import provenance
from grpo_bench.files import Journal
from grpo_bench.record import RunRecord, flatten_optimizer, read_json, restore_optimizer
from grpo_bench.types import UserError

REPO = Path(__file__).resolve().parent.parent


class CheckpointSettings(BaseModel):
    every: int = 3
    keep: int = 2


class Settings(BaseModel):
    """As much of a config as the record reads."""

    resume: bool = True
    checkpoint: CheckpointSettings = CheckpointSettings()
    results: str = "../results"
    task: dict[str, Any] = {
        "path": "/home/somebody/data/gsm8k",
        "hub": "openai/gsm8k",
        "stop": ["/a/b", "~/x/y"],
        "prompt": {"template": "/no_think/hard {question}", "system": "/a/b in /c/d"},
    }
    model: dict[str, Any] = {"id": None, "path": "~/models/tiny.gguf"}


META = {
    "run_id": "grpo-s0-abcd1234",
    "study": None,
    "arm": "grpo",
    "row": "grpo",
    "algo": "grpo",
    "model": "tiny",
    "task": "arithmetic",
    "seed": 0,
    "config_hash": "abcd1234",
    "prompt_stream_hash": "5678",
    "fingerprints": {"data": "d", "model": "m", "warmstart": None},
}


def eval_row(step: int, split: str, index: int) -> dict[str, Any]:
    return {
        **{"step": step, "split": split, "mode": "greedy", "id": f"t/{index}", "sample": 0, "response": "a\u2028é\n"},
        **{"extracted": None, "strict": True, "flexible": True, "correct": index % 2 == 0, "length": 3},
        "finished": True,
    }


def toy_run(directory: Path, steps: int, stop_after: int | None = None, **settings: Any) -> dict[str, Any] | None:
    """A run in miniature: real optimizer, every kind of file, a checkpoint each 3 steps and at the end."""
    with closing(RunRecord(directory, Settings(**settings), meta=META)) as record:
        return toy_steps(record, steps, stop_after)


def toy_steps(record: RunRecord, steps: int, stop_after: int | None) -> dict[str, Any] | None:
    found = record.start()
    weight = torch.linspace(-1, 1, 6, requires_grad=True)
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    total = 0.0
    if found:
        with torch.no_grad():
            weight.copy_(found.tensors("policy")["weight"])
        restore_optimizer(optimizer, found.tensors("optimizer"), found.state["optimizer"])
        total = found.state["total"]
    for step in range((found.step if found else 0) + 1, steps + 1):
        optimizer.zero_grad()
        loss = ((weight - step) ** 2).mean()
        loss.backward()
        optimizer.step()
        total += loss.item()
        metrics = {"samples": 4 * step, "policy/loss": loss.item(), "kl/coef": float("nan") if step == 2 else 0.5}
        record.step(step, metrics, {"elapsed_s": time.monotonic(), "seconds": {"update": 0.1}})
        record.samples([{"step": step, "id": "t/1", "response": "x" * step}])
        if step % 2 == 0:
            record.evals([eval_row(step, "dev", i) for i in range(3)])
        if step % 3 == 0 or step == steps:
            tensors, state = flatten_optimizer(optimizer.state_dict())
            groups = {"policy": {"weight": weight.detach()}, "optimizer": tensors}
            record.checkpoint(step, groups, {"total": total, "optimizer": state})
        if step == stop_after:
            return None
    record.evals([eval_row(steps, "test", i) for i in range(5)])
    result = {"eval": {"final": {"greedy": {"acc": total}}}, "cost": {"samples": 4 * steps}, "stability": {"x": None}}
    return record.finish(result)


def outcome(directory: Path, last: int) -> dict[str, bytes]:
    """Everything of a record that must not depend on interruptions."""
    names = ["metrics.jsonl", "eval.jsonl.gz", "samples.jsonl", "result.json"]
    names += [f"checkpoints/step-{last:08d}/{name}.safetensors" for name in ("policy", "optimizer")]
    return {name: (directory / name).read_bytes() for name in names}


def visible(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir())


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("unbroken") / "run"
    assert toy_run(directory, 7) is not None
    return directory


def test_files_of_a_complete_run(unbroken):
    assert visible(unbroken) == [
        *("checkpoints", "config.yaml", "eval.jsonl.gz", "metrics.jsonl", "provenance.json", "result.json"),
        *("samples.jsonl", "state.json", "timing.jsonl"),
    ]
    lines = [json.loads(line) for line in (unbroken / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 7]
    assert lines[1]["kl/coef"] is None  # NaN
    assert lines[2]["samples"] == 12
    assert "elapsed_s" in json.loads((unbroken / "timing.jsonl").read_text().splitlines()[0])
    rows = [json.loads(line) for line in gzip.decompress((unbroken / "eval.jsonl.gz").read_bytes()).splitlines()]
    assert len(rows) == 3 * 3 + 5  # dev after steps 2, 4 and 6; test at the end
    assert rows[0]["response"] == "a\u2028é\n"
    assert len(list((unbroken / "checkpoints").glob("step-*"))) == 1  # a complete run keeps what an extension needs
    state = read_json(unbroken / "state.json")
    assert state | {"updated": ""} == {
        **{"status": "complete", "reason": None, "exit_code": 0, "step": 7, "updated": ""},
    }


def test_result_begins_with_the_identity(unbroken):
    result = read_json(unbroken / "result.json")
    assert list(result)[:6] == ["run_id", "study", "arm", "row", "algo", "model"]
    assert result["status"] == "complete"
    assert result["git_sha"] == provenance.git_sha()
    assert result["cost"] == {"samples": 28}
    assert "fingerprints" not in result


def test_config_keeps_prompts_and_hides_where_things_lie(unbroken):
    config = yaml.safe_load((unbroken / "config.yaml").read_text())
    assert config["task"]["path"] == "gsm8k"
    assert config["model"] == {"id": None, "path": "tiny.gguf"}
    assert config["results"] == "../results"
    for key in ("hub", "stop", "prompt"):  # slashes and all
        assert config["task"][key] == Settings().task[key]


def test_provenance_has_one_entry_per_attempt_and_nothing_private(tmp_path):
    toy_run(tmp_path / "run", 7, stop_after=4)
    toy_run(tmp_path / "run", 7)
    first, second = read_json(tmp_path / "run" / "provenance.json")["attempts"]
    assert (first["attempt"], first["continued_from_step"]) == (1, None)
    assert (second["attempt"], second["continued_from_step"]) == (2, 3)
    assert second["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert second["device"]["torch_threads"] == torch.get_num_threads()
    assert second["fingerprints"] == META["fingerprints"]
    del first["git"]  # a diff holds source text
    text = json.dumps(first)
    assert str(tmp_path) not in text
    assert str(Path.home()) + "/" not in text
    import socket

    assert socket.gethostname() not in text


@pytest.mark.parametrize("stop_after", range(1, 8))
def test_continued_after_any_step(tmp_path, unbroken, stop_after):
    toy_run(tmp_path / "run", 7, stop_after=stop_after)
    toy_run(tmp_path / "run", 7)
    assert outcome(tmp_path / "run", 7) == outcome(unbroken, 7)
    assert visible(tmp_path / "run") == visible(unbroken)


@pytest.mark.parametrize("tail", [b'{"step": 6, "samp', b'{"step": 6}\n{"step"', b"\x00" * 4096])
def test_torn_last_lines(tmp_path, unbroken, tail):
    run = tmp_path / "run"
    toy_run(run, 7, stop_after=5)
    for name in ("metrics.jsonl", "eval.jsonl", "samples.jsonl", "timing.jsonl"):
        with open(run / name, "ab") as file:
            file.write(tail)
    toy_run(run, 7)
    assert outcome(run, 7) == outcome(unbroken, 7)
    assert len((run / "timing.jsonl").read_text().splitlines()) == 7


def drive(root: Path, every: int) -> None:
    """Kill a run at every ``every``-th touch of a file, continue it, compare; raises on the first difference.

    The child leaves by os._exit inside an audit hook: nothing is flushed and no handler runs, as with kill -9.
    """
    torch.set_num_threads(1)
    toy_run(root / "unbroken", 4)
    expected = outcome(root / "unbroken", 4)
    kill_at, kills = 1, 0
    while True:
        run = root / "run"
        shutil.rmtree(run, ignore_errors=True)
        if not killed(run, kill_at):
            break
        kills += 1
        # and once more while it recovers, at another point
        killed(run, 1 + (kill_at * 7) % 40)
        if not (run / "result.json").exists():
            toy_run(run, 4)
        assert outcome(run, 4) == expected, f"killed at touch {kill_at}"
        assert not list(run.rglob("*.tmp")), f"killed at touch {kill_at}"
        kill_at += every
    print(kills)


def killed(run: Path, kill_at: int) -> bool:
    child = os.fork()
    if child == 0:
        seen = 0

        def hook(event: str, _: tuple) -> None:
            nonlocal seen
            if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree"):
                seen += 1
                if seen == kill_at:
                    os._exit(137)

        def append(journal: Journal, *rows: dict[str, Any]) -> None:
            nonlocal seen
            seen += 1
            if seen == kill_at:  # the system took half of it
                data = "".join(json.dumps(row) + "\n" for row in rows).encode()
                journal._file.write(data[: len(data) // 2])
                os._exit(137)
            whole(journal, *rows)

        whole, Journal.append = Journal.append, append  # type: ignore[method-assign]
        sys.addaudithook(hook)
        if not (run / "result.json").exists():
            toy_run(run, 4)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 137


def run_driver(root: Path, every: int) -> int:
    code = "import sys, pathlib; sys.path.insert(0, 'tests'); import test_record; "
    code += f"test_record.drive(pathlib.Path({str(root)!r}), {every})"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_some_touches_of_the_disk(tmp_path):
    assert run_driver(tmp_path, 37) > 1


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_every_touch_of_the_disk(tmp_path):
    assert run_driver(tmp_path, 1) > 90


def test_killed_between_gzip_and_result(tmp_path, unbroken):
    for left in (["eval.jsonl.gz"], ["eval.jsonl.gz", "eval.jsonl"]):
        run = tmp_path / str(len(left))
        shutil.copytree(unbroken, run)
        (run / "result.json").unlink()
        if "eval.jsonl" in left:
            (run / "eval.jsonl").write_bytes(gzip.decompress((run / "eval.jsonl.gz").read_bytes()))
        toy_run(run, 7)
        assert outcome(run, 7) == outcome(unbroken, 7)
        assert visible(run) == visible(unbroken)


def test_extension_ends_as_a_longer_run_and_keeps_the_earlier_result(tmp_path, unbroken):
    run = tmp_path / "run"
    toy_run(run, 6)
    short = (run / "result.json").read_bytes(), (run / "eval.jsonl.gz").read_bytes()
    toy_run(run, 7)
    assert outcome(run, 7) == outcome(unbroken, 7)
    assert ((run / "result-24.json").read_bytes(), (run / "eval-24.jsonl.gz").read_bytes()) == short
    assert visible(run) == sorted([*visible(unbroken), "result-24.json", "eval-24.jsonl.gz"])


def test_complete_run_without_checkpoint_cannot_be_extended_and_stays_complete(tmp_path, unbroken):
    run = tmp_path / "run"
    shutil.copytree(unbroken, run, ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(UserError, match="resume=false starts it anew"):
        toy_run(run, 8)
    assert visible(run) == visible(unbroken)
    assert (run / "result.json").read_bytes() == (unbroken / "result.json").read_bytes()


def test_resume_false_starts_anew(tmp_path, unbroken):
    run = tmp_path / "run"
    toy_run(run, 6)
    toy_run(run, 7)
    for name in ("tensorboard", "export", ".export.old.tmp"):  # of the run before, the last one half removed
        (run / name).mkdir()
        (run / name / "file").write_text("old")
    toy_run(run, 7, resume=False)
    assert outcome(run, 7) == outcome(unbroken, 7)
    assert visible(run) == visible(unbroken)
    assert [a["continued_from_step"] for a in read_json(run / "provenance.json")["attempts"]] == [None]


def test_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, unbroken, capsys):
    run = tmp_path / "run"
    toy_run(run, 7, stop_after=6)
    weights = run / "checkpoints" / "step-00000006" / "policy.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    toy_run(run, 7)
    assert "damaged checkpoint step-00000006 is skipped: policy.safetensors" in capsys.readouterr().err
    assert outcome(run, 7) == outcome(unbroken, 7)
    assert read_json(run / "provenance.json")["attempts"][1]["continued_from_step"] == 3


def test_all_checkpoints_damaged_starts_from_the_beginning(tmp_path, unbroken, capsys):
    run = tmp_path / "run"
    toy_run(run, 7, stop_after=6)
    for manifest in run.glob("checkpoints/*/manifest.json"):
        manifest.write_text("{")
    toy_run(run, 7)
    assert capsys.readouterr().err.count("is skipped: manifest.json cannot be read") == 2
    assert outcome(run, 7) == outcome(unbroken, 7)


@pytest.mark.parametrize("harm", ["cut", "edit", "remove"])
def test_checkpoint_whose_journal_is_gone_is_not_used(tmp_path, unbroken, capsys, harm):
    run = tmp_path / "run"
    toy_run(run, 7, stop_after=6)
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    match harm:  # rows up to step 3 stay good, so that checkpoint does too; "remove" leaves neither
        case "cut":
            path.write_text("".join(lines[:4]))
        case "edit":
            path.write_text("".join([*lines[:4], lines[4].replace("20", "21"), *lines[5:]]))
        case "remove":
            path.unlink()
    toy_run(run, 7)
    assert capsys.readouterr().err.count("metrics.jsonl no longer begins") == (2 if harm == "remove" else 1)
    assert outcome(run, 7) == outcome(unbroken, 7)


def test_another_grader_is_refused_and_one_that_was_not_recorded_is_not(tmp_path, monkeypatch):
    toy_run(tmp_path / "run", 7, stop_after=4)  # as before the grader was recorded
    monkeypatch.setitem(META, "fingerprints", {**META["fingerprints"], "grader": "g"})
    toy_run(tmp_path / "run", 7, stop_after=6)
    monkeypatch.setitem(META, "fingerprints", {**META["fingerprints"], "grader": "h"})
    with pytest.raises(
        UserError, match=r"fingerprints \(grader\); restore code or packages that graded it, .*resume=false$"
    ):
        toy_run(tmp_path / "run", 7)


@pytest.mark.parametrize("key", ["config_hash", "prompt_stream_hash", "fingerprints"])
def test_checkpoint_of_other_settings_or_data_is_refused(tmp_path, monkeypatch, key):
    toy_run(tmp_path / "run", 7, stop_after=4)
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file() and p.name != "lock"}
    monkeypatch.setitem(META, key, {"data": "other"} if key == "fingerprints" else "other")
    with pytest.raises(UserError, match=f"another {key}.*resume=false"):
        toy_run(tmp_path / "run", 7)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_second_live_writer_is_refused_and_changes_nothing(tmp_path):
    first = RunRecord(tmp_path / "run", Settings(), meta=META)
    first.start()
    state = (tmp_path / "run" / "state.json").read_bytes()
    second = RunRecord(tmp_path / "run", Settings(), meta=META)
    with pytest.raises(UserError, match=rf"another process \(process {os.getpid()}\) is writing"):
        second.start()
    second.stop("failed", "locked", 2)
    second.close()
    assert (tmp_path / "run" / "state.json").read_bytes() == state
    first.close()
    third = RunRecord(tmp_path / "run", Settings(), meta=META)
    third.start()
    third.close()


def test_stop_says_why_in_one_line_without_paths(tmp_path):
    record = RunRecord(tmp_path, Settings(), meta=META)
    record.start()
    record.step(1, {"samples": 4}, {})
    record.stop("diverged", f"loss is nan; see {tmp_path}/x.log\nTraceback", 3)
    record.close()
    state = read_json(tmp_path / "state.json")
    assert (state["status"], state["exit_code"], state["step"]) == ("diverged", 3, 1)
    assert state["reason"] == "loss is nan; see x.log"
    assert "pid" not in state


def test_diverged_run_with_its_last_accuracy(tmp_path):
    with closing(RunRecord(tmp_path, Settings(), meta=META)) as record:
        record.start()
        result = record.finish({"status": "diverged", "reason": "loss not finite in 5 steps", "eval": {}})
    assert result["status"] == read_json(tmp_path / "result.json")["status"] == "diverged"
    state = read_json(tmp_path / "state.json")
    assert (state["status"], state["reason"]) == ("diverged", "loss not finite in 5 steps")


def test_unknown_names_and_missing_keys_are_programming_errors(tmp_path):
    record = RunRecord(tmp_path, Settings(), meta=META)
    record.start()
    with pytest.raises(KeyError, match="reward/mean"):
        record.step(1, {"reward/meen": 1.0}, {})
    with pytest.raises(ValueError, match="belongs to timing"):
        record.step(1, {"time/total_s": 1.0}, {})
    with pytest.raises(KeyError, match="finished"):
        record.evals([{k: v for k, v in eval_row(1, "dev", 0).items() if k != "finished"}])
    record.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_full_disk_ends_in_one_line_and_the_run_continues_later(tmp_path, unbroken, monkeypatch):
    run = tmp_path / "run"

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        calls = []
        fsync = os.fsync
        # the 40th durable write is inside a checkpoint or a small file; either must leave the run continuable
        patch.setattr(os, "fsync", lambda fd: full() if calls.append(fd) or len(calls) > 40 else fsync(fd))
        with pytest.raises(UserError, match="no space left on the disk; free some space"):
            toy_run(run, 7)
    assert not list(run.rglob("*.tmp"))
    toy_run(run, 7)
    assert outcome(run, 7) == outcome(unbroken, 7)


def test_full_disk_while_appending(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.rewind(None)
    journal._file.close()
    journal._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
    with pytest.raises(UserError, match="no space left on the disk"):
        journal.append({"step": 1})
    journal.close()


def test_unwritable_results_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises((UserError, NotADirectoryError)):
        RunRecord(tmp_path / "file" / "run", Settings(), meta=META).start()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("task.path=/data/private/gsm8k", "task.path=gsm8k"),
        ("model.path='/a/b c.gguf'", "model.path='b c.gguf'"),
        ("file=~/x/responses.jsonl", "file=responses.jsonl"),
        (r"task.path=C:\Users\me\math", "task.path=math"),
        ("task.path=../shared/data/gsm8k", "task.path=../shared/data/gsm8k"),
        ("see https://example.org/a/b", "see https://example.org/a/b"),
        ("12 tokens/s at seed 0/1", "12 tokens/s at seed 0/1"),
        (["/usr/bin/x", {"k": "/a/b/"}], ["x", {"k": "b"}]),
    ],
)
def test_base_names(text, expected):
    assert provenance.base_names(text) == expected


def test_git_outside_the_projects_repository_is_unknown(tmp_path, monkeypatch):
    provenance.git.cache_clear()
    monkeypatch.setattr(provenance, "_git", lambda *_, **__: None)
    try:
        assert provenance.git() == {"sha": "unknown", "dirty": False}
        assert provenance.git_sha() == "unknown"
    finally:
        provenance.git.cache_clear()
