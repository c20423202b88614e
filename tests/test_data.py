"""Reading rows: every way a file or a hub can be wrong gives one line that says where and what to do."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from task_data import config

from grpo_bench.tasks.data import (
    BadRow,
    Row,
    find_files,
    local_files,
    parse_rows,
    read_files,
    read_hub,
    read_split,
    text_field,
)
from grpo_bench.types import Problem, UserError

ROWS = [{"question": "1 + 1?", "answer": "#### 2"}, {"question": "2 + 2?\u2028Say.", "answer": "#### 4"}]


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    if file.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    else:
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def values(rows: list[Row]) -> list[dict[str, Any]]:
    return [row.values for row in rows]


def line(error: pytest.ExceptionInfo[UserError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_jsonl_and_parquet_hold_the_same_rows(tmp_path: Path) -> None:
    write(tmp_path / "a", "train.jsonl", ROWS)
    write(tmp_path / "b", "train.parquet", ROWS)
    write(tmp_path / "c" / "main", "train-00000-of-00002.parquet", ROWS[:1])  # as a snapshot of the hub lies on disk
    write(tmp_path / "c" / "main", "train-00001-of-00002.parquet", ROWS[1:])
    write(tmp_path / "d" / "data", "train.jsonl", ROWS)
    for name in "abcd":
        rows = read_split(str(tmp_path / name), None, "main", "train")
        assert values(rows) == ROWS
        assert [row.index for row in rows] == [0, 1]
    assert read_split(str(tmp_path / "a"), None, None, "train")[1].where == f"{tmp_path}/a/train.jsonl:2"


def test_local_files_do_not_cost_the_import_of_datasets(tmp_path: Path) -> None:
    import subprocess

    write(tmp_path, "train.jsonl", ROWS)
    code = (
        "import sys; from grpo_bench.tasks.data import read_split; "
        f"read_split({str(tmp_path)!r}, 'x/y', None, 'train'); assert not {{'datasets', 'torch'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parent.parent)


def test_windows_line_ends_byte_order_mark_and_missing_last_newline(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"question": "a"}\r\n{"question": "b"}')
    assert values(read_files([file])) == [{"question": "a"}, {"question": "b"}]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b'{"a": 1}\n{"a": \n', ":2: not JSON"),
        (b'{"a": 1}\n\n{"a": 2}\n', ":2: empty line"),
        (b"[1, 2]\n", ":1: not a JSON object but list"),
        (b'{"a": "\xff"}\n', ":1: not UTF-8 at byte 8"),
        (b'{"a": NaN}\n', ":1: not JSON: NaN"),
        (b"[" * 100_000 + b"\n", ":1: "),
    ],
)
def test_malformed_lines_are_named(tmp_path: Path, content: bytes, what: str) -> None:
    file = tmp_path / "train.jsonl"
    file.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_files([file])
    assert f"{file}{what}" in line(error)


def test_each_malformed_line_is_named_up_to_five(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text("{}\n" + "oops\n" * 7)
    with pytest.raises(UserError) as error:
        read_files([file])
    text = line(error)
    assert all(f"{file}:{number}: not JSON" in text for number in range(2, 7))
    assert f"{file}:7" not in text
    assert text.endswith("and 2 more bad rows")


def test_damaged_parquet(tmp_path: Path) -> None:
    file = tmp_path / "train.parquet"
    file.write_bytes(b"PAR1 this is not parquet")
    with pytest.raises(UserError) as error:
        read_files([file])
    assert f"{file}: not a readable parquet file" in line(error)


def test_missing_folder_missing_split_file_for_a_folder_and_two_formats(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read_split(str(tmp_path / "nowhere"), "x/y", None, "train")
    assert line(error) == f"task.path={tmp_path}/nowhere: no such folder; it must hold train.jsonl or train.parquet"
    file = write(tmp_path, "train.jsonl", ROWS)
    with pytest.raises(UserError) as error:
        read_split(str(tmp_path), "x/y", None, "test")
    assert line(error) == f"task.path={tmp_path}: no test.jsonl or test.parquet there (found: train.jsonl)"
    with pytest.raises(UserError, match="is a file; give the folder"):
        find_files(file, "train", None, "task.path")
    write(tmp_path, "train.parquet", ROWS)
    with pytest.raises(UserError, match=r"holds both train\.jsonl and train\.parquet"):
        read_split(str(tmp_path), None, None, "train")


def test_local_files_are_those_that_loading_reads(tmp_path: Path) -> None:
    math, other = tmp_path / "math", tmp_path / "elsewhere"
    train, test = write(math, "train.jsonl", ROWS), write(math / "data", "test-00000-of-00001.parquet", ROWS)
    beside, own = write(tmp_path / "math500", "test.jsonl", ROWS), write(other, "test.jsonl", ROWS)
    write(math, "validation.jsonl", ROWS)
    path = str(math)
    assert local_files(config("math")) == {}
    assert local_files(config("math", path=path)) == {"path": [train, test], "math500_path": [beside]}
    assert local_files(config("math", path=path, math500_path=str(other)))["math500_path"] == [own]
    assert local_files(config("math", math500_path=str(other))) == {"math500_path": [own]}  # the rest from the hub
    assert local_files(config("math", path=path, split="7.5k", eval_split="test")) == {"path": [train, test]}
    named = {"split": "test", "eval_split": "validation"}
    assert local_files(config("custom", path=path, **named)) == {"path": [test, math / "validation.jsonl"]}
    assert local_files(config("custom", path=str(train))) == {"path": [train]}
    with pytest.raises(UserError, match=r"no train\.jsonl or train\.parquet there"):
        local_files(config("gsm8k", path=str(other)))


def test_empty_split_and_no_source_at_all(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"split 'train' of .* has no rows"):
        read_split(str(tmp_path), None, None, "train")
    with pytest.raises(UserError, match=r"give a local folder with task\.path="):
        read_split(None, None, None, "train")


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"answer": "x"}, "field 'question' is missing (it has 'answer')"),
        ({}, "field 'question' is missing (it has no fields)"),
        ({"question": 3}, "field 'question' must be a string, not int"),
        ({"question": None}, "field 'question' must be a string, not NoneType"),
        ({"question": " \n"}, "field 'question' is empty"),
        ({"question": "\ud800"}, "field 'question' is not valid Unicode"),
    ],
)
def test_field_checks(row: dict[str, Any], what: str) -> None:
    with pytest.raises(BadRow) as error:
        text_field(Row(row, 0, "f:1"), "question")
    assert str(error.value) == what


def test_all_bad_rows_and_repeated_ids_are_named_at_once() -> None:
    rows = [Row({"q": q}, i, f"f:{i + 1}") for i, q in enumerate(["a", "", "a", "b"])]

    def parse(row: Row) -> Problem:
        return Problem(id=text_field(row, "q"), question="?", answer="1")

    with pytest.raises(UserError) as error:
        parse_rows(rows, parse)
    assert line(error) == "f:2: field 'q' is empty; f:3: id 'a' is taken by f:1"


def test_hub_offline_gives_one_line_at_once() -> None:
    # conftest sets HF_HUB_OFFLINE
    with pytest.raises(UserError) as error:
        read_hub("grpo-bench-tests/never-downloaded", "main", "train")
    text = line(error)
    assert "cannot load grpo-bench-tests/never-downloaded, split 'train', from the hub with HF_HUB_OFFLINE set" in text
    assert text.endswith("give a local folder with task.path=...")


def test_hub_out_of_reach_is_asked_once_without_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    calls = []

    def unreachable(self: object, repo_id: str, **options: Any) -> None:
        calls.append((repo_id, options))
        raise OSError("[Errno -2] Name or service not known")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    monkeypatch.setitem(sys.modules, "datasets", None)  # importing it would raise
    with pytest.raises(UserError) as error:
        read_hub("openai/gsm8k", "main", "train")
    assert calls == [("openai/gsm8k", {"timeout": 10})]
    assert line(error) == (
        "cannot reach the hub for openai/gsm8k ([Errno -2] Name or service not known); give a local folder with "
        "task.path=..., or set HF_HUB_OFFLINE=1 when it was downloaded before"
    )


def test_hub_rows_are_those_of_the_revision_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = {}

    def load_dataset(name: str, config: str | None, **options: Any) -> list[dict[str, Any]]:
        asked.update(options, name=name, config=config)
        return ROWS

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: SimpleNamespace(sha="abc"))
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    rows = read_split(None, "openai/gsm8k", "main", "train")
    assert values(rows) == ROWS
    assert rows[1].where == "openai/gsm8k train, row 2"
    assert asked == {"name": "openai/gsm8k", "config": "main", "split": "train", "revision": "abc"}


def test_the_datasets_library_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` takes a folder laid out as on the hub for a data set: the same call as for the hub, without a net."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write(tmp_path / "set", "train.jsonl", ROWS)
    assert values(read_hub(str(tmp_path / "set"), None, "train")) == ROWS
    with pytest.raises(UserError, match=r"cannot load .*split 'test'.*give a local folder"):
        read_hub(str(tmp_path / "set"), None, "test")
