"""Steps of an answer by its decoded text, and their values from completions that leave there."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gather_data import SIZE, Characters, Script, parts_of
from model_data import make, network

from grpo_bench.branches import branch_values, step_starts
from grpo_bench.collect import drop
from grpo_bench.cost import Meter, Size
from grpo_bench.gather import gather, with_extras
from grpo_bench.policy import Policy
from grpo_bench.rollout import make_engine
from grpo_bench.signals import signals
from grpo_bench.state import State
from grpo_bench.tiny import tiny_tokenizer
from grpo_bench.types import Batch


class Pieces:
    """A tokenizer whose words are these."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(self.words[i] for i in ids)


@pytest.mark.parametrize(
    ("words", "delimiters", "starts"),
    [
        (["a", " ;", "b", " ;", "c"], (" ;",), [0, 2, 4]),
        (["a", " ", ";", "b"], (" ;",), [0, 3]),  # a delimiter of two tokens ends with the second
        (["a", " ;b", "c"], (" ;",), [0, 2]),  # a token that completes it belongs to the step it ends
        (["a", "\n", "\n", "b"], ("\n",), [0, 3]),  # delimiters in a row are one
        (["a", "\n\n", "b", "\n", "c"], ("\n", "\n\n"), [0, 2, 4]),
        (["a", " ;", "\n", "b"], (" ;", "\n"), [0, 3]),
        (["a", "\n"], ("\n",), [0]),  # no text follows: no step
        (["a", "\n", ""], ("\n",), [0]),  # nor where only an end token does
        (["\n", "a"], ("\n",), [0, 1]),
        (["a\nb\nc", "d"], ("\n",), [0, 1]),  # two ends within one token: one step
        (["a", "\nb\n"], ("\n",), [0]),
        (["abc"], ("\n",), [0]),
        (["a", ".", "*", "b"], (".*",), [0, 3]),  # strings, no patterns
    ],
)
def test_steps_end_with_the_token_that_completes_a_delimiter(
    words: list[str], delimiters: tuple[str, ...], starts: list[int]
) -> None:
    assert step_starts(Pieces(*words), list(range(len(words))), delimiters) == starts


def test_steps_of_a_worked_answer_of_the_embedded_task() -> None:
    tiny = make().model.tiny
    assert tiny is not None
    tokenizer = tiny_tokenizer(tiny)
    text = " 7 + 5 = 12 ; 12 - 3 = 9 ; #### 9"
    ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
    starts = step_starts(tokenizer, ids, (" ;",))
    steps = [tokenizer.decode(ids[a:b]).strip() for a, b in zip(starts, [*starts[1:], len(ids) - 1], strict=True)]
    assert steps == ["7 + 5 = 12 ;", "12 - 3 = 9 ;", "#### 9"]


def everything(batch: Batch) -> torch.Tensor:
    return batch.finished.new_ones(len(batch.finished))


def vine(count: int = 2, keep: Any = everything) -> Any:
    return SimpleNamespace(refill_limit=0, extra_rollouts="branches", branching=(count, (";",)), keep=keep)


GROUP = ("prompts_per_step=2", "samples_per_step=null", "group_size=2", "task.max_new_tokens=6")
SAMPLED = ["x;y;z$", "w$", "v;u$", "v;t;sr"]  # answers are x;y;z and v;u
BRANCHES = [
    ["x;y;z$", "no$"],  # from 0?              1/2
    ["v;u$", "v;u$"],  # from 1?               1
    ["y;z$", "y;z$"],  # from 0? x;            1
    ["z$", "q$"],  # from 0? x;y;              1/2
    ["x$", "u"],  # from 1? v;  (row 2)        0: the second is cut at no end
    ["u$", "x$"],  # from 1? v;  (row 3)       1/2
    ["$", "$"],  # from 1? v;t;                0
]


def test_values_are_mean_rewards_of_branches_by_hand() -> None:
    engine, state = Script(SAMPLED, [text for pair in BRANCHES for text in pair]), State(step=9)
    given = parts_of(engine, vine(), *GROUP, answers=["x;y;z", "v;u"])
    step = gather(given, state)
    batch = with_extras(given, state, step.experience, drop(step.experience.batch, step.used))
    assert batch.values is not None
    assert batch.step_ids is not None
    assert batch.values.tolist() == [
        [0.5, 0.5, 1.0, 1.0, 0.5, 0.5],  # x ; | y ; | z end
        [0.5, 0.5, 0.0, 0.0, 0.0, 0.0],  # w end: the prompt's value is the group's
        [1.0, 1.0, 0.0, 0.0, 0.0, 0.0],  # v ; | u end
        [1.0, 1.0, 0.5, 0.5, 0.0, 0.0],  # v ; | t ; | s r
    ]
    assert batch.step_ids.tolist() == [
        [0, 0, 1, 1, 2, 2],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 1, 1, 2, 2],
    ]
    assert batch.step_ids.dtype == torch.long
    (_, (prompts, count, sampling, noise)) = engine.calls
    assert prompts == ["0?", "1?", "0?x;", "0?x;y;", "1?v;", "1?v;", "1?v;t;"]
    assert count == 2
    assert sampling.limits == (6, 6, 4, 2, 4, 4, 2)  # an answer and its branches share one limit
    assert sampling.temperature == engine.calls[0][2].temperature
    assert (noise.stream, noise.step) == ("branch", 9)
    assert noise.rows is not None
    assert len(set(noise.rows)) == 14  # each branch has random numbers of its own
    tokens = sum(len(text) for pair in BRANCHES for text in pair)
    assert (state.samples, state.extra_samples, state.extra_tokens) == (4 + 14, 14, tokens)
    assert state.generated_tokens == sum(map(len, SAMPLED)) + tokens
    branched = SIZE.rollout([len(p) for p in prompts], 2, [len(text) for pair in BRANCHES for text in pair])
    assert state.flops == SIZE.rollout([2, 2], 2, list(map(len, SAMPLED))) + branched


def test_values_without_a_critic_are_told_without_targets() -> None:
    engine, state = Script(SAMPLED, [text for pair in BRANCHES for text in pair]), State()
    given = parts_of(engine, vine(), *GROUP, answers=["x;y;z", "v;u"])
    step = gather(given, state)
    batch = with_extras(given, state, step.experience, step.experience.batch)
    told = signals(replace(batch, advantages=torch.zeros_like(batch.mask)))
    # values over the 6 + 2 + 4 + 6 tokens: (4·0.5 + 2·1) + 2·0.5 + (2·1 + 2·0) + (2·1 + 2·0.5 + 2·0) = 10
    assert told["value/mean"] == pytest.approx(10 / 18)
    assert told["value/first_token_mean"] == pytest.approx((0.5 + 0.5 + 1 + 1) / 4)
    assert told["completions/steps_mean"] == (3 + 1 + 2 + 3) / 4
    assert "value/explained_var" not in told


def test_dropped_rows_are_not_branched_and_the_name_of_a_branch_stays() -> None:
    pairs = [BRANCHES[1], BRANCHES[5], BRANCHES[6]]
    engine, state = Script(SAMPLED, [text for pair in pairs for text in pair]), State(step=9)
    given = parts_of(engine, vine(), *GROUP, answers=["x;y;z", "v;u"])
    step = gather(given, state)
    kept = torch.tensor([False, False, False, True])
    batch = with_extras(given, state, step.experience, drop(step.experience.batch, kept))
    assert batch.values is not None
    assert engine.calls[1][0] == ["1?", "1?v;", "1?v;t;"]
    assert batch.values.tolist() == [[0.0] * 6] * 3 + [[1.0, 1.0, 0.5, 0.5, 0.0, 0.0]]
    whole = Script(SAMPLED, [text for pair in BRANCHES for text in pair])
    other = parts_of(whole, vine(), *GROUP, answers=["x;y;z", "v;u"])
    again = gather(other, State(step=9))
    with_extras(other, State(step=9), again.experience, again.experience.batch)
    few, all_rows = engine.calls[1][3].rows, whole.calls[1][3].rows
    assert few is not None
    assert all_rows is not None
    assert few == all_rows[2:4] + all_rows[10:14]


def test_nothing_left_costs_nothing() -> None:
    engine, state = Script(SAMPLED), State()
    given = parts_of(engine, vine(), *GROUP, answers=["x;y;z", "v;u"])
    step = gather(given, state)
    values, step_ids = branch_values(
        given, state, step.experience, drop(step.experience.batch, torch.zeros(4, dtype=torch.bool))
    )
    assert not values.any()
    assert not step_ids.any()
    assert (len(engine.calls), state.extra_samples) == (1, 0)


def test_a_stop_string_across_the_place_of_leaving_ends_the_branch() -> None:
    """The rollout itself would have stopped at the second semicolon."""
    engine = Script(["x;y$", "x$"], ["x$", "x$", ";zz", "y$"])
    given = parts_of(
        engine, vine(), "prompts_per_step=1", "samples_per_step=null", "group_size=2", "task.max_new_tokens=6",
        "task.stop=[';;']", answers=["x"],
    )  # fmt: skip
    state = State()
    step = gather(given, state)
    batch = with_extras(given, state, step.experience, step.experience.batch)
    assert batch.values is not None
    # from "x;": ";zz" is "x;;" with the stop string, text "x", right and ended; "y" is wrong
    assert batch.values[0].tolist() == [1.0, 1.0, 0.5, 0.5]
    assert state.extra_tokens == 2 + 2 + 3 + 2


def test_real_branches_are_those_of_the_policy_and_depend_on_no_batch() -> None:
    """A random network: many branches from a prompt are right as often as its answers are; batching changes none."""
    net = network("llama", vocab=128)
    net.generation_config.eos_token_id = [*range(32), 127]
    policy, found = Policy(net, torch.float32), []
    for batch_size in ("null", "7"):
        script = Script(["1;2$", "3;$"])
        given = parts_of(script, vine(200), "prompts_per_step=1", "samples_per_step=null", "group_size=2",
                         "task.max_new_tokens=8", f"rollout.batch_size={batch_size}", answers=[""])  # fmt: skip
        state = State(step=2)
        step = gather(given, state)
        given.engine = make_engine(given.cfg.rollout)
        given.models = SimpleNamespace(policy=policy)
        given.tokenizer = Characters()
        given.size = Size.of(net)
        given.meter = Meter(torch.device("cpu"))
        given.task.grade = lambda problems, texts: [SimpleNamespace(strict=len(t) > 4, flexible=False) for t in texts]
        found.append(branch_values(given, state, step.experience, step.experience.batch)[0])
        assert state.extra_samples == 2 * 200  # from the prompt, and from "1;"; "3;" is followed by nothing
    assert torch.equal(found[0], found[1])
    values = found[0]
    assert 0 < float(values[0, 0]) < 1
    # more than 4 characters are likelier with two of them there
    assert float(values[0, 2]) > float(values[0, 0])
