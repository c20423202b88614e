"""Equivalence by math-verify in processes with limits: right, bounded, counted, and gone when it is over."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from grpo_bench.tasks.grading import Grade, grade
from grpo_bench.tasks.latex import last_boxed
from grpo_bench.tasks.verifier import Verdict, Verifier
from grpo_bench.tasks.verify_worker import compare

SECONDS = 1.0


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier(SECONDS, workers=1) as running:
        yield running


@pytest.mark.parametrize(
    ("gold", "answer", "equal"),
    [
        ("x^2-1", "(x-1)(x+1)", True),
        ("x^2-1", "(x-1)(x+2)", False),
        (r"3\sqrt{2}", r"\sqrt{18}", True),
        (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}", True),
        (r"2+\sqrt{3}", r"2-\sqrt{3}", False),
        (r"\frac13", "0.333333", True),
        ("2^{10}", "1024", True),
        ("x=5", "5", True),
        ("1,2,3", "3,2,1", True),
        (r"\pm 2", "-2, 2", True),
        ("(1,2)", "(2,1)", False),
        ("[0,1]", "(0,1)", False),
        (r"(5,\infty)", "x > 5", True),
        ("3+4i", "4i+3", True),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}", False),
        (r"\text{even}", r"\text{odd}", False),
        ("5", "5, 6", False),
    ],
)
def test_equivalence(verifier: Verifier, gold: str, answer: str, equal: bool) -> None:
    assert verifier.equivalent([(gold, answer)])[0].equal is equal


HOSTILE = [
    "9^{9^{9^9}}",
    "((9!)!)!",
    r"10^{10^{10}}",
    r"\sum_{n=1}^{10^9} \frac{1}{n^3}",
    "{" * 450 + "}" * 450,
]


@pytest.mark.parametrize("expression", HOSTILE)
def test_hostile_expressions_cost_their_limit_and_are_wrong(verifier: Verifier, expression: str) -> None:
    before = verifier.verifier_timeouts + verifier.verifier_errors
    started = time.monotonic()
    assert not verifier.equivalent([("5", expression)])[0].equal
    assert verifier.equivalent([("x+1", "1+x")])[0].equal  # the next one has a worker
    assert time.monotonic() - started < 60  # a busy machine included; it would run for hours
    assert verifier.verifier_timeouts + verifier.verifier_errors == before + 1
    # the same again costs nothing, and counts the same
    verifier.equivalent([("5", expression)])
    assert verifier.verifier_timeouts + verifier.verifier_errors == before + 2


@pytest.mark.parametrize(
    "response",
    [
        r"\boxed{9**9**9**9}",
        r"\boxed{" + "x" * 100_000 + "}",
        "x" * 100_000,
        r"$" * 100_000,
        r"\boxed{" * 5_000,
        r"\boxed{5",
        r"\boxed{__import__('os').system('touch PWNED')}",
        "answer: __import__('os').system('touch PWNED')",
        "\ud800 \x00 \\boxed{\ud800}",
        "",
    ],
    ids=lambda response: response[:20].encode("unicode_escape").decode(),
)
def test_hostile_responses_are_wrong_and_run_nothing(
    verifier: Verifier, response: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    graded = grade("math", ["5"], [response], verifier)[0]
    assert (graded.strict, graded.flexible) == (False, False)
    assert list(tmp_path.iterdir()) == []


def test_the_worker_refuses_processes_network_and_writing(tmp_path: Path) -> None:
    """The audit hook, in a process of its own: it cannot be taken off again."""
    worker = Path(__file__).resolve().parent.parent / "grpo_bench" / "tasks"
    script = f"""
import sys, os, socket, subprocess
sys.path.append({str(worker)!r})
import verify_worker
sys.addaudithook(verify_worker._refuse)
def refused(function, *args):
    try:
        function(*args)
    except PermissionError:
        return True
    return False
print([refused(os.system, "true"), refused(subprocess.run, ["true"]), refused(socket.socket),
       refused(open, {str(tmp_path / "f")!r}, "w"), refused(os.fork), refused(open, os.devnull)])
"""
    out = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[True, True, True, True, True, False]"
    assert not (tmp_path / "f").exists()


def test_flexible_is_the_last_expression_found(verifier: Verifier) -> None:
    golds = ["5", "5", r"\frac{1}{2}", "5", "43_5."]
    responses = [
        "so $x = 5$",
        r"\boxed{4}. The final answer is $5$.",
        r"$2$, then $\frac{2}{4}$",
        "nothing to see",
        r"the final answer is $\boxed{43_5.}$",  # found, not parsed, and spelled the same
    ]
    assert grade("math", golds, responses, verifier) == [
        Grade(False, True, "x = 5"),
        Grade(False, True, "4", marked=True),
        Grade(False, True, r"\frac{2}{4}"),
        Grade(False, False, None),
        Grade(True, True, "43_5.", marked=True),
    ]


def test_without_a_verifier_one_is_made_for_the_call() -> None:
    assert grade("math", ["x+1"], [r"\boxed{1+x}"])[0].strict


def test_limits_hold_outside_the_main_thread(verifier: Verifier) -> None:
    verdicts: list[Verdict] = []
    thread = threading.Thread(
        target=lambda: verdicts.extend(verifier.equivalent([("7", "7^{7^{7^{7^7}}}"), ("x+7", "7+x")]))
    )
    thread.start()
    thread.join(60)
    assert [verdict.equal for verdict in verdicts] == [False, True]


def test_several_workers_give_the_verdicts_of_one(verifier: Verifier) -> None:
    pairs = [(f"x+{i}", f"{i % 7}+x") for i in range(30)]
    with Verifier(SECONDS, workers=2) as two:
        assert two.equivalent(pairs) == verifier.equivalent(pairs)
    assert [verdict.equal for verdict in verifier.equivalent(pairs)] == [i == i % 7 for i in range(30)]


def test_a_killed_worker_is_replaced() -> None:
    with Verifier(SECONDS, workers=1) as verifier:
        assert verifier.equivalent([("x+1", "1+x")])[0].equal
        os.killpg(verifier._running[0].process.pid, signal.SIGKILL)
        assert verifier.equivalent([("x+2", "2+x")])[0] == Verdict(False, "error")
        assert verifier.verifier_errors == 1
        verifier.close()
        assert verifier.equivalent([("x+3", "3+x")])[0].equal  # closed is not the end


def test_no_process_outlives_a_killed_parent() -> None:
    script = """
import os, signal, threading, time
from grpo_bench.tasks.verifier import Verifier
verifier = Verifier(1.0, workers=1)
verifier.equivalent([("x+1", "1+x")])
print(verifier._running[0].process.pid, flush=True)
threading.Thread(target=verifier.equivalent, args=([("5", "9^{9^{9^9}}")],), daemon=True).start()
time.sleep(0.2)
os.kill(os.getpid(), signal.SIGKILL)
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False).stdout
    group = int(out)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and alive(group):
        time.sleep(0.1)
    assert not alive(group)


def alive(group: int) -> bool:
    """Whether a process of the group runs; what nobody has collected yet does not count."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            return True
    return False


def test_the_worker_needs_neither_torch_nor_this_package(verifier: Verifier) -> None:
    verifier.equivalent([("x+9", "9+x")])
    maps = Path(f"/proc/{verifier._running[0].process.pid}/maps")
    if not maps.exists():
        pytest.skip("no /proc here")
    assert "torch" not in maps.read_text()


def golds(data: Path) -> list[tuple[tuple[str, int], str]]:
    found = []
    for split in ("train", "test"):
        with open(data / "math" / f"{split}.jsonl", encoding="utf-8") as file:
            found += [((split, i), last_boxed(json.loads(line)["solution"]) or "") for i, line in enumerate(file)]
    return found


# What math-verify itself cannot find equal to itself, written as data sets write it; spelling decides these.
# Empty boxes (a defect of the data), and a time of day, whose difference 05:00 - 05:00 is a division by zero.
UNPARSED = {("train", 5529), ("train", 5531), ("train", 5783)}


def test_math_verify_reads_gold_answers(shared_data: Path) -> None:
    sample = [
        (place, gold) for place, gold in random.Random(0).sample(golds(shared_data), 150) if place not in UNPARSED
    ]
    assert [place for place, gold in sample if not compare("expression", gold, gold)[0]] == []


@pytest.mark.slow
def test_math_verify_reads_every_gold_answer(shared_data: Path) -> None:
    with Verifier(workers=1) as verifier:
        everything = golds(shared_data)
        asked = [verifier.ask("expression", gold, gold) for _, gold in everything]
        verdicts = [one.result() for one in asked]
    assert {place for (place, _), verdict in zip(everything, verdicts, strict=True) if not verdict.equal} == UNPARSED
