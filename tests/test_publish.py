"""A study's tables and figures beside its runs in wandb: as one artifact, offline too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import study_builder

from grpo_bench import publish
from grpo_bench.report.pack import packed_json
from grpo_bench.table.layout import Bold, Sheet
from grpo_bench.types import UserError

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture
def folder(tmp_path) -> Path:
    """A study with its tables made: two arms, a figure, a page and a table of its own."""
    where = tmp_path / "demo-arithmetic"
    for arm, right in (("ppo", 6), ("grpo_g8", 7)):
        study_builder.write_run(where, arm, 0, [1] * right + [0] * (10 - right), base=[1] * 5 + [0] * 5)
    for name in ("table.md", "table.csv", "table.tex", "table.json", "report.html"):
        (where / name).write_text(f"content of {name}")
    (where / "tables").mkdir()
    (where / "tables" / "main.csv").write_text("a,b\n")
    (where / "curves.svg").write_text("<svg/>")
    return where


def test_files_are_tables_page_and_figures(folder):
    names = [str(path.relative_to(folder)) for path in publish.files_of(folder)]
    assert names == [
        "table.md", "table.csv", "table.tex", "table.json", "report.html", "curves.svg", "tables/main.csv",
    ]  # fmt: skip
    (folder / "table.md").unlink()
    with pytest.raises(UserError, match=r"no table.md in .*; make the tables first: python -m grpo_bench.table"):
        publish.files_of(folder)


def test_sheets_become_tables_that_wandb_takes():
    sheet = Sheet("main", "Main", ["", "acc", "acc"], [["ppo", Bold("+1.0"), "2"]])
    assert publish.columns_of(sheet) == ["row", "acc", "acc (3)"]
    assert publish.rows_of(sheet) == [["ppo", "+1.0", "2"]]
    assert all(type(cell) is str for cell in publish.rows_of(sheet)[0])


def test_command_line(tmp_path):
    given = publish.arguments(["results/x", "project=mine", "entity=team", "mode=offline"])
    assert given == publish.Arguments(Path("results/x"), "mine", "team", "offline")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "no study folder given"),
        (["a", "b"], "more than one study folder given"),
        (["a", "mode=fast"], "mode=fast: give auto or online or offline"),
        (["a", "--force"], "unknown argument --force"),
        (["a", "arm=ppo"], "unknown argument arm=ppo"),
        (["nowhere"], "no study at nowhere"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words, line, capsys):
    assert publish.main(words) == 2
    err = capsys.readouterr().err
    assert line in err
    assert err.count("\n") == 1


class Server:
    """A wandb that notes what it is given; ``refuses`` online."""

    def __init__(self, refuses: bool = False) -> None:
        self.refuses = refuses
        self.inits: list[dict[str, Any]] = []
        self.logged: dict[str, Any] = {}
        self.files: list[str] = []
        self.artifacts: list[Any] = []
        self.url, self.dir, self.offline = "https://wandb.test/run", "/x/files", False

    Settings = staticmethod(lambda **_: None)

    def setup(self, **_: Any) -> None: ...

    def teardown(self) -> None: ...

    def init(self, **order: Any) -> Server:
        self.inits.append(order)
        if order["mode"] == "online" and self.refuses:
            raise ConnectionError("server is down\nand more")
        self.offline = order["mode"] == "offline"
        return self

    def log(self, metrics: dict[str, Any]) -> None:
        self.logged |= metrics

    def Table(self, columns: list[str], data: list[list[str]]) -> Any:
        return columns, data

    def Image(self, path: str) -> Any:
        return path

    def Artifact(self, name: str, type: str, metadata: dict[str, Any]) -> Server:
        self.artifacts.append((name, type))
        return self

    def add_file(self, path: str, name: str) -> None:
        self.files.append(name)

    def log_artifact(self, artifact: Server) -> None:
        self.artifacts.append("logged")

    def finish(self, exit_code: int) -> None:
        self.artifacts.append(exit_code)


def test_one_artifact_and_a_table_for_each_sheet(folder, monkeypatch):
    server = Server()
    monkeypatch.setitem(sys.modules, "wandb", server)
    monkeypatch.setenv("WANDB_DATA_DIR", "somewhere")
    said = publish.publish(publish.Arguments(folder, mode="online"))
    assert server.artifacts == [("demo-arithmetic", "study"), "logged", 0]
    assert "report.html" in server.files
    assert "tables/main.csv" in server.files
    (order,) = server.inits
    assert (order["group"], order["job_type"], order["tags"]) == (
        "demo-arithmetic", "tables", ["demo-arithmetic", "demo"],
    )  # fmt: skip
    columns, data = next(value for name, value in server.logged.items() if name.startswith("tables/"))
    assert all(len(row) == len(columns) for row in data)
    assert said.endswith("sent to https://wandb.test/run")


@pytest.mark.parametrize(
    ("task", "question", "sent"),
    [
        ("gsm8k", "How many apples?", False),
        ("custom", "How many apples?", False),
        ("gsm8k", None, True),  # ids alone
        ("gsm8k", ..., False),  # a page that nobody can read
        ("arithmetic", "7 + 5?", True),
    ],
)
def test_questions_that_are_not_ours_are_not_sent(tmp_path, monkeypatch, task, question, sent):
    where = tmp_path / f"demo-{task}"
    changed = {"task": study_builder.config("grpo_g8", "grpo", 0)["task"] | {"name": task}}
    study_builder.write_run(where, "grpo_g8", 0, [1, 0], base=[0, 0], changes=changed)
    answers = "?" if question is ... else packed_json({"problems": [{"id": "a", "question": question, "gold": "1"}]})
    (where / "report.html").write_text(f'<p>Page</p><script id="packed-answers">{answers}</script>')
    (where / "table.md").write_text("table")
    server = Server()
    monkeypatch.setitem(sys.modules, "wandb", server)
    monkeypatch.setenv("WANDB_DATA_DIR", "somewhere")
    said = publish.publish(publish.Arguments(where, mode="online"))
    assert server.files == ["table.md", *(["report.html"] if sent else [])]
    kept = f"; report.html stays here, since it holds questions of {task}"
    assert said.startswith(f"{1 + sent} files and ")
    assert said.endswith(kept) == (not sent)


def test_a_server_that_is_down_is_offline_unless_online_was_asked_for(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", Server(refuses=True))
    monkeypatch.setenv("WANDB_DATA_DIR", "somewhere")
    monkeypatch.setenv("WANDB_MODE", "online")
    assert publish.publish(publish.Arguments(folder)).startswith("offline: ")
    assert "warning: wandb is offline (server is down)" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"wandb refuses \(server is down\)"):
        publish.publish(publish.Arguments(folder, mode="online"))


@pytest.mark.parametrize("error", [ValueError("too long\nand more"), ConnectionError()])
def test_what_is_not_sent_is_one_line_and_a_run_that_ended(folder, monkeypatch, capsys, error):
    def refuse(_: Any) -> None:
        raise error

    server = Server()
    server.log_artifact = refuse  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "wandb", server)
    monkeypatch.setenv("WANDB_DATA_DIR", "somewhere")
    assert publish.main([str(folder), "mode=online"]) == 2
    said = str(error).partition("\n")[0] or "ConnectionError"
    assert capsys.readouterr().err.startswith(f"error: not all was sent ({said}); run the same command again")
    assert server.artifacts[-1] == 1  # finished, as failed


def test_an_interrupted_run_ends_too(folder, monkeypatch):
    def interrupt(_: Any) -> None:
        raise KeyboardInterrupt

    server = Server()
    server.log = interrupt  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "wandb", server)
    monkeypatch.setenv("WANDB_DATA_DIR", "somewhere")
    with pytest.raises(KeyboardInterrupt):
        publish.publish(publish.Arguments(folder, mode="online"))
    assert server.artifacts[-1] == 1


def test_a_wandb_that_is_switched_off_is_said(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", Server())
    monkeypatch.setenv("WANDB_DATA_DIR", "somewhere")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with pytest.raises(UserError, match="WANDB_MODE=disabled sends nothing"):
        publish.publish(publish.Arguments(folder))


def test_offline_writes_everything_below_the_study(folder):
    pytest.importorskip("wandb")
    clean = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-m", "grpo_bench.publish", folder.name],
        **{"cwd": folder.parent, "capture_output": True, "text": True},
        env={**clean, "HOME": str(folder.parent / "home"), "WANDB_MODE": "offline", "PYTHONPATH": str(REPO)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("offline: 7 files and ")
    (written,) = folder.glob("wandb/offline-run-*/*.wandb")
    content = written.read_bytes()
    for text in (b"demo-arithmetic", b"report.html", b"tables/main.csv"):
        assert text in content
    assert f"wandb sync {Path(folder.name) / 'wandb' / written.parent.name} sends them" in done.stdout
    assert list(written.parent.glob("files/media/table/tables/*.json"))


def test_tables_are_made_without_wandb():
    code = "import sys, grpo_bench.table.__main__, grpo_bench.publish; sys.exit('wandb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
