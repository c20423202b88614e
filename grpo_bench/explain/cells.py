"""An algorithm of a run in one row: the cells of a table, and how two runs differ in them and in their knobs.

Everything is read from the card and the knobs, so that a row cannot say other than what runs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from grpo_bench.algos.dialects import leaves

if TYPE_CHECKING:
    from grpo_bench.algos import Algorithm
    from grpo_bench.config import Config

ROOT = ("group_size", "kl_coef", "target_kl", "epochs", "minibatches", "mask_truncated")  # knobs beside algo:


class Difference(NamedTuple):
    what: str  # a column, or a knob by its dotted path
    here: str
    there: str


def cells(cfg: Config) -> dict[str, str]:
    """Column -> cell of the run's algorithm, in the order of a table."""
    algo = cfg.algo
    card = algo.card()
    return {
        "baseline": card.baseline,
        "advantage": card.advantage,
        "ratio": card.ratio,
        "clip": clip(algo),
        "KL": kl(cfg),
        "average over": average(algo),
        "critic": critic(cfg),
        "extra rollouts": extra(algo),
        "paper": card.paper,
    }


def clip(algo: Algorithm) -> str:
    """Bounds of the ratio, and what else bounds the objective."""
    low, high = algo.clip_range
    words = []
    if math.isfinite(low) and math.isfinite(high):
        words.append(f"{1 - low:.5g} to {1 + high:.5g}")
    elif math.isfinite(high):
        words.append(f"up to {1 + high:.5g}")
    elif math.isfinite(low):
        words.append(f"from {1 - low:.5g}")
    if words and (dual := getattr(algo, "dual_clip", None)) is not None:
        words.append(f"at least {dual:g} A where A < 0")
    if algo.card().ratio != "none" and (clamp := getattr(algo, "log_clamp", None)) is not None:
        words.append(f"log ρ within ±{clamp:g}")
    return "; ".join(words) or "none"


def kl(cfg: Config) -> str:
    """Coefficient, estimator, to whom and where; and the limit that ends a step's updates."""
    knobs, words = cfg.algo.kl, []
    if knobs.place != "none" and cfg.kl_coef > 0:
        whom = "the reference" if knobs.to == "reference" else "π_old"
        place = {"loss": "in the loss", "reward": "in the reward", "advantage": "from the advantages"}[knobs.place]
        steered = f" at first, steered to {knobs.target:g}" if knobs.control == "adaptive" else ""
        estimator = f"{knobs.estimator}{' · ρ' if knobs.weighted and knobs.place == 'loss' else ''}"
        words.append(f"{cfg.kl_coef:g}{steered}, {estimator} to {whom}, {place}")
    if cfg.target_kl is not None:
        words.append(f"a step's updates end at KL to π_old > {cfg.target_kl:g}")
    return "; ".join(words) or "none"


def average(algo: Algorithm) -> str:
    """How tokens become one number."""
    if algo.whole_answer:
        return "answers"
    return {
        "sequence_mean": "tokens of an answer, then answers",
        "token_mean": "all tokens",
        "constant_length": "answers; their tokens summed"
        + (f", divided by {algo.length:g}" if algo.length != 1 else ""),
    }[algo.aggregation]


def critic(cfg: Config) -> str:
    algo = cfg.algo
    if not algo.needs_critic:
        return "none"
    words = "a network of its own" if cfg.model.critic == "separate" else "a head on the policy's trunk"
    if algo.frozen_steps:
        words += f", {algo.frozen_steps} steps ahead of the policy"
    return words


def extra(algo: Algorithm) -> str:
    """Completions beside those that are trained on."""
    words = {
        "none": [],
        "greedy": ["1 greedy per prompt"],
        "branches": [f"{algo.branching[0]} from each step of an answer"],
    }[algo.extra_rollouts]
    if algo.refill_limit:
        words.append(f"up to {algo.refill_limit} more draws of prompts for dropped groups")
    return "; ".join(words) or "none"


def knobs(cfg: Config) -> dict[str, str]:
    """Dotted path -> value of what a run's algorithm was given and that acts; the root keys beside it included."""
    node = cfg.algo.model_dump(mode="json", by_alias=True)
    idle = {"name", "class", *cfg.algo.inert()}
    found = {".".join(path): value for path, value in leaves(node)}
    mine = {f"algo.{key}": value for key, value in found.items() if key not in idle}
    root = {key: getattr(cfg, key) for key in ROOT if key != "kl_coef" or cfg.algo.kl.place != "none"}
    return {key: text(value) for key, value in {**mine, **root}.items()}


def differences(cfg: Config, other: Config) -> list[Difference]:
    """Columns that differ but for the paper, then knobs that both have and that act in at least one."""
    ours, theirs = cells(cfg), cells(other)
    found = [Difference(c, ours[c], theirs[c]) for c in ours if c != "paper" and ours[c] != theirs[c]]
    mine, others = knobs(cfg), knobs(other)
    return found + [Difference(k, mine[k], others[k]) for k in mine if k in others and mine[k] != others[k]]


def text(value: Any) -> str:
    """A value as one would type it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return f"[{', '.join(map(text, value))}]" if isinstance(value, list | tuple) else str(value)
