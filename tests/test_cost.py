"""FLOPs by hand for a small network, and seconds by phase."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import replace

import pytest
import torch
from model_data import batch_of, make, make_double, network, ragged
from transformers import LlamaConfig, LlamaForCausalLM

from grpo_bench import cost
from grpo_bench.cost import Meter, Size
from grpo_bench.policy import make_models
from grpo_bench.policy.score import score
from grpo_bench.update import Learner

CPU = torch.device("cpu")
# hidden 16, 2 heads of 8, 1 key-value head, feed-forward 24, 2 layers, 61 words:
# per layer q 16·16 + k 16·8 + v 16·8 + o 16·16 + gate, up, down 3·16·24 = 256 + 128 + 128 + 256 + 1152 = 1920
SIZE = Size(trunk=2 * 1920, head=16 * 61, layers=2, width=16)


def test_what_flops_follow_from() -> None:
    assert Size.of(network("llama")) == SIZE  # tied: the embedding is the head
    assert Size.of(network("qwen2")) == SIZE  # untied, with biases, which are no matrix products
    # GPT-2: qkv 16·48 + out 16·16 + feed-forward 2·16·64 = 768 + 256 + 2048 per layer
    assert Size.of(network("gpt2")) == Size(trunk=2 * 3072, head=16 * 61, layers=2, width=16)


def test_a_forward_by_hand() -> None:
    # sequences of 5 and 3, the head on 4 tokens:
    # products 2·3840·8 = 61440; head 2·976·4 = 7808; attention 2·2·16·(25 + 9) = 2176
    assert SIZE.forward([5, 3], 4) == 61440 + 7808 + 2176


def test_sampling_by_hand() -> None:
    # prompt of 4 with completions of 2 and 3: prefill once 2·3840·4 + 64·16 = 30720 + 1024
    # row 1: 2·3840·2 + 64·(36 − 16) + 2·976·2 = 15360 + 1280 + 3904
    # row 2: 2·3840·3 + 64·(49 − 16) + 2·976·3 = 23040 + 2112 + 5856
    assert SIZE.rollout([4], 2, [2, 3]) == 30720 + 1024 + 15360 + 1280 + 3904 + 23040 + 2112 + 5856


def test_a_long_sequence_costs_what_one_more_token_at_a_time_does() -> None:
    whole = SIZE.forward([10], 6)
    assert SIZE.rollout([4], 1, [6]) == whole


def test_the_estimate_of_products_is_what_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    config = LlamaConfig(
        vocab_size=61, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    model = LlamaForCausalLM._from_config(config, attn_implementation="eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.arange(12)[None], use_cache=False)
    size = Size.of(model)
    # eager attention computes the whole square: 4·layers·width·T² instead of the causal half of it
    assert counter.get_total_flops() == pytest.approx(size.forward([12], 12) + 2 * 2 * 16 * 12**2, rel=0.01)


def test_an_update_is_charged_three_forwards_of_what_it_trains() -> None:
    for name, more in {
        "grpo": ("algo=grpo", "group_size=2", "samples_per_step=4"),
        "separate": ("algo=ppo", "samples_per_step=4", "model.critic=separate"),
        "shared": ("algo=ppo", "samples_per_step=4", "model.critic=shared"),
    }.items():
        cfg = make(*more, "epochs=2", "minibatches=1", "kl_coef=0")
        models = make_double("llama", cfg, cfg.algo.needs_critic, cfg.algo.needs_reference)
        learner = Learner(cfg, cfg.algo, models)
        batch = score(batch_of(ragged(4, cfg.group_size)), models, 1.0, 50, True, cfg.algo.needs_critic)
        assert batch.prompt_lengths is not None
        advantages, returns = cfg.algo.advantages(batch)
        learner.update(replace(batch, advantages=advantages, returns=returns), 1, 0.0)
        prompts, lengths = batch.prompt_lengths.tolist(), batch.mask.sum(1).long().tolist()
        rows = prompts, batch.group_ids.tolist(), lengths
        policy, critic = 2 * 3 * SIZE.shared(*rows, sum(lengths)), 2 * 3 * SIZE.shared(*rows, 0)
        assert learner.flops == {"grpo": policy, "separate": policy + critic, "shared": policy}[name]


def test_a_groups_prompt_counts_once() -> None:
    # two members with a prompt of 3 and completions of 2 and 1: a token costs 2·trunk = 20; attention 2·1·2·T² = 4·T²,
    # of the prompt 36, of whole rows 100 and 64, so of what is their own 100 − 36 and 64 − 36; the head 2·5 on 3 tokens
    size = Size(trunk=10, head=5, layers=1, width=2)
    assert size.shared([3, 3], [7, 7], [2, 1], 3) == 20 * (3 + 2 + 1) + 36 + (100 - 36) + (64 - 36) + 10 * 3
    assert size.shared([3, 3], [7, 8], [2, 1], 3) == size.forward([5, 4], 3)


def test_the_critics_warm_up_is_charged_to_it() -> None:
    for critic in ("separate", "shared"):
        cfg = make(
            "algo=ppo",
            "samples_per_step=4",
            f"model.critic={critic}",
            "epochs=1",
            "minibatches=1",
            "algo.critic_warmup=1",
        )
        models = make_double("llama", cfg, True, True)
        learner = Learner(cfg, cfg.algo, models)
        batch = score(batch_of(ragged(4)), models, 1.0, 50, True, True)
        advantages, returns = cfg.algo.advantages(batch)
        learner.update(replace(batch, advantages=advantages, returns=returns), 1, 0.0)
        assert batch.prompt_lengths is not None
        rows = (batch.prompt_lengths + batch.mask.sum(1)).long().tolist()
        assert learner.trained_tokens == 0
        # a shared trunk only runs forward; a critic of its own is trained
        assert learner.flops == (3 if critic == "separate" else 1) * SIZE.forward(rows, 0)


def test_adapters_do_not_hide_the_network() -> None:
    cfg = make("model.lora={r:2,alpha:4,targets:null}")
    policy = make_models(copy.deepcopy(network("llama", double=False)), cfg.model, torch.float32, False, False).policy
    assert Size.of(policy.model).trunk >= SIZE.trunk


def test_seconds_by_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 2.0, 10.0, 10.5, 20.0, 21.0, 30.0, 34.0])
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(clock))
    meter = Meter(CPU, {"rollout": 100.0})  # what an interrupted run had used
    with meter.phase("rollout"):
        pass
    with meter.phase("update"):
        pass
    assert meter.end_step() == {"rollout": 2.0, "update": 0.5}
    with meter.phase("rollout"):
        pass
    with meter.phase("eval"):
        pass
    assert meter.end_step() == {"rollout": 1.0, "eval": 4.0}
    assert dict(meter.total) == {"rollout": 103.0, "update": 0.5, "eval": 4.0}
    assert meter.training == 103.5  # evaluation counts against no budget
    assert meter.end_step() == {}


def test_parts_of_a_phase_stand_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 3.0, 3.0, 3.5, 4.0])
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(clock))
    meter = Meter(CPU)
    with meter.phase("score"):
        with meter.part("old_logp"):
            pass
        with pytest.raises(MemoryError), meter.part("values"):  # what it took until it failed counts
            raise MemoryError
    assert dict(meter.parts) == {"old_logp": 2.0, "values": 0.5}
    assert meter.training == 4.0  # a part is no phase of its own
    assert meter.end_step() == {"score": 4.0}


def test_a_gpu_is_waited_for_once_a_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    queue: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            self.place = 0

        def record(self, stream: str) -> None:
            self.place = len(queue)
            queue.append(stream)

        def elapsed_time(self, other: Event) -> float:
            assert queue[-1] == "synchronised"
            return 250.0 * (other.place - self.place)  # milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "mark")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: queue.append("synchronised"))
    meter = Meter(torch.device("cuda"))
    with meter.phase("update"):
        for _ in range(2):
            with meter.part("actor"):
                queue.append("work")
        with meter.part("critic"):
            pass
    assert queue == ["mark", "work", "mark"] * 2 + ["mark", "mark", "synchronised"]
    assert dict(meter.parts) == {"actor": 1.0, "critic": 0.25}


@pytest.mark.parametrize(
    ("settings", "scoring", "updating"),
    [
        (("algo=grpo", "epochs=2"), ["old_logp", "old_logp", "reference"], ["actor"]),  # states, then the head
        (("algo=grpo", "kl_coef=0", "epochs=1"), [], ["actor"]),
        (("algo=ppo", "kl_coef=0", "epochs=2"), ["old_logp", "old_logp", "values"], ["actor", "critic"]),
        (("algo=ppo", "kl_coef=0", "epochs=1"), ["values"], ["actor", "critic"]),  # kept values: no second forward
        (("algo=ppo", "model.critic=shared", "kl_coef=0", "epochs=1"), ["values", "values"], ["actor"]),
        (("algo=ppo", "algo.critic_warmup=5", "kl_coef=0", "epochs=1"), ["values"], ["critic"]),
    ],
)
def test_what_counts_as_which_part(settings: tuple[str, ...], scoring: list[str], updating: list[str]) -> None:
    seen: list[str] = []

    def timed(name: str) -> contextlib.AbstractContextManager[None]:
        seen.append(name)
        return contextlib.nullcontext()

    cfg = make(*settings, "samples_per_step=8", "group_size=2", "minibatches=1")
    model = network("llama", double=False)
    models = make_models(model, cfg.model, torch.float32, cfg.algo.needs_critic, cfg.kl_coef > 0)
    learner = Learner(cfg, cfg.algo, models, timed)
    batch = replace(batch_of(ragged(8, cfg.group_size)), kl_coef=cfg.kl_coef)
    batch = learner.scored(batch, cfg.epochs > 1)
    assert seen == scoring
    seen.clear()
    advantages, returns = cfg.algo.advantages(batch)
    learner.update(replace(batch, advantages=advantages, returns=returns), 1, 0.0)
    assert sorted(set(seen)) == updating
    assert set(seen) <= set(cost.PARTS)


def test_peak_memory_is_the_processs_largest() -> None:
    assert Meter(CPU).peak_memory() > 50 * 2**20  # torch alone is more
