"""What is wrong with a reward's configuration, found before a run without loading anything."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from grpo_bench.types import UserError

if TYPE_CHECKING:
    from grpo_bench.config import Config

KNOBS = ("format", "length", "overlong", "repetition", "model", "function")  # nodes of the parts of these names


def contradictions(cfg: Config) -> list[str]:
    """One line for each setting that cannot be meant."""
    from grpo_bench.rewards import PARTS

    reward, problems = cfg.reward, []
    if not reward.parts:
        problems.append(f"reward.parts is empty; give at least one of {', '.join(PARTS)}")
    elif not any(reward.parts.values()):
        problems.append("reward.parts: all weights are 0, so that every reward is; give one of them another weight")
    problems += [f"reward.parts.{n} is not known; choose {', '.join(PARTS)}" for n in reward.parts if n not in PARTS]
    if "model" in reward.parts and reward.model.path is None and reward.model.id is None:
        problems.append("reward.parts.model needs reward.model.path=a folder or reward.model.id=owner/name")
    if reward.model.path is not None and reward.model.revision is not None:
        problems.append(
            f"reward.model.revision={reward.model.revision} is of the hub, and reward.model.path={reward.model.path} "
            "wins over it; drop one"
        )
    if "function" in reward.parts and reward.function is None:
        problems.append("reward.parts.function needs reward.function=path/to/file.py:name or package.module:name")
    if reward.format.pattern is not None:
        try:
            re.compile(reward.format.pattern, re.DOTALL)
        except re.error as e:
            problems.append(f"reward.format.pattern is no regular expression: {e}")
    return problems + _overlong(cfg) + _normalised(cfg)


def _overlong(cfg: Config) -> list[str]:
    from grpo_bench.rewards.overlong import limits

    longest, buffer = limits(cfg)
    if "overlong" in cfg.reward.parts and buffer > longest:
        return [f"reward.overlong.buffer={buffer} is longer than the {longest} tokens that it is the end of"]
    return []


def _normalised(cfg: Config) -> list[str]:
    mode = cfg.reward.normalise
    if mode == "none":
        return []
    problems = []
    if cfg.group_size == 1:
        problems.append(f"reward.normalise={mode} with group_size=1 makes every reward 0; give a larger group_size")
    if cfg.algo.extra_rollouts != "none":
        problems.append(
            f"reward.normalise={mode} does not fit algo={cfg.algo.name}: what it compares the rewards with is not "
            "normalised in their groups; give reward.normalise=none"
        )
    return problems


def warnings(cfg: Config) -> list[str]:
    """One line for each setting that is inert or means the opposite of its name."""
    reward, found = cfg.reward, []
    for name in KNOBS:
        if name not in reward.parts and getattr(reward, name) != type(reward).model_fields[name].default:
            found.append(f"reward.{name} is inert: reward.parts has no {name}")
    for name in ("overlong", "repetition"):
        if reward.parts.get(name, 0.0) < 0:
            found.append(f"reward.parts.{name}={reward.parts[name]:g} rewards what the part penalises: it is 0 or less")
    for name in ("length", "overlong"):
        limit = getattr(reward, name).max_length
        if name in reward.parts and limit is not None and limit > cfg.task.max_new_tokens:
            found.append(f"reward.{name}.max_length={limit} is never reached: task.max_new_tokens is less")
    if {"correct", "length"} <= reward.parts.keys():
        found.append("reward.parts has correct and length: the cosine reward of length holds correctness already")
    return found


def missing(cfg: Config) -> list[str]:
    """One line for each file that a run would stumble over."""
    from grpo_bench.rewards import function

    reward, problems = cfg.reward, []
    if "function" in reward.parts and reward.function is not None:
        try:
            function.load(reward.function)
        except UserError as e:
            problems.append(str(e))
    if "model" in reward.parts and reward.model.path is not None:
        problems += _model_folder(reward.model.path)
    return problems


def _model_folder(path: str) -> list[str]:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return [
            f"reward.model.path={path}: there is no such folder; give another one, or train a reward model for it: "
            "python -m grpo_bench.reward_training"
        ]
    if not (folder / "config.json").is_file():
        return [f"reward.model.path={path} holds no config.json; give a Hugging Face folder"]
    if not any(folder.glob("*.safetensors")):
        return [f"reward.model.path={path} holds no .safetensors file; pickled weights are not loaded"]
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as e:
        return [f"reward.model.path={path}: its config.json cannot be read ({e})"]
    labels = content.get("id2label")
    outputs = len(labels) if isinstance(labels, dict) else content.get("num_labels", 2)  # transformers' default
    if outputs != 1:
        return [f"reward.model.path={path} has {outputs} outputs, a reward model has one (num_labels: 1)"]
    return []
