"""The fingerprint of the code that grades: what it covers, and what changes it."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from grpo_bench import provenance
from grpo_bench.reproduce import check
from grpo_bench.tasks import grader as module
from grpo_bench.tasks import grading
from grpo_bench.tasks.grader import LIBRARIES, MODULES, grader, structure

TASKS = Path(grading.__file__).parent
PREFIX = "grpo_bench.tasks."


def imported(name: str, inside_functions: bool) -> set[str]:
    """Modules of tasks/ that one of them imports when it runs; what only a type checker reads left out."""
    tree = ast.parse((TASKS / f"{name}.py").read_text())
    nodes = list(ast.walk(tree)) if inside_functions else tree.body
    return {n.module.removeprefix(PREFIX) for n in nodes if isinstance(n, ast.ImportFrom) and n.module
            and n.module.startswith(PREFIX)}  # fmt: skip


def reached(inside_functions: bool) -> set[str]:
    found, open_ = set(), {"grading"}
    while open_:
        name = open_.pop()
        found.add(name)
        open_ |= imported(name, inside_functions) - found
    return found


def test_the_modules_are_those_that_grading_imports() -> None:
    assert set(MODULES["math"]) == reached(inside_functions=True)
    assert set(MODULES["gsm8k"]) == reached(inside_functions=False)  # a verifier is imported where it is needed
    libraries = {line.split()[1] for line in (TASKS / "verify_worker.py").read_text().splitlines()
                 if line.startswith("    from ")}  # fmt: skip
    assert libraries == {"math_verify"}  # which brings the others
    assert LIBRARIES["math"] == ("math-verify", "sympy", "latex2sympy2_extended", "antlr4-python3-runtime")


def test_what_decides_grades_is_recorded_and_compared() -> None:
    assert set(LIBRARIES["math"]) <= set(provenance.PACKAGES)
    then = {"packages": dict.fromkeys(LIBRARIES["math"], "1")}
    run = SimpleNamespace(provenance=then, config={"task": {"answer": "math"}})
    found = check.surroundings(run, {"packages": dict.fromkeys(LIBRARIES["math"], "2")}, None, [])
    said = {difference.what: difference.changes for difference in found if difference.recorded == "1"}
    assert said == dict.fromkeys(LIBRARIES["math"], True)


@pytest.mark.parametrize(("strict", "finished", "right"), [(True, True, True), (True, False, False),
                                                           (False, True, False)])  # fmt: skip
def test_an_answer_that_was_cut_is_wrong(strict: bool, finished: bool, right: bool) -> None:
    assert grading.correct(grading.Grade(strict, True, "1"), finished) is right
    # the rule stands in this module alone, and so is part of the fingerprint
    for file in TASKS.parent.rglob("*.py"):
        if file != TASKS / "grading.py":
            assert ".strict and " not in file.read_text(), file


def test_comments_docstrings_and_layout_say_nothing() -> None:
    plain = "X = 1\ndef f(a, b=2):\n    return a + b\n"
    wordy = '"""Head."""\nX = 1  # one\n"""Of X."""\n\n\ndef f(a,\n      b=2):\n    """Adds."""\n    return a + b\n'
    assert structure(plain) == structure(wordy)
    for other in ("X = 1.0", "X = True", "X = '1'", "X = 2", "Y = 1"):
        assert structure(plain.replace("X = 1", other)) != structure(plain), other
    assert structure("x = None") != structure("x = ''")
    assert structure("def f(): return ('a',)") != structure("def f(): return ['a']")


def test_fields_that_a_newer_python_adds_empty_are_left_out() -> None:
    # a function in 3.12 has type_params: [] as well
    assert structure("def f(): pass") == [
        "Module",
        {"body": [["FunctionDef", {"name": "'f'", "args": ["arguments", {}], "body": [["Pass", {}]]}]]},
    ]


def test_rules_and_versions_tell_graders_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {rule: grader(rule) for rule in ("gsm8k", "math")}
    assert len({*before.values()}) == 2
    assert all(len(found) == 16 for found in before.values())
    monkeypatch.setattr(sys.modules[module.__name__], "version", lambda name: "0")
    grader.cache_clear()
    after = {rule: grader(rule) for rule in ("gsm8k", "math")}
    grader.cache_clear()
    assert after["gsm8k"] == before["gsm8k"]  # which calls no library
    assert after["math"] != before["math"]


@pytest.mark.parametrize(("rule", "name", "seen"), [("gsm8k", "numbers", True), ("gsm8k", "verifier", False),
                                                    ("math", "verifier", True)])  # fmt: skip
def test_code_of_the_rule_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: grading.Rule, name: str, seen: bool
) -> None:
    before = grader(rule)
    for file in TASKS.glob("*.py"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / f"{name}.py").write_text((TASKS / f"{name}.py").read_text() + "\nADDED = 1\n")
    monkeypatch.setattr(module, "__file__", str(tmp_path / "grader.py"))
    grader.cache_clear()
    after = grader(rule)
    grader.cache_clear()
    assert (after != before) is seen
