"""A reward model of one's own: labels, what it is measured on, the folder it leaves, and its one line for bad input."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from model_data import SMALL, make, network, same, snapshot
from reward_data import RIGHT, WRONG, saved
from reward_data import network as classifier
from reward_data import rows as scored
from task_data import config, write

from grpo_bench import rollout
from grpo_bench.config import Config
from grpo_bench.config_reward import RewardModelConfig
from grpo_bench.preflight import preflight
from grpo_bench.reward_training import answers, fit
from grpo_bench.reward_training.cli import main
from grpo_bench.rewards import PARTS, Scored, model
from grpo_bench.rewards.model import RewardModel
from grpo_bench.tasks import Task, load_task
from grpo_bench.tasks.arithmetic import split_of
from grpo_bench.tiny import tiny_tokenizer
from grpo_bench.types import Problem, Rollouts, UserError

REPO = Path(__file__).resolve().parent.parent
SHORT = (
    *SMALL, "threads=1", "model.warmstart.steps=2", "model.warmstart.batch_size=4",
    "problems=20", "samples=4", "epochs=6", "batch=16", "lr=0.03",
)  # fmt: skip
KNOBS = RewardModelConfig()


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("GRPO_BENCH_CACHE", str(tmp_path / "cache"))
    yield
    model._load.cache_clear()


class Spoken:
    """An engine that says what it is told to: ``say(solution, sample)`` is a text and whether it ended by itself."""

    def __init__(self, task: Task, say: Callable[[str, int], tuple[str, bool]]) -> None:
        self.task, self.say = task, say

    def generate(
        self, policy: Any, tokenizer: Any, prompt_ids: list[list[int]], group_size: int, *_: Any, **__: Any
    ) -> Rollouts:
        prompts = {tuple(self.task.prompt_ids([p], tokenizer)[0]): p for p in _asked(self.task)}
        said = [self.say(prompts[tuple(ids)].solution, i) for ids in prompt_ids for i in range(group_size)]
        ids = [tokenizer(text)["input_ids"] + [0] * ended for text, ended in said]
        return Rollouts(prompt_ids, ids, [text for text, _ in said], [ended for _, ended in said], group_size)


def _asked(task: Task) -> list[Problem]:
    return [task.draw(i, 0, answers.PURPOSE) for i in range(200)]


def wrong_by_halves(solution: str, sample: int) -> tuple[str, bool]:
    """A worked right answer, or one that gives up: a classifier has to see no more than a word."""
    return (f" {solution}", True) if sample % 2 == 0 else (" no #### 99", True)


@pytest.fixture
def spoken(monkeypatch: pytest.MonkeyPatch) -> None:
    task = load_task(make().task, 0)
    monkeypatch.setattr(rollout, "make_engine", lambda cfg: Spoken(task, wrong_by_halves))


# ------------------------------------------------------------------ what is learnt from


def test_the_labels_are_the_verifiers() -> None:
    cfg = make()
    task, tokenizer = load_task(cfg.task, 0), tiny_tokenizer(cfg.model.tiny)  # type: ignore[arg-type]
    problem = task.draw(0, 0, answers.PURPOSE)
    texts = [
        (f" {problem.solution}", True),  # right
        (f" {problem.solution}", False),  # right, but cut
        (f" {problem.answer}", True),  # right, but not behind the marker
        (" #### 99", True),  # no result is above 20
    ]
    engine = Spoken(task, lambda solution, sample: texts[sample])
    got = answers.sample(cfg, task, None, tokenizer, engine, [problem], 4, 0)  # type: ignore[arg-type]
    assert got.right == [True, False, False, False]
    assert got.prompts == [f"{problem.question}\nAnswer:"] * 4
    assert (got.group_size, got.finished) == (4, [True, False, True, True])


def test_problems_are_of_train_and_no_sum_is_on_both_sides() -> None:
    task = load_task(make().task, 0)
    learnt, held_out = answers.draw(task, 300, seed=0)
    assert (len(learnt), len(held_out)) == (240, 60)  # a fifth
    chains = [{tuple(p.meta["chain"]) for p in side} for side in (learnt, held_out)]
    assert (len(chains[0]), len(chains[1])) == (240, 60)  # told apart by the sum, not by its words
    assert not chains[0] & chains[1]
    assert {split_of(chain) for side in chains for chain in side} == {"train"}
    assert answers.draw(task, 300, seed=0) == (learnt, held_out)
    assert answers.draw(task, 300, seed=1) != (learnt, held_out)


def test_of_a_data_set_only_what_is_trained_on_is_asked(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    write(file, [{"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(60)])
    task = load_task(config("custom", path=str(file)), 0)
    learnt, held_out = answers.draw(task, 20, seed=0)
    asked = {p.id for p in (*learnt, *held_out)}
    assert len(asked) == 20
    assert not asked & {p.id for p in (*task.dev(100), *task.test(None))}
    with pytest.raises(UserError, match=r"^problems=60, but only \d\d different training problems were found"):
        answers.draw(task, 60, seed=0)


@pytest.mark.parametrize(("grade", "what"), [(RIGHT, "every one of the 2"), (WRONG, "none of the 2")])
def test_right_and_wrong_answers_are_needed(grade: Any, what: str) -> None:
    with pytest.raises(UserError, match=what):
        answers.check(scored("a", "b", grades=[grade] * 2))
    answers.check(scored("a", "b", grades=[RIGHT, WRONG]))


# ------------------------------------------------------------------ training and measuring


def scorer_of(cfg: Config, knobs: RewardModelConfig = KNOBS) -> RewardModel:
    return RewardModel(classifier("llama"), tiny_tokenizer(cfg.model.tiny), knobs, 64)  # type: ignore[arg-type]


def learn(cfg: Config, scorer: RewardModel, rows: Scored, **more: Any) -> None:
    given = {"epochs": 3, "batch": 4, "lr": 0.01, "tokens": 4096, **more}
    fit.fit(cfg, scorer, rows, dtype=torch.float32, progress=lambda done, total: None, **given)


def mixed(count: int) -> Scored:
    texts = [" 7 + 5 = 12 #### 1" if i % 3 else " no" for i in range(count)]
    return scored(*texts, grades=[RIGHT if i % 3 else WRONG for i in range(count)])


def test_micro_batches_change_nothing() -> None:
    cfg, trained = make(), []
    for tokens in (4096, 30, 1):
        scorer = scorer_of(cfg)
        learn(cfg, scorer, mixed(5), tokens=tokens, epochs=2)
        trained.append(snapshot(scorer.model))
    for other in trained[1:]:
        for name, weights in trained[0].items():
            assert torch.allclose(weights, other[name], atol=1e-5), name


def test_the_first_update_follows_the_gradient_of_the_cross_entropy() -> None:
    """One update of AdamW is lr·sign(gradient), at the first of 20 warm-up updates lr/20 of it: so the head moves by
    1/20 of lr against Σ(σ(z) − y)·h/n."""
    cfg, rows = make(), mixed(4)
    scorer = scorer_of(cfg)
    ids = [scorer.encode(text, True).ids for text in scorer.texts(rows)]
    with torch.no_grad():
        chance = torch.sigmoid(scorer.logits(ids))
        hidden = [scorer.model.base_model(input_ids=torch.tensor([row])).last_hidden_state[0, -1] for row in ids]
    labels = torch.tensor([0.0, 1.0, 1.0, 0.0])  # every third answer is wrong
    slope = ((chance - labels)[:, None] * torch.stack(hidden)).mean(0)
    before = snapshot(scorer.model)["score.weight"]
    learn(cfg, scorer, rows, epochs=1, lr=0.02)
    moved = snapshot(scorer.model)["score.weight"] - before
    assert torch.allclose(moved[0], -0.001 * slope.sign(), atol=1e-6)  # 0.02/20


def test_measures_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = make()
    rows = scored("a", "b", "c", "d", grades=[RIGHT, WRONG, RIGHT, WRONG], group_size=2)
    scorer = scorer_of(cfg, RewardModelConfig(output="probability"))
    monkeypatch.setattr(scorer, "score", lambda rows: [0.9, 0.6, 0.4, 0.4])
    got = fit.measure(scorer, rows)
    assert got["accuracy"] == 0.5  # 0.9 right yes; 0.6 wrong no; 0.4 right no; 0.4 wrong yes
    assert got["auc"] == (1 + 1 + 0 + 0.5) / 4  # 0.9 over 0.6 and 0.4; 0.4 under 0.6, tied with 0.4
    assert got["auc_within"] == (1 + 0.5) / 2  # 0.9 over 0.6; 0.4 tied with 0.4
    assert got["brier"] == pytest.approx((0.01 + 0.36 + 0.36 + 0.16) / 4)
    assert (got["right"], got["mean_of_right"], got["mean_of_wrong"]) == (0.5, 0.65, 0.5)
    monkeypatch.setattr(scorer, "knobs", KNOBS)
    monkeypatch.setattr(scorer, "score", lambda rows: [0.0] * len(rows.responses))
    assert fit.measure(scorer, rows)["brier"] == 0.25  # a logit of 0 is a chance of 1/2
    alone = fit.measure(scorer, scored("a", "b", grades=[RIGHT] * 2, group_size=2))
    assert (alone["auc"], alone["auc_within"], alone["mean_of_wrong"]) == (None, None, None)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_the_trunk_begins_at_the_policy_and_the_end_token_is_seen(kind: str) -> None:
    cfg = make()
    tokenizer = tiny_tokenizer(cfg.model.tiny)  # type: ignore[arg-type]
    policy = network(kind, vocab=512, double=False)
    policy.config.pad_token_id = 0  # its end token
    first, second = (fit.classifier_of(policy, tokenizer, seed) for seed in (0, 1))
    assert same(snapshot(policy.base_model), first.base_model)
    assert (first.config.num_labels, first.config.pad_token_id, first.training) == (1, None, False)
    assert not torch.equal(snapshot(first)["score.weight"], snapshot(second)["score.weight"])
    assert same(snapshot(first), fit.classifier_of(policy, tokenizer, 0))
    assert policy.config.num_labels == 2  # transformers' default, untouched
    ended = RewardModel(first, tokenizer, KNOBS, 64).score(scored(" 12", " 12", finished=[True, False]))
    assert abs(ended[0] - ended[1]) > 1e-4


# ------------------------------------------------------------------ the command


@pytest.mark.usefixtures("spoken")
def test_the_folder_is_a_reward_model_that_knows_right_from_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scorer"
    assert main([*SHORT, f"out={out}"]) == 0
    report = json.loads((out / "reward_model.json").read_text())
    assert json.loads(capsys.readouterr().out) == report["held_out"]
    assert report["problems"] == {"train": 16, "held_out": 4}
    assert (report["train"]["answers"], report["held_out"]["answers"]) == (64, 16)  # 4 answers each
    assert (report["train"]["right"], report["held_out"]["auc"]) == (0.5, 1.0)
    assert report["settings"]["lr"] == 0.03
    assert report["fingerprints"]["data"] == load_task(make().task, 0).fingerprint
    assert str(tmp_path) not in json.dumps(report)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]

    cfg = make("reward=classifier", f"reward.model.path={out}", f"results={tmp_path}")
    task = load_task(cfg.task, 0)
    problems = task.dev(8)
    texts = [text for p in problems for text in (f" {p.solution}", " no #### 99")]
    row = scored(*texts, grades=[RIGHT, WRONG] * 8, group_size=2)
    row = replace(row, prompts=[task.prompt(p, None) for p in problems for _ in range(2)])
    got = PARTS["model"](row, cfg)
    assert all(0 <= value <= 1 for value in got)
    assert all(right > 0.5 > wrong for right, wrong in zip(got[::2], got[1::2], strict=True))
    raw = PARTS["model"](row, make("reward=model", f"reward.model.path={out}"))
    assert torch.sigmoid(torch.tensor(raw)).tolist() == pytest.approx(got, abs=1e-6)


@pytest.mark.usefixtures("spoken")
def test_the_same_seed_gives_the_same_model(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        assert main([*SHORT, f"out={folder}", "epochs=1"]) == 0
    one, two = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert one == two
    reports = [json.loads((folder / "reward_model.json").read_text()) for folder in folders]
    for report in reports:
        del report["seconds"], report["command"]
    assert reports[0] == reports[1]


def refusal(capsys: pytest.CaptureFixture[str], words: Sequence[str]) -> str:
    assert main(list(words)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    line = [text for text in captured.err.splitlines() if "left" not in text]  # progress apart
    assert len(line) == 1
    return line[0]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["problems=many"], "error: problems=many is no whole number"),
        (["lr=fast"], "error: lr=fast is no number"),
        (["problems=1"], "error: problems=1: give at least 2"),
        (["samples=0"], "error: samples=0: give at least 1"),
        (["lr=2"], "error: lr=2: give a learning rate above 0 and below 1"),
        (["out="], "error: out= has no value; give a folder"),
        (
            ["reward=format"],
            "error: reward=format does not fit: this trains what reward=classifier reads; drop it",
        ),
    ],
)
def test_a_bad_word_is_one_line(capsys: pytest.CaptureFixture[str], words: list[str], line: str) -> None:
    assert refusal(capsys, words) == line


def test_a_folder_in_use_and_a_policy_that_knows_nothing_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    line = refusal(capsys, [*SHORT, f"out={tmp_path / 'used'}"])
    assert line == f"error: out={tmp_path / 'used'} exists and is not empty; give another folder, or remove it"
    line = refusal(capsys, [*SHORT, f"out={tmp_path / 'new'}", "task.max_new_tokens=8"])
    assert line.startswith("error: none of the 64 answers to train on is right: this model is too weak")
    assert not (tmp_path / "new").exists()


# ------------------------------------------------------------------ the sweep


def test_the_sweep_names_its_rows_and_the_rule_knows_nothing_of_the_model(tmp_path: Path) -> None:
    saved(tmp_path / "reward_model-arithmetic" / "classifier")
    plan = preflight([f"results={tmp_path}"], "reward_model", str(REPO / "sweeps"), multirun=True)
    rows = {str(job.config.row): job.config for job in plan.jobs}
    assert list(rows) == [f"{arm} reward={r}" for arm in ("grpo_g8", "ppo_tuned") for r in ("correct", "classifier")]
    assert len(plan.jobs) == 12
    assert {cfg.reward.model.path is None for row, cfg in rows.items() if row.endswith("correct")} == {True}
    assert {cfg.reward.model.output for row, cfg in rows.items() if row.endswith("classifier")} == {"probability"}
    assert not [line for line in plan.warnings() if "reward.model" in line]
