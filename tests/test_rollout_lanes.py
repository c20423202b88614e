"""A rollout in lanes samples what one lane does, and each lane's ends, errors and memory are the rollout's."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from kernel_data import kernels_on, needs_compiler, needs_tiles  # noqa: F401
from model_data import ARCHITECTURES
from test_rollout_native import NOISE, PROMPTS, SAMPLED, model, tokenizer
from test_tape import adapted

from grpo_bench import kernels, lanes
from grpo_bench.compose import compose, composing
from grpo_bench.config import parse
from grpo_bench.policy import Policy
from grpo_bench.rollout import Noise, Sampling, decode, native, shares, taped
from grpo_bench.rollout.native import NativeEngine
from grpo_bench.rollout.shares import Found, Steps, in_lanes, split
from grpo_bench.rollout.tape import Tape
from grpo_bench.rollout.weights import SamplingCopy
from grpo_bench.tiny import tiny_model
from grpo_bench.types import Rollouts, UserError

LIMITS = (1, 24, 24, 9, 24)
LIMITED = Sampling(0.8, 24, limits=LIMITS)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lanes for what a test samples, and two threads to share out."""
    torch.set_num_threads(2)
    monkeypatch.setattr(shares, "LANE_ROWS", 1)
    monkeypatch.setattr(shares, "LANE_PARAMETERS", 0)
    monkeypatch.setattr(shares, "EVEN", 0.01)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lanes of each rollout."""
    found: list[int] = []

    def seen(steps: Any, tell: Any) -> None:
        found.append(len(steps))
        in_lanes(steps, tell)

    monkeypatch.setattr(native, "in_lanes", seen)
    return found


def close(got: Rollouts, want: Rollouts, to: float) -> bool:
    assert got == want  # tokens, texts and ends
    assert got.logps is not None
    assert want.logps is not None
    return all(ours == pytest.approx(theirs, abs=to) for ours, theirs in zip(got.logps, want.logps, strict=True))


def of_kind(kind: str) -> Policy:
    return adapted() if kind == "lora" else model(kind, double=False)


def alone(monkeypatch: pytest.MonkeyPatch, *given: Any, slots: int | None = None, dtype: Any = None) -> Rollouts:
    with monkeypatch.context() as patch:
        patch.setattr(shares, "LANE_ROWS", 10**9)
        return NativeEngine(slots, dtype).generate(*given)


# --- what is sampled ---


@pytest.mark.parametrize("slots", [None, 4])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_lanes_sample_what_one_lane_does(monkeypatch, used, kind, slots) -> None:
    """In float64, which compiled kernels do not take; prompts of unequal length, rows that end early, or wait."""
    monkeypatch.setattr(shares, "worth_lanes", lambda sampled: True)
    given = (model(kind), tokenizer(), PROMPTS, 4, SAMPLED, NOISE)
    want = alone(monkeypatch, *given, slots=slots)
    assert len({len(ids) for ids in want.completion_ids}) > 4
    assert close(NativeEngine(slots).generate(*given), want, 1e-9)
    assert used == [1, 2]


@needs_compiler
@pytest.mark.parametrize("slots", [None, 4])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "lora"])
def test_recorded_lanes_sample_what_one_lane_does(monkeypatch, used, kind, slots) -> None:
    monkeypatch.setattr(taped, "PLAIN_STEPS", 2)
    given = (of_kind(kind), tokenizer(), PROMPTS, 4, LIMITED, NOISE)
    want = alone(monkeypatch, *given, slots=slots)
    assert close(NativeEngine(slots).generate(*given), want, 1e-5)
    assert used == [1, 2]


class Rows:
    """The noise of these rows of a rollout."""

    def __init__(self, rows: list[int]) -> None:
        self.rows = rows

    def uniforms(self, row: int, tokens: int) -> Any:
        return NOISE.uniforms(self.rows[row], tokens)


@needs_compiler
@pytest.mark.parametrize("slots", [None, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "lora"])
def test_a_lane_is_to_the_bit_a_rollout_of_its_prompts(monkeypatch, used, kind, dtype, slots) -> None:
    """In bfloat16 sizes of batches change what is rounded, and with it tokens: not so what stands beside a batch."""
    monkeypatch.setattr(taped, "PLAIN_STEPS", 2)
    policy, tok = of_kind(kind), tokenizer()
    got = NativeEngine(slots, dtype).generate(policy, tok, PROMPTS, 4, LIMITED, NOISE)
    assert used == [2]
    assert got.logps is not None
    torch.set_num_threads(1)
    for part in split([len(p) + 4 * limit for p, limit in zip(PROMPTS, LIMITS, strict=True)], 2)[0]:
        rows = [4 * p + g for p in part for g in range(4)]
        sampling = replace(LIMITED, limits=tuple(LIMITS[p] for p in part))
        engine = NativeEngine(slots and slots // 2, dtype)
        want = engine.generate(policy, tok, [PROMPTS[p] for p in part], 4, sampling, Rows(rows))
        assert [got.completion_ids[row] for row in rows] == want.completion_ids
        assert [got.logps[row] for row in rows] == want.logps
    assert used == [2, 1, 1]


@needs_compiler
def test_what_lanes_recorded_serves_the_next_rollouts(monkeypatch) -> None:
    """Beside that of one lane; weights change in between, in place."""
    made: list[Tape] = []

    def record(function: Any) -> Tape:
        made.append(Tape(function))
        return made[-1]

    monkeypatch.setattr(taped, "PLAIN_STEPS", 2)
    monkeypatch.setattr(taped, "Tape", record)
    policy, tok, engine = model(double=False), tokenizer(), NativeEngine(None, torch.bfloat16)
    sampling, counts = Sampling(0.8, 24, ignore_end=True), []
    for step in range(4):
        given = (policy, tok, PROMPTS, 4, sampling, Noise(3, "train", step))
        got = engine.generate(*given)
        counts.append(len(made))
        assert len(engine._kept) == 2
        assert got == alone(monkeypatch, *given, dtype=torch.bfloat16)
        made.clear()
        with torch.no_grad():
            for p in policy.model.parameters():
                p.mul_(1.1)
    assert counts == [2, 0, 0, 0]
    first, second = engine._kept.values()
    assert first.size_bytes() > second.size_bytes() > 0  # of three prompts and of two
    engine.generate(policy, tok, PROMPTS[:1], 4, sampling, NOISE)  # a lane by itself
    assert len(engine._kept) == 3


def test_a_copy_takes_weights_over_once(monkeypatch) -> None:
    monkeypatch.setattr(shares, "worth_lanes", lambda sampled: True)
    policy, tok, engine = model(double=False), tokenizer(), NativeEngine(None, torch.bfloat16)
    refreshed: list[int] = []
    refresh = SamplingCopy.refresh
    monkeypatch.setattr(SamplingCopy, "refresh", lambda copy: (refreshed.append(1), refresh(copy)))
    for count in (0, 1, 2):
        engine.generate(policy, tok, PROMPTS, 2, SAMPLED, NOISE)
        assert len(refreshed) == (count if kernels.available() else 0)


@needs_tiles
def test_threads_share_packed_layers_of_one_input() -> None:
    """Each is given its own part, whoever asks in between."""
    policy = SamplingCopy(model(double=False), torch.bfloat16).policy
    attention = policy.model.model.layers[0].self_attn
    width, turn = attention.q_proj.in_features, threading.Barrier(2)

    def parts(seed: int, wait: Any = turn.wait) -> list[torch.Tensor]:
        x = torch.randn(1, 3, width, generator=torch.Generator().manual_seed(seed)).bfloat16()
        out = []
        for layer in (attention.q_proj, attention.k_proj, attention.v_proj):
            with torch.no_grad():
                out.append(layer(x))
            wait()
        return out

    want = [parts(seed, lambda: 0) for seed in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        got = list(pool.map(parts, (0, 1)))
    for ours, theirs in zip(got, want, strict=True):
        assert all(map(torch.equal, ours, theirs))


# --- ends and errors ---


@pytest.mark.parametrize("slots", [None, 4])
def test_the_calling_thread_is_told_each_end_once(monkeypatch, used, slots) -> None:
    monkeypatch.setattr(shares, "worth_lanes", lambda sampled: True)
    policy, tok = model(ends=1), tokenizer()
    free = alone(monkeypatch, policy, tok, PROMPTS, 4, SAMPLED, NOISE)
    sampling = Sampling(0.8, 12, stop=(free.texts[0][3:5],))
    told: list[tuple[int, str, bool]] = []
    counts: list[int] = []
    by: set[int] = set()

    def ended(*what: Any) -> None:
        told.append(what)
        by.add(threading.get_ident())

    out = NativeEngine(slots).generate(policy, tok, PROMPTS, 4, sampling, NOISE, counts.append, ended)
    assert sorted(told) == [(i, out.texts[i], out.finished[i]) for i in range(20)]
    assert by == {threading.get_ident()}
    assert counts == sorted(set(counts))
    assert counts[-1] == 20
    assert out == alone(monkeypatch, policy, tok, PROMPTS, 4, sampling, NOISE)
    assert used == [1, 2, 1]


def test_what_another_lane_found_is_told_while_it_goes_on() -> None:
    told = threading.Event()
    one: Found = ([7], [[1]], [[0.0]])

    def first() -> Steps:
        while not told.wait(0.001):
            yield [], [], []
        yield one

    def second() -> Steps:
        yield one
        assert told.wait(60)
        yield one

    seen: list[int] = []

    def tell(lane: int, found: Found) -> None:
        seen.append(lane)
        told.set()

    in_lanes([first(), second()], tell)
    assert seen[0] == 1
    assert sorted(seen) == [0, 1, 1]


@pytest.mark.parametrize("fails", ["own", "other", "told"])
def test_an_error_ends_all_lanes(fails: str) -> None:
    began, ended = threading.Event(), []

    def steps(lane: int) -> Steps:
        try:
            if fails == ("own", "other")[lane]:
                assert began.wait(60)
                raise KeyboardInterrupt
            while True:  # until it is ended
                began.set()
                yield ([lane], [[1]], [[0.0]]) if fails == "told" else ([], [], [])
        finally:
            ended.append(lane)

    def tell(lane: int, found: Found) -> None:
        if lane:
            raise KeyboardInterrupt

    def sample() -> None:
        in_lanes([steps(0), steps(1)], tell)

    with pytest.raises(KeyboardInterrupt):
        sample()
    assert sorted(ended) == [0, 1]
    assert torch.get_num_threads() == 2


@needs_compiler
@pytest.mark.parametrize("lane", [0, 1])
def test_no_memory_in_a_lane_is_one_line_and_leaves_nothing(monkeypatch, lane) -> None:
    policy, tok, engine = model(double=False), tokenizer(), NativeEngine(None, torch.bfloat16)
    given = (policy, tok, PROMPTS, 4, Sampling(0.8, 24), NOISE)
    want = engine.generate(*given)
    assert len(engine._kept) == 2
    advance = decode.Decoder.advance

    def fail(decoder: decode.Decoder) -> None:
        if (threading.current_thread() is not threading.main_thread()) == bool(lane) and decoder.now > 3:
            raise torch.OutOfMemoryError("no memory")
        advance(decoder)

    with monkeypatch.context() as patch:
        patch.setattr(decode.Decoder, "advance", fail)
        with pytest.raises(UserError, match="out of memory"):
            engine.generate(*given)
    assert not engine._kept
    assert not engine._copies
    assert torch.get_num_threads() == 2
    assert engine.generate(*given) == want


@needs_compiler
def test_lanes_share_the_threads_and_the_rows_at_once(monkeypatch) -> None:
    torch.set_num_threads(4)
    seen: set[tuple[bool, int, int, bool]] = set()
    step = decode.Decoder.step

    def look(decoder: decode.Decoder, shape: Any) -> Any:
        here = threading.current_thread() is threading.main_thread()
        seen.add((here, torch.get_num_threads(), decoder.cache.rows, torch.is_grad_enabled()))
        return step(decoder, shape)

    monkeypatch.setattr(decode.Decoder, "step", look)
    NativeEngine(7).generate(model(double=False), tokenizer(), PROMPTS, 4, SAMPLED, NOISE)
    assert seen - {(True, 4, 3, False)} == {(True, 2, 3, False), (False, 2, 3, False)}  # but for the probe
    assert torch.get_num_threads() == 4


FORKED = """
import os, torch
from grpo_bench import lanes
torch.set_num_threads(2)
assert lanes.side_by_side([lambda: 1, lambda: 2]) == [1, 2]
child = os.fork()
if child == 0:
    os._exit(lanes.side_by_side([lambda: 1, lambda: 2])[1])
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_has_lanes_of_its_own() -> None:
    subprocess.run([sys.executable, "-c", FORKED], check=True, timeout=120)


# --- which rollouts ---


def test_shares_have_as_many_items_and_nearly_the_same_work() -> None:
    assert split([5, 1, 4, 2], 2) == ([[0, 1], [2, 3]], [6, 6])
    assert split([9, 1, 1, 1, 1], 2) == ([[0, 3, 4], [1, 2]], [11, 2])  # 3 and 2 items whatever they are
    assert split([3], 2) == ([[0], []], [3, 0])
    assert split([1] * 6, 3) == ([[0, 3], [1, 4], [2, 5]], [2, 2, 2])


@needs_compiler
def test_lanes_are_for_many_rows_of_small_models_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, prompts = model(double=False), [[1] * 4] * 4
    size = sum(p.numel() for p in policy.model.parameters())

    def count(rows: int = 16, prompts: list[list[int]] = prompts, sampling: Sampling = SAMPLED) -> int:
        return len(shares.shares(policy, prompts, 4, sampling, rows))

    monkeypatch.setattr(shares, "LANE_ROWS", 8)
    monkeypatch.setattr(shares, "LANE_PARAMETERS", size)
    monkeypatch.setattr(shares, "LANE_BYTES", 4 * size)  # fp32
    monkeypatch.setattr(shares, "EVEN", 0.9)
    assert count() == 2
    assert count(rows=15) == 1
    assert count(prompts=prompts[:3]) == 1  # 2 and 1
    assert count(prompts=[[1] * 99, *prompts[1:]]) == 1
    assert count(sampling=Sampling(1.0, 12, limits=(12, 1, 1, 1))) == 1
    with monkeypatch.context() as patch:
        patch.setattr(lanes, "count", lambda device: 1)
        assert count() == 1
    with monkeypatch.context() as patch:
        patch.setattr(policy.model.model.rotary_emb, "rope_type", "dynamic", raising=False)  # frequencies change
        assert count() == 1
    kernels.use(False)
    assert count() == 1
    kernels.use(True)
    for name, value in (("LANE_PARAMETERS", size + 1), ("LANE_BYTES", 4 * size - 1)):
        with monkeypatch.context() as patch:
            patch.setattr(shares, name, value)
            assert count() == 1


@needs_compiler
def test_the_embedded_model_has_one_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its published results are of one, to the bit."""
    monkeypatch.undo()
    with composing():
        tiny = parse(compose([])).model.tiny
    assert tiny is not None
    policy = Policy(tiny_model(tiny), torch.float32)
    assert not shares.worth_lanes(policy)
    monkeypatch.setattr(shares, "LANE_PARAMETERS", 0)
    assert shares.worth_lanes(policy)  # but for its size
