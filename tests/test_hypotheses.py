"""Claims about two differences, and rows named by their model's place: values, outcomes and words, worked by hand."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from study_builder import config, write_run

from grpo_bench import table
from grpo_bench.records import load_study
from grpo_bench.table.compare import compare
from grpo_bench.table.hypotheses import Finding, evaluate
from grpo_bench.table.judge import Claim, judge

# per seed: 0.10, 0.12, 0.11, 0.09, 0.13 on long chains and 0.05 on short ones; between them 0.05, 0.07, 0.06, 0.04,
# 0.08: mean 0.06, sd 0.0158114, and half an interval is t(0.975, 4) · sd / √5 = 2.776445 · 0.0158114 / 2.236068
LONG = [[0.30, 0.32, 0.31, 0.29, 0.33], [0.20] * 5]
SHORT = [[0.15] * 5, [0.10] * 5]
HALF = 0.0196322
GREATER = {"id": "x", "claim": "c", "rows": ["grpo_g8 long", "ppo long"], "than": ["grpo_g8 short", "ppo short"]}
GREATER |= {"expect": "greater", "measure": "kl_final"}


def add(
    folder: Path, row: str, values: Sequence[float], *, key: str = "kl_final", seeds: Sequence[int] = range(5),
    model: str = "tiny", size: int = 600_000, correct: Sequence[int] = (1, 0), changes: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Runs of one row, a value of ``stability`` for each seed."""
    arm, name = row.split(" ")[0], f"{zlib.crc32(row.encode()):08x}"
    for seed, value in zip(seeds, values, strict=True):
        result: dict[str, Any] = {"row": row, "model": model, "config_hash": name, "run_id": f"{arm}-s{seed}-{name}"}
        result |= {"stability": {key: value}, "cost": {"parameters": {"policy": size}}}
        changed = {"model": config(arm, "grpo", seed)["model"] | {"name": model}} | (changes or {})
        run = write_run(folder, arm, seed, correct, base=[0, 0], result=result, changes=changed)
        run.rename(folder / str(result["run_id"]))


def found(folder: Path, **changes: Any) -> Finding:
    (one,) = evaluate(compare(load_study(folder)), [GREATER | changes])
    return one


@pytest.fixture(scope="module")
def lengths(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two arms on long and on short chains, whose tasks differ; not to be changed."""
    folder = tmp_path_factory.mktemp("lengths") / "length-arithmetic"
    shorter = {"task": config("ppo", "ppo", 0)["task"] | {"max_new_tokens": 32}}
    add(folder, "grpo_g8 long", LONG[0])
    add(folder, "ppo long", LONG[1])
    add(folder, "grpo_g8 short", SHORT[0], changes=shorter)
    add(folder, "ppo short", [0.10] * 4, seeds=range(1, 5), changes=shorter)
    return folder


# ---------------------------------------------------------------- differences between differences


def test_the_interval_is_of_the_difference_between_differences() -> None:
    judged = judge([*LONG, *SHORT], Claim("greater", interaction=True))
    assert judged.interval.estimate == pytest.approx(0.06)
    assert (judged.interval.low, judged.interval.high) == pytest.approx((0.06 - HALF, 0.06 + HALF), abs=1e-6)
    assert (judged.outcome, judged.n) == ("supported", 5)


@pytest.mark.parametrize(
    ("claim", "outcome"),
    [
        (Claim("less", interaction=True), "contradicted"),
        (Claim("greater", at_least=0.04, interaction=True), "supported"),  # 0.0404 to 0.0796
        (Claim("greater", at_least=0.05, interaction=True), "not established"),
        (Claim("equal", at_most=0.08, interaction=True), "supported"),  # 90 %: 0.06 ± 2.131847 · 0.0070711 = 0.0751
        (Claim("equal", at_most=0.03, interaction=True), "contradicted"),
    ],
)
def test_differences_have_direction_size_and_margin(claim: Claim, outcome: str) -> None:
    assert judge([*LONG, *SHORT], claim).outcome == outcome


def test_ratios_are_compared_as_a_ratio() -> None:
    # 4/2, 8/2, 4/2, 8/2, 4/2 against 3/1.5 = 2: ratios of ratios 1, 2, 1, 2, 1, geometric mean 2^(2/5)
    rows = [[4.0, 8.0, 4.0, 8.0, 4.0], [2.0] * 5, [3.0] * 5, [1.5] * 5]
    judged = judge(rows, Claim("greater", "ratio", interaction=True))
    assert judged.interval.estimate == pytest.approx(2**0.4)
    # logarithms 0, ln 2, 0, ln 2, 0: sd ln 2 · √0.3
    half = 2.776445 * math.log(2) * math.sqrt(0.3) / math.sqrt(5)
    assert judged.interval.high == pytest.approx(2**0.4 * math.exp(half), rel=1e-6)
    assert judged.outcome == "not established"
    negative = judge([rows[0], rows[1], [-3.0] * 5, [-1.5] * 5], Claim("greater", "ratio", interaction=True))
    assert negative.why == "a value is not above 0: no ratio"  # though the ratio of the last two is


def test_pairs_are_joined_by_the_seeds_that_all_four_have(lengths: Path) -> None:
    one = found(lengths)
    assert one.values.seeds == [1, 2, 3, 4]
    assert one.values.labels == ["grpo_g8 long", "ppo long", "grpo_g8 short", "ppo short"]
    assert one.judgement is not None
    # 0.07, 0.06, 0.04, 0.08
    assert one.judgement.interval.estimate == pytest.approx(0.0625)
    assert one.outcome == "descriptive"  # four seeds
    assert one.criterion == "greater: grpo_g8 long − ppo long against grpo_g8 short − ppo short"
    ratio = found(lengths, scale="ratio", at_least=1.2)
    assert ratio.criterion.startswith("greater, ratio at least 1.2 ×: grpo_g8 long / ppo long against grpo_g8 short / ")


def test_models_before_rl_are_those_of_their_own_pair(lengths: Path) -> None:
    one = found(
        lengths, measure="accuracy", rows=["grpo_g8 long", "warm-started"], than=["grpo_g8 short", "warm-started"]
    )
    assert [row[0] for row in one.values.rows] == [0.5, 0.0, 0.5, 0.0]


def test_each_pair_must_be_comparable_in_itself(lengths: Path) -> None:
    crossed = found(lengths, rows=["grpo_g8 long", "ppo short"], than=["grpo_g8 short", "ppo long"])
    assert crossed.outcome == "not comparable"
    assert crossed.why.startswith("grpo_g8 long against ppo short: max_new_tokens of the test differs")
    absent = found(lengths, than=["dapo short", "ppo short"])
    assert (absent.outcome, absent.why) == ("not tested here", "no run of dapo short")


def test_the_table_and_the_article_show_all_four(lengths: Path, tmp_path: Path) -> None:
    folder = tmp_path / "results" / "length-arithmetic"
    declared = GREATER | {"source": "the article's claim"}
    for row, values in zip(("grpo_g8 long", "ppo long", "grpo_g8 short", "ppo short"), [*LONG, *SHORT], strict=True):
        study = config("ppo", "ppo", 0)["study"] | {"baseline": None, "hypotheses": [declared]}
        add(folder, row, values, changes={"study": study})
    built = table.build(folder)
    sheet = built.sheet("hypotheses")
    assert sheet is not None
    cells = dict(zip(sheet.header, sheet.rows[0], strict=True))
    assert cells["means by row"] == "grpo_g8 long 0.31; ppo long 0.2; grpo_g8 short 0.15; ppo short 0.1"
    assert cells["found [95 %]"] == "+0.06 [+0.0404, +0.0796], of the difference between differences"
    assert cells["outcome"] == "supported"
    assert sheet.notes[-1].startswith("Of four rows: (first − second) − (third − fourth)")
    beside = tmp_path / "results" / "demo-arithmetic"
    for name in ("ppo", "grpo_g8"):
        add(beside, name, [0.1] * 5)
    article = table.build(beside).sheet("article")
    assert article is not None
    (said,) = [row[2] for row in article.rows if row[0] == "long sequences"]
    assert said == (
        "KL to the reference, end, (grpo_g8 long − ppo long) − (grpo_g8 short − ppo short): "
        "+0.06 [+0.0404, +0.0796], SUPPORTED (from length-arithmetic)"
    )


def test_an_option_that_says_nothing_is_no_other_declaration(tmp_path: Path) -> None:
    plain = {"id": "x", "claim": "c", "rows": ["grpo_g8", "ppo"], "expect": "greater"}
    for seed, one in enumerate([plain, plain | {"than": None}]):
        study = config("ppo", "ppo", 0)["study"] | {"hypotheses": [one]}
        for name in ("ppo", "grpo_g8"):
            add(tmp_path / "demo-arithmetic", name, [0.1], seeds=[seed], changes={"study": study})
    built = table.build(tmp_path / "demo-arithmetic")
    sheet = built.sheet("hypotheses")
    assert sheet is not None
    assert sheet.notes[0].startswith("Declared in the configuration of 4 of 4 runs.")
    assert not any("changed between its runs" in note for note in built.comparison.notes)


# ---------------------------------------------------------------- models by their place

SIZES = {"b": 3_000, "c": 1_000, "a": 2_000}  # neither the order of names nor of sizes


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Three models, whose KL ends at 0.1, 0.2 and 0.3 in the order of their sizes."""
    folder = tmp_path / "model_size-arithmetic"
    for model, size in SIZES.items():
        for arm, more in (("grpo_g8", 0.0), ("ppo", 0.01)):
            values = [size / 10_000 + more + 0.001 * seed for seed in range(5)]
            add(folder, f"{arm} model={model}", values, model=model, size=size)
    return folder


def placed(folder: Path, rows: list[str], expect: str, **changes: Any) -> Finding:
    return found(folder, rows=rows, than=None, expect=expect, **changes)


def test_each_is_every_model_in_increasing_size(models: Path) -> None:
    one = placed(models, ["grpo_g8 model=each"], "increasing")
    assert one.values.labels == ["grpo_g8 model=c", "grpo_g8 model=a", "grpo_g8 model=b"]
    assert [row[0] for row in one.values.rows] == [0.1, 0.2, 0.3]
    assert one.outcome == "supported"
    assert one.judgement is not None
    assert one.judgement.interval.estimate == pytest.approx(0.2)
    assert placed(models, ["grpo_g8 model=each"], "decreasing").outcome == "contradicted"


def test_smallest_and_largest_are_by_recorded_parameters(models: Path) -> None:
    one = placed(models, ["ppo model=smallest", "grpo_g8 model=smallest"], "greater")
    assert one.values.labels == ["ppo model=c", "grpo_g8 model=c"]
    assert [row[0] for row in one.values.rows] == [0.11, 0.1]
    assert placed(models, ["grpo_g8 model=largest", "grpo_g8 model=smallest"], "greater").values.labels == [
        "grpo_g8 model=b", "grpo_g8 model=c",
    ]  # fmt: skip
    rows, than = ([f"{arm} model={place}" for arm in ("grpo_g8", "ppo")] for place in ("largest", "smallest"))
    both = found(models, rows=rows, than=than, expect="equal", at_most=0.01)
    assert both.values.labels == ["grpo_g8 model=b", "ppo model=b", "grpo_g8 model=c", "ppo model=c"]
    assert both.outcome == "supported"  # −0.01 against −0.01


def test_rows_of_one_model_are_a_pair_like_any_other(models: Path) -> None:
    longer = config("ppo", "ppo", 0)["model"] | {"name": "c", "warmstart": {"steps": 9}}
    add(models, "grpo_w model=c", [0.1] * 5, model="c", size=1_000, changes={"model": longer})
    one = placed(models, ["grpo_w model=smallest", "ppo model=smallest"], "greater", measure="accuracy")
    assert (one.outcome, one.why.partition(" (")[0]) == ("not comparable", "warm-start settings differs")
    assert placed(models, ["grpo_w model=smallest", "ppo model=b"], "greater").outcome != "not comparable"


def test_a_place_that_is_not_known_is_not_guessed(models: Path, tmp_path: Path) -> None:
    rows = ["ppo model=largest", "grpo_g8 model=largest"]
    twice = placed(models, ["ppo model=largest", "ppo model=b"], "greater")
    assert twice.why == "ppo model=b is named twice"
    (models / "jobs.json").write_text(
        '{"jobs": [{"run_id": "ppo-s0-dddddddd", "arm": "ppo", "row": "ppo model=d", "seed": 0}]}'
    )
    assert placed(models, rows, "greater").why == "no finished run of model d yet, so its place is not known"
    few = tmp_path / "few-arithmetic"
    add(few, "ppo model=a", [0.1] * 5, model="a", size=1)
    assert placed(few, rows, "greater").why == "the study has 1 model and this needs 2"
    add(few, "ppo model=b", [0.1] * 5, model="b", size=2)
    assert placed(few, ["ppo model=each"], "flat").why == "the study has 2 models and this needs 3"
    assert placed(few, rows, "greater").why == "no run of grpo_g8 model=b"
    add(few, "ppo model=c", [0.1] * 5, model="c", size=2)
    assert placed(few, ["ppo model=each"], "flat").why == "models of one size have no places"
