"""Adapters, export, and what may be loaded: never a pickle, never code of a model unasked."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from model_data import ARCHITECTURES, batch_of, make, network, ragged, same, snapshot
from transformers import AutoModelForCausalLM, OPTConfig, OPTForCausalLM

from grpo_bench.config import LoraConfig, ModelConfig
from grpo_bench.policy import Policy, check_lengths, layout, load_model, load_tokenizer, make_models
from grpo_bench.policy.score import score
from grpo_bench.rollout.finish import end_tokens
from grpo_bench.tiny import tiny_tokenizer
from grpo_bench.types import UserError

CPU = torch.device("cpu")
LORA = LoraConfig(r=2, alpha=4.0, targets=None)


def test_lora_trains_adapters_alone_and_its_reference_is_the_base() -> None:
    base = network("llama", double=False)
    frozen = Policy(copy.deepcopy(base), torch.float32)
    cfg = make("model.critic=separate").model.model_copy(update={"lora": LORA})
    models = make_models(base, cfg, torch.float32, critic=True, reference=True)
    assert models.reference is None
    assert models.has_reference
    trained = {name for name, p in models.policy.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    assert models.critic is not None
    trained = {name for name, p in models.critic.named_parameters() if p.requires_grad}
    assert {"head.weight", "head.bias"} < trained
    assert all("lora_" in name or name.startswith("head.") for name in trained)

    batch = batch_of(ragged(5))
    scored = score(batch, models, 1.0, 100, old=True, values=False)
    assert torch.equal(scored.old_logp, scored.ref_logp)  # type: ignore[arg-type]
    with torch.no_grad():
        for name, p in models.policy.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.3)
    scored = score(batch, models, 1.0, 100, old=True, values=False)
    with torch.no_grad():
        expected, _ = frozen.logp(layout(batch, torch.arange(5)), 1.0)
    assert scored.old_logp is not None
    assert scored.ref_logp is not None
    torch.testing.assert_close(scored.ref_logp, expected, rtol=0, atol=1e-5)
    assert (scored.old_logp - expected).abs().max() > 0.01


def test_adapters_are_the_same_for_every_arm_and_merge_on_export(tmp_path: Path) -> None:
    cfg = make().model.model_copy(update={"lora": LORA})
    models = [make_models(network("llama", double=False), cfg, torch.float32, False, False) for _ in range(2)]
    assert same(snapshot(models[0].policy), models[1].policy)
    policy = models[0].policy
    with torch.no_grad():
        for name, p in policy.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.3)
    before = snapshot(policy)
    policy.export(tmp_path, tiny_tokenizer(make().model.tiny))  # type: ignore[arg-type]
    assert same(before, policy)  # merged in a copy: training goes on with adapters
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not any("lora" in name for name, _ in loaded.named_parameters())
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, policy.model(ids).logits, rtol=0, atol=1e-5)


def test_adapters_that_fit_nothing_are_one_line() -> None:
    cfg = make().model.model_copy(update={"lora": LORA.model_copy(update={"targets": ["no_such_layer"]})})
    with pytest.raises(UserError, match=r"model\.lora\.targets=\['no_such_layer'\] do not fit") as e:
        make_models(network("llama", double=False), cfg, torch.float32, False, False)
    assert "\n" not in str(e.value)


# --- loading and export ---


def hf(path: Path | None, **more: object) -> ModelConfig:
    cfg = make().model.model_dump() | {"name": "hf", "tiny": None, "path": str(path) if path else None} | more
    return ModelConfig.model_validate(cfg)


def refusal(cfg: ModelConfig) -> str:
    with pytest.raises(UserError) as e:
        load_model(cfg, CPU)
    assert "\n" not in str(e.value)
    return str(e.value)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_export_and_load_give_the_same_model(kind: str, tmp_path: Path) -> None:
    model = network(kind, double=False)
    tokenizer = tiny_tokenizer(make().model.tiny)  # type: ignore[arg-type]
    Policy(model, torch.float32).export(tmp_path, tokenizer)
    cfg = hf(tmp_path)
    loaded, plain = load_model(cfg, CPU), AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        # a policy's norms are computed otherwise than the library's, to the last bit or so
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(plain(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-5)
    if kind == "llama":  # what the embedded model is; transformers gives others their family's tokenizer rules
        text = "Ann has 7 apples."
        assert load_tokenizer(cfg)(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_a_loaded_model_has_no_dropout_even_in_train_mode(tmp_path: Path) -> None:
    network("gpt2", double=False).save_pretrained(tmp_path)  # GPT-2 is published with dropout 0.1
    model = load_model(hf(tmp_path, gradient_checkpointing=True), CPU)
    model.train()
    rows = layout(batch_of(ragged(5)), torch.arange(5))
    own = Policy(model, torch.float32)
    torch.testing.assert_close(own.logp(rows, 1.0)[0], own.logp(rows, 1.0)[0], rtol=0, atol=0)


def test_functional_dropout_is_off_too(tmp_path: Path) -> None:
    OPTForCausalLM(
        OPTConfig(vocab_size=61, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2, dropout=0.5,
                  word_embed_proj_dim=16, max_position_embeddings=64)
    ).save_pretrained(tmp_path)  # fmt: skip
    model, ids = load_model(hf(tmp_path), CPU), torch.arange(9)[None]
    assert torch.equal(model.eval()(ids).logits, model.train()(ids).logits)


def test_answers_longer_than_the_models_positions_are_refused_in_one_line() -> None:
    model = network("gpt2", double=False)  # 96 positions
    fits = make("task.max_prompt_tokens=64", "task.max_new_tokens=32")
    check_lengths(model, fits)
    with pytest.raises(UserError, match=r"max_prompt_tokens=64 \+ task\.max_new_tokens=33 are more than the 96") as e:
        check_lengths(model, make("task.max_prompt_tokens=64", "task.max_new_tokens=33"))
    assert "\n" not in str(e.value)


def test_what_is_no_model_is_refused_in_one_line(tmp_path: Path) -> None:
    assert "does not exist; give a Hugging Face folder or a .gguf file" in refusal(hf(tmp_path / "none.gguf"))
    assert "holds no config.json" in refusal(hf(tmp_path))
    (tmp_path / "weights.bin").write_bytes(b"?")
    assert "is a file but not a .gguf one" in refusal(hf(tmp_path / "weights.bin"))
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(range(200)))
    assert "broken.gguf cannot be loaded" in refusal(hf(tmp_path / "broken.gguf"))
    assert "names no weights; set model.id" in refusal(hf(None))


def test_weights_cut_short_are_refused_in_one_line(tmp_path: Path) -> None:
    network("llama", double=False).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert "weights must be safetensors or GGUF and whole" in refusal(hf(tmp_path))


class Bomb:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return (Path.write_text, (self.path, "boom"))


def test_pickled_weights_are_never_opened(tmp_path: Path) -> None:
    model = network("llama", double=False)
    model.save_pretrained(tmp_path)
    safe = tmp_path / "model.safetensors"
    sign = tmp_path / "exploded"
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(sign)))
    assert torch.equal(load_model(hf(tmp_path), CPU).get_input_embeddings().weight, model.get_input_embeddings().weight)
    safe.unlink()
    assert "holds only pickled weights (pytorch_model.bin)" in refusal(hf(tmp_path))
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")  # an honest one is refused as well
    assert "holds only pickled weights (pytorch_model.bin)" in refusal(hf(tmp_path))
    assert not sign.exists()


def test_code_of_a_model_is_run_on_request_only(tmp_path: Path) -> None:
    sign = tmp_path / "ran"
    (tmp_path / "code.py").write_text(f"open({str(sign)!r}, 'w').close()\n")
    auto = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "unheard_of", "auto_map": auto}))
    network("llama", double=False).save_pretrained(tmp_path / "weights")
    (tmp_path / "weights" / "model.safetensors").rename(tmp_path / "model.safetensors")
    assert "allow it with model.trust_remote_code=true" in refusal(hf(tmp_path))
    assert not sign.exists()


def gguf_file(path: Path) -> torch.Tensor:
    """A one-layer Llama of 40 words as a GGUF file; returns its embedding."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(40)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *(chr(97 + i) for i in range(26)), *(f"x{i}" for i in range(11))])
    writer.add_token_scores([0.0] * 40)
    writer.add_token_types([2, 3, 3] + [1] * 37)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    shapes = {f"blk.0.{name}": (32, 32) for name in ("attn_q", "attn_k", "attn_v", "attn_output")}
    shapes |= {f"blk.0.{name}": (32, 32) for name in ("ffn_gate", "ffn_up", "ffn_down")}
    shapes |= {"blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,), "output_norm": (32,)}  # type: ignore[dict-item]
    shapes |= {"output": (40, 32), "token_embd": (40, 32)}
    for name, shape in shapes.items():
        weights = torch.randn(shape, generator=torch.Generator().manual_seed(len(name)))
        writer.add_tensor(f"{name}.weight", weights.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def test_a_gguf_file_becomes_a_model_that_trains_and_exports(tmp_path: Path) -> None:
    file = tmp_path / "small.gguf"
    embedding = gguf_file(file)
    model = load_model(hf(file), CPU)
    assert torch.equal(model.get_input_embeddings().weight, embedding)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    tokenizer = load_tokenizer(hf(file))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert end_tokens(tokenizer, Policy(model, torch.float32)) == {2}
    Policy(model, torch.float32).export(tmp_path / "export", tokenizer)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-5)


def test_a_gguf_file_cut_short_is_refused_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "small.gguf"
    gguf_file(file)
    file.write_bytes(file.read_bytes()[:-2000])
    assert "small.gguf cannot be loaded" in refusal(hf(file))
