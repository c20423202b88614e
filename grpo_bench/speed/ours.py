"""This project's engines under the clock: the pieces of a run put together as ``run`` does, and its ``one_step``."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, replace
from typing import Any

import torch

from grpo_bench import kernels
from grpo_bench.compose import compose, composing
from grpo_bench.config import Config, parse
from grpo_bench.cost import Meter, Size
from grpo_bench.policy import choose_device, compute_dtype, load_model, load_tokenizer, make_models
from grpo_bench.policy.memory import kept_elements
from grpo_bench.rollout import Noise, Sampling, make_engine
from grpo_bench.run import one_step
from grpo_bench.speed import products
from grpo_bench.speed.child import PHASES, Spec, wait_for_turn
from grpo_bench.speed.machine import wait
from grpo_bench.state import Parts, State
from grpo_bench.tasks import Task, load_task
from grpo_bench.update import Learner

ALGORITHMS = {"ppo": ["algo=ppo"], "ppo-shared": ["algo=ppo", "model.critic=shared"]}
ROUNDS = 4  # of steps beside their products alone
REWARD = "grpo_bench.speed.rewards:alternating"
COMMON = [
    "epochs=1", "minibatches=1", "kl_coef=0", "lr=1.0e-6", "critic_lr=1.0e-6", "reward=function",
    f"reward.function={REWARD}", "eval.every=0", "checkpoint.every=0", "budget.amount=1.0e12",
    "optim.warmup_updates=0",
]  # fmt: skip


class FixedLength:
    """An engine whose completions all have the full length: throughput must not depend on when a model stops."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def generate(
        self, policy: Any, tokenizer: Any, prompt_ids: Any, group_size: int, sampling: Sampling, *args: Any, **kw: Any
    ) -> Any:
        """See ``Engine``."""
        sampling = replace(sampling, ignore_end=True, stop=())
        return self.engine.generate(policy, tokenizer, prompt_ids, group_size, sampling, *args, **kw)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)


class FixedPrompts:
    """A task whose prompts have exactly ``length`` tokens: its own, repeated and cut."""

    def __init__(self, task: Task, length: int) -> None:
        self.task, self.length = task, length

    def prompt_ids(self, problems: Any, tokenizer: Any) -> list[list[int]]:
        """See ``Task``."""
        own = self.task.prompt_ids(problems, tokenizer)
        return [(ids * -(-self.length // len(ids)))[: self.length] for ids in own]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)


def config_of(spec: Spec) -> Config:
    """The run that a child measures, as the command line would compose it."""
    kind = spec.contender if spec.contender in ALGORITHMS else "grpo"
    lines = [
        *ALGORITHMS.get(kind, ["algo=grpo"]), *COMMON, *spec.overrides,
        f"rollout={'hf' if spec.contender == 'hf' else 'native'}", f"model.dtype={spec.dtype}",
        f"group_size={spec.group_size}", f"samples_per_step={spec.prompts * spec.group_size}",
        f"task.max_new_tokens={spec.tokens}", *([f"threads={spec.threads}"] if spec.threads else []),
    ]  # fmt: skip
    with composing():
        return parse(compose(lines))


def task_of(cfg: Config, prompt_tokens: int | None) -> Any:
    """The configuration's task, its prompts ``prompt_tokens`` long if that is set."""
    task = load_task(cfg.task, cfg.seed)
    return task if prompt_tokens is None else FixedPrompts(task, prompt_tokens)


def build(spec: Spec) -> Parts:
    """What ``run`` puts together before its first step, without warm start, evaluation and record."""
    cfg = config_of(spec)
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    device = choose_device(cfg)
    task = task_of(cfg, spec.prompt_tokens)
    tokenizer = load_tokenizer(cfg.model)
    task.fit(tokenizer)
    model = load_model(cfg.model, device)
    engine: Any = FixedLength(make_engine(cfg.rollout))
    models = make_models(model, cfg.model, compute_dtype(cfg.model.dtype, device), cfg.algo.needs_critic, False)
    learner = Learner(cfg, cfg.algo, models)
    return Parts(cfg, task, tokenizer, engine, models, learner, Meter(device), Size.of(model))


def run(spec: Spec) -> dict[str, Any]:
    """Steps of a GRPO or PPO run, the last ``spec.steps`` of them measured."""
    parts = build(spec)
    state, meter, steps = State(), parts.meter, []
    for number in range(spec.warmup + spec.steps):
        if number == spec.warmup:
            meter.forget_peak()
        wait_for_turn(spec)
        made = _step(parts, state)
        if number >= spec.warmup:
            steps.append(made)
    lengths = steps[-1]["prompt_lengths"]
    result = {
        "steps": steps,
        "peak_bytes": meter.peak_memory(),
        "device": described(meter.device),
        "shape": shape_of(parts, lengths, spec),
        "states": f"float32 weights, AdamW with float32 moments; products {spec.dtype}",
    }
    if spec.floors:
        result["floors"] = floors(parts, state, lengths, spec)
    return result


def _step(parts: Parts, state: State) -> dict[str, Any]:
    """One step under the clock."""
    state.step += 1
    before = replace(state)
    wait(parts.meter.device)
    start = time.perf_counter()
    experience, _, _ = one_step(parts, state, 0.0)
    wait(parts.meter.device)
    took, phases = time.perf_counter() - start, parts.meter.end_step()
    return {
        "seconds": took,
        "phases": {name: phases.get(name, 0.0) for name in PHASES},
        "samples": state.samples - before.samples,
        "tokens": state.generated_tokens - before.generated_tokens,
        "flops": state.flops - before.flops,
        "prompt_lengths": [len(ids) for ids in experience.rollouts.prompt_ids],
    }


def shape_of(parts: Parts, lengths: list[int], spec: Spec) -> dict[str, Any]:
    """Fields of ``floors.Shape``."""
    config: Any = parts.models.policy.model.config.get_text_config()
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return {
        "size": asdict(parts.size), "kv_width": heads * head, "prompts": lengths, "group_size": spec.group_size,
        "tokens": spec.tokens,
    }  # fmt: skip


def floors(parts: Parts, state: State, lengths: list[int], spec: Spec) -> dict[str, Any]:
    """Measured in this process: further steps, the prefill by itself before each, and their products alone between.

    Products are timed before and after each step, as a machine may be slower for a while. Their shortest times stand
    beside these.
    """
    model, lanes = parts.models.policy.model, parts.learner.lanes_at_most
    dtype, rows = getattr(torch, spec.dtype), spec.prompts * spec.group_size
    tokens = rows * spec.tokens
    decode = products.decode_step(model, rows, dtype, lanes)
    sizes = {count: micro_batch(parts, sum(lengths) + tokens, tokens, count) for count in {1, lanes}}
    update = products.update(model, sizes, dtype)

    def alone() -> tuple[float, float]:
        return decode.seconds(spec.tokens - 1), update.seconds()

    rounds, before = [], alone()
    for attempt in range(ROUNDS):
        prefill = _generate_one(parts, spec, attempt)
        phases, after = _step(parts, state)["phases"], alone()
        rounds.append(
            {
                "prefill_s": prefill,
                "rollout_s": phases["rollout"],
                "decode_products_s": (before[0] + after[0]) / 2,
                "training_s": phases["score"] + phases["update"],
                "training_products_s": (before[1] + after[1]) / 2,
            }
        )
        before = after
    return {"rounds": rounds, "decode_best_s": (spec.tokens - 1) * decode.best, "training_best_s": update.best}


def micro_batch(parts: Parts, tokens: int, headed: int, lanes: int) -> tuple[int, int, int]:
    """Micro-batches of each lane, a part's tokens, and those of it that the head takes at once, as an update has them.

    Where the head takes fewer at once than a part has, it is as if it took that part of each.
    """
    policy = parts.models.policy
    at_once = parts.learner.tokens_of_lane(lanes)
    count = max(-(-tokens // (lanes * at_once)), 1)
    vocab = policy.model.config.get_text_config().vocab_size
    most = max(kept_elements(policy.device, policy.dtype) // vocab, 1)
    if headed // (lanes * count) > most:
        count = -(-headed // (lanes * most))
    return count, -(-tokens // (lanes * count)), -(-headed // (lanes * count))


def _generate_one(parts: Parts, spec: Spec, attempt: int) -> float:
    """Seconds of sampling one token for every row: prompts, and what an engine does once."""
    problems = [parts.task.train_problem(i) for i in range(spec.prompts)]
    prompts = parts.task.prompt_ids(problems, parts.tokenizer)
    wait(parts.meter.device)
    start = time.perf_counter()
    parts.engine.generate(
        parts.models.policy, parts.tokenizer, prompts, spec.group_size, Sampling(1.0, 1), Noise(0, "train", attempt)
    )
    wait(parts.meter.device)
    return time.perf_counter() - start


def described(device: torch.device) -> dict[str, Any]:
    """What was computed on."""
    versions = {name: sys.modules[name].__version__ for name in ("torch", "transformers", "trl") if name in sys.modules}
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    compiled = kernels.take(torch.empty(0, device=device))
    return {"type": device.type, "threads": torch.get_num_threads(), "kernels": compiled, "versions": versions, **gpu}
