"""The schema of a reward: its parts' weights, and a node of knobs for each part that has some.

All but ``name`` and ``parts`` came after version 1 of the schema and so have defaults, the same as in conf/base.yaml.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from grpo_bench.config_strict import Strict


class FormatConfig(Strict):
    pattern: str | None = None  # that the whole response must match; null: it has the marker that grading looks for


class LengthConfig(Strict):
    """The cosine reward: what an answer of length 0 and one of the largest length are worth."""

    correct: tuple[float, float] = (2.0, 1.0)
    wrong: tuple[float, float] = (-10.0, 0.0)
    exceeded: float = -10.0  # at the largest length and beyond
    max_length: int | None = Field(default=None, ge=1)  # tokens; null: task.max_new_tokens


class OverlongConfig(Strict):
    """The last ``buffer`` tokens before ``max_length`` cost more and more."""

    buffer: int | None = Field(default=None, ge=1)  # tokens; null: a fifth of max_length
    max_length: int | None = Field(default=None, ge=1)  # tokens; null: task.max_new_tokens


class RepetitionConfig(Strict):
    n: int = Field(default=3, ge=1)  # tokens of an n-gram
    penalty: float = Field(default=-1.0, le=0)  # of an answer that repeats itself throughout


class RewardModelConfig(Strict):
    """A sequence-classification model with one output, from safetensors, without code of its own."""

    path: str | None = None  # local folder; wins over id
    id: str | None = None  # hub name
    revision: str | None = None
    dtype: Literal["float32", "bfloat16"] | None = None  # null: the policy's
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: the policy's
    batch_size: int = Field(default=32, ge=1)  # answers scored at once
    chat: bool = False  # question and answer as turns of its chat template; false: prompt and answer as they are
    max_length: int | None = Field(default=None, ge=8)  # tokens of both; null: what it reads; more is cut in front
    output: Literal["logit", "probability"] = "logit"  # as it comes; or through a sigmoid, within 0 and 1


class RewardConfig(Strict):
    """Weighted sum of parts, see grpo_bench/rewards; ``correct`` alone is the default."""

    name: str
    parts: dict[str, float]  # part: weight
    normalise: Literal["none", "before", "after"] = "none"  # each part, or their sum, in each group
    format: FormatConfig = FormatConfig()
    length: LengthConfig = LengthConfig()
    overlong: OverlongConfig = OverlongConfig()
    repetition: RepetitionConfig = RepetitionConfig()
    model: RewardModelConfig = RewardModelConfig()
    function: str | None = None  # path/to/file.py:name or package.module:name
