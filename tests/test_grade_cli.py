"""``python -m grpo_bench.grade``: rows in, graded rows out, a summary, and one line for what is wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from grpo_bench.grade import main


@pytest.fixture
def responses(tmp_path: Path) -> Path:
    return save(
        tmp_path / "responses.jsonl",
        [
            {"response": "9 * 2 = 18\n#### 18", "gold": "16 - 3 - 4 = <<16-3-4=9>>9\n#### 18", "model": "a"},
            {"response": "It is 1,080.", "gold": 1080},
            {"response": "no idea", "gold": "3"},
        ],
    )


def save(file: Path, rows: list[Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_rows_come_back_graded(responses: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["task=gsm8k", f"file={responses}"]) == 0
    out, err = capsys.readouterr()
    graded = [json.loads(line) for line in out.splitlines()]
    assert [(row["strict"], row["flexible"], row["extracted"]) for row in graded] == [
        (True, True, "18"), (False, True, "1080"), (False, False, None),
    ]  # fmt: skip
    assert graded[0]["model"] == "a"
    # Wilson's interval at 1 of 3, z = 1.96: centre (1/3 + 3.8415/6) / (1 + 3.8415/3) = 0.4271, half width 0.3656
    assert "n=3, strict 1/3 = 33.3 % [6.1, 79.2], flexible 2/3 = 66.7 % [20.8, 93.9], unparseable 1" in err


def test_out_holds_the_rows_and_grading_twice_changes_nothing(
    responses: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    assert main(["task=gsm8k", f"file={responses}", f"out={first}"]) == 0
    assert main(["task=gsm8k", f"file={first}", f"out={second}"]) == 0
    assert capsys.readouterr().out == ""
    assert first.read_bytes() == second.read_bytes()
    assert len(first.read_text().splitlines()) == 3


def test_a_record_s_rows_say_how_many_grades_moved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {"strict": True, "flexible": True, "extracted": "18"}
    rows = [
        {"response": "#### 18", "gold": "18", **before},
        {"response": "#### 18.", "gold": "18", **before, "extracted": "18."},
        {"response": "#### 17", "gold": "18", **before},
        {"response": "#### 18", "gold": "18"},
    ]
    file = tmp_path / "eval.jsonl.gz"
    file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    assert main(["task=gsm8k", f"file={file}", f"out={tmp_path / 'now.jsonl'}"]) == 0
    assert capsys.readouterr().err.endswith("; graded otherwise before: 2 of 3\n")
    file.write_bytes(file.read_bytes()[:-9])
    assert main(["task=gsm8k", f"file={file}"]) == 2
    assert "not a readable gzip file" in capsys.readouterr().err


def test_math_takes_expressions_and_solutions_as_gold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"response": r"$\boxed{(x+1)^2}$", "gold": "x^2+2x+1"},
        {"response": r"so $\frac{2}{4}$", "gold": r"Therefore $\boxed{\frac{1}{2}}$."},
        {"response": r"\boxed{9^{9^{9^9}}}", "gold": "5"},
    ]
    arguments = [
        "task=math",
        f"file={save(tmp_path / 'r.jsonl', rows)}",
        "task.verify_seconds=1.0",
        "task.verify_workers=1",
    ]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    graded = [json.loads(line) for line in out.splitlines()]
    assert [(row["strict"], row["flexible"]) for row in graded] == [(True, True), (False, True), (False, False)]
    assert "verifier timeouts 2" in err  # the box, and the same expression in the text


def test_ids_are_looked_up_in_the_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "test"):
        save(data / f"{split}.jsonl", [{"question": f"{split} {i}?", "answer": str(i + 7)} for i in range(5)])
    file = save(tmp_path / "r.jsonl", [{"response": "#### 9", "id": "custom/test/2"}])
    assert main(["task=custom", f"task.path={data}", f"file={file}"]) == 0
    assert json.loads(capsys.readouterr().out)["strict"] is True
    file = save(
        tmp_path / "r.jsonl",
        [{"response": "#### 9", "id": "custom/test/2"}, {"response": "#### 9", "id": "custom/test/77"}],
    )
    assert main(["task=custom", f"task.path={data}", f"file={file}"]) == 2
    assert "r.jsonl:2: task custom has no problem 'custom/test/77'" in capsys.readouterr().err


def test_gsm8k_ids(shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = save(
        tmp_path / "r.jsonl",
        [{"response": "#### 18", "id": "gsm8k/test/0"}, {"response": "#### 3", "id": "gsm8k/test/1"}],
    )
    assert main(["task=gsm8k", f"task.path={shared_data / 'gsm8k'}", f"file={file}"]) == 0
    assert [json.loads(line)["strict"] for line in capsys.readouterr().out.splitlines()] == [True, True]


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ("{", "r.jsonl:2: not JSON"),
        ("[1]", "r.jsonl:2: not a JSON object"),
        ('{"gold": "1"}', "r.jsonl:2: field 'response' must be a string"),
        ('{"response": null, "gold": "1"}', "r.jsonl:2: field 'response' must be a string"),
        ('{"response": "1"}', "r.jsonl:2: neither 'gold' nor 'id'"),
        ('{"response": "1", "gold": "one"}', "r.jsonl:2: gold answer 'one' is not a number"),
        ('{"response": "1", "gold": ["1"]}', "r.jsonl:2: field 'gold' must be a string"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_written(
    row: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "r.jsonl", tmp_path / "out.jsonl"
    file.write_text('{"response": "#### 1", "gold": "1"}\n' + row + "\n")
    assert main(["task=gsm8k", f"file={file}", f"out={out}"]) == 2
    err = capsys.readouterr().err
    assert line in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["r.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["task=gsm8", "file=r"], "task=gsm8 is not known; did you mean 'gsm8k'?"),
        (["tsk=gsm8k", "file=r"], "unknown option 'tsk'; did you mean 'task'?"),
        (["task=gsm8k", "fil=r"], "unknown option 'fil'; did you mean 'file'?"),
        (["task=gsm8k", "file=r", "task.pth=x"], "unknown option 'task.pth'; did you mean 'task.path'"),
        (["task=gsm8k", "file=r", "seed=1"], "unknown option 'seed'; give file=, out=, task= and task.KEY="),
        (["task=gsm8k", "r.jsonl"], "'r.jsonl' is not KEY=VALUE"),
        (["task=gsm8k"], "no file="),
        (["file=r"], "no task="),
        (["task=gsm8k,math", "file=r"], "one task at a time"),
        (["task=gsm8k", "file=a", "file=b"], "file= is given twice"),
        (["task=gsm8k", "file=r", "task.verify_seconds=-1"], "task.verify_seconds=-1: should be greater than 0"),
        (["task=gsm8k", "file=/no/such/file"], "/no/such/file: cannot be read (No such file or directory)"),
    ],
)
def test_a_bad_command_line_gets_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert line in err
    assert (out, err.count("\n")) == ("", 1)


def test_out_is_checked_before_the_work(responses: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["task=gsm8k", f"file={responses}", f"out={tmp_path}"]) == 2
    assert "is a folder" in capsys.readouterr().err
    assert main(["task=gsm8k", f"file={responses}", f"out={tmp_path / 'no' / 'out.jsonl'}"]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert main(["task=gsm8k", f"file={save(tmp_path / 'empty.jsonl', [])}"]) == 2
    assert "no rows" in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out.startswith("usage: python -m grpo_bench.grade")
