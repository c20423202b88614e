"""The last TRL with a PPO trainer (1.10, experimental) under the clock, in an interpreter of its own.

It needs none of this project's dependencies there: ``prepare`` runs here and leaves a model folder and prompts, ``run``
reads them with what TRL itself needs. Its trainer scores with a reward model and a reference as large as the policy,
always; its critic is a network of its own.
"""

from __future__ import annotations

import copy
import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from grpo_bench.cost import Meter
from grpo_bench.speed.child import Clock, Spec

MODEL, PROMPTS = "model", "prompts.json"


def prepare(spec: Spec) -> dict[str, Any]:
    """Write the model and the prompts' token ids of every step to ``spec.folder``."""
    from grpo_bench.policy import load_model, load_tokenizer
    from grpo_bench.speed.ours import config_of, task_of

    cfg = config_of(spec)
    task, tokenizer = task_of(cfg, spec.prompt_tokens), load_tokenizer(cfg.model)
    task.fit(tokenizer)
    problems = [task.train_problem(i) for i in range(spec.prompts * (spec.warmup + spec.steps))]
    folder = Path(spec.folder)
    load_model(cfg.model, torch.device("cpu")).save_pretrained(folder / MODEL)
    tokenizer.save_pretrained(folder / MODEL)
    (folder / PROMPTS).write_text(json.dumps(task.prompt_ids(problems, tokenizer)), encoding="utf-8")
    return {}


def run(spec: Spec) -> dict[str, Any]:
    """Steps of PPO with one epoch and one minibatch; every prompt stands ``group_size`` times in the data."""
    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        TrainerCallback,
    )

    package = importlib.import_module("trl.experimental.ppo")  # by name: newer releases, which lie here, have none
    module: Any = importlib.import_module("trl.experimental.ppo.ppo_trainer")
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    device = torch.device("cuda" if torch.cuda.is_available() and "device=cpu" not in spec.overrides else "cpu")
    folder = Path(spec.folder) / MODEL
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    policy: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    value: Any = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    for model in (policy, value):
        model.config.pad_token_id = tokenizer.pad_token_id
    prompts = json.loads((Path(spec.folder) / PROMPTS).read_text(encoding="utf-8"))
    rows, steps = spec.prompts * spec.group_size, spec.warmup + spec.steps
    repeated = [ids for ids in prompts for _ in range(spec.group_size)]
    clock = Clock(Meter(device), spec)

    class Watch(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.end(samples=rows, tokens=rows * spec.tokens, prompt_lengths=[])
            clock.begin()

    module.batch_generation = clock.wrap("rollout", module.batch_generation)
    module.get_reward = clock.wrap("score", module.get_reward)
    module.forward = _scored(clock, module.forward)
    with tempfile.TemporaryDirectory() as out:
        trainer = package.PPOTrainer(
            args=package.PPOConfig(
                output_dir=out, use_cpu=device.type == "cpu", bf16=spec.dtype == "bfloat16",
                per_device_train_batch_size=rows, gradient_accumulation_steps=1, num_mini_batches=1, num_ppo_epochs=1,
                local_rollout_forward_batch_size=rows, total_episodes=rows * steps, response_length=spec.tokens,
                temperature=1.0, num_sample_generations=0, report_to="none", save_strategy="no", disable_tqdm=True,
                learning_rate=1e-6, gradient_checkpointing="checkpointing" in spec.options,
            ),
            processing_class=tokenizer,
            model=policy,
            ref_model=copy.deepcopy(policy),
            reward_model=copy.deepcopy(value),
            value_model=value,
            train_dataset=Dataset.from_dict({"input_ids": repeated}),
            eval_dataset=Dataset.from_dict({"input_ids": repeated[:1]}),
            data_collator=DataCollatorWithPadding(tokenizer),
            callbacks=[Watch()],
        )  # fmt: skip
        trainer.train()
    versions = {name: sys.modules[name].__version__ for name in ("torch", "transformers", "trl") if name in sys.modules}
    return {
        "steps": clock.steps,
        "peak_bytes": clock.meter.peak_memory(),
        "device": {"type": device.type, "threads": torch.get_num_threads(), "versions": versions},
        "states": "; ".join(
            [
                "float32 weights, AdamW with float32 moments",
                f"products {spec.dtype}" + (" (autocast)" if spec.dtype == "bfloat16" else ""),
                "with reference and reward model; one micro-batch; prompts shuffled",
            ]
        ),
    }


def _scored(clock: Clock, forward: Any) -> Any:
    """A forward without gradients is scoring, one with them belongs to the update."""
    timed = clock.wrap("score", forward)

    def either(*args: Any, **kwargs: Any) -> Any:
        return (forward if torch.is_grad_enabled() else timed)(*args, **kwargs)

    return either
