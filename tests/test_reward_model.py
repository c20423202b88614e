"""A reward model: any one-output classifier, the same score however rows are batched, its cost accounted apart."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_data import make
from reward_data import SIZES, network, rows, saved
from transformers import LlamaConfig, LlamaForCausalLM

from grpo_bench import rewards
from grpo_bench.config import Config
from grpo_bench.rewards import PARTS, check, model
from grpo_bench.types import UserError

ANSWERS = (" 7 + 5 = 12 #### 12", " 3", " 1 + 1 = 2 ; 2 + 1 = 3 #### 3", " so 4 #### 4", " 8 - 2 = 6")
CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|end|>{% endfor %}"


def with_model(folder: Path, *more: str) -> Config:
    return make("reward=model", f"reward.model.path={folder}", *more)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    model._load.cache_clear()


@pytest.mark.parametrize("kind", ["llama", "llama without padding", "llama padded with its end", "gpt2", "bert"])
def test_a_batch_scores_as_rows_one_by_one(tmp_path: Path, kind: str) -> None:
    cfg = with_model(saved(tmp_path, kind), "reward.model.batch_size=3")
    scored = rows(*ANSWERS, finished=[True, False, True, True, False])
    got = PARTS["model"](scored, cfg)
    alone = [PARTS["model"](scored.row(i), cfg)[0] for i in range(len(ANSWERS))]
    assert got == pytest.approx(alone, abs=1e-5)
    assert max(got) - min(got) > 1e-2
    wide = PARTS["model"](scored, with_model(tmp_path, "reward.model.batch_size=5"))
    assert got == pytest.approx(wide, abs=1e-5)


@pytest.mark.parametrize("kind", ["llama", "llama without padding"])
def test_the_score_is_transformers_own_of_prompt_answer_and_end(tmp_path: Path, kind: str) -> None:
    cfg = with_model(saved(tmp_path, kind))
    scored = rows(*ANSWERS[:2], finished=[True, False])
    tokenizer = model.load(cfg).tokenizer
    ids = [tokenizer(p + a)["input_ids"] for p, a in zip(scored.prompts, scored.responses, strict=True)]
    ids[0].append(0)  # the end token of the answer that ended by itself
    with torch.no_grad():
        want = [network(kind)(input_ids=torch.tensor([row])).logits.item() for row in ids]
    assert PARTS["model"](scored, cfg) == pytest.approx(want, abs=1e-5)


def test_prompt_and_answer_are_read_in_this_order(tmp_path: Path) -> None:
    cfg = with_model(saved(tmp_path))
    scored = rows(" 12", " 12")
    assert model.load(cfg).texts(scored) == ["question 0 answer: 12", "question 1 answer: 12"]
    other = replace(scored, prompts=[" 12", " 12"], responses=["question 0 answer:", "question 1 answer:"])
    assert abs(PARTS["model"](scored, cfg)[0] - PARTS["model"](other, cfg)[0]) > 1e-3


def test_a_chat_template_by_choice(tmp_path: Path) -> None:
    cfg = with_model(saved(tmp_path, chat=CHAT), "reward.model.chat=true")
    scorer = model.load(cfg)
    assert scorer.texts(rows(" 12")) == ["user: question 0<|end|>assistant:  12<|end|>"]
    assert scorer.encode("x<|end|>", True).ids[-1] == 0
    assert scorer.encode("x<|end|>", True).ids.count(0) == 1  # the template's end token, none added
    saved(tmp_path / "none")
    with pytest.raises(UserError, match=r"has no chat template; give chat=false"):
        model.load(with_model(tmp_path / "none", "reward.model.chat=true"))


def test_what_is_too_long_loses_its_beginning_and_is_counted(tmp_path: Path) -> None:
    cfg = with_model(saved(tmp_path), "reward.model.max_length=8")
    scorer = model.load(cfg)
    whole = scorer.tokenizer("question 0 answer: 1 2 3 4 5 6 7 8 9")["input_ids"]
    assert scorer.encode("question 0 answer: 1 2 3 4 5 6 7 8 9", True).ids == [*whole, 0][-8:]
    short = replace(rows("1 2 3 4 5 6 7 8 9", "1"), prompts=["", ""])
    scorer.score(short)
    assert scorer.take_cost()["cut"] == 1
    assert model.load(with_model(tmp_path)).longest == 256  # the model's positions


def test_special_tokens_in_front_are_kept(tmp_path: Path) -> None:
    scorer = model.load(with_model(saved(tmp_path), "reward.model.max_length=8"))
    row = scorer.encode("<|pad|>" + "1 2 3 4 5 6 7 8 9 1 2 3", False)
    assert row.cut
    assert (len(row.ids), row.ids[0]) == (8, 1)


def test_nothing_is_trained_and_no_gradient_is_kept(tmp_path: Path) -> None:
    scorer = model.load(with_model(saved(tmp_path)))
    assert not any(p.requires_grad for p in scorer.model.parameters())
    assert not scorer.model.training
    assert not scorer.forward([[5, 6, 7]]).requires_grad
    assert model.load(with_model(tmp_path)) is scorer  # loaded once


def test_its_cost_is_accounted_apart(tmp_path: Path) -> None:
    cfg = with_model(saved(tmp_path))
    rewards.load(cfg)
    count = sum(p.numel() for p in network("llama").parameters())
    scored = rows(*ANSWERS)
    tokenizer = model.load(cfg).tokenizer
    lengths = [len(tokenizer(p + a)["input_ids"]) + 1 for p, a in zip(scored.prompts, scored.responses, strict=True)]
    PARTS["model"](scored, cfg)
    cost = rewards.take_cost(cfg)
    assert (cost["parameters"], cost["weight_bytes"]) == (count, 4 * count)
    assert (cost["tokens"], cost["completions"], cost["cut"]) == (sum(lengths), 5, 0)
    # linear layers of both blocks, 16 wide: q and o 16x16, k and v 16x8 (one of two heads), gate, up and down 16x24,
    # and the head of one output: 2·(512 + 256 + 1152) + 16 = 3856; 2 FLOPs each per token, 2·layers·width·T² for
    # attention
    flops = 2 * 3856 * sum(lengths) + 2 * 2 * 16 * sum(n * n for n in lengths)
    assert cost["flops"] == flops
    assert cost["seconds"] > 0
    assert cost["peak_memory_bytes"] >= 0
    PARTS["model"](scored, cfg)
    twice = model.add_cost(model.add_cost({}, cost), rewards.take_cost(cfg))
    assert (twice["tokens"], twice["parameters"]) == (2 * sum(lengths), count)
    assert model.add_cost(twice, {}) == twice
    PARTS["model"](scored, cfg)
    rewards.load(cfg)  # the next run of this process begins at 0
    assert rewards.take_cost(cfg)["tokens"] == 0
    assert rewards.take_cost(make()) == {}


def test_bfloat16_by_choice(tmp_path: Path) -> None:
    saved(tmp_path)
    whole = PARTS["model"](rows(*ANSWERS), with_model(tmp_path))
    cfg = with_model(tmp_path, "reward.model.dtype=bfloat16")
    half = PARTS["model"](rows(*ANSWERS), cfg)
    assert model.load(cfg).constants["weight_bytes"] == 2 * model.load(cfg).constants["parameters"]
    assert half != whole
    assert half == pytest.approx(whole, abs=0.3)


def test_a_score_that_is_not_finite_is_one_line(tmp_path: Path) -> None:
    cfg = with_model(saved(tmp_path))
    torch.nn.init.constant_(model.load(cfg).model.score.weight, float("nan"))
    with pytest.raises(UserError, match=r"the reward model gave nan for row 0 \(problem p/0\)"):
        PARTS["model"](rows("a"), cfg)


def error(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        model.load(with_model(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_no_reward_model_is_one_line(tmp_path: Path) -> None:
    assert "holds no config.json" in error(tmp_path)
    assert "holds no config.json" in check.missing(with_model(tmp_path))[0]
    assert "there is no such folder" in check.missing(with_model(tmp_path / "nowhere"))[0]
    two = saved(tmp_path / "two", num_labels=3)
    assert "has 3 outputs, a reward model has one" in error(two)
    assert "has 3 outputs, a reward model has one" in check.missing(with_model(two))[0]
    # a language model would be given a head of random weights
    saved(tmp_path / "causal")
    settings = {**SIZES, "vocab_size": 512, "num_key_value_heads": 1, "num_labels": 1}
    LlamaForCausalLM(LlamaConfig(**settings)).save_pretrained(tmp_path / "causal")
    assert "is no reward model: its weights lack score.weight" in error(tmp_path / "causal")
    pickled = saved(tmp_path / "pickled")
    torch.save(network("llama").state_dict(), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    assert "pickled weights are not loaded" in check.missing(with_model(pickled))[0]
    assert "safetensors" in error(pickled)
    assert check.missing(with_model(saved(tmp_path / "good"))) == []


def test_code_of_its_own_is_not_run(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    content = json.loads((folder / "config.json").read_text())
    content |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert "cannot be loaded" in error(folder)
    assert not (tmp_path / "ran").exists()
