r"""Boxed answers and their spelling: what can be said about a LaTeX answer without parsing it.

``normalize`` only removes differences of typesetting, never of value, so equal strings mean equal answers; everything
else is for the verifier. All of it is linear in the length of the text.
"""

from __future__ import annotations

import re
from fractions import Fraction

from grpo_bench.tasks.numbers import parse_number

MAX_ANSWER = 1000
"""Characters of the longest answer that is compared; the longest gold answer of MATH has under 200."""
CLOSE = Fraction(1, 10**5)
"""Numbers that differ by a larger share are never one number rounded; what is nearer is for the verifier."""

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])[ \t]*\n?[ \t]*")
_BARE = re.compile(r"[^\s${}]+")


def last_boxed(text: str) -> str | None:
    r"""Content of the last ``\boxed{...}`` or ``\fbox{...}`` whose braces balance, or the token after ``\boxed 9``.

    Escaped braces do not count. A box that is never closed, as in a truncated response, is no box: the one before it
    counts. None without any. Linear in the length of ``text``.
    """
    starts = [match.end() for match in _BOX.finditer(text)]
    if not starts:
        return None
    closing = _closing_braces(text, starts[0])
    for start in reversed(starts):
        if not text.startswith("{", start):
            bare = _BARE.match(text, start)
            token = re.sub(r"(?:\\[)\]]|[.,;:!?])+$", "", bare[0][:MAX_ANSWER]) if bare else ""
            if token:
                return token
        elif start in closing:
            return text[start + 1 : closing[start]].strip()
    return None


def _closing_braces(text: str, begin: int) -> dict[int, int]:
    """Position of every opening brace from ``begin`` on -> position of the brace that closes it."""
    pairs: dict[int, int] = {}
    opened: list[int] = []
    for match in re.finditer(r"\\.|[{}]", text[begin:], re.DOTALL):
        position = begin + match.start()
        if match[0] == "{":
            opened.append(position)
        elif match[0] == "}" and opened:
            pairs[opened.pop()] = position
    return pairs


_GROUPED = re.compile(r"(?<=[0-9])(?:,\\!|\\!,|\{,\})\s?(?=[0-9]{3}(?![0-9]))")
_MATH_MODE = re.compile(r"(?:\$+|\\\(|\\\[)(.*?)(?:\$+|\\\)|\\\])", re.DOTALL)
_SPACING = re.compile(r"(?<!\\)\\[,!;:> ]|\\(?:quad|qquad|thinspace|displaystyle|textstyle|limits)(?![A-Za-z])|~")
_SIZING = re.compile(r"\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])[ \t]*\.?")
_FRACTION = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_SHORT_FRACTION = re.compile(r"\\frac\s?([0-9]|\{[^{}]*\})\s?([0-9])")
_SHORT_NUMERATOR = re.compile(r"\\frac\s?([0-9])\s?(?=\{)")
_SHORT_ROOT = re.compile(r"\\sqrt\s?([0-9A-Za-z])")
_WORDS = re.compile(r"\\(?:text|mathrm|textrm|textnormal|mbox|textbf|textit|mathbf)\s?\{([^{}]*)\}")
_DEGREES = re.compile(r"\s?(?:\^\s?(?:\{\s?\\circ\s?\}|\\circ(?![A-Za-z]))|\\degree(?![A-Za-z])|°)\s?$")
_SPACE = re.compile(r"(?<![0-9])\s+|\s+(?![0-9])")
_UNIT = re.compile(r"\s?\\(?:text|mathrm|textrm|mbox)\s?\{([^{}0-9]*)\}(\^(?:[0-9]|\{[0-9]\}))?$")
_BASED = re.compile(r"([0-9A-F]{1,60})(?:_\s?\{?\s?([0-9]{1,2})\s?\}?)?")
_CHOICE = re.compile(r"\(([A-Z])\)")


def spelled_out(answer: str) -> str:
    """``answer`` in plain LaTeX: no math mode around it, spacing, sizing and short forms written out."""
    text = answer.strip()
    if math := _MATH_MODE.fullmatch(text):
        text = math[1].strip()
    text = _GROUPED.sub(",", text).replace("\\!", "")
    text = _SIZING.sub("", _SPACING.sub(" ", text))
    text = _FRACTION.sub(r"\\frac", text).replace("\\varnothing", "\\emptyset")
    text = _SHORT_FRACTION.sub(lambda m: f"\\frac{_braced(m[1])}{_braced(m[2])}", text)
    text = _SHORT_NUMERATOR.sub(r"\\frac{\1}", text)
    text = _SHORT_ROOT.sub(r"\\sqrt{\1}", text)
    text = text.strip()
    return text[:-1].rstrip() if text.endswith(".") else text


def _braced(token: str) -> str:
    return token if token.startswith("{") else f"{{{token}}}"


def normalize(answer: str) -> str:
    """One spelling for answers that differ in typesetting only; to compare and to count votes, not to parse."""
    if len(answer) > MAX_ANSWER:
        return answer
    text = spelled_out(answer)
    number, _ = _number(text)
    if number is not None:
        return str(number)
    text = _DEGREES.sub("", _WORDS.sub(r"\1", text))
    text = _SPACE.sub("", text).rstrip(".")
    choice = _CHOICE.fullmatch(text)
    return choice[1] if choice else text


def decide(gold: str, answer: str) -> bool | None:
    """Whether ``answer`` equals ``gold``, where their spelling tells; None where only mathematics does.

    Equal spelling is equal. Numbers are compared exactly: equal ones are equal unless both have units that differ,
    ones that differ by more than rounding (``CLOSE``) are not. An empty answer, and one of more than ``MAX_ANSWER``
    characters, equals nothing.
    """
    if not gold.strip() or not answer.strip() or max(len(gold), len(answer)) > MAX_ANSWER:
        return False
    if gold == answer:
        return True
    (want, want_unit), (got, got_unit) = _number(spelled_out(gold)), _number(spelled_out(answer))
    if want is None or got is None:
        if want is got and normalize(gold) == normalize(answer):
            return True
        return _same_base(gold, answer)
    if {want_unit, got_unit} == {"am", "pm"}:
        return False
    if want == got:
        return True if want_unit == got_unit or not (want_unit and got_unit) else None
    if want_unit or got_unit or abs(want - got) <= CLOSE * max(abs(want), abs(got)):
        return None
    return False


def _same_base(gold: str, answer: str) -> bool | None:
    """Numbers with a base, such as 43_5, whose subscript math-verify overlooks; None where there is none.

    A gold answer's base may be left out, for the question asks for it; a base of the answer may not be wrong.
    """
    want, got = (_BASED.fullmatch(spelled_out(text)) for text in (gold, answer))
    if not want or not got or not (want[2] or got[2]):
        return None
    return want[1] == got[1] and (want[2] or "10") == (got[2] or want[2] or "10")


def _number(text: str) -> tuple[Fraction | None, str]:
    """The number that ``text`` (spelled out) is, and its unit; (None, "") where it is no number."""
    unit = ""
    if degrees := _DEGREES.search(text):
        text, unit = text[: degrees.start()], "degrees"
    elif words := _UNIT.search(text):
        text, unit = text[: words.start()], words[1].strip().replace(".", "").lower() + (words[2] or "")
    elif text.endswith("%"):
        unit = "%"
    if "\\$" in text:
        unit += "$"
    if "e" in text or "E" in text or "\n" in text:  # Euler's number, not an exponent
        return None, ""
    return parse_number(text), unit


def has_expression(text: str) -> bool:
    """False where math-verify finds nothing: an expression has a digit or stands in some LaTeX delimiter."""
    return bool(re.search(r"[0-9$\\\[]", text))
