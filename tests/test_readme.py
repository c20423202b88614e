"""What the README says: every command composes, every path exists, its table is one that the program wrote."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from grpo_bench import evaluate_cli, grade
from grpo_bench.explain import __main__ as explain
from grpo_bench.preflight import preflight
from grpo_bench.publish import arguments as publish_arguments
from grpo_bench.report.__main__ import _arguments as report_arguments
from grpo_bench.reproduce.__main__ import arguments as reproduce_arguments
from grpo_bench.reward_training.cli import arguments as reward_arguments
from grpo_bench.selfcheck.cli import read_words
from grpo_bench.speed import cli as speed
from grpo_bench.study.cli import _arguments as study_arguments
from grpo_bench.table.__main__ import _arguments as table_arguments

REPO = Path(__file__).resolve().parent.parent
README = (REPO / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
COMMANDS = [
    line.partition("  #")[0].strip()
    for language, block in BLOCKS
    for line in block.splitlines()
    if not language and line.strip() and "median" not in line  # those are run by test_own_algorithm.py
]
FILES = {block.partition("\n")[0].removeprefix("# "): block for language, block in BLOCKS if language == "python"}


def test_it_has_commands() -> None:
    assert len(COMMANDS) >= 10
    assert COMMANDS[:2] == ["make demo", "make test"]


@pytest.mark.parametrize("line", [c for c in COMMANDS if c.startswith("make ")])
def test_make_targets_exist(line: str) -> None:
    assert re.search(rf"^{line.split()[1]}:", (REPO / "Makefile").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("line", [c for c in COMMANDS if not c.startswith("make ")])
def test_every_command_composes(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        (tmp_path / "data" / f"{split}.jsonl").touch()
    (tmp_path / "model.gguf").touch()
    (tmp_path / "my_rewards.py").write_text(FILES["my_rewards.py"])
    (tmp_path / "my_reward_model").mkdir()
    (tmp_path / "my_reward_model" / "config.json").write_text('{"num_labels": 1}')
    (tmp_path / "my_reward_model" / "model.safetensors").touch()
    here = line.replace("=DIR", f"={tmp_path / 'data'}").replace("=FILE", f"={tmp_path / 'model.gguf'}")
    here = here.replace("=my_", f"={tmp_path}/my_")
    program, *words = shlex.split(here)[1:]
    assert program == "-m"
    module, *words = words
    if module == "grpo_bench.table":
        assert table_arguments(words)[0] is not None
    elif module == "grpo_bench.explain":
        given = explain.arguments(words)
        assert given.table or explain.runs(given)
    elif module == "grpo_bench.reward_training":
        assert reward_arguments(words).out is None
    elif module == "grpo_bench.speed":
        assert speed.check(speed.arguments(words))
    elif module == "grpo_bench.selfcheck":
        assert read_words(words).config_dir is None
    elif module == "grpo_bench.study":
        assert study_arguments(words).what in ("plan", "status", "retry")
    elif module == "grpo_bench.report":
        assert report_arguments(words)[0].parent == Path("results")
    elif module == "grpo_bench.reproduce":
        assert reproduce_arguments(words).folder == Path("results/ppo_vs_grpo-arithmetic")
    elif module == "grpo_bench.publish":
        assert publish_arguments(words).folder.parent == Path("results")
    elif module in ("grpo_bench.diagnose", "grpo_bench.stats.coverage"):
        assert len(words) == 1
    elif module == "grpo_bench.advantage_error":
        assert words[-1] in {path.stem for path in (REPO / "sweeps").glob("*.yaml")}
    elif module == "grpo_bench.grade":
        assert grade.parse_arguments(words).file == Path("responses.jsonl")
    elif module == "grpo_bench.evaluate":
        keys = [word.partition("=")[0] for word in words]
        if "checkpoint" in keys:  # the run's own settings: there is no such run here
            assert set(keys) <= {"checkpoint", "export", "out", "split"}
        else:
            assert evaluate_cli._config_of(words, None).task.name
    else:
        assert module == "grpo_bench"
        multirun = "-m" in words
        given = {k: words[words.index(k) + 1] for k in ("--config-dir", "--config-name") if k in words}
        overrides = [w for w in words if "=" in w]
        if "reward=classifier" in words or "reward_model" in words:  # what a command before it trains
            overrides.append(f"reward.model.path={tmp_path / 'my_reward_model'}")
        name, folder = given.get("--config-name", "config"), given.get("--config-dir")
        plan = preflight(overrides, name, folder, multirun, [])
        assert len(plan.jobs) > 1 if multirun else len(plan.jobs) == 1


def test_every_path_exists() -> None:
    for path in re.findall(r"`([\w./-]+)`", README):
        if re.match(r"(grpo_bench|conf|tests|sweeps)/", path) or path in ("constraints.txt",):
            assert (REPO / path).exists(), path


def test_the_extras_are_those_of_the_package() -> None:
    project = (REPO / "pyproject.toml").read_text()
    for extra in re.findall(r"\[(\w+)\]['`]", README.partition("Extras:")[2].partition("\n\n")[0]):
        assert re.search(rf"^{extra} = \[", project, flags=re.MULTILINE), extra


def test_the_table_was_written_by_the_program() -> None:
    inside = README.partition("<!-- table:demo-arithmetic -->")[2].partition("<!-- /table -->")[0]
    for arm in ("pretrained", "ppo_tuned", "grpo_g8"):
        assert arm in inside
    assert "python -m grpo_bench.table results/demo-arithmetic" in inside
