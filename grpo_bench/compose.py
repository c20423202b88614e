"""Composition: what Hydra makes of the overrides, its errors in the user's words, and the jobs of a sweep."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from grpo_bench.config import Config, parse
from grpo_bench.config_errors import ConfigError, hint, key_paths, nearest, open_dicts
from grpo_bench.paths import conf_dir
from grpo_bench.types import UserError

EXTRAS = {"joblib": "joblib", "ray": "ray", "submitit_slurm": "slurm", "submitit_local": "slurm"}  # launcher -> extra
_REFUSED = (HydraException, OmegaConfBaseException, YAMLError)
_BLAMED = re.compile(
    r"(?:Could not override|already at|Could not delete from config\.) '([^']+)'|Multiple values for (\S+)\."
)


@contextmanager
def composing(config_dir: str | None = None) -> Iterator[None]:
    """Hydra over ``conf/``, with ``config_dir`` beside it, exactly as ``--config-dir`` puts it."""
    search_path = create_config_search_path(str(conf_dir()))
    if config_dir is not None:
        folder = Path(config_dir).resolve()
        if not folder.is_dir():
            raise UserError(f"--config-dir {config_dir}: there is no such folder")
        search_path.prepend("command-line", f"file://{folder}", anchor=SearchPathQuery(provider="schema"))
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    Hydra.create_main_hydra2(task_name="grpo_bench", config_search_path=search_path)
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = outer


def compose(overrides: list[str], name: str = "config") -> DictConfig:
    """The composed configuration, Hydra's own node included; inside ``composing``.

    Raises ``ConfigError`` with one line per problem: Hydra stops at the first override that it refuses, so the rest is
    composed and parsed without it.
    """
    rest, errors, cfg = list(overrides), [], None
    while cfg is None:
        try:
            cfg = hydra.compose(config_name=name, overrides=rest, return_hydra_config=True)
        except _REFUSED as e:
            errors.append(e)
            kept = [line for line in rest if override_key(line) != _blamed(e) and line != getattr(e, "override", None)]
            if len(kept) == len(rest):
                break
            rest = kept
    if cfg is not None and not errors:
        return cfg
    node = cfg.get("algo") if cfg is not None else None
    algo = {str(key): value for key, value in node.items()} if isinstance(node, DictConfig) else None
    lines = [_explain(e, algo, name) for e in errors]
    if cfg is not None:
        try:
            parse(cfg)
        except ConfigError as e:
            lines += e.lines
        except UserError as e:
            lines.append(str(e))
    raise ConfigError(lines)


def override_key(line: str) -> str:
    """``+algo.gamma=0.9`` -> ``algo.gamma``."""
    return line.partition("=")[0].lstrip("+~").partition("@")[0]


def _blamed(error: Exception) -> str | None:
    """The key of the override that an error of Hydra is about."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return str(Path(error.missing_cfg_file).parent)
    match = _BLAMED.search(str(error))
    return (match[1] or match[2]).partition("@")[0] if match else None


def _explain(error: Exception, algo: dict[str, Any] | None, name: str) -> str:
    text, key = str(error), _blamed(error)
    if isinstance(error, OverrideParseException):
        reason = text.splitlines()[0]
        return f"{error.override!r} is not key=value ({reason}); put quotes around brackets, spaces and commas"
    if isinstance(error, MissingConfigException):
        if "primary config" in text:
            return f"--config-name {name}: no {name}.yaml in conf/ or --config-dir{nearest(name, _primary_names())}"
        stem = Path(error.missing_cfg_file or "").name.removesuffix(".yaml")
        options = list(error.options or [])
        if key == "hydra/launcher" and stem in EXTRAS:
            return f"hydra/launcher={stem} is not installed; pip install 'grpo-bench[{EXTRAS[stem]}]'"
        return f"{key}={stem} is not known{nearest(stem, options)} ({key} has {', '.join(options)})"
    if key is not None and text.startswith("Could not override"):
        full = getattr(error.__cause__, "full_key", None) or key  # of key={entry: value}
        if key in open_dicts(Config):
            return f"'{key}' has no entry {full.removeprefix(key + '.')!r}; a new one is written +{key}.NAME=VALUE"
        return hint(full, algo) if full not in key_paths(Config) else text.splitlines()[0]
    if key is not None and ("already at" in text or text.startswith("Multiple values")):
        return f"'{key}' exists: write {key}=... without +"
    first, *more = text.splitlines()
    return " ".join([first, *more[:1]]) if isinstance(error, YAMLError) else first


def _primary_names() -> list[str]:
    loader = GlobalHydra.instance().config_loader()
    return [option for option in loader.list_groups("") or [] if option] + list(loader.get_group_options(""))


@dataclass(frozen=True, slots=True)
class Expansion:
    """Jobs of a command line: their overrides, and the keys that differ between them."""

    jobs: list[list[str]]
    varying: list[str]  # of a single job of a sweep file those that the file varies
    composed: DictConfig | None = None  # of a single job, which had to be composed to tell
    launcher: str = "basic"  # Hydra's


def expand(overrides: list[str], name: str, multirun: bool) -> Expansion:
    """All jobs, by the rule of Hydra's own sweeper; inside ``composing``.

    Raises UserError for what is wrong with the command line as a whole (several values or a sweep file without
    ``-m``), ``ConfigError`` for what every job shares.
    """
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    try:
        parsed = parser.parse_overrides(overrides)
    except HydraException as e:
        raise UserError(_explain(e, None, name)) from None
    several = [str(o.input_line) for o in parsed if o.is_sweep_override()]
    fixed = [str(o.input_line) for o in parsed if not o.is_sweep_override()]
    if several and not multirun:
        raise UserError(f"{' '.join(several)}: several values; add -m to run them all, or write [a,b] for a list")
    if not multirun and not several:
        cfg = compose(fixed, name)
        params = OmegaConf.select(cfg, "hydra.sweeper.params") or {}
        if params and "hydra.mode=RUN" not in overrides:
            raise UserError(f"{name} is a sweep; add -m to run its jobs")
        # one job of it by itself, as an agent starts it: what the sweep varies names its row
        own = [key for key, value in params.items() if _several(parser, f"{key}={value}")]
        return Expansion([fixed], own, cfg)
    shared = compose(fixed, name)
    params = OmegaConf.select(shared, "hydra.sweeper.params") or {}
    launcher = str(OmegaConf.select(shared, "hydra.runtime.choices.hydra/launcher"))
    ours = [o for o in overrides if not override_key(o).startswith(("hydra.", "hydra/"))]
    hydras = [o for o in overrides if o not in ours]
    try:
        every = parser.parse_overrides([f"{key}={value}" for key, value in params.items()] + ours)
        jobs = BasicSweeper.split_arguments(every, None)[0]
    except HydraException as e:
        raise UserError(_explain(e, None, name)) from None
    return Expansion([job + hydras for job in jobs], varying_keys(jobs), launcher=launcher)


def _several(parser: OverridesParser, override: str) -> bool:
    try:
        return bool(parser.parse_override(override).is_sweep_override())
    except HydraException:  # the sweep file's own fault, which is none of this job's
        return False


def varying_keys(jobs: Sequence[Sequence[str]]) -> list[str]:
    """Keys of the overrides that differ between jobs."""
    values: dict[str, set[str]] = {}
    for job in jobs:
        for line in job:
            values.setdefault(override_key(line), set()).add(line)
    return [key for key, lines in values.items() if len(lines) > 1]
