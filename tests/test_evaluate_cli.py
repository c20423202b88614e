"""``python -m grpo_bench.evaluate``: models and checkpoints, what it writes, and its one line for bad input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from model_data import SMALL, make
from transformers import AutoModelForCausalLM

from grpo_bench.evaluate import main
from grpo_bench.identity import run_dir
from grpo_bench.run import run

SHORT = (
    *SMALL,
    "threads=1",
    "model.warmstart.steps=4",
    "model.warmstart.batch_size=8",
    "samples_per_step=8",
    "group_size=4",
    "budget.amount=8",
    "lr=0.05",
    "task.max_new_tokens=8",
    "eval.every=0",
    "eval.test_n=6",
    "eval.samples=2",
    "eval.ks=[1,2]",
    "eval.pretrained=false",
    "checkpoint.every=1",
)
LORA = "model.lora={r:2,alpha:64,targets:null}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(autouse=True)
def cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_BENCH_CACHE", str(folder / "cache"))


@pytest.fixture(scope="module")
def lora_run(folder: Path) -> tuple[Path, dict[str, Any]]:
    """A run of adapters on a warm-started model, and its result."""
    os.environ["GRPO_BENCH_CACHE"] = str(folder / "cache")
    cfg = make(*SHORT, f"results={folder / 'results'}", LORA)
    directory = run_dir(cfg)
    result = run(cfg, directory)
    del os.environ["GRPO_BENCH_CACHE"]
    return directory, result


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(list(words)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("keep_cache", [True, False])
def test_a_checkpoint_of_adapters_is_evaluated_on_its_warm_start(
    lora_run: tuple[Path, dict[str, Any]],
    keep_cache: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    directory, result = lora_run
    if not keep_cache:  # then the same warm start is made again
        monkeypatch.setenv("GRPO_BENCH_CACHE", str(tmp_path / "empty"))
    export = tmp_path / "export"
    assert main([f"checkpoint={directory}", f"out={tmp_path / 'out'}", f"export={export}"]) == 0
    captured = capsys.readouterr()
    summary = json.loads(captured.out)
    assert summary["step"] == 1
    assert summary["greedy"] == result["eval"]["final"]["greedy"]
    assert summary["sampled"] == result["eval"]["final"]["sampled"]
    assert summary["greedy"]["len_mean"] > 0
    assert "evaluation" in captured.err
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == summary
    assert len((tmp_path / "out" / "eval.jsonl").read_text().splitlines()) == 6 * 3
    # the exported policy gives the answers of the checkpoint
    exported = AutoModelForCausalLM.from_pretrained(export)
    assert not any("lora" in name for name, _ in exported.named_parameters())
    words = [w for w in SHORT if not w.startswith("model.")]
    assert main([*words, "model=hf", f"model.path={export}", "model.warmstart.steps=0"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["greedy"]["len_mean"] == summary["greedy"]["len_mean"]
    assert again["sampled"]["len_mean"] == summary["sampled"]["len_mean"]


def test_adapters_of_a_warm_start_that_cannot_be_repeated_are_refused(
    lora_run: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    shutil.copytree(lora_run[0], run)
    provenance = json.loads((run / "provenance.json").read_text())
    prints = provenance["attempts"][-1]["fingerprints"]
    prints["warmstart"] = "0" * 16
    (run / "provenance.json").write_text(json.dumps(provenance))
    assert "another warm start than the one made here; give the data" in refusal(capsys, f"checkpoint={run}")
    prints["model"] = "0" * 16
    (run / "provenance.json").write_text(json.dumps(provenance))
    assert "were trained on other weights" in refusal(capsys, f"checkpoint={run}")


@pytest.mark.parametrize("content", ["seed: [1", "- 1\n- 2", "just words", "seed: 1", "\xff\xfe"])
def test_a_damaged_configuration_is_one_line(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_bytes(content.encode("latin-1"))
    assert "config.yaml" in refusal(capsys, f"checkpoint={tmp_path}")


def test_bad_input_is_one_line(
    lora_run: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = f"checkpoint={lora_run[0]}"
    (tmp_path / "file").touch()
    for words, reason in {
        ("checkpoint=nowhere",): "holds no config.yaml",
        (run, "lr=1"): "lr belongs to the run",
        (run, "eval.test_n"): "'eval.test_n' is not key=value",
        (run, "eval.test_n=[1"): "'eval.test_n=[1' cannot be read",
        (run, "eval.test_n=many"): "eval.test_n",
        (run, "eval=3"): "eval",
        (run, f"out={tmp_path / 'file'}"): "cannot be written",
        (run, f"export={tmp_path / 'file' / 'below'}"): "cannot be written",
        (run, "out="): "out= has no value",
        (run, "split=train"): "choose test or dev",
        ("export=here",): "give checkpoint=",
        ("eval.test_n=[1",): "is not key=value",
    }.items():
        assert reason in refusal(capsys, *words), words


def test_how_threads_wait_is_set_before_torch_is_imported() -> None:
    code = (
        "import sys, grpo_bench.evaluate_cli as cli\n"
        "import grpo_bench.evaluate\n"
        "assert 'torch' not in sys.modules\n"
        "import os; os.environ.pop('GOMP_SPINCOUNT', None)\n"
        "def config_of(*_):\n"
        "    assert os.environ['GOMP_SPINCOUNT'] == '20000' and 'torch' not in sys.modules\n"
        "    raise cli.UserError('seen')\n"
        "cli._config_of = config_of\n"
        "assert cli.main([]) == 2\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "error: seen\n"


def test_threads_are_those_of_the_configuration(
    lora_run: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    assert main([f"checkpoint={lora_run[0]}", "eval.samples=0", "eval.ks=[]", "eval.test_n=1"]) == 0
    assert asked == [1]
