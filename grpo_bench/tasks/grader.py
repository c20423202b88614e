"""Which code a run's answers were graded by, as a fingerprint: grades of different code are no pair."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grpo_bench.tasks.grading import Rule

# of each rule the modules of this folder that its grades go through, and the libraries that decide in them
_OWN = ("grading", "latex", "numbers")
MODULES: dict[Rule, tuple[str, ...]] = {"gsm8k": _OWN, "math": (*_OWN, "verifier", "verify_process", "verify_worker")}
LIBRARIES: dict[Rule, tuple[str, ...]] = {
    "gsm8k": (),
    "math": ("math-verify", "sympy", "latex2sympy2_extended", "antlr4-python3-runtime"),
}


@functools.cache
def grader(rule: Rule) -> str:
    """16 hex digits over the code of ``rule`` and the versions of what it calls; comments, docstrings and layout are
    no part of it. A change that alters no grade is seen as one too, since nobody can tell."""
    code = {name: structure(Path(__file__).with_name(f"{name}.py").read_text("utf-8")) for name in MODULES[rule]}
    content = [code, {name: version(name) for name in LIBRARIES[rule]}]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def structure(source: str) -> Any:
    """What a module's source says to Python, as JSON."""
    return _plain(ast.parse(source))


def _plain(node: Any) -> Any:
    """A syntax tree as JSON. As ``ast.dump``, which is not the same in every Python: fields that are absent or empty,
    such as those that a newer one added, are left out."""
    if isinstance(node, ast.AST):
        fields = {name: _plain(value) for name, value in ast.iter_fields(node) if value is not None}
        return [type(node).__name__, {name: value for name, value in fields.items() if value != []}]
    if isinstance(node, list):
        return [_plain(one) for one in node if not _is_docstring(one)]
    return repr(node)  # 1, True, 1.0 and "1" are not the same


def _is_docstring(node: Any) -> bool:
    """Of a module, a class or a function, or of the constant above it: a string that is a statement does nothing."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
