"""An arm is what its name says: an override that changes what its file sets is refused, unless the sweep varies it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from grpo_bench.config import Config
from grpo_bench.paths import conf_dir


def arm_problems(
    composed: DictConfig, cfg: Config, config_dir: str | None, varying: list[str], alone: Any
) -> list[str]:
    """Differences to the arm's own values and group choices, composed alone; keys that the sweep varies may differ."""
    arm = OmegaConf.select(composed, "hydra.runtime.choices.arm")
    if arm is None:
        return []
    values, groups = _own(arm, config_dir)
    reference, problems = alone(arm), []
    for group in groups:
        mine, arms = (OmegaConf.select(c, f"hydra.runtime.choices.{group}") for c in (composed, reference))
        if mine != arms and group not in varying:
            problems.append(f"{group}={mine} contradicts arm={arm}, which is {group}={arms}; drop one of the two")
    if problems:  # its values are of another algorithm then
        return problems
    for key in values:
        if any(key == v or key.startswith(f"{v}.") or v.startswith(f"{key}.") for v in varying):
            continue
        mine, arms = OmegaConf.select(composed, key), OmegaConf.select(reference, key)
        if mine != arms and not _same_rule(composed, reference, key):
            problems.append(
                f"{key}={mine} contradicts arm={arm}, which has {key}={arms}; drop it, choose another arm, "
                f"or vary it in the sweep ({key}={arms},{mine})"
            )
    return problems


def _same_rule(one: DictConfig, other: DictConfig, key: str) -> bool:
    """Both take the value from elsewhere, by the same interpolation: algo.length of another task is no other arm."""
    parent, _, last = key.rpartition(".")
    nodes = [OmegaConf.select(cfg, parent) if parent else cfg for cfg in (one, other)]
    rules = []
    for node in nodes:
        if OmegaConf.is_interpolation(node, last):
            raw = OmegaConf.to_container(node, resolve=False)
            assert isinstance(raw, dict)
            rules.append(raw[last])
    return len(rules) == 2 and rules[0] == rules[1]


def _own(arm: str, config_dir: str | None) -> tuple[list[str], list[str]]:
    """Keys and groups that an arm's file sets, arms that it builds on included."""
    folders = [Path(config_dir)] if config_dir else []
    file = next(f for d in [*folders, conf_dir()] if (f := d / "arm" / f"{arm}.yaml").is_file())
    content = yaml.safe_load(file.read_text()) or {}
    values = list(_leaves({k: v for k, v in content.items() if k != "defaults"}))
    groups: list[str] = []
    for entry in content.get("defaults", []):
        if isinstance(entry, str) and entry != "_self_":
            more, choices = _own(entry, config_dir)
            values, groups = values + more, groups + choices
        elif isinstance(entry, dict):
            groups += [key.split()[-1].removeprefix("/") for key in entry]
    return values, groups


def _leaves(node: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
