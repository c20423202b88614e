"""The schema of a study: what is compared with what, and what is expected of it before anything is run."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from grpo_bench.config_strict import Strict

# rows of a table that no run of a sweep makes: the models before RL
BEFORE_RL = ("pretrained", "warm-started")
PAIRED = ("greater", "less", "equal")
TRENDS = ("increasing", "decreasing", "flat")


class HypothesisConfig(Strict):
    """An expectation declared beforehand, as data: the table says whether its runs support or contradict it."""

    id: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    claim: str = Field(min_length=1)  # one sentence, for people
    rows: list[str] = Field(min_length=2)  # rows of the table in the order of the claim, or one of BEFORE_RL
    measure: str = "accuracy"  # a key of grpo_bench.table.measures.MEASURES
    expect: Literal["greater", "less", "equal", "increasing", "decreasing", "flat"]  # the first row; the list
    scale: Literal["difference", "ratio"] = "difference"  # of the two rows, or of the last and the first
    at_least: float | None = None  # smallest size that counts, in the measure's unit or as a ratio
    at_most: float | None = None  # largest; of equal and flat the margin (null: the study's)
    source: str | None = None  # where the expectation comes from

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.expect in PAIRED and len(self.rows) != 2:
            raise ValueError(f"hypothesis {self.id}: expect={self.expect} compares two rows, not {len(self.rows)}")
        if self.expect in TRENDS and len(self.rows) < 3:
            raise ValueError(f"hypothesis {self.id}: expect={self.expect} is over three rows or more")
        if len(set(self.rows)) < len(self.rows):
            raise ValueError(f"hypothesis {self.id} names a row twice")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"hypothesis {self.id}: at_least={self.at_least:g} is above at_most={self.at_most:g}")
        return self


class StudyConfig(Strict):
    """A question answered by a sweep; ``name: null`` is a run for its own sake (results/adhoc)."""

    name: str | None = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    baseline: str | None  # the row (an arm, or one with the overrides that vary) that the others are compared with
    margin: float = Field(gt=0, lt=1)  # accuracy difference that counts as equivalent
    contrasts: list[list[str]]  # pairs of rows declared beforehand
    hypotheses: list[HypothesisConfig]

    def rows(self) -> list[str]:
        """Every row that the study names, models before RL left out, each once in order of appearance."""
        named = [self.baseline] if self.baseline is not None else []
        named += [row for pair in self.contrasts for row in pair]
        named += [row for hypothesis in self.hypotheses for row in hypothesis.rows if row not in BEFORE_RL]
        return list(dict.fromkeys(named))
