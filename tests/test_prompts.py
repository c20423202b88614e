"""Prompts, their length, and the demonstrations that are imitated after them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from task_data import config, gsm8k_loader, gsm8k_rows, write
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from grpo_bench.tasks import Task, load_task
from grpo_bench.tasks.dataset import DatasetTask
from grpo_bench.tasks.demonstrations import demonstrate, ensure_marked, kind_of, unmarked
from grpo_bench.tasks.prompts import fill, separator
from grpo_bench.types import Problem, UserError

CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' and no_system is defined %}{{ raise_exception('no system') }}"
    "{% endif %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """One token per character, after a BOS."""
    vocabulary = {"<unk>": 0, "<s>": 1}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    raw.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", bos_token="<s>")
    made.chat_template = chat_template
    return made


@pytest.fixture
def gsm8k(tmp_path: Path) -> Callable[..., DatasetTask]:
    return gsm8k_loader(tmp_path)


def test_plain_prompts() -> None:
    problem = Problem("x", "What is 1+1?", "2")
    task = load_task_without_data("gsm8k")
    assert task.prompt(problem, None) == (
        'Question: What is 1+1?\nLet\'s think step by step and output the final answer after "####".\nAnswer:'
    )
    shots = [{"question": "{answer}?", "answer": "#### 1"}, {"question": "b", "answer": "#### 2"}]
    prompt = {"template": "Q: {question}\nA:", "shot_template": "Q: {question}\nA: {answer}\n\n", "shots": shots}
    task = load_task_without_data("gsm8k", prompt=prompt)
    assert task.prompt(problem, None) == "Q: {answer}?\nA: #### 1\n\nQ: b\nA: #### 2\n\nQ: What is 1+1?\nA:"
    assert fill("in \\boxed{}: {question} {x}", question="{question}") == "in \\boxed{}: {question} {x}"


def test_chat_prompts() -> None:
    problem = Problem("x", "1+1?", "2")
    prompt = {
        "style": "chat",
        "system": "Be brief.",
        "template": "Q {question}",
        "shots": [{"question": "a", "answer": "b"}],
    }
    task = load_task_without_data("gsm8k", prompt=prompt)
    chat = tokenizer(CHAT_TEMPLATE)
    rendered = "<system>Be brief.</s><user>Q a</s><assistant>b</s><user>Q 1+1?</s><assistant>"
    assert task.prompt(problem, chat) == rendered
    with pytest.raises(UserError, match=r"no chat template; use task\.prompt\.style=plain"):
        task.prompt(problem, tokenizer())
    with pytest.raises(UserError, match=r"refuses this prompt \(no system\).*task\.prompt\.system=null"):
        task.prompt(problem, tokenizer(CHAT_TEMPLATE.replace("no_system is defined", "true")))
    # the chat template writes its own special tokens: no BOS is added before them, while a plain prompt gets one
    assert len(task.prompt_ids([problem], chat)[0]) == len(rendered)
    plain = load_task_without_data("gsm8k", prompt={"template": "{question}"})
    assert plain.prompt_ids([problem, Problem("y", "12", "2")], chat) == [[1, 0, 0, 0, 0], [1, 0, 0]]
    assert plain.prompt_ids([], chat) == []


class Bare(Task):
    """Prompts and grades alone."""

    def draw(self, index: int, seed: int, purpose: str) -> Problem:
        return Problem(str(index), f"{index}?", str(index), f"It is {index}.\n#### {index}")

    def dev(self, n: int) -> list[Problem]:
        return []

    def test(self, n: int | None) -> list[Problem]:
        return []

    def problem(self, id: str) -> Problem:
        raise UserError(id)


def load_task_without_data(name: str, **override: Any) -> Bare:
    return Bare(config(name, **override), 0)


def test_long_training_prompts_are_dropped_and_long_test_prompts_are_named(tmp_path: Path) -> None:
    train, test = gsm8k_rows(0, 30), gsm8k_rows(100, 5)
    for rows, index in ((train, 4), (train, 11), (test, 2)):
        rows[index]["question"] += " " + "x" * 80
    write(tmp_path / "train.jsonl", train)
    write(tmp_path / "test.jsonl", test)
    task = load_task(config("gsm8k", path=str(tmp_path), max_prompt_tokens=60, prompt={"template": "{question}"}), 0)
    assert isinstance(task, DatasetTask)
    before = task.prompt_stream_hash
    task.fit(tokenizer())
    assert set(task.dropped) == {"gsm8k/train/4", "gsm8k/train/11"}
    assert sum("dropped 2 from train, prompt longer than 60 tokens: " in note for note in task.notes) == 1
    assert "kept 1 test prompts longer than 60 tokens, whole: gsm8k/test/2" in task.notes
    assert len(task.test(None)) == 5
    assert task.train_size + len(task.dev(99)) == 28
    assert task.prompt_stream_hash != before
    task = load_task(config("gsm8k", path=str(tmp_path), max_prompt_tokens=10, prompt={"template": "{question}"}), 0)
    # the shortest is a BOS and the 17 characters of "What is 0 plus 0?"
    with pytest.raises(UserError, match=r"longer than task\.max_prompt_tokens=10; the shortest has 18 tokens"):
        task.fit(tokenizer())


def test_kinds_of_demonstrations() -> None:
    problem = Problem("x", "?", "14", "3 + 4 = 7\n7 + 7 = 14\n#### 14")
    kinds = {kind: demonstrate("gsm8k", problem, kind) for kind in ("worked", "bare", "unmarked")}
    assert kinds == {"worked": problem.solution, "bare": "#### 14", "unmarked": "3 + 4 = 7\n7 + 7 = 14"}
    problem = Problem("x", "?", "\\frac{1}{2}", "So $x=\\boxed{\\frac{1}{2}}$, as \\fbox{said \\}} and \\boxed 9.")
    assert demonstrate("math", problem, "bare") == "\\boxed{\\frac{1}{2}}"
    assert demonstrate("math", problem, "unmarked") == "So $x=\\frac{1}{2}$, as said \\} and 9."
    assert unmarked("math", "never \\boxed{closed") == "never {closed"
    assert unmarked("gsm8k", "7 + 5 = 12 ; 12 - 3 = 9 #### 9") == "7 + 5 = 12 ; 12 - 3 = 9"
    assert ensure_marked("gsm8k", "It is 9. #### 9", "9") == "It is 9.\n#### 9"
    assert ensure_marked("math", "It is 9.", "9") == "It is 9.\n\\boxed{9}"


def test_shares_of_demonstrations() -> None:
    shares = {"worked": 0.5, "bare": 0.2, "unmarked": 0.3}
    drawn = Counter(kind_of(shares, 0, i) for i in range(10_000))
    # binomial standard deviations are 50, 40 and 46
    assert abs(drawn["worked"] - 5000) < 200
    assert abs(drawn["bare"] - 2000) < 160
    assert abs(drawn["unmarked"] - 3000) < 184
    assert {kind_of({"bare": 1.0}, 0, i) for i in range(99)} == {"bare"}
    # shares as people round them: the last kind takes what is missing to 1
    assert {kind_of({"worked": 0.3, "bare": 0.3, "unmarked": 0.3}, 0, i) for i in range(99)} == {
        "worked",
        "bare",
        "unmarked",
    }
    assert {kind_of({"worked": 0.4, "bare": 0.5}, 0, i) for i in range(99)} == {"worked", "bare"}


def test_demonstrations_are_keyed_by_seed_and_index(gsm8k: Callable[..., DatasetTask]) -> None:
    task = gsm8k(demonstrations={"worked": 0.4, "bare": 0.3, "unmarked": 0.3})
    pairs = task.demonstrations(100, seed=7)
    assert (
        pairs[:20]
        == task.demonstrations(20, seed=7)
        == gsm8k(seed=9, demonstrations=task.cfg.demonstrations).demonstrations(20, 7)
    )
    assert pairs[:20] != task.demonstrations(20, seed=8)
    assert not {problem.id for problem, _ in pairs} & {problem.id for problem in task.dev(99)}
    # "Answer:" leaves a space to the response; a template that ends in white space, or a chat turn, does not
    assert all(response.startswith(" ") and not response.startswith("  ") for _, response in pairs)
    assert separator(config("gsm8k_chat").prompt) == ""
    assert separator(config("gsm8k", prompt={"template": "{question}\n"}).prompt) == ""
