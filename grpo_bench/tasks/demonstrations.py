"""Responses to imitate in the warm start, of three kinds.

worked: the whole solution with its marked answer; bare: the marked answer alone; unmarked: the solution without the
mark. A mixture leaves reinforcement learning something to prefer.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from grpo_bench.tasks.latex import last_boxed
from grpo_bench.types import Problem, UserError

KINDS = ("worked", "bare", "unmarked")


def kind_of(shares: Mapping[str, float], seed: int, index: int) -> str:
    """The kind of the index-th demonstration: drawn by ``shares`` (they sum to 1) from a hash of (seed, index)."""
    digest = hashlib.blake2b(f"demonstration {seed} {index}".encode(), digest_size=8).digest()
    left = int.from_bytes(digest, "big") / 2**64
    for kind in KINDS:
        left -= shares.get(kind, 0.0)
        if left < 0:
            return kind
    # Shares such as three times 1/3 may sum to a hair under 1.
    return next(kind for kind in reversed(KINDS) if shares.get(kind, 0.0) > 0)


def demonstrate(rule: str, problem: Problem, kind: str) -> str:
    """The response of one kind; ``rule`` is the task's answer rule. Raises UserError when there is no solution."""
    if kind == "bare":
        return marked(rule, problem.answer)
    if not problem.solution:
        raise UserError(
            f"{problem.id} has no worked solution to imitate; give solutions, or use "
            "task.demonstrations={worked:0,bare:1,unmarked:0}, or no warm start (model.warmstart.steps=0)"
        )
    return problem.solution if kind == "worked" else unmarked(rule, problem.solution)


def marked(rule: str, answer: str) -> str:
    """The answer as the strict extraction of ``rule`` wants it."""
    return f"#### {answer}" if rule == "gsm8k" else f"\\boxed{{{answer}}}"


def ensure_marked(rule: str, solution: str, answer: str) -> str:
    """``solution`` with its answer marked: gsm8k's mark as the last line, a box where there is none yet."""
    if rule == "math" and last_boxed(solution):
        return solution
    return f"{unmarked(rule, solution)}\n{marked(rule, answer)}"


def unmarked(rule: str, solution: str) -> str:
    """The solution without its mark: cut before the last ``####``, or its boxes replaced by what is in them."""
    if rule == "gsm8k":
        return solution.rpartition("####")[0].rstrip() if "####" in solution else solution.rstrip()
    return _unbox(solution).rstrip()


def _unbox(text: str) -> str:
    """``text`` with every \\boxed{...} and \\fbox{...} replaced by its content; without braces the command goes."""
    while (match := _BOX.search(text)) is not None:
        before, rest = text[: match.start()], text[match.end() :]
        depth = 0
        for brace in _BRACE.finditer(rest) if rest.startswith("{") else ():
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if depth == 0:
                rest = rest[1 : brace.start()] + rest[brace.end() :]
                break
        text = before + rest
    return text


_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is none
