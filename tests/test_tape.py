"""Played steps give what the steps themselves give, bit for bit; what cannot be repeated is not recorded."""

from __future__ import annotations

import gc
import mmap
import weakref
from typing import Any

import pytest
import torch
from kernel_data import PRODUCTS, kernels_on, needs_compiler, needs_tiles, packed  # noqa: F401
from model_data import ARCHITECTURES, make
from test_rollout_native import PROMPTS, model, tokenizer
from torch import Tensor

from grpo_bench import kernels
from grpo_bench.config import LoraConfig
from grpo_bench.kernels import products
from grpo_bench.policy import Policy, make_models
from grpo_bench.rollout import Noise, Sampling, decode, native, pages, taped
from grpo_bench.rollout.native import NativeEngine
from grpo_bench.rollout.tape import Tape
from grpo_bench.types import Rollouts


def rolled(
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    dtype: torch.dtype,
    plain: int,
    slots: int | None = None,
    static: bool = False,
    kept: int = 0,
    elsewhere: bool = False,
    given_back: bool = False,
) -> tuple[list[Rollouts], list[Tape]]:
    """Three rollouts by one engine that records after ``plain`` steps alike; weights change in between, in place.

    ``kept``: bytes that it may keep between them; ``given_back``: it may keep more, without the memory. ``elsewhere``:
    weights come to lie in other places in between.
    """
    made: list[Tape] = []

    def record(function: Any) -> Tape:
        made.append(Tape(function))
        return made[-1]

    monkeypatch.setattr(taped, "PLAIN_STEPS", plain)
    monkeypatch.setattr(taped, "Tape", record)
    monkeypatch.setattr(native, "KEPT_BYTES", kept)
    monkeypatch.setattr(native, "KEPT_DECODERS", 4 if kept or given_back else 0)
    engine, tok, out = NativeEngine(slots, dtype, static=static), tokenizer(), []
    policy = adapted() if kind == "lora" else model(kind, double=False)
    for step in range(3):
        out.append(engine.generate(policy, tok, PROMPTS, 4, Sampling(0.8, 24), Noise(3, "train", step)))
        with torch.no_grad():
            for p in policy.model.parameters():
                p.mul_(1.1)
                if elsewhere:
                    p.data = p.data.clone()
    return out, made


def adapted() -> Policy:
    """With LoRA adapters that change something."""
    cfg = make().model.model_copy(update={"lora": LoraConfig(r=4, alpha=8.0, targets=None)})
    policy = make_models(model(double=False).model, cfg, torch.float32, critic=False, reference=False).policy
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in policy.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.2)
    return policy


@needs_compiler
@pytest.mark.parametrize("slots", [None, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [*ARCHITECTURES, "lora"])
def test_played_steps_give_the_same_tokens_and_log_probs(monkeypatch, kind, dtype, slots) -> None:
    """Rows end at different times, so that recordings are left and made anew."""
    want, none = rolled(monkeypatch, kind, dtype, 10**9, slots)
    soon, many = rolled(monkeypatch, kind, dtype, 2, slots)
    later, fewer = rolled(monkeypatch, kind, dtype, 4, slots)
    assert want == soon == later
    assert not none
    assert len(many) > len(fewer) > 0
    assert all(tape.refused is None for tape in many)


@needs_compiler
@pytest.mark.parametrize("slots", [None, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recorded_steps_of_a_small_model_serve_the_next_rollouts(monkeypatch, dtype, slots) -> None:
    want, _ = rolled(monkeypatch, "llama", dtype, 10**9, slots)
    again, anew = rolled(monkeypatch, "llama", dtype, 2, slots)
    played, made = rolled(monkeypatch, "llama", dtype, 2, slots, kept=2**26)
    assert want == again == played
    assert 0 < len(made) < len(anew)
    monkeypatch.setattr(taped, "TAPE_BYTES", 0)  # of two sizes in turns each is recorded again
    fewer, more = rolled(monkeypatch, "llama", dtype, 2, slots, kept=2**26)
    assert fewer == want
    assert len(more) > len(made)


@needs_compiler
@pytest.mark.skipif(not pages.can_give_back(), reason="memory cannot be given back")
@pytest.mark.parametrize("slots", [None, 5])
@pytest.mark.parametrize("kind", ["llama", "lora"])
def test_recorded_steps_stay_without_their_memory(monkeypatch, kind, slots) -> None:
    """Of a copy in bfloat16: what is not a copy keeps its weights, and is not kept here."""
    want, again = rolled(monkeypatch, kind, torch.bfloat16, 2, slots)
    seen: list[int] = []
    give_back = decode.Decoder.give_back

    def given(decoder: decode.Decoder) -> None:
        give_back(decoder)
        seen.append(sum(int(x.count_nonzero()) for x in decoder.cache.slabs))

    monkeypatch.setattr(decode.Decoder, "give_back", given)
    played, made = rolled(monkeypatch, kind, torch.bfloat16, 2, slots, given_back=True)
    assert played == want
    assert 0 < len(made) < len(again)
    assert len(seen) >= 3
    assert max(seen) <= 2 * mmap.PAGESIZE  # the parts of pages at both ends


@needs_compiler
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(0.8, 24, limits=(1, 24, 1, 9, 24)),  # rows that end with their first token
        Sampling(0.0, 24),
        Sampling(1.0, 24, top_k=7, top_p=0.9),
    ],
)
@pytest.mark.parametrize("kind", ["llama", "lora"])
def test_a_kept_decoder_samples_as_a_new_one(monkeypatch, kind, sampling) -> None:
    """Whatever it was kept from: a run that is resumed has a new one."""
    monkeypatch.setattr(taped, "PLAIN_STEPS", 2)
    policy, tok, kept = adapted() if kind == "lora" else model(double=False), tokenizer(), NativeEngine(None)
    for step in range(4):
        noise = Noise(3, "train", step)
        new = NativeEngine(None).generate(policy, tok, PROMPTS, 4, sampling, noise)
        assert kept.generate(policy, tok, PROMPTS, 4, sampling, noise) == new
        assert len(kept._kept) == 1


@needs_compiler
def test_a_rollout_that_broke_off_leaves_nothing(monkeypatch) -> None:
    monkeypatch.setattr(taped, "PLAIN_STEPS", 2)
    policy, tok, engine = model(double=False), tokenizer(), NativeEngine(None, torch.bfloat16)
    want = engine.generate(policy, tok, PROMPTS, 4, Sampling(0.8, 24), Noise(3, "train", 0))
    assert engine._kept
    assert engine._copies

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(policy, tok, PROMPTS, 4, Sampling(0.8, 24), Noise(3, "train", 1), ended=stop)
    assert not engine._kept
    assert not engine._copies
    assert engine.generate(policy, tok, PROMPTS, 4, Sampling(0.8, 24), Noise(3, "train", 0)) == want


@needs_compiler
def test_only_decoders_with_recorded_steps_are_kept(monkeypatch) -> None:
    policy, tok, engine = model(double=False), tokenizer(), NativeEngine(None)
    kernels.use(False)
    engine.generate(policy, tok, PROMPTS, 2, Sampling(0.8, 8), Noise(3, "train", 0))
    assert not engine._kept
    kernels.use(True)
    engine.generate(policy, tok, PROMPTS, 2, Sampling(0.8, 8), Noise(3, "train", 0))
    assert len(engine._kept) == 1


@needs_compiler
def test_weights_that_moved_are_found_and_recorded_anew(monkeypatch) -> None:
    want, _ = rolled(monkeypatch, "llama", torch.float32, 10**9, elsewhere=True)
    played, made = rolled(monkeypatch, "llama", torch.float32, 2, kept=2**26, elsewhere=True)
    assert played == want
    assert len(made) > len(rolled(monkeypatch, "llama", torch.float32, 2, kept=2**26)[1])


@needs_compiler
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 100, 128])
def test_sizes_of_recorded_steps_are_few_and_hold_the_rows(rows) -> None:
    policy = model(double=False)
    decoder = decode.Decoder(policy, Sampling(1.0, 4), set(), rows, 1, 4, rows, False)
    decoder.sized = True  # attention by torch
    assert [decoder._size(n) for n in range(rows + 1)] == list(range(rows + 1))
    decoder.sized = False
    sizes = [decoder._size(n) for n in range(1, rows + 1)]
    assert all(n <= size <= max(1.5 * n, n + 1) for n, size in enumerate(sizes, 1))
    assert sizes == sorted(sizes)
    assert sizes[-1] == rows
    assert len(set(sizes)) <= 3 * rows.bit_length()
    if rows == 128:
        assert sorted(set(sizes)) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128]


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_beyond_those_held_are_computed_in_vain(monkeypatch, dtype) -> None:
    """Static shapes: rows leave and enter under one recording."""
    want, _ = rolled(monkeypatch, "llama", dtype, 10**9, 6, static=True)
    played, made = rolled(monkeypatch, "llama", dtype, 2, 6, static=True)
    assert played == want
    assert made


def stepped(monkeypatch: pytest.MonkeyPatch, play: Any) -> tuple[int, int]:
    """Recordings made and played when recordings are of this kind; the samples are those of plain steps."""
    want, _ = rolled(monkeypatch, "llama", torch.float32, 10**9)
    count = [0, 0]

    class Other(Tape):
        def __init__(self, function: Any) -> None:
            count[0] += 1
            super().__init__(function)
            play(self)

        def play(self) -> Tensor:
            count[1] += 1
            return super().play()

    monkeypatch.setattr(taped, "PLAIN_STEPS", 2)
    monkeypatch.setattr(taped, "Tape", Other)
    monkeypatch.setattr(native, "KEPT_BYTES", 0)
    monkeypatch.setattr(native, "KEPT_DECODERS", 0)
    engine, policy, tok = NativeEngine(None), model(double=False), tokenizer()
    assert engine.generate(policy, tok, PROMPTS, 4, Sampling(0.8, 24), Noise(3, "train", 0)) == want[0]
    return count[0], count[1]


@needs_compiler
def test_a_recording_that_misses_something_is_found_at_its_first_use(monkeypatch) -> None:
    def miss(tape: Tape) -> None:
        del tape._played[len(tape._played) // 2 :]

    assert stepped(monkeypatch, miss)[1] == 1  # played


@needs_compiler
def test_what_cannot_be_recorded_is_tried_once(monkeypatch) -> None:
    def fail(tape: Tape) -> None:
        raise NotImplementedError("no rule for the mode")

    def refuse(tape: Tape) -> None:
        tape.refused = "an operation"

    assert stepped(monkeypatch, fail) == (1, 0)
    assert stepped(monkeypatch, refuse) == (1, 0)


def test_attention_by_torch_is_not_recorded(monkeypatch) -> None:
    """It depends on how far back rows look, which grows from step to step."""
    kernels.use(False)
    assert rolled(monkeypatch, "llama", torch.float32, 1)[1] == []


@torch.no_grad()
def test_a_tape_follows_what_its_inputs_hold() -> None:
    a, b, weight = torch.arange(6.0).view(2, 3), torch.ones(2, 3), torch.tensor([2.0, 0.0, 1.0])

    def function() -> Tensor:
        table = torch.zeros(2, 3)  # filled anew each time
        table.add_(a)
        low = (table * weight).to(torch.bfloat16).float()
        most, _ = torch.cat([low, b], dim=1)[:, 1:].sort(dim=1)
        return most.t() @ b + torch.arange(3.0)

    tape = Tape(function)
    assert tape.refused is None
    for factor in (1.0, 3.0, -2.0):
        a.mul_(factor)
        weight += factor
        want = function()
        assert torch.equal(tape.play(), want)
        assert torch.equal(tape.play(), want)


@torch.no_grad()
@pytest.mark.parametrize("dtype", PRODUCTS)
@pytest.mark.parametrize("rows", [3, 32, 70])
@pytest.mark.parametrize("first", [True, False])
def test_a_product_writes_the_sum_behind_it(dtype, rows, first) -> None:
    """Also where that would come to lie on the product's factor, which nobody holds any more."""
    torch.manual_seed(0)
    x, weight = torch.randn(rows, 64).to(dtype), torch.randn(64, 64) / 8
    ready = packed(weight, dtype)

    def function() -> Tensor:
        y = x
        for _ in range(5):
            made = products.multiply(torch.tanh(y), ready, 64)
            y = y + made if first else made + y
            y = y + y
        return y

    tape = Tape(function)
    assert [f.__name__ for f, _, _ in tape._calls].count(f"add_{kernels.NAMES[dtype]}") == 5
    for _ in range(3):
        want = function()
        assert torch.equal(tape.play(), want)
        x.copy_(torch.randn(rows, 64))


@torch.no_grad()
def test_memory_that_a_step_gave_back_is_used_again_and_not_by_others() -> None:
    x, steps = torch.randn(64, 64), 20

    def function() -> Tensor:
        y = x
        for _ in range(steps):
            y = torch.tanh(y @ x)
        return y

    tape = Tape(function)
    assert len(tape._kept[0]._blocks) <= 4
    noise = [torch.full((64, 64), float("nan")) for _ in range(50)]
    assert torch.equal(tape.play(), function())
    assert all(n.isnan().all() for n in noise)


@torch.no_grad()
@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda x: x + x.sum().item(), "_local_scalar_dense"),
        (lambda x: x + torch.rand(3), "rand"),
        (lambda x: x[x > 0], "index"),
        (lambda x: (x + 1).unsqueeze_(0), "unsqueeze_"),
        (lambda x: torch.nn.functional.dropout(x, 0.5, training=True), "bernoulli"),
    ],
)
def test_what_depends_on_values_or_chance_is_refused(function, named) -> None:
    x = torch.tensor([1.0, 2.0, -3.0])
    tape = Tape(lambda: function(x))
    assert tape.refused is not None
    assert named in tape.refused
    assert isinstance(tape.result, Tensor)  # the step itself was made


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_of_a_rollout_is_left_behind(monkeypatch, dtype) -> None:
    """Nor does it wait for the garbage collector: the update that follows needs the memory."""
    decoders: list[weakref.ref[decode.Decoder]] = []

    class Watched(decode.Decoder):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            decoders.append(weakref.ref(self))

    monkeypatch.setattr(native, "Decoder", Watched)
    gc.disable()
    try:
        assert rolled(monkeypatch, "llama", dtype, 2)[1]
        assert len(decoders) == 3
        assert all(ref() is None for ref in decoders)
    finally:
        gc.enable()
