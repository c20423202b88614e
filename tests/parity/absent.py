"""Import a module of an installed package without the packages that it needs elsewhere.

Training systems import their clusters and kernels at the top of every file, so their few lines of mathematics cannot be
called without them. Here what is absent is replaced by empty modules, for the time of the import alone.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
import types
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Nothing:
    """What an absent name is: a class to inherit from, a decorator that changes nothing, a value without content."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        decorates = len(args) == 1 and not kwargs and callable(args[0])
        return args[0] if decorates else Nothing()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing()

    def __mro_entries__(self, bases: tuple[type, ...]) -> tuple[type, ...]:
        return (Nothing,)


class Empty(types.ModuleType):
    """A module in which every name is there and nothing is."""

    __path__: Sequence[str] = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing() if name[0].islower() else type(name, (Nothing,), {})


class Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, names: Sequence[str]) -> None:
        self.names = set(names)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in self.names:
            return None
        if sys._getframe(2).f_globals.get("__name__") == "importlib.util":
            return None  # not imported but asked for: transformers remembers the answer, and it is not installed
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


@contextmanager
def without(names: Sequence[str], folder: Path) -> Iterator[None]:
    """Imports find packages in ``folder`` too, and an empty module for each of ``names`` that is not installed.

    Afterwards the empty modules are gone from ``sys.modules``: nobody else may take them for the real ones.
    """
    absent = [name for name in names if importlib.util.find_spec(name) is None]
    finder = Absent(absent)
    sys.meta_path.append(finder)
    sys.path.append(str(folder))  # at the end: what is installed properly comes first
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.path.remove(str(folder))
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] in finder.names]:
            del sys.modules[name]


def version(package: str, folder: Path) -> str | None:
    """Of a package that lies in ``folder``, or None."""
    found = list(importlib.metadata.distributions(name=package, path=[str(folder)]))
    return found[0].version if found else None
