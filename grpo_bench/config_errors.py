"""Errors of the configuration in the user's words: what is wrong, where a key belongs, which name is nearest."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

from grpo_bench.types import UserError


class ConfigError(UserError):
    """A configuration that cannot run; ``lines`` has one line per problem."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("; ".join(lines))
        self.lines = lines


def key_paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key of a schema by its dotted path, nested models included."""
    for name, info in model.model_fields.items():
        key = f"{prefix}{info.alias or name}"
        yield key
        for part in typing.get_args(info.annotation) or (info.annotation,):
            if _is_model(part):
                yield from key_paths(part, f"{key}.")


def open_dicts(model: type[BaseModel], prefix: str = "") -> set[str]:
    """Keys of a schema whose entries have names of the user's choice, such as the parts of a reward."""
    return {key for key in key_paths(model, prefix) if typing.get_origin(_annotation(model, key)) is dict}


def _annotation(model: type[BaseModel], key: str) -> Any:
    first, _, rest = key.partition(".")
    found = model.model_fields[first].annotation
    if not rest:
        return found
    inner = next(part for part in typing.get_args(found) or (found,) if _is_model(part))
    return _annotation(inner, rest)


def _is_model(part: Any) -> bool:
    return isinstance(part, type) and not isinstance(part, types.GenericAlias) and issubclass(part, BaseModel)


def _algorithm_keys(node: dict[str, Any] | None) -> tuple[set[str], dict[str, list[str]]]:
    """Keys of this run's algorithm, and all algorithms' keys with the names of those that have them."""
    from grpo_bench import algos

    owners: dict[str, list[str]] = {}
    for name, cls in algos.ALGORITHMS.items():
        for key in key_paths(cls, "algo."):
            owners.setdefault(key, []).append(name)
    try:
        mine = set(key_paths(algos.algorithm_class(node or {}), "algo."))
    except UserError:
        mine = set()
    return mine, owners


def quoted(names: list[str]) -> str:
    """'a', 'b' or 'c'."""
    return " or ".join(filter(None, [", ".join(map(repr, names[:-1])), repr(names[-1])]))


def nearest(name: str, known: list[str] | set[str], n: int = 2) -> str:
    """``; did you mean 'x'?``, or nothing where no name is near."""
    near = difflib.get_close_matches(name, sorted(known), n=n, cutoff=0.6)
    return f"; did you mean {quoted(near)}?" if near else ""


def hint(key: str, node: dict[str, Any] | None = None) -> str:
    """One line on a key that does not exist, for a run whose ``algo:`` node is ``node``."""
    from grpo_bench.config import Config

    mine, owners = _algorithm_keys(node)
    known = set(key_paths(Config)) | mine
    name = (node or {}).get("name")
    last = key.rsplit(".", 1)[-1]

    def other(path: str) -> str:
        return f"belongs to {path} of algo={'|'.join(owners[path])}, not to algo={name}"

    if key in owners and key not in mine:
        return f"'{key}' " + other(key).replace(f"{key} of ", "")
    places = sorted(path for path in known if path.rsplit(".", 1)[-1] == last and path != key)
    places = [path for path in places if path.endswith(f".{key}")] or places
    if places and len(places) <= 3:
        return f"'{key}' is not a key; it belongs to {' or '.join(places)}"
    elsewhere = sorted(path for path in owners if path.rsplit(".", 1)[-1] == last and path not in mine)
    if elsewhere:
        return f"'{key}' " + other(elsewhere[0])
    # a typo is looked for among whole paths, then among last names: 'gama' is near gamma, not near algo.gamma
    by_last = {path.rsplit(".", 1)[-1]: path for path in sorted(known | set(owners), key=lambda p: -p.count("."))}
    near = difflib.get_close_matches(key, sorted(known), n=2, cutoff=0.7)
    near = near or [by_last[n] for n in difflib.get_close_matches(last, sorted(by_last), n=2, cutoff=0.7)]
    text = f"unknown option '{key}'"
    if near:
        text += f"; did you mean {quoted(near)}?"
        foreign = [path for path in near if path not in known]
        if foreign:
            text += f" ({', '.join(f'{path} is of algo={chr(124).join(owners[path])}' for path in foreign)})"
    return text


def describe(error: ValidationError, node: dict[str, Any] | None, prefix: tuple[str, ...] = ()) -> list[str]:
    """pydantic's errors, one line each."""
    lines = []
    for item in error.errors():
        loc = [str(part) for part in (*prefix, *item["loc"])]
        key = ".".join(loc)
        message = item["msg"].removeprefix("Value error, ").replace("Input should", "should")
        if item["type"] == "extra_forbidden":
            lines.append(hint(key, node))
        elif item["type"] == "missing":
            lines.append(f"'{key}' is missing from the composed configuration; give {key}=... or add it to the YAML")
        else:
            lines.append(f"{key}={_short(item['input'])}: {message}")
    return lines


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
