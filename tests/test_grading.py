"""Answer rules: what is extracted, what counts as equal, and that real data grade as they should."""

from __future__ import annotations

import json
import random
from fractions import Fraction
from pathlib import Path

import pytest

from grpo_bench.tasks.grading import Grade, gold_gsm8k, grade, grade_gsm8k, vote_key
from grpo_bench.tasks.latex import decide, last_boxed, normalize
from grpo_bench.tasks.numbers import format_number, parse_number
from grpo_bench.tasks.verifier import Verifier
from grpo_bench.types import UserError

# Solutions of MATH whose gold box is empty (\boxed{}), so that no answer can be right: a defect of the data.
MATH_EMPTY_BOXES = {("train", 5529), ("train", 5531)}


@pytest.mark.parametrize(
    ("response", "gold"),
    [
        ("16 - 3 - 4 = 9\n#### 18", "18"),
        ("####18", "18"),
        ("#### 18.", "18"),
        ("#### 18.00", "18"),
        ("#### 18 dollars", "18"),
        ("#### $1,234.50.", "1234.5"),
        ("#### 1,234,567", "1234567"),
        ("#### 1{,}234", "1234"),
        ("#### 1\u202f234", "1234"),
        ("#### 1/2", "0.5"),
        ("#### .5", "1/2"),
        ("#### 1 1/2", "1.5"),
        ("#### 1½", "1.5"),
        ("#### -½", "-0.5"),
        ("#### \\frac{1}{2}", "0.5"),
        ("#### -\\frac12", "-0.5"),
        ("#### 5%", "5"),
        ("#### 5 \\%", "5"),
        ("#### -3", "-3"),
        ("#### - 3", "-3"),
        ("#### \u22123", "-3"),
        ("#### -$5", "-5"),
        ("#### $-5", "-5"),
        ("#### €5", "5"),
        ("#### USD 5", "5"),
        ("#### **18**", "18"),
        ("#### `18`", "18"),
        ("#### $18$", "18"),
        ("#### \\boxed{18}", "18"),
        ("#### \\(18\\)", "18"),
        ("#### x = 18", "18"),
        ("#### Answer: 18", "18"),
        ("#### 1e3", "1000"),
        ("#### 0018", "18"),
        ("\uff03\uff03\uff03\uff03 \uff17", "7"),
        ("#### 7\n#### 18", "18"),
    ],
)
def test_gsm8k_right_by_both_rules(response: str, gold: str) -> None:
    graded = grade_gsm8k(response, gold)
    assert (graded.strict, graded.flexible) == (True, True)
    assert Fraction(graded.extracted or "0") == Fraction(gold)


@pytest.mark.parametrize(
    ("response", "extracted"),
    [
        ("The answer is 18.", "18"),
        ("so 18", "18"),
        ("####\n18", "18"),  # the number must stand on the marker's line
        ("##### 18", "18"),  # a heading of level five is no marker
        ("#### 18 or 20", "20"),  # two answers are none
        ("#### 18, 20", "20"),
        ("#### 18 20", "20"),
        ("#### 5 + 3", "3"),
        ("#### 18-20", "20"),
        ("#### 2023-05-17", "17"),
        ("#### 12:30", "30"),
        ("#### 1.5.2", "2"),
        ("#### 12,34", "34"),
        ("#### Step 2 is next", "2"),
    ],
)
def test_gsm8k_unmarked_answers_are_flexible_only(response: str, extracted: str) -> None:
    assert grade_gsm8k(response, extracted) == Grade(False, True, extracted, marked=False)


@pytest.mark.parametrize(
    ("response", "number"),
    [
        ("1,2,3", "3"),
        ("from 10\u201315", "15"),
        ("5-3", "3"),
        ("it is -3 then", "-3"),
        ("a) 7 - 9 = -2", "-2"),
        ("18 km2", "18"),  # digits inside a word are no numbers
        ("18 of H2O", "18"),
        ("3/4 of them", "0.75"),
        ("on 5th", "5"),
        ("costs $1,000.", "1000"),
    ],
)
def test_gsm8k_last_number(response: str, number: str) -> None:
    graded = grade_gsm8k(response, number)
    assert (graded.flexible, graded.extracted) == (True, number)


@pytest.mark.parametrize(
    "response",
    [
        "",
        "no idea",
        "####",
        "#### ",
        "#### none",
        "#### 3/0",
        "#### 9e999999999",
        "#### 1e-99999",
        "#### " + "9" * 100_000,
    ],
)
def test_gsm8k_without_an_answer(response: str) -> None:
    assert grade_gsm8k(response, "3") == Grade(False, False, None)


def test_gsm8k_strict_and_flexible_part_ways_after_the_marker() -> None:
    assert grade_gsm8k("#### 18\nThat took 3 steps.", "18") == Grade(True, False, "18", marked=True)
    assert grade_gsm8k("#### 7\nNo, 18", "18") == Grade(False, True, "7", marked=True)


def test_gsm8k_compares_exactly_where_floats_do_not() -> None:
    # 2**53 = 9007199254740992 is the first integer whose successor is no double
    assert not grade_gsm8k("#### 9007199254740993", "9007199254740992").strict
    assert grade_gsm8k("#### 0.30", "3/10").strict
    assert not grade_gsm8k("#### 0.3333333333333333", "1/3").strict


@pytest.mark.parametrize(
    "unit",
    [
        "#",
        "####",
        "#### ",
        "####a",
        "#### -",
        "#### $",
        "1/",
        "1 ",
        "1,",
        "1,111",
        "1e",
        "-",
        "$",
        ":",
        "USD",
        "½",
        "\\frac{1",
        "\\boxed{",
    ],
)
def test_hostile_text_is_only_wrong(unit: str) -> None:
    text = unit * (100_000 // len(unit))
    assert not grade_gsm8k(text, "77").strict
    assert not grade_gsm8k(f"#### {text}", "77").strict
    last_boxed(text)


def test_gold_gsm8k() -> None:
    assert gold_gsm8k("She has 2,000 + 125 = <<2000+125=2125>>2,125\n#### 2,125") == "2125"
    assert [gold_gsm8k(text) for text in ("72", " 1,080 ", "-7", "2.50", "1/3")] == ["72", "1080", "-7", "2.5", "1/3"]
    for bad in ("", "#### ", "seventy", "####"):
        with pytest.raises(UserError, match="is not a number"):
            gold_gsm8k(bad)


def test_numbers_have_one_spelling() -> None:
    # 1/8 = 0.125; 1/40 = 0.025; 1/3 does not end
    values = ["1/8", "1/40", "-1/40", "1/3", "10/5", "-0.0", "1,000.10"]
    assert [format_number(parse_number(text) or Fraction(0)) for text in values] == [
        "0.125", "0.025", "-0.025", "1/3", "2", "0", "1000.1",
    ]  # fmt: skip
    assert [parse_number(text) for text in ("1 2", "1,2", "two", "", "1/2/3")] == [None] * 5


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        (r"so \boxed{9}", "9"),
        (r"\boxed{1} then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\fbox{7}", "7"),
        (r"$x = \boxed 9$.", "9"),
        (r"\boxed 3.5 apples", "3.5"),
        (r"\boxed  {4}", "4"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{a\boxed{b}}", "b"),
        (r"\boxed{5} or \boxed{6", "5"),
        (r"\boxed{6", None),
        (r"\boxed{" + "{" * 1000, None),
        (r"\boxed{" + "{" * 1000 + "}" * 1001, "{" * 1000 + "}" * 1000),
        (r"\boxed{}", ""),
        (r"\boxedness", None),
        ("none", None),
    ],
)
def test_last_boxed(text: str, boxed: str | None) -> None:
    assert last_boxed(text) == boxed


@pytest.mark.parametrize(
    ("gold", "answer", "equal"),
    [
        (r"\frac{1}{2}", "0.5", True),
        (r"\tfrac12", r"\dfrac{1}{2}", True),
        (r"1\frac{1}{2}", "1.5", True),
        (r"11,\! 111,\! 100", "11111100", True),
        (r"10{,}080", "10,080", True),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})", True),
        (r"\begin{pmatrix} 1 \\ -2 \end{pmatrix}", r"\begin{pmatrix}1\\-2\end{pmatrix}", True),
        (r"90^\circ", "90", True),
        (r"\$5", "5.00", True),
        (r"50\%", "50", True),
        (r"5 \text{ cm}", "5", True),
        (r"\text{Evelyn}", "Evelyn", True),
        (r"\text{(C)}", "C", True),
        ("43_5", "43_{5}", True),
        ("43_5", "43", True),  # the question asks for the base
        ("43_5", "43_6", False),
        ("43", "43_5", False),
        (r"8 \text{ p.m.}", r"8 \text{ a.m.}", False),
        ("3", "-3", False),
        ("1,000", "1", False),
        ("0.00000012", "0.0000002", False),
        (r"\frac13", "0.333", False),
        (r"\frac13", "0.333333", None),  # rounded: the verifier's to say
        (r"5 \text{ cm}", r"5 \text{ m}", None),
        ("2e", "2", None),  # Euler's number, no exponent
        ("x+1", "1+x", None),
        ("1", "", False),
        ("", "", False),
        ("1" * 1001, "1" * 1001, False),
    ],
)
def test_what_spelling_decides(gold: str, answer: str, equal: bool | None) -> None:
    assert decide(gold, answer) is equal


def test_vote_keys_meet_where_answers_are_equal() -> None:
    assert vote_key("math", r"\tfrac{1}{2}") == vote_key("math", "0.5") == vote_key("math", r"\frac12")
    assert vote_key("math", r"\left(1, 2\right)") == vote_key("math", "(1,2)")
    assert vote_key("math", r"\begin{pmatrix} 1 \\ -3 \end{pmatrix}") != vote_key(
        "math", r"\begin{pmatrix} 1 & -3 \end{pmatrix}"
    )
    assert vote_key("gsm8k", "18") == "18"


def test_grade_refuses_lists_of_unequal_length() -> None:
    for rule in ("gsm8k", "math"):
        with pytest.raises(ValueError, match=r"longer|shorter|gold answers for"):
            grade(rule, ["1"], ["1", "2"])


def rows(data: Path, name: str) -> list[dict[str, str]]:
    with open(data / name, encoding="utf-8") as file:  # a file's lines, unlike a string's, do not end at U+2028
        return [json.loads(line) for line in file]


def test_every_gsm8k_solution_is_right(shared_data: Path) -> None:
    solutions = [row["answer"] for split in ("train", "test") for row in rows(shared_data, f"gsm8k/{split}.jsonl")]
    grades = grade("gsm8k", solutions, solutions)
    assert len(grades) == 8792
    assert all(graded.strict and graded.flexible for graded in grades)


def test_different_gsm8k_answers_are_wrong(shared_data: Path) -> None:
    solutions = [row["answer"] for row in rows(shared_data, "gsm8k/test.jsonl")]
    draw = random.Random(0)
    pairs = [
        pair
        for pair in (draw.sample(solutions, 2) for _ in range(2000))
        if int(number(pair[0])) != int(number(pair[1]))
    ]
    grades = grade("gsm8k", [gold for gold, _ in pairs[:1000]], [response for _, response in pairs[:1000]])
    assert len(grades) == 1000
    assert not any(graded.strict or graded.flexible for graded in grades)


def number(solution: str) -> str:
    return solution.split("#### ")[1].replace(",", "")


def math_golds(data: Path) -> tuple[list[tuple[str, int]], list[str], list[str]]:
    found = {
        (split, i): row["solution"]
        for split in ("train", "test")
        for i, row in enumerate(rows(data, f"math/{split}.jsonl"))
    }
    return list(found), list(found.values()), [last_boxed(solution) or "" for solution in found.values()]


def test_every_math_solution_is_right(shared_data: Path) -> None:
    places, solutions, golds = math_golds(shared_data)
    with Verifier(workers=1) as verifier:
        grades = grade("math", golds, solutions, verifier)
    assert len(grades) == 12_500
    assert {place for place, graded in zip(places, grades, strict=True) if not graded.strict} == MATH_EMPTY_BOXES
    assert {place for place, graded in zip(places, grades, strict=True) if not graded.flexible} == MATH_EMPTY_BOXES


def test_different_math_answers_are_wrong(shared_data: Path) -> None:
    """A thousand pairs whose values differ by a reading of plain numbers that shares nothing with the graders."""
    _, _, golds = math_golds(shared_data)
    values = {gold: float(gold) for gold in golds if gold.lstrip("-").replace(".", "", 1).isdigit()}
    others = [gold for gold in golds if gold and not any(char.isdigit() for char in gold)]  # letters alone: no number
    draw = random.Random(0)
    numbers = list(values)
    pairs: list[tuple[str, str]] = []
    while len(pairs) < 960:
        gold, answer = draw.choice(numbers), draw.choice(numbers)
        if values[gold] != values[answer]:
            pairs.append((gold, answer))
    pairs += [(draw.choice(numbers), draw.choice(others)) for _ in range(20)]
    pairs += [(draw.choice(others), draw.choice(numbers)) for _ in range(20)]
    with Verifier(workers=1) as verifier:
        assert [pair for pair, verdict in zip(pairs, verifier.equivalent(pairs), strict=True) if verdict.equal] == []


@pytest.mark.slow
def test_random_pairs_of_all_kinds_are_wrong(shared_data: Path) -> None:
    """Golds of every kind; where this seed draws two spellings of one value they are named."""
    _, _, golds = math_golds(shared_data)
    draw = random.Random(0)
    pairs: list[tuple[str, str]] = []
    while len(pairs) < 3000:
        gold, answer = draw.choice(golds), draw.choice(golds)
        if gold and answer and normalize(gold) != normalize(answer):
            pairs.append((gold, answer))
    with Verifier(workers=1) as verifier:
        equal = [pair for pair, verdict in zip(pairs, verifier.equivalent(pairs), strict=True) if verdict.equal]
    assert equal == []
