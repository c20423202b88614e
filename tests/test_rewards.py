"""What a completion is worth: each part by hand, their sum and its normalisation, and a configuration's errors."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from model_data import make
from omegaconf import OmegaConf
from reward_data import RIGHT, UNMARKED, WRONG, rows

from grpo_bench import rewards
from grpo_bench.config import config_hash, parse, plain, warnings
from grpo_bench.config_errors import ConfigError
from grpo_bench.provenance import without_places
from grpo_bench.rewards import PARTS, Scored, score
from grpo_bench.rewards.length import cosine
from grpo_bench.rewards.normalise import combine
from grpo_bench.rewards.overlong import limits, penalty
from grpo_bench.rewards.repetition import repetition
from grpo_bench.types import UserError


def part(name: str, scored: Scored, *overrides: str) -> list[float]:
    return PARTS[name](scored, make(*overrides))


# ------------------------------------------------------------------ parts


def test_right_answers_that_are_cut_count_as_wrong() -> None:
    scored = rows("a", "b", "c", "d", grades=[RIGHT, RIGHT, UNMARKED, WRONG], finished=[True, False, True, False])
    assert part("correct", scored) == [1, 0, 0, 0]
    assert part("flexible", scored) == [1, 0, 1, 0]
    assert part("finished", scored) == [1, 0, 1, 0]


def test_random_rewards_are_fair_coins_keyed_by_seed_step_draw_and_row() -> None:
    coins = part("random", rows(*["x"] * 2000))
    assert set(coins) == {0.0, 1.0}
    assert abs(sum(coins) - 1000) < 3 * (2000 * 0.25) ** 0.5  # three standard deviations
    assert coins[:12] == [0, 0, 0, 1, 1, 0, 1, 1, 0, 0, 0, 1]  # those of a seed stay what they are: old runs continue
    few = ["x"] * 50
    assert part("random", rows(*few)) == coins[:50]
    others = [rows(*few, step=1), rows(*few, seed=1), rows(*few, draw=1), rows(*few, draw=-1), rows(*few, draw=-2)]
    assert len({tuple(part("random", other)) for other in others} | {tuple(coins[:50])}) == 6


def test_the_form_is_the_marker_that_grading_looks_for() -> None:
    scored = rows("#### 1", "#### 2", "so 1", grades=[RIGHT, WRONG, UNMARKED], finished=[False, True, True])
    assert part("format", scored) == [1, 1, 0]


def test_a_pattern_must_match_the_whole_response() -> None:
    scored = rows("Answer: 12", "  Answer: 12\n", "The Answer: 12", "Answer: 12.", "")
    assert part("format", scored, r"reward.format.pattern='Answer: \d+'") == [1, 1, 0, 0, 0]


def test_the_r1_form() -> None:
    scored = rows(
        "<think>7 + 5\n= 12</think>\n<answer>#### 12</answer>",
        "<think></think><answer></answer>",
        "12",
        "so <think>a</think> <answer>b</answer>",  # text before
        "<think>a</think> so <answer>b</answer>",  # text between
        "<think>a</think> <answer>b</answer> done",  # text after
        "<answer>b</answer> <think>a</think>",
        "<think>a</think><think>b</think> <answer>c</answer>",  # one of each
        "<think>a</think> <answer>b</answer><answer>c</answer>",
        "<think>a</think> <answer>b",
    )
    assert part("format", scored, "reward=format_r1") == [1, 1, 0, 0, 0, 0, 0, 0, 0, 0]


def test_the_cosine_reward_by_hand() -> None:
    # L_max = 100. Right: r_0 = 2, r_L = 1; wrong: r_0 = -10, r_L = 0; r_e = -10
    # L = 50: cos(pi/2) = 0, the middle: 1.5 and -5
    # L = 25: cos(pi/4) = 0.70711: 1 + 0.5·1·1.70711 = 1.85355; 0 + 0.5·(-10)·1.70711 = -8.53553
    assert cosine(0, 100, 2.0, 1.0) == 2.0
    scored = rows(
        *"abcdefg",
        lengths=[50, 25, 50, 25, 99, 100, 100],
        grades=[RIGHT, RIGHT, WRONG, WRONG, RIGHT, RIGHT, WRONG],
        finished=[True, True, True, True, True, True, False],
    )
    near = 1 + 0.5 * (1 + math.cos(math.pi * 0.99))
    want = [1.5, 1.85355, -5, -8.53553, near, -10, -10]
    assert part("length", scored) == pytest.approx(want, abs=1e-5)
    assert near == pytest.approx(1.0002467, abs=1e-7)
    # a shorter L_max: the answer of 50 is at it
    assert part("length", rows("a", lengths=[50]), "reward.length.max_length=50") == [-10]


def test_a_right_answer_that_is_cut_is_a_wrong_one_to_the_cosine() -> None:
    assert part("length", rows("a", lengths=[50], finished=[False])) == [-5]


@pytest.mark.parametrize(
    ("length", "want"),
    # L_max = 100, L_cache = 20 (arXiv:2503.14476, eq. 13): 0 up to 80; (80 - L)/20; -1 beyond 100
    [(1, 0), (79, 0), (80, 0), (81, -0.05), (85, -0.25), (90, -0.5), (99, -0.95), (100, -1), (101, -1), (500, -1)],
)
def test_the_overlong_penalty_at_its_corners(length: int, want: float) -> None:
    assert penalty(length, 100, 20) == pytest.approx(want, abs=1e-12)


def test_the_overlong_penalty_counts_tokens_up_to_max_new_tokens() -> None:
    # task.max_new_tokens = 40: a fifth of it is 8, free up to 32
    assert limits(make()) == (40, 8)
    scored = rows("very many words " * 50, "a", "b", "c", lengths=[32, 33, 36, 40])
    assert part("overlong", scored) == [0, -0.125, -0.5, -1]
    assert limits(make("reward.overlong.buffer=4")) == (40, 4)
    assert limits(make("reward.overlong.max_length=20")) == (20, 4)
    assert limits(make("reward.overlong.max_length=2")) == (2, 1)


def test_dapos_reward_is_a_right_answer_and_the_penalty() -> None:
    scored = rows("a", "b", "c", "d", lengths=[10, 36, 36, 40], grades=[RIGHT, RIGHT, WRONG, WRONG])
    total, parts = score(make("reward=dapo"), scored)
    # eq. 7 + eq. 13: 1 + 0, 1 - 0.5, -1 - 0.5, -1 - 1; all of them one higher here
    assert total == [2, 1.5, -0.5, -1]
    assert parts == {"correct": [1, 1, 0, 0], "overlong": [0, -0.5, -0.5, -1]}


def test_repetition_by_hand() -> None:
    # 3-grams of 1 2 1 2 1 2 1: 121 212 121 212 121: 2 of 5 are distinct, 1 - 2/5
    # 5 5 5 5 5: three times 555: 1 - 1/3; two tokens hold no 3-gram
    ids = [[1, 2, 1, 2, 1, 2, 1], [5, 5, 5, 5, 5], [1, 2, 3, 4], [1, 1]]
    scored = rows(*"abcd", ids=ids)
    assert part("repetition", scored) == pytest.approx([-0.6, -2 / 3, 0, 0])
    more = ("reward.repetition.n=2", "reward.repetition.penalty=-0.5")
    # 2-grams: 12 21 12 21 12 21: 2 of 6; 4 times 55: 1 of 4; none twice; one 11
    assert part("repetition", scored, *more) == pytest.approx([-0.5 * 2 / 3, -0.375, 0, 0])
    assert repetition([1, 2, 1, 2, 1, 2, 1]) == 0.5  # the metric's 4-grams: 1212 2121 1212 2121


def test_overlong_and_repetition_are_trls() -> None:
    trl = pytest.importorskip("trl.rewards")
    ids = [list(range(n)) for n in (1, 31, 32, 33, 36, 39, 40)] + [[1, 2, 3] * 12, [7] * 20, [1, 2, 3, 1, 2, 4]]
    scored = rows(*["x"] * len(ids), ids=ids)
    theirs = trl.get_soft_overlong_punishment(max_completion_len=40, soft_punish_cache=8)
    assert part("overlong", scored) == pytest.approx(theirs(completion_ids=ids, completions=ids))
    for n in (2, 3):
        theirs = trl.get_repetition_penalty_reward(ngram_size=n, max_penalty=-0.7)
        more = (f"reward.repetition.n={n}", "reward.repetition.penalty=-0.7")
        assert part("repetition", scored, *more) == pytest.approx(theirs(completion_ids=ids))


# ------------------------------------------------------------------ their sum


def test_parts_are_weighted_and_kept_apart() -> None:
    scored = rows("a", "b", "c", grades=[RIGHT, RIGHT, UNMARKED], finished=[True, False, True])
    total, parts = score(make("reward.parts={correct:2.0,flexible:0.5,finished:-1.0}"), scored)
    assert parts == {"correct": [1, 0, 0], "flexible": [1, 0, 1], "finished": [1, 0, 1]}
    assert total == [2 + 0.5 - 1, 0, 0.5 - 1]


def test_normalised_after_the_sum_by_hand() -> None:
    # weights 1 and 0.5; group 1: 1.5 0.5 | 0 0 -> sums 1.5, 0.5, 0, 0: mean 0.5, variance (1 + 0 + 0.25 + 0.25)/4
    # = 0.375, sigma 0.612372: 1.632993, 0, -0.816497, -0.816497; group 2 is flat
    parts = {"a": [1.0, 0, 0, 0, 1, 1, 1, 1], "b": [1.0, 1, 0, 0, 1, 1, 1, 1]}
    got = combine(parts, {"a": 1.0, "b": 0.5}, "after", 4)
    assert got == pytest.approx([1.632993, 0, -0.816497, -0.816497, 0, 0, 0, 0], abs=1e-6)


def test_normalised_before_the_sum_by_hand() -> None:
    # a: mean 0.25, sigma sqrt(0.1875) = 0.433013: 1.732051, -0.577350 x 3; b: mean 0.5, sigma 0.5: 1, 1, -1, -1
    # a + 0.5 b: 2.232051, -0.077350, -1.077350, -1.077350
    # second group: a is flat and counts 0, b as above in another order and a hundred times as large: no difference
    parts = {"a": [1.0, 0, 0, 0, 0.7, 0.7, 0.7, 0.7], "b": [1.0, 1, 0, 0, 0, 100, 0, 100]}
    got = combine(parts, {"a": 1.0, "b": 0.5}, "before", 4)
    assert got == pytest.approx([2.232051, -0.077350, -1.077350, -1.077350, -0.5, 0.5, -0.5, 0.5], abs=1e-6)


def test_normalising_before_tells_apart_what_the_sum_does_not() -> None:
    # GDPO's example (arXiv:2601.05242): two groups of two answers, whose two parts sum to (0, 1) and to (0, 2). The
    # z-scores of both sums are (-1, 1); with each part normalised the second group, better in both parts, counts twice
    parts = {"a": [0.0, 1, 0, 1], "b": [0.0, 0, 0, 1]}
    weights = {"a": 1.0, "b": 1.0}
    assert combine(parts, weights, "after", 2) == pytest.approx([-1, 1, -1, 1], abs=1e-6)
    assert combine(parts, weights, "before", 2) == pytest.approx([-1, 1, -2, 2], abs=1e-6)


def test_only_trained_groups_are_normalised() -> None:
    cfg = make("reward.normalise=before", "reward.parts={correct:2,finished:1}", "group_size=2")
    scored = rows("a", "b", grades=[RIGHT, WRONG], group_size=2)
    assert score(cfg, scored)[0] == pytest.approx([2, -2], abs=1e-6)  # all finished: flat
    greedy = rows("a", "b", grades=[RIGHT, WRONG], group_size=1, draw=-1)
    assert score(cfg, greedy)[0] == [3, 1]
    assert score(cfg, scored)[1] == {"correct": [1, 0], "finished": [1, 1]}  # parts are logged as they are


def test_a_part_that_is_not_finite_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rewards.PARTS, "finished", lambda rows, cfg: [1.0, math.nan])
    with pytest.raises(UserError, match=r"reward\.parts\.finished is nan for row 1 \(problem p/1\)"):
        score(make("reward.parts={finished:1}"), rows("a", "b"))


# ------------------------------------------------------------------ configuration


def test_configurations_of_before_keep_their_hash() -> None:
    cfg = make()
    data = cfg.model_dump(mode="json", by_alias=True)
    assert set(data["reward"]) > {"name", "parts"}
    data["reward"] = {"name": "correct", "parts": {"correct": 1.0}}  # as records of before have it
    before = parse(data)
    assert config_hash(before) == config_hash(cfg)
    assert before.reward == cfg.reward
    dumped = cfg.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    assert dumped["reward"] == {"name": "correct", "parts": {"correct": 1.0}}


RECORDS = sorted((Path(__file__).parent.parent / "results").glob("first_light-*/*/config.yaml"))


@pytest.mark.parametrize("file", RECORDS, ids=lambda file: file.parent.name)
def test_records_of_before_parse_and_keep_their_hash(file: Path) -> None:
    recorded = OmegaConf.load(file)
    assert set(recorded.reward) == {"name", "parts"}
    cfg = parse(recorded)
    whole = parse({**plain(recorded), "reward": cfg.reward.model_dump(mode="json")})  # as records have it from now on
    assert config_hash(whole) == config_hash(cfg)
    dumped = cfg.model_dump(mode="json", exclude_defaults=True)["reward"]
    assert dumped == {"name": "correct", "parts": {"correct": 1.0}}


def test_knobs_of_parts_are_identity_but_not_how_a_model_is_run() -> None:
    cfg = make("reward=shaped")
    assert config_hash(make("reward=shaped", "reward.repetition.n=4")) != config_hash(cfg)
    assert config_hash(make("reward=shaped", "reward.normalise=after")) != config_hash(cfg)
    same = make("reward=shaped", "reward.model.batch_size=4", "reward.model.device=cpu")
    assert config_hash(same) == config_hash(cfg)


def test_a_function_counts_by_the_content_of_its_file(tmp_path: Path) -> None:
    def now(file: Path) -> str:
        return config_hash(make("reward=function", f"reward.function='{file}:brief'"))

    for name in ("a", "b"):
        (tmp_path / f"{name}.py").write_text("def brief(rows): return [0.0] * len(rows.responses)\n")
    before = now(tmp_path / "a.py")
    assert now(tmp_path / "b.py") == before
    (tmp_path / "a.py").write_text("def brief(rows): return [1.0] * len(rows.responses)\n")
    assert now(tmp_path / "a.py") != before
    other = config_hash(make("reward=function", f"reward.function='{tmp_path / 'b.py'}:long'"))
    assert other != before


def test_a_reward_model_counts_by_its_files(tmp_path: Path) -> None:
    def now(name: str) -> str:
        return config_hash(make("reward=model", f"reward.model.path={tmp_path / name}"))

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text("weights")
    before = now("a")
    assert now("b") == before
    (tmp_path / "a" / "README.md").write_text("notes")
    assert now("a") == before
    (tmp_path / "a" / "model.safetensors").write_text("others")
    assert now("a") != before


def test_a_record_does_not_tell_where_things_lie() -> None:
    cfg = make("reward=model", "reward.model.path=/home/me/scorer", "reward.function=/home/me/mine.py:brief")
    reward = without_places(cfg.model_dump(mode="json", by_alias=True))["reward"]
    assert (reward["model"]["path"], reward["function"]) == ("scorer", "mine.py:brief")
    assert cfg.reward.model.path == "/home/me/scorer"


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["reward.parts={correkt:1}"], "reward.parts.correkt is not known; choose correct, flexible, finished, format"),
        (["reward.parts={format:0,length:0}"], "reward.parts: all weights are 0"),
        (["reward.parts={}"], "reward.parts is empty"),
        (["reward.parts={model:1}"], "reward.parts.model needs reward.model.path=a folder or reward.model.id="),
        (["reward.parts={function:1}"], "reward.parts.function needs reward.function=path/to/file.py:name"),
        (["reward.format.pattern='(a'"], "reward.format.pattern is no regular expression"),
        (["reward.overlong.buffer=50", "reward=dapo"], "reward.overlong.buffer=50 is longer than the 40 tokens"),
        (["reward.repetition.penalty=1"], "reward.repetition.penalty=1: should be less than or equal to 0"),
        (["reward.normalise=after", "algo=ppo"], "reward.normalise=after with group_size=1 makes every reward 0"),
        (["reward.model.path=a", "reward.model.revision=b"], "reward.model.revision=b is of the hub"),
    ],
)
def test_what_cannot_be_meant_is_one_line(overrides: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make(*overrides)
    assert any(line in found for found in caught.value.lines), caught.value.lines


@pytest.mark.parametrize("algo", ["remax", "vineppo"])
def test_a_normalised_reward_has_no_baseline_beside_its_groups(algo: str) -> None:
    with pytest.raises(ConfigError, match=f"reward.normalise=before does not fit algo={algo}"):
        make(f"algo={algo}", "group_size=4", "reward.normalise=before")


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["reward.format.pattern=a"], "reward.format is inert: reward.parts has no format"),
        (["reward.function=a:b"], "reward.function is inert: reward.parts has no function"),
        (["reward.model.id=a/b"], "reward.model is inert: reward.parts has no model"),
        (["reward.parts={correct:1,overlong:-1}"], "reward.parts.overlong=-1 rewards what the part penalises"),
        (["reward=dapo", "reward.overlong.max_length=41"], "reward.overlong.max_length=41 is never reached"),
        (["reward.parts={correct:1,length:1}"], "holds correctness already"),
    ],
)
def test_settings_without_effect_are_warned_about(overrides: list[str], line: str) -> None:
    assert any(line in found for found in warnings(make(*overrides))), warnings(make(*overrides))
    assert not any("reward" in found for found in warnings(make()))
