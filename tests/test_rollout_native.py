"""The native engine's own ways: rows that wait, static shapes, a copy in low precision, log-probs, falling back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_data import kernels_on, needs_compiler  # noqa: F401
from model_data import ARCHITECTURES, make, network

from grpo_bench import kernels
from grpo_bench.config import LoraConfig
from grpo_bench.kernels import products
from grpo_bench.policy import Policy, make_models
from grpo_bench.rollout import Noise, Sampling, decode, make_engine, native, packed_linear, pages, taped
from grpo_bench.rollout.hf import HFEngine
from grpo_bench.rollout.native import NativeEngine
from grpo_bench.rollout.probe import why_no_plans
from grpo_bench.rollout.weights import SamplingCopy
from grpo_bench.tiny import tiny_tokenizer

VOCAB = 512
PROMPTS = [[40, 41, 42], [50], [60, 61, 62, 63, 64, 65, 66], [70, 71, 72], [80, 81]]
NOISE = Noise(seed=3, stream="train", step=5)
SAMPLED = Sampling(temperature=0.8, max_new_tokens=12)


def tokenizer() -> Any:
    tiny = make().model.tiny
    assert tiny is not None
    return tiny_tokenizer(tiny)


def model(kind: str = "llama", ends: int = 40, double: bool = True) -> Policy:
    net = network(kind, vocab=VOCAB, double=double)
    net.generation_config.eos_token_id = list(range(VOCAB - ends, VOCAB))
    return Policy(net, torch.float32)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_samples_depend_neither_on_places_nor_on_shapes(kind: str) -> None:
    """Rows leave and others enter at different times, groups are split, static shapes compute more than is read."""
    policy, tok = model(kind), tokenizer()
    want = HFEngine(None).generate(policy, tok, PROMPTS, 4, SAMPLED, NOISE)
    assert len({len(ids) for ids in want.completion_ids}) > 4
    for slots in (1, 3, 5, 16, None):
        for static in (False, True):
            engine = NativeEngine(slots, static=static)
            got = engine.generate(policy, tok, PROMPTS, 4, SAMPLED, NOISE)
            assert got == want
            assert got.logps is not None
            assert want.logps is not None
            for ours, theirs, ids in zip(got.logps, want.logps, got.completion_ids, strict=True):
                assert len(ours) == len(ids)
                assert ours == pytest.approx(theirs, abs=1e-4)  # generate hands its logits on in fp32


def test_static_shapes_come_in_few_sizes() -> None:
    policy, tok = model(), tokenizer()
    shapes: set[Any] = set()

    class Seen(decode.Decoder):
        def step(self, shape: Any) -> None:
            shapes.add(shape)
            super().step(shape)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "Decoder", Seen)
        NativeEngine(16, static=True).generate(policy, tok, PROMPTS, 8, SAMPLED, NOISE)
    assert len(shapes) < 40
    assert {s.width for s in shapes} == {64}
    assert {s.reach for s in shapes} == {12}
    assert all(s.rows % 2 == 0 and s.members in (1, 2, 4, 8) and not s.even for s in shapes)


def test_a_decoder_may_be_used_again() -> None:
    """As captured steps are: what an earlier rollout left behind does not reach the next."""
    policy, tok = model(), tokenizer()
    again = [PROMPTS[2], [90], PROMPTS[0], [91, 92, 93, 94], PROMPTS[1]]
    want = NativeEngine(5).generate(policy, tok, again, 4, SAMPLED, NOISE)
    engine = NativeEngine(5, static=True)
    engine.generate(policy, tok, PROMPTS, 4, SAMPLED, NOISE)
    ends = native.end_tokens(tok, policy)
    kept = engine._decoder(policy, PROMPTS, 20, SAMPLED, ends)
    uniforms = torch.stack([torch.from_numpy(NOISE.uniforms(row, 12)) for row in range(20)])
    for prompts in (PROMPTS, again):
        assert engine._decoder(policy, prompts, 20, SAMPLED, ends) is kept
        kept.begin(uniforms)
        out: dict[int, list[int]] = {}
        for rows, tokens, _ in native._decode(kept, tok, prompts, 4, SAMPLED):
            out.update(zip(rows, tokens, strict=True))
    assert [out[row] for row in range(20)] == want.completion_ids


def test_prompts_may_be_computed_in_several_forwards(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, tok = model(), tokenizer()
    want = NativeEngine(None).generate(policy, tok, PROMPTS, 3, SAMPLED, NOISE)
    monkeypatch.setattr(decode, "PREFILL_TOKENS", {"cpu": 4})
    assert NativeEngine(None).generate(policy, tok, PROMPTS, 3, SAMPLED, NOISE) == want


def test_each_prompt_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, tok = model(), tokenizer()
    seen: list[int] = []
    prefill = decode.Decoder.prefill

    def counted(self: Any, numbers: list[int], prompts: list[list[int]]) -> None:
        seen.extend(numbers)
        prefill(self, numbers, prompts)

    monkeypatch.setattr(decode.Decoder, "prefill", counted)
    NativeEngine(3).generate(policy, tok, PROMPTS, 5, SAMPLED, NOISE)
    assert seen[:2] == [0, 1]  # of the probe
    assert sorted(seen[2:]) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_log_probs_are_those_of_the_policy(kind: str) -> None:
    """In float64 to 1e-9, at the temperature, from whole forwards of single rows."""
    policy, tok = model(kind), tokenizer()
    out = NativeEngine(5).generate(policy, tok, PROMPTS, 4, SAMPLED, NOISE)
    assert out.logps is not None
    for row, ids in enumerate(out.completion_ids):
        prompt = PROMPTS[row // 4]
        with torch.no_grad():
            logits = policy.model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        logps = torch.log_softmax(logits / 0.8, dim=-1).gather(1, torch.tensor(ids)[:, None]).squeeze(1)
        assert out.logps[row] == pytest.approx(logps.tolist(), abs=1e-9)


@pytest.mark.parametrize("make_it", [lambda: NativeEngine(3), lambda: HFEngine(3)], ids=["native", "hf"])
def test_each_end_is_told_once_as_it_comes_out(make_it: Any) -> None:
    policy, tok = model(ends=1), tokenizer()
    free = HFEngine(None).generate(policy, tok, PROMPTS, 4, SAMPLED, NOISE)
    sampling = Sampling(0.8, 12, stop=(free.texts[0][3:5],))
    told: list[tuple[int, str, bool]] = []
    out = make_it().generate(policy, tok, PROMPTS, 4, sampling, NOISE, None, lambda *what: told.append(what))
    assert sorted(told) == [(i, out.texts[i], out.finished[i]) for i in range(20)]
    assert out == HFEngine(None).generate(policy, tok, PROMPTS, 4, sampling, NOISE)
    assert any(out.finished)


def test_a_stop_string_ends_a_row_early(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, tok = model(ends=1), tokenizer()
    greedy = Sampling(0.0, 64)
    free = NativeEngine(None).generate(policy, tok, PROMPTS[:1], 1, greedy, NOISE)
    stop = tok.decode(free.completion_ids[0][9:11])
    steps: list[Any] = []
    step = decode.Decoder.step
    monkeypatch.setattr(decode.Decoder, "step", lambda self, shape: (steps.append(shape), step(self, shape)))
    engine = NativeEngine(None)
    engine._reasons[policy] = None
    out = engine.generate(policy, tok, PROMPTS[:1], 1, Sampling(0.0, 64, stop=(stop,)), NOISE)
    assert out.finished == [True]
    assert len(steps) <= 16 < 63


@pytest.mark.parametrize("make_it", [lambda: NativeEngine(3), lambda: HFEngine(3)], ids=["native", "hf"])
def test_ends_may_be_ignored(make_it: Any) -> None:
    policy, tok = model(), tokenizer()
    out = make_it().generate(policy, tok, PROMPTS, 2, Sampling(0.8, 12, stop=("a",), ignore_end=True), NOISE)
    assert [len(ids) for ids in out.completion_ids] == [12] * 10
    assert out.finished == [False] * 10
    ended = NativeEngine(None).generate(policy, tok, PROMPTS, 2, SAMPLED, NOISE)
    for ids, cut in zip(out.completion_ids, ended.completion_ids, strict=True):
        assert ids[: len(cut)] == cut


# --- precision ---


def test_a_copy_in_low_precision_follows_the_weights() -> None:
    kernels.use(False)  # packed weights lie nowhere else
    policy = model(double=False)
    made = SamplingCopy(policy, torch.bfloat16)
    copy = made.policy
    assert {p.dtype for p in copy.model.parameters()} == {torch.bfloat16}
    assert copy.model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert copy.model.lm_head.weight is copy.model.model.embed_tokens.weight  # still one tensor
    assert {p.dtype for p in policy.model.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in copy.model.parameters())
    with torch.no_grad():
        for p in policy.model.parameters():
            p.mul_(1.5)
    made.refresh()
    for ours, master in zip(copy.model.parameters(), policy.model.parameters(), strict=True):
        assert torch.equal(ours, master.bfloat16())


@needs_compiler
@pytest.mark.parametrize("kept", [0, 2**26])
def test_a_copy_lives_as_long_as_its_rollout(monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    """The update that follows has its memory; the next rollout samples from the weights as they are then.

    A small model's is kept.
    """
    monkeypatch.setattr(native, "KEPT_BYTES", kept)
    monkeypatch.setattr(native, "KEPT_DECODERS", 4 if kept else 0)
    policy, tok = model(double=False), tokenizer()
    engine = NativeEngine(None, torch.bfloat16)
    made: list[SamplingCopy] = []
    monkeypatch.setattr(native, "SamplingCopy", lambda *given: made.append(SamplingCopy(*given)) or made[-1])
    first = engine.generate(policy, tok, PROMPTS, 2, SAMPLED, NOISE)
    with torch.no_grad():
        for p in policy.model.parameters():
            p.mul_(1.5)
    second = engine.generate(policy, tok, PROMPTS, 2, SAMPLED, NOISE)
    assert len(made) == (1 if kept or pages.can_give_back() else 2)
    assert len(engine._kept) == bool(kept)
    assert bool(engine.kept_weights(policy)) == bool(kept)
    assert first != second
    fresh = NativeEngine(None, torch.bfloat16)
    assert second == fresh.generate(policy, tok, PROMPTS, 2, SAMPLED, NOISE)


@needs_compiler
def test_decoders_kept_between_rollouts_fit_into_their_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """The latest stay; what one holds is counted with its model."""
    monkeypatch.setattr(packed_linear, "WIDE_PARAMETERS", 0)  # the model itself is sampled from
    monkeypatch.setattr(taped, "PLAIN_STEPS", 10**9)  # recordings come with time
    policy, tok, engine = model(double=False), tokenizer(), NativeEngine(None)
    for members in (1, 2, 3, 2):
        engine.generate(policy, tok, PROMPTS, members, SAMPLED, NOISE)
    assert [decoder.cache.rows // len(PROMPTS) for decoder in engine._kept.values()] == [1, 3, 2]
    weights = sum(p.nbytes for p in policy.model.parameters())
    held = {d.cache.rows // len(PROMPTS): d.size_bytes() for d in engine._kept.values()}
    monkeypatch.setattr(native, "KEPT_BYTES", held[1] + held[2] + 2 * weights)
    engine.generate(policy, tok, PROMPTS, 1, SAMPLED, NOISE)
    assert [decoder.cache.rows // len(PROMPTS) for decoder in engine._kept.values()] == [2, 1]
    monkeypatch.setattr(native, "KEPT_BYTES", weights - 1)
    engine.generate(policy, tok, PROMPTS, 1, SAMPLED, NOISE)
    assert not engine._kept


@needs_compiler
@pytest.mark.parametrize("leaves", [True, False])
def test_decoders_too_large_for_their_room_keep_their_places_only(
    monkeypatch: pytest.MonkeyPatch, leaves: bool
) -> None:
    monkeypatch.setattr(packed_linear, "WIDE_PARAMETERS", 0)  # the model itself is sampled from
    policy, tok, engine = model(double=False), tokenizer(), NativeEngine(None)
    left: list[decode.Decoder] = []
    monkeypatch.setattr(decode.Decoder, "give_back", lambda decoder: left.append(decoder))
    monkeypatch.setattr(pages, "can_give_back", lambda: leaves)
    monkeypatch.setattr(native, "KEPT_BYTES", sum(p.nbytes for p in policy.model.parameters()))
    monkeypatch.setattr(native, "KEPT_DECODERS", 2)
    monkeypatch.setattr(decode.Decoder, "records", lambda _: True)
    for members in (1, 2, 3):
        engine.generate(policy, tok, PROMPTS, members, SAMPLED, NOISE)
    # its model is counted with each of them
    assert [decoder.cache.rows // len(PROMPTS) for decoder in engine._kept.values()] == ([3] if leaves else [])
    assert bool(left) == leaves


def test_the_copy_gives_what_a_model_loaded_in_low_precision_gives() -> None:
    policy = model(double=False)
    loaded = network("llama", vocab=VOCAB, double=False)
    loaded.load_state_dict(policy.model.state_dict())
    loaded = loaded.to(torch.bfloat16)
    loaded.model.rotary_emb = policy.model.model.rotary_emb
    loaded = Policy(loaded, torch.bfloat16).model  # computed with in the same ways
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        ours = SamplingCopy(policy, torch.bfloat16).policy.model(input_ids=ids).logits
        torch.testing.assert_close(ours, loaded(input_ids=ids).logits, atol=0.02, rtol=2**-7)


def test_adapters_are_sampled_with_in_low_precision() -> None:
    """Log-probs of the samples are those of the trained adapters, to bfloat16, and not of the model below them."""
    cfg = make().model.model_copy(update={"lora": LoraConfig(r=4, alpha=8.0, targets=None)})
    net = network("llama", vocab=VOCAB, double=False)
    policy, tok = make_models(net, cfg, torch.float32, critic=False, reference=False).policy, tokenizer()
    below = Policy(network("llama", vocab=VOCAB, double=False), torch.float32)
    engine = NativeEngine(5, torch.bfloat16)
    engine.generate(policy, tok, PROMPTS, 2, SAMPLED, NOISE)  # its copy must not be what the next one samples from
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in policy.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.2)
    out = engine.generate(policy, tok, PROMPTS, 4, SAMPLED, NOISE)
    assert out.logps is not None

    def logps(of: Policy, row: int) -> torch.Tensor:
        prompt, ids = PROMPTS[row // 4], out.completion_ids[row]
        with torch.no_grad():
            logits = of.model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        return torch.log_softmax(logits / 0.8, dim=-1).gather(1, torch.tensor(ids)[:, None]).squeeze(1)

    rows = [row for row, ids in enumerate(out.completion_ids) if ids]
    ours = torch.cat([torch.tensor(out.logps[row]) for row in rows])
    wanted, other = (torch.cat([logps(of, row) for row in rows]) for of in (policy, below))
    assert (ours - wanted).square().mean() < 0.01 * (other - wanted).square().mean()


def test_no_copy_where_nothing_is_lower_or_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in (None, torch.float32):
        for double in (False, True):
            engine, packs = NativeEngine(None, dtype), products.multiplies(torch.zeros(1, 1), torch.float32)
            engine.generate(policy := model(double=double), tokenizer(), PROMPTS, 1, SAMPLED, NOISE)
            assert len(engine._copies) == (packs and not double)
            monkeypatch.setattr(packed_linear, "WIDE_PARAMETERS", 0)  # as where memory is short
            engine.generate(policy, tokenizer(), PROMPTS, 1, SAMPLED, NOISE)
            assert len(engine._copies) == 0
            monkeypatch.undo()
    made = make_engine(make("rollout.dtype=bfloat16").rollout)
    assert isinstance(made, NativeEngine)
    assert made.dtype == torch.bfloat16


# --- falling back ---


def test_a_model_that_takes_no_plans_is_sampled_by_hf(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, tok = model(), tokenizer()
    want = HFEngine(None).generate(policy, tok, PROMPTS, 2, SAMPLED, NOISE)
    policy.model.set_attn_implementation("eager")
    assert why_no_plans(policy) is not None
    policy, engine = model(), NativeEngine(None)
    monkeypatch.setattr(native, "why_no_plans", lambda policy: "its attention is its own")
    monkeypatch.setattr(native, "Decoder", None)
    assert engine.generate(policy, tok, PROMPTS, 2, SAMPLED, NOISE) == want
    assert engine.generate(policy, tok, PROMPTS, 2, SAMPLED, NOISE) == want
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1  # once
    assert "native cannot sample from LlamaForCausalLM" in said[0]


def test_a_model_whose_plans_give_other_logits_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = model()
    assert why_no_plans(policy) is None
    attend = decode.DecodePlan.attend
    monkeypatch.setattr(decode.DecodePlan, "attend", lambda self, *a, **k: attend(self, *a, **k) * 0.5)
    assert "own logits" in (why_no_plans(policy) or "")


# --- on a GPU ---


@pytest.mark.gpu
def test_captured_steps_give_the_tokens_of_eager_ones() -> None:
    net = network("llama", vocab=VOCAB, double=False).cuda()
    net.generation_config.eos_token_id = list(range(VOCAB - 40, VOCAB))
    policy, tok = Policy(net, torch.float32), tokenizer()
    captured, eager = NativeEngine(5), NativeEngine(5, cuda_graph=False)
    for step in range(3):  # the second and third replay what the first captured
        noise = Noise(3, "train", step)
        want = eager.generate(policy, tok, PROMPTS, 4, SAMPLED, noise)
        assert captured.generate(policy, tok, PROMPTS, 4, SAMPLED, noise) == want
