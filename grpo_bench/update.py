"""epochs x minibatches x micro-batches: the only place with ``.backward()``."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from grpo_bench import ops
from grpo_bench.cost import Size
from grpo_bench.policy import Models, layout, memory_errors
from grpo_bench.policy.score import micro_batch_tokens, micro_batches
from grpo_bench.rollout.noise import generator
from grpo_bench.types import Batch

if TYPE_CHECKING:
    from grpo_bench.algos import Algorithm
    from grpo_bench.config import Config, OptimConfig

PER_TOKEN = ("old_logp", "ref_logp", "values", "step_ids", "advantages", "returns")


def take(batch: Batch, rows: Tensor) -> Batch:
    """The batch with these rows only; (b,...) of every field."""
    fields: dict[str, Any] = {
        name: getattr(batch, name)[rows] for name in PER_TOKEN if getattr(batch, name) is not None
    }
    for name in ("tokens", "mask", "group_ids", "rewards", "correct", "finished", "prompt_lengths", "baseline_rewards"):
        if getattr(batch, name) is not None:
            fields[name] = getattr(batch, name)[rows]
    return replace(batch, **fields)


def schedule(optim: OptimConfig, update: int, progress: float) -> float:
    """Factor on the learning rate at the ``update``-th update (from 0), ``progress`` of the budget being spent."""
    warm = min((update + 1) / optim.warmup_updates, 1.0) if optim.warmup_updates else 1.0
    if optim.schedule == "constant":
        return warm
    left = max(1.0 - progress, 0.0)
    return warm * (left if optim.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * (1 - left))))


class Optimiser:
    """AdamW on one network: its learning rate, its gradient clipping, its count of updates."""

    def __init__(self, groups: list[tuple[Iterable[nn.Parameter], float]], optim: OptimConfig) -> None:
        self.cfg = optim
        trained = [([p for p in params if p.requires_grad], lr) for params, lr in groups]
        self.rates = [lr for params, lr in trained if params]
        self.parameters = [p for params, _ in trained for p in params]
        self.adamw = torch.optim.AdamW(
            [{"params": params, "lr": lr} for params, lr in trained if params],
            betas=optim.betas,
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            foreach=True,
        )
        self.updates = 0

    def step(self, loss: float, progress: float) -> tuple[float, bool]:
        """Clip and apply the gradients; returns their norm before clipping and whether they were applied.

        A loss or gradient that is not finite is dropped: the weights stay as they are.
        """
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.cfg.grad_clip or math.inf))
        applied = math.isfinite(loss) and math.isfinite(norm)
        if applied:
            factor = schedule(self.cfg, self.updates, progress)
            for group, rate in zip(self.adamw.param_groups, self.rates, strict=True):
                group["lr"] = rate * factor
            self.adamw.step()
            self.updates += 1
        self.adamw.zero_grad(set_to_none=True)
        return norm, applied


def descend(optimiser: Optimiser, losses: Iterable[Tensor], progress: float = 0.0) -> float:
    """One update on a sum of micro-batch losses; returns its value. For plain supervised training."""
    total = 0.0
    for loss in losses:
        loss.backward()
        total += float(loss.detach())
    optimiser.step(total, progress)
    return total


class Learner:
    """Policy and critic with their optimisers; ``update`` is one step's worth of them."""

    def __init__(self, cfg: Config, algo: Algorithm, models: Models) -> None:
        assert cfg.lr is not None
        self.cfg, self.algo, self.models = cfg, algo, models
        self.tokens = micro_batch_tokens(models.policy, cfg.micro_batch_tokens)
        self.size = Size.of(models.policy.model)
        self.trained_tokens = 0  # of the last step, once per epoch
        self.flops = 0.0  # of the last step
        self.empty_updates = 0  # of the last step, not made because all of their rows were dropped
        self.shared = models.critic is not None and models.critic.trunk is None
        groups: list[tuple[Iterable[nn.Parameter], float]] = [(models.policy.parameters(), cfg.lr)]
        self.critic: Optimiser | None = None
        if models.critic is not None:
            assert cfg.critic_lr is not None  # resolved for every algorithm with a critic
            if self.shared:
                groups.append((models.critic.head.parameters(), cfg.critic_lr))
            else:
                self.critic = Optimiser([(models.critic.parameters(), cfg.critic_lr)], cfg.optim)
        self.policy = Optimiser(groups, cfg.optim)

    def minibatches(self, batch: Batch, step: int, epoch: int) -> Iterable[Tensor]:
        """Rows of each minibatch: whole groups, in an order keyed by (seed, step, epoch)."""
        groups = len(batch.mask) // batch.group_size
        order = torch.arange(groups)
        if self.cfg.minibatches > 1:
            order = torch.from_numpy(generator(self.cfg.seed, "shuffle", epoch, step).permutation(groups))
        rows = (order[:, None] * batch.group_size + torch.arange(batch.group_size)).flatten()
        return rows.to(batch.mask.device).chunk(self.cfg.minibatches)

    @memory_errors()
    def update(self, batch: Batch, step: int, progress: float) -> dict[str, float]:
        """All updates of one step; returns metrics by the glossary's names.

        With ``target_kl`` a minibatch whose KL(old‖new) (token mean of k3) exceeds δ is not stepped on and ends the
        step, the critic's updates too: its forward measures what the minibatches before it did. So ``policy/kl_old`` is
        the KL before a step's last update; what that one adds is not measured. A minibatch whose rows are all dropped
        is passed over: it moves nothing and measures nothing. UserError when a GPU's memory runs out.
        """
        train_policy = step > self.algo.frozen_steps
        self.trained_tokens, self.flops, self.empty_updates = 0, 0.0, 0
        seen: dict[str, list[float]] = defaultdict(list)
        stopped = skipped = 0
        for epoch in range(self.cfg.epochs):
            for rows in self.minibatches(batch, step, epoch):
                if not batch.mask[rows].any():
                    self.empty_updates += 1
                    continue
                loss, value_loss = self._accumulate(batch, rows, train_policy, seen)
                over = self.cfg.target_kl is not None and train_policy and seen["kl_old"][-1] > self.cfg.target_kl
                if over:
                    self.policy.adamw.zero_grad(set_to_none=True)
                    if self.critic is not None:
                        self.critic.adamw.zero_grad(set_to_none=True)
                    stopped = 1
                    break
                if train_policy or self.shared:
                    norm, applied = self.policy.step(loss + (value_loss if self.shared else 0.0), progress)
                    skipped += not applied
                    if train_policy:
                        seen["grad_norm"].append(norm)
                        seen["n_updates"].append(float(applied))
                if self.critic is not None:
                    norm, applied = self.critic.step(value_loss, progress)
                    skipped += not applied
                    seen["value_grad_norm"].append(norm)
            if stopped:
                break
        return self._metrics(seen, stopped, skipped)

    def _accumulate(
        self, batch: Batch, rows: Tensor, train_policy: bool, seen: dict[str, list[float]]
    ) -> tuple[float, float]:
        """Gradients of one minibatch, micro-batch by micro-batch: weights are fixed beforehand, so sums are exact."""
        cfg, algo, models = self.cfg, self.algo, self.models
        weights = torch.zeros_like(batch.mask)
        weights[rows] = algo.token_weights(batch.mask[rows])
        rows = rows[batch.mask[rows].any(1)]  # dropped rows count in the weights and cost no forward
        sums: dict[str, float] = defaultdict(float)
        ratios: list[tuple[float, float]] = []
        for some in micro_batches(batch, rows, self.tokens):
            part, some_rows = take(batch, some), layout(batch, some)
            weight = weights[some]
            self._charge(part, train_policy)
            loss = torch.zeros((), device=weight.device)
            states = models.policy.states(some_rows) if train_policy or self.shared else None
            if train_policy:
                logp, entropy = models.policy.logp(some_rows, cfg.rollout.temperature, states, algo.needs_entropy)
                if part.old_logp is None:  # one update per rollout: the policy is the one that sampled
                    part = replace(part, old_logp=logp.detach())
                policy_loss = (weight * algo.token_loss(logp, part, entropy if algo.needs_entropy else None)).sum()
                loss = loss + policy_loss
                sums["policy_loss"] += float(policy_loss.detach())
                self._observe(part, logp.detach(), entropy.detach(), sums, ratios)
            if models.critic is not None:
                if not train_policy and states is not None:
                    states = states.detach()  # the policy is frozen: only the head learns
                values = models.critic.values(some_rows, states)
                value_loss = (weight * algo.value_loss(values, part)).sum()
                loss = loss + algo.value_weight * value_loss
                sums["value_loss"] += float(value_loss.detach())
            loss.backward()
        tokens = max(sums.pop("tokens", 0.0), 1.0)
        for name in ("entropy", "ratio", "k1", "k2", "k3", "clip_low", "clip_high", "ref_k1", "ref_k2", "ref_k3"):
            if train_policy:
                seen[name].append(sums[name] / tokens)
        if train_policy:
            seen["kl_old"].append(sums["k3"] / tokens)
            seen["loss"].append(sums["policy_loss"])
            seen["ratio_min"].append(min((low for low, _ in ratios), default=1.0))
            seen["ratio_max"].append(max((high for _, high in ratios), default=1.0))
        if models.critic is not None:
            seen["value_loss"].append(sums["value_loss"])
        return sums["policy_loss"], algo.value_weight * sums["value_loss"]

    def _charge(self, part: Batch, train_policy: bool) -> None:
        """Tokens and FLOPs of one forward and backward of the networks that are trained.

        A backward costs two forwards; one where all but adapters is frozen, since the weights' own gradients are not
        computed. What gradient checkpointing computes again is not charged.
        """
        whole = 2 if self.models.policy.peft_model[0] is not None else 3  # in forwards
        completions = part.mask.sum(1)
        assert part.prompt_lengths is not None
        lengths = (part.prompt_lengths + completions).long().tolist()
        tokens = int(completions.sum())
        if train_policy:
            self.trained_tokens += tokens
            self.flops += whole * self.size.forward(lengths, tokens)
        elif self.shared:
            self.flops += self.size.forward(lengths, 0)
        if self.critic is not None:
            self.flops += whole * self.size.forward(lengths, 0)

    def _observe(
        self, part: Batch, logp: Tensor, entropy: Tensor, sums: dict[str, float], ratios: list[tuple[float, float]]
    ) -> None:
        """Sums over tokens of what a dashboard shows of the update.

        The ratio is the one that the algorithm clips: a whole answer's counts once for each of its tokens.
        """
        assert part.old_logp is not None
        assert part.advantages is not None
        mask = part.mask
        ratio = torch.exp(self.algo.log_ratio(logp, part))
        low, high = self.algo.clip_range
        on = mask.bool()
        if part.ref_logp is not None:
            for name, estimate in ops.KL_ESTIMATORS.items():
                sums[f"ref_{name}"] += float((estimate(logp, part.ref_logp) * mask).sum())
        for name, value in {
            "tokens": mask,
            "entropy": entropy * mask,
            "ratio": ratio * mask,
            "k1": ops.kl_k1(part.old_logp, logp) * mask,
            "k2": ops.kl_k2(part.old_logp, logp) * mask,
            "k3": ops.kl_k3(part.old_logp, logp) * mask,
            "clip_low": ((part.advantages < 0) & (ratio < 1 - low)) * mask,
            "clip_high": ((part.advantages > 0) & (ratio > 1 + high)) * mask,
        }.items():
            sums[name] += float(value.sum())
        ratios.append((float(ratio[on].min()), float(ratio[on].max())))

    def _metrics(self, seen: dict[str, list[float]], stopped: int, skipped: int) -> dict[str, float]:
        def mean(name: str) -> float:
            return sum(seen[name]) / len(seen[name])

        out: dict[str, float] = {"health/skipped_updates": float(skipped)}
        if seen["loss"]:
            out |= {
                "policy/loss": mean("loss"),
                "policy/entropy": mean("entropy"),
                "policy/ratio_mean": mean("ratio"),
                "policy/ratio_min": min(seen["ratio_min"]),
                "policy/ratio_max": max(seen["ratio_max"]),
                "policy/approx_kl_k1": mean("k1"),
                "policy/approx_kl_k2": mean("k2"),
                "policy/approx_kl_k3": mean("k3"),
                "policy/kl_old": seen["kl_old"][-1],
                **{f"kl/ref_{k}_token": mean(f"ref_{k}") for k in ("k1", "k2", "k3") if self.models.has_reference},
                "policy/kl_stopped": float(stopped),
                "policy/clip_frac_low": mean("clip_low"),
                "policy/clip_frac_high": mean("clip_high"),
                "policy/clip_frac": mean("clip_low") + mean("clip_high"),
            }
        if seen["grad_norm"]:
            out |= {
                "policy/grad_norm": mean("grad_norm"),
                "policy/grad_norm_max": max(seen["grad_norm"]),
                "policy/lr": float(self.policy.adamw.param_groups[0]["lr"]),
            }
        out["policy/n_updates"] = sum(seen["n_updates"])
        if seen["value_loss"]:
            out["value/loss"] = mean("value_loss")
            out["value/lr"] = float((self.critic or self.policy).adamw.param_groups[-1]["lr"])
            if seen["value_grad_norm"]:
                out["value/grad_norm"] = mean("value_grad_norm")
        return out
