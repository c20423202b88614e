"""The embedded task: disjoint splits, a keyed endless stream, gold answers that grade as right; its model."""

from __future__ import annotations

import functools
import itertools
import re
from collections import Counter

import pytest
from model_data import make
from task_data import config

from grpo_bench.tasks import arithmetic, load_task
from grpo_bench.tasks.arithmetic import NAMES, THINGS, ArithmeticTask, split_of, word_problem
from grpo_bench.tiny import END, PAD, tiny_model, tiny_tokenizer
from grpo_bench.types import Problem, UserError


@functools.lru_cache(maxsize=1)
def usual() -> ArithmeticTask:
    """The task as it comes, its splits drawn once."""
    return task()


def task(seed: int = 0, **override: object) -> ArithmeticTask:
    made = load_task(config("arithmetic", **override), seed)
    assert isinstance(made, ArithmeticTask)
    return made


def chain(problem: Problem) -> tuple[int, ...]:
    return tuple(problem.meta["chain"])


def test_test_and_dev_are_fixed_distinct_chains() -> None:
    test, dev, other = usual().test(None), usual().dev(512), task(seed=9)
    assert len(test) == 1000 == len({chain(p) for p in test})
    assert len(dev) == 512 == len({chain(p) for p in dev})
    assert test == other.test(None)  # the seed of a run changes neither
    assert dev[:100] == other.dev(100)
    assert test[:50] == other.test(50)
    assert [p.id for p in test[:2]] == ["arithmetic/test/0", "arithmetic/test/1"]
    assert {p.meta["steps"] for p in test} == {2, 3, 4}


def test_settings_that_leave_nothing_to_draw_are_refused() -> None:
    # operands and results this small leave one chain, 1 - 1, or a few of one length; their hashes decide the split
    one = {"operands": (1, 1), "results": (0, 1), "steps": (1, 1)}
    made = task(arithmetic=one)
    there = split_of((1, -1))
    reach = {"train": lambda: made.train_problem(0), "dev": lambda: made.dev(1), "test": lambda: made.test(1)}
    for split, read in reach.items():
        if split == there:
            assert read()
        else:
            with pytest.raises(UserError, match=f"too few different chains, none of them for {split}"):
                read()
    with pytest.raises(UserError, match="contain an operand"):  # the first number is at most 9
        task(arithmetic={"operands": (1, 9), "results": (20, 40), "steps": (1, 2)})
    with pytest.raises(UserError, match="10,000 chains drawn and none stays within"):
        task(arithmetic={"operands": (9, 9), "results": (9, 18), "steps": (60, 60)}).train_problem(0)


def test_splits_share_no_chain() -> None:
    t = usual()
    train = [t.train_problem(i) for i in range(4000)]
    chains = {
        "test": {chain(p) for p in t.test(None)},
        "dev": {chain(p) for p in t.dev(512)},
        "train": {chain(p) for p in train},
    }
    chains["demonstrations"] = {chain(p) for p, _ in t.demonstrations(2000, 0)}
    for split, members in chains.items():
        assert {split_of(c) for c in members} == {"train" if split == "demonstrations" else split}
    for a, b in itertools.combinations(("test", "dev", "train"), 2):
        assert not chains[a] & chains[b]
    assert not chains["demonstrations"] & (chains["test"] | chains["dev"])
    assert len(chains["train"]) > 2500  # an endless stream, not a few problems again and again


def test_the_same_chain_in_other_words_stays_in_its_split() -> None:
    import numpy as np

    texts = {word_problem("x", (7, 5, -3), np.random.default_rng(i)).question for i in range(30)}
    assert len(texts) > 20
    assert split_of((7, 5, -3)) in ("train", "dev", "test")  # of the chain alone: no text goes in


def test_every_result_lies_within_the_range_and_follows_from_the_text() -> None:
    t = usual()
    for problem in [*t.test(None), *(t.train_problem(i) for i in range(1000))]:
        numbers = chain(problem)
        results = list(itertools.accumulate(numbers))
        assert all(0 <= r <= 20 for r in results)
        assert all(1 <= abs(n) <= 9 for n in numbers)
        assert problem.answer == str(results[-1])
        steps = [
            f"{a} {'+' if n > 0 else '-'} {abs(n)} = {b}"
            for (a, b), n in zip(itertools.pairwise(results), numbers[1:], strict=True)
        ]
        assert problem.solution == " ; ".join(steps) + f" #### {results[-1]}"
        assert [int(x) for x in re.findall(r"\d+", problem.question)] == [abs(n) for n in numbers]
        verbs = re.findall(r"gets|finds|buys|loses|sells|gives away", problem.question)
        assert [verb in ("gets", "finds", "buys") for verb in verbs] == [n > 0 for n in numbers[1:]]


def test_a_problem_by_hand() -> None:
    import numpy as np

    problem = word_problem("arithmetic/test/0", (7, 5, -3), np.random.default_rng(0))
    assert problem.solution == "7 + 5 = 12 ; 12 - 3 = 9 #### 9"
    assert problem.answer == "9"
    assert problem.meta == {"steps": 2, "chain": [7, 5, -3]}


def test_all_lengths_and_signs_appear() -> None:
    t = usual()
    problems = [t.train_problem(i) for i in range(3000)]
    steps = Counter(p.meta["steps"] for p in problems)
    assert set(steps) == {2, 3, 4}
    assert min(steps.values()) > 300
    signs = Counter(n > 0 for p in problems for n in chain(p)[1:])
    assert min(signs.values()) > 0.3 * sum(signs.values())


def test_the_stream_is_keyed_by_seed_and_index() -> None:
    a, b = task(seed=1), task(seed=1)
    assert [a.train_problem(i) for i in (5, 2, 5)] == [b.train_problem(i) for i in (5, 2, 5)]  # in any order
    assert task(seed=2).train_problem(5) != a.train_problem(5)
    first = [a.train_problem(i).question for i in range(200)]
    assert len(set(first)) > 190
    assert a.prompt_stream_hash == b.prompt_stream_hash != task(seed=2).prompt_stream_hash
    assert a.fingerprint == task(seed=2).fingerprint != task(arithmetic={"steps": [2, 3]}).fingerprint
    assert a.prompt_stream_hash != task(seed=1, arithmetic={"steps": [2, 3]}).prompt_stream_hash


def test_problems_are_found_by_their_ids() -> None:
    t = task(seed=4)
    for problem in (t.test(None)[17], t.dev(512)[3], t.train_problem(12), t.demonstrations(3, 0)[2][0]):
        assert usual().problem(problem.id) == problem
    for unknown in ("arithmetic/test/1000", "arithmetic/dev/x", "gsm8k/test/1", "arithmetic/3", "arithmetic/-1/3"):
        with pytest.raises(UserError, match="ids look like arithmetic/test/3"):
            t.problem(unknown)


def test_every_gold_solution_grades_as_right_and_a_changed_one_as_wrong() -> None:
    t = usual()
    problems = [*t.test(None), *(t.train_problem(i) for i in range(500))]
    grades = t.grade(problems, [p.solution for p in problems])
    assert all(g.strict and g.flexible and g.marked for g in grades)
    wrong = t.grade(problems, [p.solution.rpartition(" ")[0] + f" {int(p.answer) + 1}" for p in problems])
    assert not any(g.strict or g.flexible for g in wrong)
    bare = t.grade(problems[:3], [p.solution.rpartition(" ####")[0] for p in problems[:3]])
    assert [(g.strict, g.flexible) for g in bare] == [(False, True)] * 3  # the last result is the answer


def test_demonstrations_are_a_mixture_that_leaves_something_to_prefer() -> None:
    t = usual()
    pairs = t.demonstrations(2000, 0)
    kinds: Counter[str] = Counter()
    for problem, text in pairs:
        response = text.strip()
        kind = {
            problem.solution: "worked",
            f"#### {problem.answer}": "bare",
            problem.solution.partition(" ####")[0]: "unmarked",
        }
        kinds[kind[response]] += 1
    shares = t.cfg.demonstrations
    for name, share in shares.items():
        assert kinds[name] / 2000 == pytest.approx(share, abs=0.04)
    assert pairs[:20] == task(seed=5).demonstrations(20, 0)  # the same for every seed of a run
    assert pairs[:20] != t.demonstrations(20, 1)


@pytest.mark.parametrize(
    "settings",
    [
        {"operands": [0, 9]},
        {"operands": [9, 1]},
        {"steps": [0, 2]},
        {"steps": [4, 2]},
        {"results": [0, 5]},  # 9 would never fit
        {"results": [-5, 20]},
        {"results": [20, 0]},
    ],
)
def test_settings_that_make_no_problems_are_refused(settings: dict[str, list[int]]) -> None:
    with pytest.raises(UserError, match=r"task\.arithmetic: ") as e:
        task(arithmetic=settings)
    assert "\n" not in str(e.value)


def test_a_small_space_of_chains_is_said_and_not_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "TEST", 50)
    t = task(arithmetic={"steps": [1, 1], "operands": [1, 3], "results": [0, 6]})
    test = t.test(None)
    assert len(test) == len({chain(p) for p in test}) < 20
    assert any(f"only {len(test)} different chains" in note for note in t.notes)


def test_wider_settings_hold() -> None:
    t = task(arithmetic={"steps": [5, 6], "operands": [10, 30], "results": [0, 99]})
    for problem in t.test(50):
        assert problem.meta["steps"] in (5, 6)
        assert all(0 <= r <= 99 for r in itertools.accumulate(chain(problem)))


# --- the embedded model ---


def test_the_tokenizer_gives_every_text_back() -> None:
    tiny = make().model.tiny
    assert tiny is not None
    tokenizer = tiny_tokenizer(tiny)
    t = usual()
    texts = [t.prompt(p, tokenizer) + p.solution for p in t.test(100)]
    texts += ["", " ", "½ − naïve 日本語 🙂\n\ttabs", "#### 1,234.50"]
    for text in texts:
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    assert tokenizer.eos_token == END
    assert tokenizer.pad_token == PAD
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    assert len(tokenizer) <= tiny.vocab_size


def test_prompts_and_answers_fit_their_limits() -> None:
    cfg = make()
    assert cfg.model.tiny is not None
    tokenizer = tiny_tokenizer(cfg.model.tiny)
    t = usual()
    prompts = t.prompt_ids(t.test(None), tokenizer)
    answers = tokenizer([p.solution for p in t.test(None)])["input_ids"]
    assert max(map(len, prompts)) <= cfg.task.max_prompt_tokens
    assert max(map(len, answers)) + 1 <= cfg.task.max_new_tokens  # with the end token
    assert cfg.task.max_prompt_tokens + cfg.task.max_new_tokens <= cfg.model.tiny.max_positions


def test_the_embedded_model_is_small_and_always_the_same() -> None:
    from grpo_bench.compose import compose, composing
    from grpo_bench.config import parse

    with composing():
        tiny = parse(compose(["device=cpu"])).model.tiny
    assert tiny is not None
    model = tiny_model(tiny)
    assert 300_000 < sum(p.numel() for p in model.parameters()) < 1_000_000
    assert all((a == b).all() for a, b in zip(model.parameters(), tiny_model(tiny).parameters(), strict=True))
    other = tiny_model(tiny.model_copy(update={"init_seed": 1}))
    assert not (other.get_input_embeddings().weight == model.get_input_embeddings().weight).all()


def test_names_and_things_are_single_words() -> None:
    assert all(re.fullmatch(r"[A-Za-z]+", word) for word in NAMES + THINGS)  # a digit in a name would spoil the text
