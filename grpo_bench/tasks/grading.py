r"""All answer rules: extraction and equality, one module for training and evaluation alike.

``gsm8k``: strict is the last ``#### n`` (``n`` may be decorated: ``**$1,234.50**.``, ``\boxed{18}``, ``x = 18``,
``18 dollars``), flexible the last number of the response; both are compared with the gold answer as exact numbers.
``math``: strict is the last ``\boxed{}``, flexible the last expression that math-verify finds in the response; both
are compared by mathematical equivalence (verifier.py).

Every worked solution of GSM8K and MATH is right by both rules against its own gold answer but two, whose box is empty:
``math/train/5529`` and ``math/train/5531``. Some 20 solutions of MATH box several values one by one; as everywhere, the
gold answer is the last of them. math-verify, which joins them, finds these wrong by itself.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from grpo_bench.tasks.latex import last_boxed, normalize
from grpo_bench.tasks.numbers import CURRENCY, NUMBER, format_number, parse_number, plain, value
from grpo_bench.types import UserError

if TYPE_CHECKING:
    from grpo_bench.tasks.verifier import Verdict, Verifier

__all__ = [
    "Grade",
    "correct",
    "gold_gsm8k",
    "grade",
    "grade_gsm8k",
    "grade_math",
    "grade_math_soon",
    "last_boxed",
    "vote_key",
]

Rule = Literal["gsm8k", "math"]


@dataclass(frozen=True, slots=True)
class Grade:
    """strict: the marked answer (``#### n``, ``\\boxed{}``) is right; flexible: the last number or expression is."""

    strict: bool
    flexible: bool
    extracted: str | None  # the strictly extracted answer, else the flexible one, else None
    marked: bool = False  # carries an answer in the asked-for form, right or wrong


def correct(grade: Grade, finished: bool) -> bool:
    """The headline: a strict match of an answer that ended by itself; one that was cut counts as wrong."""
    return grade.strict and finished


# After the marker: "Answer:" or "x =", then markup and currency, then one number that no further number, operator
# or alternative follows ("5 + 3", "18 or 20", "2023-05-17", "3:30" mark no single answer).
_PREFIX = r"(?:[^\n0-9#:=]{0,60}[:=]){0,3}+"
_MARKUP = rf"(?:[ \t*_`\"'(\[{{~≈]|\\boxed|\\text|\\math[a-z]+|\\[(\[]|{CURRENCY})*+"
_SINGLE = (
    r"(?![0-9]|\.[0-9]|[,;][ \t]?[0-9]|[ \t]+[0-9]|[ \t]*(?:[-+/^:\u00d7\u00f7x]|\*|\\times|\\cdot|\\div)[ \t]*[0-9(]"
    r"|[ \t]+(?:or|and|to)[ \t]+[-$]?[0-9])"
)
_MARKED = re.compile(
    rf"(?<!#)####(?!#)[ \t]*+{_PREFIX}{_MARKUP}(?P<sign>[-+])?[ \t]?{CURRENCY}?[ \t]?{NUMBER}(?:[ \t]?\\?%)?{_SINGLE}"
)
# A hyphen after a digit, a letter or a bracket is a minus between two numbers or a hyphen, not a sign; digits inside
# a word (x2, H2O) are no numbers.
_ANY = re.compile(
    rf"(?:(?<![0-9A-Za-z_)\]}}%])(?P<sign>[-+])|(?<![0-9A-Za-z_]))(?:{CURRENCY}[ \t]?)?{NUMBER}",
)


def gold_gsm8k(answer: str) -> str:
    """The gold answer of a worked solution that ends in ``#### n``, or of a bare ``n``: one exact spelling.

    Raises ``UserError`` when there is no number.
    """
    text = answer.rpartition("####")[2].strip()
    number = parse_number(text)
    if number is None:
        raise UserError(
            f"gold answer {_shorten(text)!r} is not a number; give a number or a solution ending in '#### n'"
        )
    return format_number(number)


@lru_cache(maxsize=65536)
def _gold_value(answer: str) -> Fraction:
    return Fraction(gold_gsm8k(answer))


def grade_gsm8k(response: str, gold: str) -> Grade:
    """Grade one response against ``gold`` (a number or a worked solution), see the head of this file."""
    want = _gold_value(gold)
    text = plain(response)
    marked = _last(_MARKED, text) if "####" in text else None
    strict = value(marked) if marked else None
    last = _last(_ANY, text)
    if marked and last and marked.start() < last.start() and last.end() <= marked.end():
        flexible = strict  # the same number, whose sign the marker makes certain ("#### - 3")
    else:
        flexible = value(last) if last else None
    found = strict if strict is not None else flexible
    return Grade(strict == want, flexible == want, None if found is None else format_number(found), strict is not None)


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    last = deque(pattern.finditer(text), maxlen=1)
    return last[0] if last else None


def grade_math_soon(response: str, gold: str, verifier: Verifier) -> Future[Grade]:
    r"""Grade one response against the content of the gold box, see the head of this file; without waiting for it.

    An expression that is too much for the verifier is wrong, and counted there.
    """
    from grpo_bench.tasks.verifier import Verdict, known, then

    box = last_boxed(response)

    def flexible(strict: Verdict) -> Grade | Future[Grade]:
        # math-verify looks at boxes before other formulas, so a right box settles it unless the response announces a
        # "final answer" beside it
        if strict.equal and "final answer" not in response.lower():
            return Grade(True, True, box, True)
        return then(
            verifier.find_soon(gold, response),
            lambda last: Grade(strict.equal, last.equal, box or last.found, bool(box)),
        )

    return then(verifier.equivalent_soon(gold, box) if box else known(Verdict(False)), flexible)


def grade_math(responses: Sequence[str], golds: Sequence[str], verifier: Verifier) -> list[Grade]:
    """``grade_math_soon`` of each response with its gold answer."""
    asked = [grade_math_soon(*pair, verifier) for pair in zip(responses, golds, strict=True)]
    return [grade.result() for grade in asked]


def grade(rule: Rule, golds: Sequence[str], responses: Sequence[str], verifier: Verifier | None = None) -> list[Grade]:
    """One grade per (gold, response), in order; never raises on what a model wrote.

    ``rule`` is ``cfg.task.answer``. ``math`` uses ``verifier``; without one it starts one for this call, which takes
    a second or two. Raises ``UserError`` for a gold answer that is no number (``gsm8k``).
    """
    if rule == "gsm8k":
        return [grade_gsm8k(response, gold) for response, gold in zip(responses, golds, strict=True)]
    if len(golds) != len(responses):
        raise ValueError(f"{len(golds)} gold answers for {len(responses)} responses")
    if verifier is not None:
        return grade_math(responses, golds, verifier)
    from grpo_bench.tasks.verifier import Verifier

    with Verifier() as temporary:
        return grade_math(responses, golds, temporary)


def vote_key(rule: Rule, extracted: str) -> str:
    """The spelling under which equal extracted answers meet in a majority vote (maj@k)."""
    return extracted if rule == "gsm8k" else normalize(extracted)


def _shorten(text: str, width: int = 60) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
