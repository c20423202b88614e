"""TRL's GRPOTrainer under the clock, as its own loop runs it: one rollout, one optimiser step, no logging or saving."""

from __future__ import annotations

import tempfile
from typing import Any, cast

import torch

from grpo_bench.cost import Meter
from grpo_bench.policy import choose_device, load_model, load_tokenizer
from grpo_bench.speed.child import Clock, Spec
from grpo_bench.speed.ours import config_of, described, task_of
from grpo_bench.speed.rewards import reward_of


def run(spec: Spec) -> dict[str, Any]:
    """``spec.contender`` trl: float32 weights, autocast for bfloat16; trl-pure: the weights themselves in bfloat16.

    Options: checkpointing (recompute activations), accumulationN (N micro-batches), continuous (transformers'
    continuous batching in place of ``generate``).
    """
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    cfg = config_of(spec)
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    device, rows = choose_device(cfg), spec.prompts * spec.group_size
    task, tokenizer = task_of(cfg, spec.prompt_tokens), load_tokenizer(cfg.model)
    task.fit(tokenizer)
    model: Any = load_model(cfg.model, device)
    if getattr(model, "is_quantized", False):  # read from GGUF: its weights are float32 now, but the trainer refuses it
        model.is_quantized = False
    pure = spec.contender == "trl-pure"
    if pure:
        model.to(torch.bfloat16)
    options = settings(spec.options, rows)
    steps = spec.warmup + spec.steps
    problems = [task.train_problem(i) for i in range(spec.prompts * steps)]
    if spec.prompt_tokens is None:
        prompts = [task.prompt(problem, tokenizer) for problem in problems]
    else:
        prompts = tokenizer.batch_decode(task.prompt_ids(problems, tokenizer))
    lengths = [len(ids) for ids in tokenizer(text=prompts)["input_ids"]]

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [reward_of(row, spec.group_size) for row in range(len(completions))]

    clock = Clock(Meter(device), spec)

    class Watch(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            first = clock.seen * spec.prompts
            clock.end(
                samples=rows, tokens=rows * spec.tokens, prompt_lengths=lengths[first : first + spec.prompts]
            )  # fmt: skip

    with tempfile.TemporaryDirectory() as folder:
        trainer: Any = GRPOTrainer(
            model=model,
            reward_funcs=cast(Any, reward),
            args=GRPOConfig(
                output_dir=folder, use_cpu=device.type == "cpu", bf16=spec.dtype == "bfloat16" and not pure,
                num_generations=spec.group_size, max_completion_length=spec.tokens, max_steps=steps,
                generation_kwargs={"min_new_tokens": spec.tokens}, shuffle_dataset=False, num_iterations=1, beta=0.0,
                loss_type="grpo", scale_rewards="group", learning_rate=1e-6, max_grad_norm=1.0, temperature=1.0,
                top_p=1.0, top_k=0, report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
                dataloader_pin_memory=device.type == "cuda", **options,
            ),
            train_dataset=Dataset.from_dict({"prompt": prompts}),
            processing_class=tokenizer,
            callbacks=[Watch()],
        )  # fmt: skip
        trainer._generate_single_turn = clock.wrap("rollout", trainer._generate_single_turn)
        trainer._calculate_rewards = clock.wrap("reward", trainer._calculate_rewards)
        trainer._generate_and_score_completions = _scored(clock, trainer)
        trainer.train()
    weights = "bfloat16 weights, AdamW with bfloat16 moments" if pure else "float32 weights, AdamW with float32 moments"
    products = f"products {spec.dtype}" + (" (autocast)" if spec.dtype == "bfloat16" and not pure else "")
    memory = "activations recomputed" if options["gradient_checkpointing"] else "activations kept"
    return {
        "steps": clock.steps,
        "peak_bytes": clock.meter.peak_memory(),
        "device": described(device),
        "states": f"{weights}; {products}; {memory}; micro-batches {options['gradient_accumulation_steps']}",
    }


def _scored(clock: Clock, trainer: Any) -> Any:
    """Log-probs that are computed beside sampling and rewards, before the loss, are the phase ``score``."""
    generate, score = trainer._generate_and_score_completions, trainer._get_per_token_logps_and_entropies

    def timed(*args: Any, **kwargs: Any) -> Any:
        trainer._get_per_token_logps_and_entropies = clock.wrap("score", score)
        try:
            return generate(*args, **kwargs)
        finally:
            trainer._get_per_token_logps_and_entropies = score

    return timed


def settings(options: list[str], rows: int) -> dict[str, Any]:
    """GRPOConfig's arguments that trade memory for time, from a contender's options; ValueError for others."""
    out: dict[str, Any] = {
        "gradient_checkpointing": "checkpointing" in options,
        "gradient_accumulation_steps": 1,
        "use_transformers_continuous_batching": "continuous" in options,
    }
    for option in options:
        if option.startswith("accumulation") and option.removeprefix("accumulation").isdigit():
            out["gradient_accumulation_steps"] = int(option.removeprefix("accumulation"))
        elif option not in ("checkpointing", "continuous"):
            raise ValueError(f"trl+{option}: options are checkpointing, accumulationN and continuous")
    if rows % out["gradient_accumulation_steps"]:
        raise ValueError(f"{rows} completions do not split into {out['gradient_accumulation_steps']} micro-batches")
    out["per_device_train_batch_size"] = rows // out["gradient_accumulation_steps"]
    return out
