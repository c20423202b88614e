r"""Numbers as people and models write them, read exactly: thousands separators, currency, percent, fractions.

Values are ``fractions.Fraction``, never floats, and nothing is evaluated. Work is bounded: a number of more than
``MAX_DIGITS`` digits or with an exponent beyond ``MAX_EXPONENT`` is no answer to any problem and reads as None.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

MAX_DIGITS = 400
MAX_EXPONENT = 300

_MINUS = "\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d"  # hyphens, figure and en dash, minus, small and full-width forms
_VULGAR = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5",
           "⅘": "4/5", "⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8"}  # fmt: skip
_TABLE = str.maketrans(
    dict.fromkeys(_MINUS, "-")
    | {chr(0xFF10 + d): str(d) for d in range(10)}
    | {"\u2044": "/", "\u2215": "/", "\u066c": ",", "\uff0c": ",", "\uff0e": ".", "\uff05": "%", "\uff03": "#"}
)
_VULGAR_FRACTION = re.compile(f"([0-9]?)([{''.join(_VULGAR)}])")
_NARROW_SPACE = re.compile(r"(?<=[0-9])[\u00a0\u2009\u202f](?=[0-9]{3}(?![0-9]))")
_LATEX_COMMA = re.compile(r"(?<=[0-9])(?:\{,\}|,\\!|\\!,|\\,)(?=[0-9]{3}(?![0-9]))")
_LATEX_FRACTION = re.compile(
    r"([0-9]?)\\[dtc]?frac\s?(?:\{\s?(-?[0-9.,]+)\s?\}\s?\{\s?([0-9.,]+)\s?\}|([0-9])\s?([0-9]))"
)

# Possessive quantifiers: what a run of digits has taken is never given back, so hostile text costs linear time.
_UNSIGNED = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})++(?![0-9])|[0-9]++)(?:\.[0-9]++)?|\.[0-9]++)"
CURRENCY = r"(?:\\?\$|[€£¥₹₽₩₱₦฿₫₪₴]|USD|US\\?\$|Rs\.?)"
NUMBER = (
    rf"(?P<number>{_UNSIGNED})(?:[eE](?P<exponent>[-+]?[0-9]++))?"
    rf"(?:(?P<mixed>[ \t]++[0-9]++)?[ \t]?/[ \t]?(?P<denominator>{_UNSIGNED}))?"
)
"""One unsigned number, to be compiled with a group ``sign`` before it; a mixed number begins with its whole part."""

_WHOLE = re.compile(rf"\s*{CURRENCY}?\s*(?P<sign>[-+])?\s*{CURRENCY}?\s*{NUMBER}\s*(?:\\?%|percent)?\s*\.?\s*")


def plain(text: str) -> str:
    """``text`` with the signs, digits, separators and fractions of other scripts and of LaTeX as ASCII."""
    if not text.isascii():
        text = _VULGAR_FRACTION.sub(lambda m: f"{m[1]} {_VULGAR[m[2]]}" if m[1] else _VULGAR[m[2]], text)
        text = _NARROW_SPACE.sub("", text).translate(_TABLE)
    if "\\" in text or "{" in text:
        text = _LATEX_COMMA.sub(",", text)
        text = _LATEX_FRACTION.sub(_ascii_fraction, text)
    return text


def _ascii_fraction(match: re.Match[str]) -> str:
    fraction = f"{match[2] or match[4]}/{match[3] or match[5]}"
    return f"{match[1]} {fraction}" if match[1] else fraction


def value(match: re.Match[str]) -> Fraction | None:
    """The exact value of a match of ``NUMBER``; None for a zero denominator and for numbers beyond the bounds."""
    number = _decimal(match["number"])
    if number is None:
        return None
    if match["exponent"]:
        exponent = match["exponent"]
        if len(exponent) > 4 or abs(int(exponent)) > MAX_EXPONENT:
            return None
        number *= Fraction(10) ** int(exponent)
    if match["denominator"]:
        denominator = _decimal(match["denominator"])
        numerator = _decimal(match["mixed"].strip()) if match["mixed"] else number
        if not denominator or numerator is None:
            return None
        number = (number if match["mixed"] else 0) + numerator / denominator
    return -number if match["sign"] == "-" else number


def _decimal(digits: str) -> Fraction | None:
    digits = digits.replace(",", "")
    return Fraction(digits) if len(digits) <= MAX_DIGITS else None


@lru_cache(maxsize=65536)
def parse_number(text: str) -> Fraction | None:
    """The value of a text that is one number and nothing else (``$1,234.50``, ``-3``, ``5%``, ``1 1/2``), or None.

    A percent sign is dropped, not applied: ``5%`` is 5, as in the gold answers of GSM8K.
    """
    if len(text) > 2 * MAX_DIGITS:
        return None
    match = _WHOLE.fullmatch(plain(text))
    return value(match) if match else None


def format_number(number: Fraction) -> str:
    """One spelling per value: an integer, a decimal where that is exact, else ``a/b`` in lowest terms."""
    if number.denominator == 1:
        return str(number.numerator)
    rest, places = number.denominator, 0
    for prime in (2, 5):
        power = 0
        while rest % prime == 0:
            rest, power = rest // prime, power + 1
        places = max(places, power)
    if rest != 1:
        return f"{number.numerator}/{number.denominator}"
    digits = str(abs(number.numerator) * 10**places // number.denominator).rjust(places + 1, "0")
    return f"{'-' if number < 0 else ''}{digits[:-places]}.{digits[-places:]}"
