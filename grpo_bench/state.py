"""What a run carries from step to step: in memory, in a checkpoint, and at the end in result.json."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from grpo_bench.bystanders import Bystanders, shares
from grpo_bench.checkpoint import flatten_optimizer, restore_optimizer
from grpo_bench.cost import PARTS
from grpo_bench.model_states import model_states
from grpo_bench.policy.memory import kept_elements
from grpo_bench.rewards.model import add_cost
from grpo_bench.types import Rollouts, UserError

if TYPE_CHECKING:
    from grpo_bench.checkpoint import Checkpoint
    from grpo_bench.config import Config
    from grpo_bench.cost import Meter, Size
    from grpo_bench.optimiser import Optimiser
    from grpo_bench.policy import Models
    from grpo_bench.rollout import Engine
    from grpo_bench.tasks import Task
    from grpo_bench.update import Learner


@dataclass
class State:
    """What a run carries from step to step: all of it is in every checkpoint."""

    step: int = 0
    samples: int = 0
    prompts: int = 0
    generated_tokens: int = 0
    trained_tokens: int = 0
    updates: int = 0
    warmup_updates: int = 0  # of the critic alone, while the policy waited for it
    empty_updates: int = 0  # not made, since all of their rows were dropped
    extra_samples: int = 0  # of samples: greedy baselines and branches, which are not trained on
    extra_tokens: int = 0  # of generated_tokens: theirs
    flops: float = 0.0
    algo: dict[str, float] = field(default_factory=dict)
    reward_model: dict[str, float] = field(default_factory=dict)  # its cost so far; {} without one
    seconds: dict[str, float] = field(default_factory=dict)
    parts: dict[str, float] = field(default_factory=dict)  # of the seconds of scoring and updating
    machine: dict[str, float] = field(default_factory=dict)  # seconds of its cores, see bystanders.py
    peak_memory: int = 0
    nan_steps: int = 0
    nan_in_a_row: int = 0
    skipped_updates: int = 0
    grad_norm_max: float = 0.0
    recent_rewards: list[float] = field(default_factory=list)
    last: dict[str, float | None] = field(default_factory=dict)  # kl and entropy of the last step

    def counters(self) -> dict[str, float]:
        """The x-axes of every figure."""
        names = ("samples", "prompts", "generated_tokens", "trained_tokens", "updates", "flops")
        return {name: getattr(self, name) for name in names}

    def charge(self, size: Size, rollouts: Rollouts, extra: bool = False) -> None:
        """Count what was sampled, whatever becomes of it; ``extra``: beside the completions that may be trained on."""
        lengths = [len(c) for c in rollouts.completion_ids]
        self.samples += len(lengths)
        self.generated_tokens += sum(lengths)
        self.flops += size.rollout([len(p) for p in rollouts.prompt_ids], rollouts.group_size, lengths)
        if extra:
            self.extra_samples += len(lengths)
            self.extra_tokens += sum(lengths)

    def charge_reward(self, cost: dict[str, float]) -> None:
        """Count what a reward model did in a step, its FLOPs among the run's; {} where there is none."""
        self.reward_model = add_cost(self.reward_model, cost)
        self.flops += cost.get("flops", 0.0)

    def spent(self, unit: str, seconds: float) -> float:
        """How much of a budget in ``unit`` is used up."""
        if unit == "updates":  # the critic's warm-up is charged, and a run that drops everything has to end
            return float(self.updates + self.warmup_updates + self.empty_updates)
        return seconds if unit == "seconds" else float({**self.counters(), "tokens": self.generated_tokens}[unit])


@dataclass(frozen=True)
class Parts:
    """Everything a step works with."""

    cfg: Config
    task: Task
    tokenizer: Any
    engine: Engine
    models: Models
    learner: Learner
    meter: Meter
    size: Size
    bystanders: Bystanders = field(default_factory=Bystanders)


def _optimisers(learner: Learner) -> dict[str, Optimiser]:
    return {"policy": learner.policy, **({"critic": learner.critic} if learner.critic is not None else {})}


def _trained(module: torch.nn.Module) -> dict[str, Tensor]:
    """What training changes: frozen weights (under LoRA adapters) are where they were loaded from."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def to_checkpoint(parts: Parts, state: State) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Groups of tensors and JSON that ``from_checkpoint`` restores exactly. No random state: noise is keyed by step."""
    state.seconds, state.parts = dict(parts.meter.total), dict(parts.meter.parts)
    state.machine = parts.bystanders.total()
    tensors = {"policy": _trained(parts.models.policy)}
    if parts.models.critic is not None:
        tensors["critic"] = _trained(parts.models.critic)
    content: dict[str, Any] = {"state": asdict(state), "optimisers": {}, "micro_batch_tokens": parts.learner.tokens}
    for name, optimiser in _optimisers(parts.learner).items():
        tensors[f"{name}_optimizer"], flat = flatten_optimizer(optimiser.adamw.state_dict())
        content["optimisers"][name] = {"adamw": flat, "updates": optimiser.updates}
    return tensors, content


def from_checkpoint(checkpoint: Checkpoint, parts: Parts) -> State:
    """Put weights, optimisers and counters back as they were; returns the state."""
    load_weights(parts.models.policy, checkpoint.tensors("policy"))
    if parts.models.critic is not None:
        load_weights(parts.models.critic, checkpoint.tensors("critic"))
    for name, optimiser in _optimisers(parts.learner).items():
        saved = checkpoint.state["optimisers"][name]
        restore_optimizer(optimiser.adamw, checkpoint.tensors(f"{name}_optimizer"), saved["adamw"])
        optimiser.updates = saved["updates"]
    # as it was, also where memory had run out: micro-batches of other sizes round otherwise
    parts.learner.tokens = checkpoint.state.get("micro_batch_tokens", parts.learner.tokens)
    state = State(**checkpoint.state["state"])
    parts.meter.total.update(state.seconds)
    parts.meter.parts.update(state.parts)
    return state


@torch.no_grad()
def load_weights(module: torch.nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy a checkpoint's weights into a module; UserError when they are another model's."""
    own = _trained(module)
    if own.keys() != tensors.keys():
        raise UserError("the checkpoint holds other weights than this model has; start the run anew with resume=false")
    for name, parameter in own.items():
        parameter.copy_(tensors[name])


def result_of(
    parts: Parts, state: State, evals: dict[str, Any], baselines: dict[str, str], status: str, reason: str = ""
) -> dict[str, Any]:
    """What result.json says beside the run's identity."""
    cfg, seconds = parts.cfg, parts.meter.total
    rewards = state.recent_rewards
    mean = sum(rewards) / max(len(rewards), 1)
    return {
        "status": status,
        **({"reason": reason} if reason else {}),
        "budget": cfg.budget.model_dump(mode="json"),
        "baselines": baselines,
        "eval": evals,
        "cost": {
            "steps": state.step,
            **state.counters(),
            "warmup_updates": state.warmup_updates,
            "empty_updates": state.empty_updates,
            "extra_samples": state.extra_samples,
            "extra_tokens": state.extra_tokens,
            "seconds": {
                **{name: seconds.get(name, 0.0) for name in ("rollout", "reward", "score", "update", "eval")},
                "total": sum(seconds.values()),
                "parts": {name: parts.meter.parts.get(name, 0.0) for name in PARTS},
            },
            **({"machine": machine} if (machine := shares(parts.bystanders.total())) else {}),
            "peak_memory_bytes": state.peak_memory,
            "memory": model_states(parts.models, parts.learner, parts.engine),
            "kept_probabilities": kept_elements(parts.models.policy.device, parts.models.policy.dtype),
            "micro_batch_tokens": parts.learner.tokens,  # the limit at the end, halved where memory ran out
            "parameters": parts.models.parameters(),
            **({"reward_model": state.reward_model} if state.reward_model else {}),
        },
        "stability": {
            "kl_final": state.last.get("kl/ref_k3_token"),
            "entropy_final": state.last.get("rollout/entropy"),
            "grad_norm_max": state.grad_norm_max,
            "nan_steps": state.nan_steps,
            "skipped_updates": state.skipped_updates,
            "reward_std_last": math.sqrt(sum((r - mean) ** 2 for r in rewards) / max(len(rewards), 1)),
            "diverged": status == "diverged",
        },
    }
