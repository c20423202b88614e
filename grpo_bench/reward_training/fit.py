"""The classifier: its weights from the policy's, its training, and how well it tells right answers from wrong ones."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from grpo_bench.optimiser import Optimiser
from grpo_bench.policy.memory import memory_errors
from grpo_bench.rewards import Scored
from grpo_bench.rewards.model import RewardModel
from grpo_bench.rollout.noise import generator
from grpo_bench.types import UserError
from grpo_bench.update import descend

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from grpo_bench.config import Config

WARMUP = 20  # updates of rising learning rate


def classifier_of(model: PreTrainedModel, tokenizer: Any, seed: int) -> PreTrainedModel:
    """A sequence classifier with one output: the trunk has the weights of ``model``, the head new ones of ``seed``.

    Raises UserError where transformers has no such form of the architecture.
    """
    from transformers import AutoModelForSequenceClassification

    config = copy.deepcopy(model.config)
    config.num_labels = 1
    if config.pad_token_id == tokenizer.eos_token_id:
        config.pad_token_id = None  # the end token has to be seen: it tells an answer that ended from one that was cut
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            classifier = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
        classifier.base_model.load_state_dict(model.base_model.state_dict())
    except (ValueError, RuntimeError) as e:
        reason = " ".join(str(e).split())[:200]
        name = type(model).__name__
        raise UserError(f"{name} cannot be made a classifier ({reason}); choose another model") from None
    return classifier.to(model.device).eval()  # eval: no dropout, as everywhere


@memory_errors()
def fit(
    cfg: Config,
    scorer: RewardModel,
    rows: Scored,
    *,
    epochs: int,
    batch: int,
    lr: float,
    tokens: int,
    dtype: torch.dtype,
    progress: Callable[[int, int], None],
) -> None:
    """Train ``scorer``'s model in place: mean binary cross-entropy of its logit with the verifier's labels.

    AdamW, learning rate linear to 0 after ``WARMUP`` updates. Answers count as they were sampled, neither class
    weighted: so the output is the probability that an answer of this policy is right. ``tokens``: padded tokens of
    one forward. ``progress(done, total)`` is called after each update.
    """
    optim = cfg.optim.model_copy(
        update={
            "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0, "grad_clip": 1.0,
            "schedule": "linear", "warmup_updates": WARMUP,
        }
    )  # fmt: skip
    optimiser = Optimiser([(scorer.model.parameters(), lr)], optim)
    ids = [scorer.encode(text, end).ids for text, end in zip(scorer.texts(rows), rows.finished, strict=True)]
    labels = torch.tensor(rows.right, dtype=torch.float32, device=scorer.device)
    starts = range(0, len(ids), batch)
    done, total = 0, epochs * len(starts)
    for epoch in range(epochs):
        order = generator(cfg.seed, "shuffle", epoch).permutation(len(ids))
        for start in starts:
            chosen = order[start : start + batch].tolist()

            def losses(chosen: list[int] = chosen) -> Iterator[Tensor]:
                for part in _micro_batches(chosen, ids, tokens):
                    with torch.autocast(scorer.device.type, dtype=dtype, enabled=dtype != torch.float32):
                        logits = scorer.logits([ids[i] for i in part])
                    yield binary_cross_entropy_with_logits(logits, labels[part], reduction="sum") / len(chosen)

            descend(optimiser, losses(), progress=done / total)
            done += 1
            progress(done, total)


def _micro_batches(chosen: Sequence[int], ids: Sequence[Sequence[int]], tokens: int) -> Iterator[list[int]]:
    """Parts of at most ``tokens`` padded tokens (at least one row), rows of like length together."""
    order = sorted(chosen, key=lambda i: -len(ids[i]))
    start = 0
    while start < len(order):
        count = max(tokens // len(ids[order[start]]), 1)
        yield order[start : start + count]
        start += count


def measure(scorer: RewardModel, rows: Scored) -> dict[str, int | float | None]:
    """What the model says of answers against the verifier's labels.

    ``accuracy`` at a probability of 1/2; ``auc``: share of pairs of a right and a wrong answer in which the right one
    scores higher, ties half; ``auc_within``: the same over pairs of one problem, which is all that a group's baseline
    sees; ``brier``: mean (probability − label)². None where there is no pair.
    """
    scores = np.array(scorer.score(rows))
    if scorer.knobs.output == "logit":
        scores = 1 / (1 + np.exp(-scores))
    right = np.array(rows.right)
    groups = [slice(i, i + rows.group_size) for i in range(0, len(right), rows.group_size)]
    won = [(_pairs_won(scores[g], right[g]), int(right[g].sum()) * int((~right[g]).sum())) for g in groups]
    pairs, within = int(right.sum()) * int((~right).sum()), sum(count for _, count in won)
    return {
        "answers": len(right),
        "right": float(right.mean()),
        "finished": float(np.mean(rows.finished)),
        "accuracy": float(((scores > 0.5) == right).mean()),
        "auc": _pairs_won(scores, right) / pairs if pairs else None,
        "auc_within": sum(share for share, _ in won) / within if within else None,
        "brier": float(((scores - right) ** 2).mean()),
        "mean_of_right": float(scores[right].mean()) if right.any() else None,
        "mean_of_wrong": float(scores[~right].mean()) if not right.all() else None,
    }


def _pairs_won(scores: np.ndarray, right: np.ndarray) -> float:
    """Pairs (right, wrong) in which the right answer scores higher, ties half: the rank sum of Mann and Whitney."""
    count = int(right.sum())
    return float(rankdata(scores)[right].sum() - count * (count + 1) / 2)
