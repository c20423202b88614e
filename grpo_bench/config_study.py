"""The schema of a study: what is compared with what, and what is expected of it before anything is run."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from grpo_bench.config_strict import Strict
from grpo_bench.row_names import BEFORE_RL, PLACE, is_each

PAIRED = ("greater", "less", "equal")
TRENDS = ("increasing", "decreasing", "flat")


class HypothesisConfig(Strict):
    """An expectation declared beforehand, as data: the table says whether its runs support or contradict it."""

    id: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    claim: str = Field(min_length=1)  # one sentence, for people
    rows: list[str]  # rows of the table in the order of the claim, models before RL and by place: row_names.py
    than: list[str] | None = None  # two further rows: the claim is of rows' difference (or ratio) against theirs
    measure: str = "accuracy"  # a key of grpo_bench.table.measures.MEASURES
    expect: Literal["greater", "less", "equal", "increasing", "decreasing", "flat"]  # the first row; the list
    scale: Literal["difference", "ratio"] = "difference"  # of the two rows, or of the last and the first
    at_least: float | None = None  # smallest size that counts, in the measure's unit or as a ratio
    at_most: float | None = None  # largest; of equal and flat the margin (null: the study's)
    source: str | None = None  # where the expectation comes from

    @model_validator(mode="after")
    def _whole(self) -> Self:
        name, each = f"hypothesis {self.id}", any(map(is_each, self.all_rows()))
        if each and (self.expect not in TRENDS or len(self.rows) != 1):
            raise ValueError(f"{name}: model=each is a list by itself, for {', '.join(TRENDS)}")
        if self.expect in PAIRED and len(self.rows) != 2:
            raise ValueError(f"{name}: expect={self.expect} compares two rows, not {len(self.rows)}")
        if self.expect in TRENDS and len(self.rows) < 3 and not each:
            raise ValueError(f"{name}: expect={self.expect} is over three rows or more, or one with model=each")
        if len(set(self.rows)) < len(self.rows):
            raise ValueError(f"{name} names a row twice")
        if self.than is not None:
            self._interaction(name, self.than)
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"{name}: at_least={self.at_least:g} is above at_most={self.at_most:g}")
        if self.scale == "ratio":
            self._ratio(name)
        for rows in (self.rows, self.than):
            if rows and all(row in BEFORE_RL for row in rows):
                raise ValueError(f"{name}: {', '.join(rows)} are models before RL alone; name a row of the study too")
        return self

    def _ratio(self, name: str) -> None:
        for key, value in (("at_least", self.at_least), ("at_most", self.at_most)):
            if value is not None and value <= 0:
                raise ValueError(f"{name}: {key}={value:g} is no bound of a ratio, which lies above 0")
        if self.expect in ("equal", "flat") and self.at_most is not None and self.at_most <= 1:
            raise ValueError(
                f"{name}: at_most={self.at_most:g} of a ratio that is {self.expect} lies above 1, such as 1.1"
            )

    def _interaction(self, name: str, than: list[str]) -> None:
        if self.expect not in PAIRED:
            raise ValueError(f"{name}: than compares two differences, so expect is one of {', '.join(PAIRED)}")
        if len(than) != 2 or than[0] == than[1]:
            raise ValueError(f"{name}: than names two rows that differ, not {than}")
        if set(than) == set(self.rows):
            raise ValueError(f"{name}: than names the pair of rows itself")
        if same := [a for a, b in zip(self.rows, than, strict=True) if a == b and a not in BEFORE_RL]:
            raise ValueError(f"{name}: {same[0]} cancels out of both differences; compare the other two rows")

    def all_rows(self) -> list[str]:
        """The rows of the claim, those of ``than`` last."""
        return [*self.rows, *(self.than or [])]


class StudyConfig(Strict):
    """A question answered by a sweep; ``name: null`` is a run for its own sake (results/adhoc)."""

    name: str | None = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    baseline: str | None  # the row (an arm, or one with the overrides that vary) that the others are compared with
    margin: float = Field(gt=0, lt=1)  # accuracy difference that counts as equivalent
    contrasts: list[list[str]]  # pairs of rows declared beforehand
    hypotheses: list[HypothesisConfig]

    @model_validator(mode="after")
    def _by_name(self) -> Self:
        for row in [*([self.baseline] if self.baseline is not None else []), *(r for p in self.contrasts for r in p)]:
            if PLACE.search(row):
                raise ValueError(f"{row!r}: only a hypothesis names models by their place")
        return self

    def rows(self) -> list[str]:
        """Every row that the study names, models before RL left out, each once in order of appearance."""
        named = [self.baseline] if self.baseline is not None else []
        named += [row for pair in self.contrasts for row in pair]
        named += [row for hypothesis in self.hypotheses for row in hypothesis.all_rows() if row not in BEFORE_RL]
        return list(dict.fromkeys(named))
