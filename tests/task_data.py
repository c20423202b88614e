"""Small data sets in the layout of the real ones, and tasks made of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from grpo_bench.config import TaskConfig
from grpo_bench.paths import conf_dir
from grpo_bench.tasks import load_task
from grpo_bench.tasks.dataset import DatasetTask


@lru_cache
def task_file(name: str) -> DictConfig:
    """conf/task/<name>.yaml with what it inherits."""
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        return compose(f"task/{name}").task


def config(name: str, **override: Any) -> TaskConfig:
    """conf/task/<name>.yaml with overrides; nested ones as dicts."""
    merged = OmegaConf.merge(task_file(name), override)
    return TaskConfig.model_validate(OmegaConf.to_container(merged, resolve=True))


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def gsm8k_rows(first: int, n: int) -> list[dict[str, Any]]:
    """Row i: i + i, in 1 + i % 3 steps."""
    lines = [
        ["It is <<0+0=0>>nothing."] * (i % 3) + [f"{i} + {i} = <<{i}+{i}={2 * i}>>{2 * i}"]
        for i in range(first, first + n)
    ]
    return [
        {
            "question": f"What is {first + k} plus {first + k}?",
            "answer": "\n".join(line) + f"\n#### {2 * (first + k):,}",
        }
        for k, line in enumerate(lines)
    ]


def math_rows(first: int, n: int, **extra: Any) -> list[dict[str, Any]]:
    return [
        {"problem": f"Find ${i}^2$.", "level": f"Level {1 + i % 5}", "type": ("Algebra", "Geometry")[i % 2],
         "solution": f"It is $\\boxed{{{i * i}}}$.", **extra}
        for i in range(first, first + n)
    ]  # fmt: skip


def train_ids(task: DatasetTask) -> set[str]:
    return {task.train_problem(i).id for i in range(task.train_size)}


def gsm8k_loader(folder: Path) -> Callable[..., DatasetTask]:
    """Loads a GSM8K of 60 training and 20 test problems, written to ``folder``, with overrides of its config."""
    write(folder / "train.jsonl", gsm8k_rows(0, 60))
    write(folder / "test.jsonl", gsm8k_rows(1000, 20))

    def load(seed: int = 0, name: str = "gsm8k", **override: Any) -> DatasetTask:
        task = load_task(config(name, path=str(folder), **override), seed)
        assert isinstance(task, DatasetTask)
        return task

    return load
