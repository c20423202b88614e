"""What single fields cannot see: contradictions between them, and settings that are inert or bias a comparison."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from grpo_bench.config_errors import nearest

if TYPE_CHECKING:
    from grpo_bench.config import Config

DEMONSTRATIONS = ("worked", "bare", "unmarked")
SPLITS = {  # (split, eval_split) that do not train on what they evaluate
    "math": [("12k", "math500"), ("7.5k", "math500"), ("7.5k", "test")],
    "arithmetic": [("train", "test")],
    "gsm8k": [("train", "test")],
}
FILTERS = {"steps": "gsm8k", "level": "math", "subject": "math"}


def divisors(n: int) -> list[int]:
    """Of n > 0, ascending."""
    return sorted({d for k in range(1, math.isqrt(n) + 1) if n % k == 0 for d in (k, n // k)})


def _near(value: int, choices: list[int]) -> str:
    """The nearest choices below and above."""
    below, above = [c for c in choices if c < value][-1:], [c for c in choices if c > value][:1]
    return " or ".join(str(c) for c in below + above)


def contradictions(cfg: Config) -> list[str]:
    """One line for each pair of settings that cannot hold together."""
    return [*_batch(cfg), *_evaluation(cfg), *_task(cfg), *_model(cfg), *_names(cfg)]


def _batch(cfg: Config) -> list[str]:
    samples, prompts, group = cfg.samples_per_step, cfg.prompts_per_step, cfg.group_size
    if (samples is None) == (prompts is None):
        if samples is None:
            return ["samples_per_step and prompts_per_step are both null; give one of them"]
        return [
            f"samples_per_step={samples} and prompts_per_step={prompts} contradict each other; "
            f"give prompts_per_step={prompts} samples_per_step=null to fix the prompts"
        ]
    if samples is not None and samples % group:
        near = _near(group, divisors(samples))
        return [f"group_size={group} does not divide samples_per_step={samples}; the nearest divisors are {near}"]
    if cfg.prompts % cfg.minibatches:
        return [
            f"minibatches={cfg.minibatches} does not divide the {cfg.prompts} groups of a step, and a minibatch holds "
            f"whole groups; give minibatches={_near(cfg.minibatches, divisors(cfg.prompts))}"
        ]
    return []


def _evaluation(cfg: Config) -> list[str]:
    problems = []
    if cfg.eval.ks and max(cfg.eval.ks) > cfg.eval.samples:
        fit = [k for k in cfg.eval.ks if k <= cfg.eval.samples]
        problems.append(
            f"eval.ks={cfg.eval.ks} needs eval.samples of at least {max(cfg.eval.ks)}, not {cfg.eval.samples}; "
            f"give 'eval.ks={fit}' or eval.samples={max(cfg.eval.ks)}"
        )
    if any(k < 1 for k in cfg.eval.ks):
        problems.append(f"eval.ks={cfg.eval.ks}: each should be at least 1")
    return problems


def _task(cfg: Config) -> list[str]:
    task, problems = cfg.task, []
    pairs = SPLITS.get(task.name)
    if pairs is None and task.split == task.eval_split:  # data of one's own: any two splits
        problems.append(f"task.split and task.eval_split are both {task.split}; evaluate on another split")
    if pairs is not None and (task.split, task.eval_split) not in pairs:
        text = " or ".join(f"task.split={a} task.eval_split={b}" for a, b in pairs)
        problems.append(f"task.split={task.split} with task.eval_split={task.eval_split} is refused; choose {text}")
    for key, owner in FILTERS.items():
        if getattr(task.filters, key) is not None and task.name not in (owner, "custom"):
            problems.append(f"task.filters.{key} belongs to task={owner}, not to task={task.name}")
    problems += _without_effect(cfg)
    if "" in task.stop:
        problems.append("task.stop contains an empty string, which would stop every answer at its start; take it out")
    if "{question}" not in task.prompt.template:
        problems.append("task.prompt.template has no {question}")
    if task.prompt.shots and not all(f in task.prompt.shot_template for f in ("{question}", "{answer}")):
        problems.append("task.prompt.shot_template has no {question} or no {answer}")
    if task.prompt.system is not None and task.prompt.style != "chat":
        problems.append("task.prompt.system needs task.prompt.style=chat")
    if task.name == "custom" and task.path is None and task.hub is None:
        problems.append("task=custom needs task.path=a jsonl file or a folder with train and test")
    if task.name == "arithmetic":
        if task.arithmetic is None:
            problems.append("task.arithmetic is null; task=arithmetic needs it")
        else:
            for key in ("steps", "operands", "results"):
                low, high = getattr(task.arithmetic, key)
                if low > high:
                    problems.append(f"task.arithmetic.{key}=[{low},{high}]: the smaller number comes first")
            if task.arithmetic.steps[0] < 1:
                problems.append("task.arithmetic.steps: a chain has at least 1 step")
    unknown = [name for name in task.demonstrations if name not in DEMONSTRATIONS]
    problems += [f"task.demonstrations.{n} is not known{nearest(n, list(DEMONSTRATIONS))}" for n in unknown]
    shares = list(task.demonstrations.values())
    if cfg.model.warmstart.steps and (any(s < 0 for s in shares) or not math.isclose(sum(shares), 1, abs_tol=1e-3)):
        problems.append(f"task.demonstrations: shares should be at least 0 and add up to 1, not {sum(shares):g}")
    return problems


def _without_effect(cfg: Config) -> list[str]:
    """Keys that the task does not read: a value there would be ignored in silence."""
    task, problems = cfg.task, []
    if task.name == "arithmetic":
        what = "task=arithmetic makes its problems itself; choose task=gsm8k, math or custom, or leave it null"
        found = [("path", task.path), ("filters.limit", task.filters.limit)]
        problems += [f"task.{key}={value}: {what}" for key, value in found if value is not None]
    if task.name != "math" and task.math500_path is not None:
        problems.append(f"task.math500_path={task.math500_path} belongs to task=math, not to task={task.name}")
    return problems


def _model(cfg: Config) -> list[str]:
    model, problems = cfg.model, []
    if model.tiny is None:
        if model.id is None and model.path is None:
            problems.append(f"model={model.name} needs model.id=owner/name or model.path=a folder or GGUF file")
        if model.path is not None and model.revision is not None:
            problems.append(
                f"model.revision={model.revision} is of the hub, and model.path={model.path} wins over it; drop one"
            )
        return problems
    tiny = model.tiny
    if model.id is not None or model.path is not None:
        problems.append("model=tiny is built from config; for a model on disk or from the hub give model=hf")
    if tiny.hidden_size % tiny.heads or tiny.heads % tiny.kv_heads or (tiny.hidden_size // tiny.heads) % 2:
        problems.append(
            f"model.tiny: hidden_size={tiny.hidden_size} should be an even multiple of heads={tiny.heads}, "
            f"and heads a multiple of kv_heads={tiny.kv_heads}"
        )
    longest = cfg.task.max_prompt_tokens + cfg.task.max_new_tokens
    if longest > tiny.max_positions:
        problems.append(
            f"task.max_prompt_tokens + task.max_new_tokens = {longest} exceeds "
            f"model.tiny.max_positions={tiny.max_positions}"
        )
    return problems


def _names(cfg: Config) -> list[str]:
    from grpo_bench.rewards import check  # here, so that reading the schema does not cost numpy

    problems = check.contradictions(cfg)
    for pair in cfg.study.contrasts:
        if len(pair) != 2 or pair[0] == pair[1]:
            problems.append(f"study.contrasts: {pair} should name two different rows")
    ids = [hypothesis.id for hypothesis in cfg.study.hypotheses]
    for id in sorted({id for id in ids if ids.count(id) > 1}):
        problems.append(f"study.hypotheses: {id} is declared {ids.count(id)} times; give each an id of its own")
    return problems


def warnings(cfg: Config) -> list[str]:
    """One line for each setting that is inert or that biases a comparison; algorithms add their own."""
    from grpo_bench.rewards import check

    found = check.warnings(cfg)
    if cfg.rollout.top_p < 1:
        found.append(f"rollout.top_p={cfg.rollout.top_p:g} samples from a cut distribution: ratios are biased")
    if cfg.rollout.top_k is not None:
        found.append(f"rollout.top_k={cfg.rollout.top_k} samples from a cut distribution: ratios are biased")
    if cfg.budget.unit == "seconds":
        found.append("budget.unit=seconds: runs end at different samples, and a continued run is not bit-equal")
    updates = total_updates(cfg)
    if updates is not None and 0 < updates <= cfg.optim.warmup_updates:
        found.append(f"optim.warmup_updates={cfg.optim.warmup_updates} covers the whole run of {updates} updates")
    if cfg.critic_lr is not None and not cfg.algo.needs_critic:
        found.append(f"critic_lr={cfg.critic_lr:g} is inert: algo={cfg.algo.name} trains no critic")
    if cfg.model.critic == "shared" and not cfg.algo.needs_critic:
        found.append(f"model.critic=shared is inert: algo={cfg.algo.name} trains no critic")
    if cfg.model.trust_remote_code:
        found.append("model.trust_remote_code=true runs code that comes with the model")
    if cfg.checkpoint.every == 0:
        found.append("checkpoint.every=0: a run that is interrupted starts over")
    if cfg.parallel != 1 and cfg.threads is None and cfg.device == "cpu":
        effect = "so they run one at a time" if cfg.parallel == "auto" else "and they slow each other down"
        found.append(
            f"parallel={cfg.parallel} with threads=null: each job takes all CPU cores, {effect}; give threads=..."
        )
    if cfg.task.math500_path is not None and cfg.task.eval_split != "math500":
        found.append(f"task.math500_path is inert with task.eval_split={cfg.task.eval_split}")
    return found


def updates_per_step(cfg: Config) -> int:
    """Optimiser updates of one step, unless ``target_kl`` ends its epochs early."""
    return cfg.epochs * cfg.minibatches


def total_steps(cfg: Config) -> int | None:
    """Steps of the whole run; None where the budget does not say beforehand."""
    if cfg.budget.unit == "updates":
        return math.ceil(cfg.budget.amount / updates_per_step(cfg))
    if cfg.budget.unit == "samples" and not _charged_beyond(cfg):
        return math.ceil(cfg.budget.amount / cfg.samples)
    return None


def total_updates(cfg: Config) -> int | None:
    """Optimiser updates of the whole run; None where the budget does not say beforehand."""
    if cfg.budget.unit == "updates":
        return math.ceil(cfg.budget.amount)
    if cfg.budget.unit == "samples" and not _charged_beyond(cfg):
        return math.ceil(cfg.budget.amount / cfg.samples) * updates_per_step(cfg)
    return None


def _charged_beyond(cfg: Config) -> bool:
    """A step is charged for more samples than it trains on, and for how many is not known beforehand."""
    return bool(cfg.algo.refill_limit) or cfg.algo.extra_rollouts != "none"
