"""Theory beside measure: the published sizes, ratios and memory of real models, and the embedded one's own record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from study_builder import write_run

from grpo_bench import table
from grpo_bench.records import Run, load_study
from grpo_bench.table.theory import PUBLISHED, phases, prompt_length, size_of, states, theory
from grpo_bench.table.theory_memory import memory_by_theory

TINY = {"hidden_size": 128, "layers": 3, "heads": 4, "kv_heads": 4, "intermediate_size": 352, "vocab_size": 512}


def run_of(cost: dict[str, Any], config: dict[str, Any]) -> Run:
    return Run(Path(), "r", "r", "r", "ppo", "m", 0, "", "complete", "", config, {"cost": cost})


@pytest.mark.parametrize(
    ("name", "actor", "critic"),
    # millions of parameters that multiply, of the actor with its head and of the critic without: published tables
    [
        ("smollm2-135m", 134.5, 106),
        ("smollm2-360m", 361.8, 315),
        ("qwen2.5-0.5b", 494.0, 358),
        ("qwen2.5-1.5b", 1543.7, 1310),
    ],
)
def test_shapes_of_published_models(name, actor, critic):
    size, shaped = size_of({"name": name}, actor * 1e6)
    assert shaped
    assert (size.trunk + size.head) / 1e6 == pytest.approx(actor, rel=0.001)
    assert size.trunk / 1e6 == pytest.approx(critic, rel=0.003)
    assert set(PUBLISHED) >= {name}


def test_the_embedded_models_shape_is_built_from_its_configuration():
    size, shaped = size_of({"name": "tiny", "tiny": TINY}, 668_544)
    # 3 layers of 4·128² + 3·128·352, and 512·128 of the head; norms do not multiply
    assert (size.trunk, size.head, shaped) == (3 * (65_536 + 135_168), 65_536, True)


def test_an_unknown_model_is_all_parameters():
    size, shaped = size_of({"name": "hf"}, 1e6)
    assert (size.trunk, size.head, size.layers, shaped) == (1_000_000, 0, 0, False)


@pytest.mark.parametrize(
    ("updates", "reference", "ratio"),
    [(2, True, 1.48), (1, True, 1.58), (1, False, 1.72)],  # Qwen2.5-0.5B: old and reference, reference, none
)
def test_ppo_over_grpo_as_published(updates, reference, ratio):
    """At equal sequences and one pass: (12 N_a + 8 N_c) / 12 N_a and so on. A prompt of 0 and one token leave attention
    and shared prompts out; kept values save the critic one forward, which the published formula does not."""
    parameters = 494.0e6
    size, _ = size_of({"name": "qwen2.5-0.5b"}, parameters)
    cost: dict[str, Any] = {"samples": 1e6, "generated_tokens": 1e6, "trained_tokens": 1e6}
    nets = {"policy": parameters, "critic": 0, "reference": parameters if reference else 0}
    config = {"model": {"name": "qwen2.5-0.5b", "critic": "separate"}, "group_size": 1, "epochs": 1}
    config |= {"minibatches": updates}
    grpo = phases(run_of({**cost, "parameters": nets}, config), size, 0.0)
    ppo = phases(run_of({**cost, "parameters": {**nets, "critic": 358e6}}, config), size, 0.0)
    kept = 2 * size.trunk * 1e6 if updates == 1 else 0.0
    assert (sum(ppo.values()) + kept) / sum(grpo.values()) == pytest.approx(ratio, abs=0.01)


def test_states_of_a_known_model():
    """SmolLM2-135M: 16 bytes per trained parameter, a reference with linear layers in bfloat16 and embeddings in
    float32; a critic of the same trunk and embeddings."""
    size, _ = size_of({"name": "smollm2-135m"}, 134_515_008)
    nets = {"policy": 134_515_008, "critic": 134_515_585, "reference": 134_515_008}
    run = run_of({"parameters": nets}, {"model": {"name": "smollm2-135m", "dtype": "bfloat16"}})
    expected = 16 * (134_515_008 + 134_515_585) + 2 * size.trunk + 4 * (134_515_008 - size.trunk)
    assert states(run, size) == expected
    assert states(run_of({"parameters": nets}, {"model": {"lora": {"r": 8}}}), size) is None


def test_the_prompt_is_solved_from_flops_and_theory_gives_them_back():
    model = {"name": "tiny", "tiny": TINY, "critic": "separate"}
    config = {"model": model, "group_size": 1, "epochs": 2, "minibatches": 2, "task": {"max_prompt_tokens": 128}}
    cost = {"samples": 1000, "generated_tokens": 20_000, "trained_tokens": 40_000}
    cost |= {"parameters": {"policy": 668_544, "critic": 668_673, "reference": 668_544}}
    size, _ = size_of(model, 668_544)
    cost["flops"] = sum(phases(run_of(cost, config), size, 21.5).values())
    run = run_of(cost, config)
    length, solved = prompt_length([run]) or (0.0, False)
    assert (length, solved) == (pytest.approx(21.5, abs=1e-6), True)
    found = theory(run, length, solved)
    assert found is not None
    assert found.total == pytest.approx(cost["flops"])
    assert all(found.flops[phase] > 0 for phase in found.flops)
    recorded = run_of(cost | {"prompt_tokens": 30_000, "prompts": 1000}, config)
    assert prompt_length([recorded]) == (30.0, False)


# a step of 64 rows of 20 tokens; a group of 8 shares its prompt of 20: 64·(20 + 20/8) = 1440 tokens in 2 minibatches
COUNTS = {"samples": 1024, "steps": 16, "generated_tokens": 20_480, "micro_batch_tokens": 4096}
GROUPS_OF_8 = {
    "model": {"name": "tiny", "tiny": TINY, "critic": "separate", "dtype": "float32"},
    "group_size": 8, "epochs": 1, "minibatches": 2, "task": {"max_new_tokens": 64}, "rollout": {"engine": "native"},
}  # fmt: skip


def held(cost: dict[str, Any] | None = None, **config: Any) -> tuple[float, float, float] | None:
    found = memory_by_theory(run_of(COUNTS | (cost or {}), GROUPS_OF_8 | config), 20.0)
    return None if found is None else (found.activations, found.logits, found.cache)


def test_memory_beside_the_states_by_hand():
    activations = 720 * 128 * 3 * 2 * 34  # a minibatch is one micro-batch; 32 bits
    logits = 4 * 640 * 512  # 640 of its tokens are sampled
    cache = (64 * 64 + 8 * 20) * 2 * 3 * 4 * 32 * 4  # 64 rows of up to 64 tokens, 8 prompts; keys and values
    assert held() == (activations, logits, cache)
    found = memory_by_theory(run_of(COUNTS, GROUPS_OF_8), 20.0)
    assert found is not None
    assert found.largest == activations + logits
    model = GROUPS_OF_8["model"]
    assert held(model=model | {"dtype": "bfloat16"}) == (activations / 2, logits / 2, cache / 2)
    assert held(rollout={"engine": "native", "dtype": "bfloat16"}) == (activations, logits, cache / 2)
    checkpointed = 720 * 128 * (2 * 3 + 34) * 2  # layers' inputs, and one layer
    assert held(model=model | {"gradient_checkpointing": True}) == (checkpointed, logits, cache)
    # half as many key-value heads
    assert held(model=model | {"tiny": TINY | {"kv_heads": 2}}) == (activations, logits, cache / 2)


def test_smaller_parts_take_less():
    # 100 tokens, 20 of 22.5 sampled
    limited = held({"micro_batch_tokens": 100})
    assert limited is not None
    assert limited[:2] == (100 * 128 * 3 * 68, pytest.approx(4 * 100 * 20 / 22.5 * 512))
    one = held({"micro_batch_tokens": 10})
    assert one is not None
    assert one[0] == 40 * 128 * 3 * 68  # a row is never split
    few = held(rollout={"engine": "native", "batch_size": 16})
    assert few is not None
    assert few[2] == (16 * 64 + 2 * 20) * 3072
    plain = held(rollout={"engine": "hf", "batch_size": 16})  # a prompt for every row
    assert plain is not None
    assert plain[2] == 16 * (64 + 20) * 3072
    wide = held(model=GROUPS_OF_8["model"] | {"tiny": TINY | {"vocab_size": 2**20}})
    assert wide is not None
    assert wide[1] == 4 * 2**26  # chunks of the probabilities are made again instead of kept


def test_a_critic_of_its_own_adds_activations_only_where_its_values_are_kept():
    nets = {"parameters": {"policy": 668_544, "critic": 668_673}}
    assert held(nets) == held()  # it follows the policy
    whole = held(nets, minibatches=1)
    assert whole is not None
    assert whole[0] == (1440 + 1440) * 128 * 3 * 68
    shared = held(nets, minibatches=1, model=GROUPS_OF_8["model"] | {"critic": "shared"})
    assert shared is not None
    assert shared[0] == 1440 * 128 * 3 * 68


def test_without_micro_batches_or_a_shape_there_is_no_such_theory():
    assert held({"micro_batch_tokens": None}) is None
    assert held({"micro_batch_tokens": None}, micro_batch_tokens=4096) == held()  # set by the configuration
    assert held(model={"name": "hf", "dtype": "float32"}) is None


def test_theory_stands_beside_measure(tmp_path):
    """PPO's and GRPO's rows of one study, with FLOPs that theory gives at a prompt of 20 tokens."""
    study = tmp_path / "demo-arithmetic"
    for arm, critic in (("ppo", 668_673), ("grpo_g8", 0)):
        model = {"name": "tiny", "tiny": TINY, "critic": "separate", "dtype": "float32", "warmstart": {"steps": 1}}
        group = 1 if arm == "ppo" else 8
        changes = {"model": model, "epochs": 1, "minibatches": 1, "group_size": group}
        run = write_run(study, arm, 0, [1, 0], base=[0, 0], changes=changes)
        result = json.loads((run / "result.json").read_text())
        cost = result["cost"] | {"samples": 1024, "generated_tokens": 20_480, "trained_tokens": 20_480}
        cost["parameters"] = {"policy": 668_544, "critic": critic, "reference": 0}
        size, _ = size_of(model, 668_544)
        config = {"model": model, "group_size": group, "epochs": 1, "minibatches": 1}
        cost["flops"] = sum(phases(run_of(cost, config), size, 20.0).values())
        (run / "result.json").write_text(json.dumps(result | {"cost": cost}))
    sheet = table.build(study).sheet("compute")
    assert sheet is not None
    rows = {row[0]: dict(zip(sheet.header, row, strict=True)) for row in sheet.rows}
    assert rows["ppo"]["FLOPs a sample: theory / recorded"] == "1.00"
    assert rows["grpo_g8"]["FLOPs a sample: critic"] == "–"
    assert rows["grpo_g8"]["× ppo: seconds"] == "0.67"  # 8 of 12 s
    assert rows["grpo_g8"]["× ppo: model states"] == "0.50"
    assert rows["ppo"]["model states"] == "21 MB"  # 16 · 1,337,217 bytes
    assert "mean prompt 20.0 tokens, solved from the recorded FLOPs" in sheet.notes[0]
    assert "left out here, the tokens of a micro-batch or the model's shape not being recorded" in sheet.notes[1]
    assert not {"activations", "model states, counted", "ms a sample: actor"} & set(sheet.header)
    assert load_study(study).runs[0].attempts == 1


def test_what_newer_records_know_stands_beside_theory(tmp_path):
    study = tmp_path / "demo-arithmetic"
    for arm, critic in (("ppo", 668_673), ("grpo_g8", 0)):
        changes = GROUPS_OF_8 | {"group_size": 8}
        run = write_run(study, arm, 0, [1, 0], base=[0, 0], changes=changes)
        result = json.loads((run / "result.json").read_text())
        parts = {"old_logp": 0.512, "reference": 0.0, "values": 0.256, "actor": 3.072, "critic": 1.024}
        cost = result["cost"] | COUNTS | {"trained_tokens": 20_480, "memory": {"policy": 3e6, "gradients": 3e6}}
        cost["parameters"] = {"policy": 668_544, "critic": critic, "reference": 0}
        cost["seconds"] = cost["seconds"] | ({"parts": parts} if arm == "ppo" else {})
        size, _ = size_of(changes["model"], 668_544)
        cost["flops"] = sum(phases(run_of(cost, changes), size, 20.0).values())
        (run / "result.json").write_text(json.dumps(result | {"cost": cost}))
    sheet = table.build(study).sheet("compute")
    assert sheet is not None
    rows = {row[0]: dict(zip(sheet.header, row, strict=True)) for row in sheet.rows}
    names = ("rollout", "old log-probs", "reference", "values", "actor", "critic", "all training")
    # 4 s of rollout over 1,024 samples; 12 s of training
    assert [rows["ppo"][f"ms a sample: {name}"] for name in names] == [
        "3.91", "0.50", "–", "0.25", "3.00", "1.00", "11.72",
    ]  # fmt: skip
    assert rows["grpo_g8"]["ms a sample: actor"] == "–"  # an older record
    memory = [rows["ppo"][name] for name in ("model states", "activations", "logits", "cache", "all by theory")]
    assert memory == ["21 MB", "19 MB", "1 MB", "13 MB", "42 MB"]  # 21.4 + 18.8 + 1.3
    assert rows["ppo"]["model states, counted"] == "6 MB"
    assert any(note.startswith("Beside model states, by theory") for note in sheet.notes)
    assert any(note.startswith("ms a sample, measured") for note in sheet.notes)
