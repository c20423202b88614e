"""What a configuration points at and a run would stumble over: absent paths, packages, devices and names."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from grpo_bench import device
from grpo_bench.config import Config
from grpo_bench.config_errors import nearest
from grpo_bench.rewards import check as reward_check
from grpo_bench.tasks.data import local_files
from grpo_bench.types import UserError


def missing(cfg: Config, elsewhere: bool) -> list[str]:
    """What a run would stumble over after minutes: absent paths, packages, devices (of this machine), names."""
    problems = []
    for key, path in (
        ("task.path", cfg.task.path),
        ("task.math500_path", cfg.task.math500_path),
        ("model.path", cfg.model.path),
    ):
        if path is not None and not Path(path).expanduser().exists():
            problems.append(f"{key}={path}: there is no such file or folder")
    if not problems:
        try:
            local_files(cfg.task)
        except UserError as e:
            problems.append(str(e))
    problems += reward_check.missing(cfg)
    for key, where in (("device", cfg.device), ("reward.model.device", cfg.reward.model.device)):
        if where == "cuda" and not elsewhere and not device.cuda_available():
            problems.append(f"{key}=cuda: no CUDA device is visible to this torch; use {key}=cpu")
    needs = [("wandb", f"tracker={cfg.tracker.name}")] if cfg.tracker.name == "wandb" else []
    needs += [("tensorboard", "tracker=tensorboard")] if cfg.tracker.name == "tensorboard" else []
    needs += [("peft", "model.lora")] if cfg.model.lora is not None else []
    needs += [("gguf", "a GGUF file")] if str(cfg.model.path or "").endswith(".gguf") else []
    for package, what in needs:
        if importlib.util.find_spec(package) is None:
            problems.append(f"{what} needs the package {package}; pip install {package}")
    names = _arms_and_algorithms()
    for arm in dict.fromkeys(row.partition(" ")[0] for row in cfg.study.rows()):
        if arm not in names:
            problems.append(f"study: arm {arm!r} is not known{nearest(arm, names)}")
    return problems


def _arms_and_algorithms() -> list[str]:
    from hydra.core.global_hydra import GlobalHydra

    from grpo_bench.algos import ALGORITHMS

    return [*GlobalHydra.instance().config_loader().get_group_options("arm"), *ALGORITHMS]
