"""What every algorithm shares: knobs of the KL, and defaults for all but its three equations.

An algorithm is a strict pydantic model: its fields are its knobs, its methods are the equations. It does not inherit
from another algorithm, loads no models and does no I/O.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from grpo_bench import ops

if TYPE_CHECKING:
    from torch import Tensor

    from grpo_bench.config import Config
    from grpo_bench.types import Batch

Aggregation = Literal["sequence_mean", "token_mean", "constant_length"]


class Knobs(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class KL(Knobs):
    """Where a KL penalty acts; its coefficient is the root key ``kl_coef``.

    ``reward``: taken from the rewards before any baseline or normalisation; ``advantage``: what is still to come of
    it, Σ_{t' ≥ t} β·KL_t', is taken from the finished advantages (OpenRLHF's order).
    """

    place: Literal["none", "loss", "reward", "advantage"]
    to: Literal["reference", "old"]
    estimator: Literal["k1", "k2", "k3"]
    control: Literal["fixed", "adaptive"]
    target: float = Field(gt=0)  # adaptive: token mean of k3 that the coefficient steers to
    horizon: float = Field(gt=0)  # adaptive: samples over which it steers
    clamp_in: float | None = Field(default=None, gt=0)  # of log π/π_ref before the estimator, ±; null: none
    clamp_out: float | None = Field(default=None, gt=0)  # of the estimate, ±; null: none
    weighted: bool = False  # in the loss: times the ratio that the algorithm clips, with its gradient


class Card(NamedTuple):
    """An algorithm as a row of a table; numbers are its knobs' own. What else a row shows follows from the knobs."""

    title: str  # the name that papers print
    paper: str  # short reference, arXiv id, equation
    baseline: str  # what is taken from the reward
    advantage: str  # formula
    ratio: str  # what the ratio is of, or "none"
    objective: str  # formula that is maximised, without the KL


class Algorithm(Knobs, ABC):
    """The contract between an algorithm and the run; shapes as in types.py.

    loss = Σ weights · (token_loss + vf_coef · value_loss), so that any split into micro-batches and any padding give
    the same gradient.
    """

    name: str
    path: str | None = Field(alias="class")  # package.module:Class of an algorithm from outside the checkout
    aggregation: Aggregation
    length: float = Field(gt=0)  # of constant_length, in tokens
    entropy_coef: float = Field(ge=0)
    kl: KL

    # system -> knobs, of an algorithm from outside the checkout; those of the built-in ones are in dialects.py
    dialects: ClassVar[dict[str, dict[str, Any]]] = {}
    # KL places whose penalty this algorithm's equations take in
    kl_places: ClassVar[frozenset[str]] = frozenset({"none", "loss", "reward"})
    # what its advantages do not feel: "shift" (one reward more for a whole group), "scale" (the unit of the reward)
    invariant_to: ClassVar[frozenset[str]] = frozenset()
    # advantages of the winner and of each loser of [1,0,0,0,0,0,0,0], one token each, values and KL 0, as the YAML
    # has the knobs; worked by hand, so that a check has something that is not the code
    lone_winner: ClassVar[tuple[float, float] | None] = None

    def card(self) -> Card:
        """The row of a table about this algorithm; one's own may leave it to the docstring."""
        see = "see its docstring"
        return Card(self.name, see, see, see, see, see)

    @property
    def needs_critic(self) -> bool:
        """A value network is trained and ``batch.values`` filled."""
        return False

    @property
    def needs_reference(self) -> bool:
        """``batch.ref_logp`` is filled (and the reference model kept)."""
        return self.kl.place != "none" and self.kl.to == "reference"

    @property
    def needs_old_logp(self) -> bool:
        """The advantages read ``batch.old_logp``: it must be scored before them, even with one update per rollout."""
        return self.kl.place in ("reward", "advantage")

    @property
    def needs_entropy(self) -> bool:
        """``token_loss`` is given the entropy with its gradient."""
        return self.entropy_coef > 0

    @property
    def acts_without_advantage(self) -> bool:
        """A KL, entropy or critic term trains on rows whose advantage is 0, so they may not be skipped."""
        return self.kl.place == "loss" or self.needs_entropy or self.needs_critic

    @property
    def credits_unscored(self) -> bool:
        """Advantages follow from rewards alone: they can be computed before log-probs and values are."""
        own = type(self).statistics is not Algorithm.statistics
        return not (self.needs_critic or self.needs_old_logp or self.extra_rollouts == "branches" or own)

    @property
    def whole_answer(self) -> bool:
        """The loss is one scalar per answer, broadcast over its tokens; it requires ``sequence_mean``."""
        return False

    @property
    def clip_range(self) -> tuple[float, float]:
        """(clip_low, clip_high) of the ratio, for the metrics; infinite without a clip."""
        return float("inf"), float("inf")

    def log_ratio(self, logp: Tensor, batch: Batch) -> Tensor:
        """(B,T) logarithm of the ratio that ``clip_range`` bounds, for the metrics; each token's unless overridden."""
        assert batch.old_logp is not None
        return logp - batch.old_logp

    @property
    def extra_rollouts(self) -> Literal["none", "greedy", "branches"]:
        """Completions beside the trained ones, charged: one greedy per prompt fills ``batch.baseline_rewards``;
        branches from the steps of each answer fill ``batch.values`` and ``batch.step_ids``. They are made after
        ``keep``, for the rows that it left: what was dropped has 0 there."""
        return "none"

    @property
    def branching(self) -> tuple[int, tuple[str, ...]]:
        """(K completions from each step of an answer, strings that end a step), for ``extra_rollouts: branches``."""
        return 0, ()

    @property
    def refill_limit(self) -> int:
        """Further draws of as many prompts, at most, until ``keep`` has left as many groups as a step has; 0: only
        drop. All are charged."""
        return 0

    @property
    def frozen_steps(self) -> int:
        """First steps in which only the critic is trained (its warm-up); their samples are charged."""
        return 0

    @property
    def value_weight(self) -> float:
        """vf_coef: weight of the value loss."""
        return 0.0

    @property
    def needs_group(self) -> bool:
        """The baseline is the prompt's other completions: with one completion per prompt every advantage is 0."""
        return "shift" in self.invariant_to

    def inert(self) -> dict[str, str]:
        """Knobs without effect at the values of others, by their dotted path, and what makes them so."""
        found = {}
        if self.aggregation != "constant_length":
            found["length"] = f"algo.aggregation is {self.aggregation}"
        if self.kl.place == "none":
            idle = ("to", "estimator", "control", "target", "horizon", "clamp_in", "clamp_out", "weighted")
            return found | {f"kl.{knob}": "algo.kl.place is none" for knob in idle}
        if self.kl.place != "loss":
            found["kl.weighted"] = f"algo.kl.place is {self.kl.place}, which has no ratio"
        if self.kl.control == "fixed":
            found |= {f"kl.{knob}": "algo.kl.control is fixed" for knob in ("target", "horizon")}
        return found

    def keep(self, batch: Batch) -> Tensor:
        """(B,) bool; dropped rows keep their place and get mask 0, their samples are charged."""
        return batch.finished.new_ones(batch.finished.shape)

    @abstractmethod
    def advantages(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """(B,T) advantages and (B,T) value targets (None without a critic)."""

    def statistics(self, batch: Batch) -> dict[str, float]:
        """Numbers of a whole step that its token losses need: they join ``batch.state``, as no micro-batch has them."""
        return {}

    def credited(self, batch: Batch) -> Batch:
        """The batch with ``advantages`` and ``returns`` filled and ``statistics`` in its state."""
        advantages, returns = self.advantages(batch)
        state = {**batch.state, **self.statistics(batch)}
        return replace(batch, advantages=advantages, returns=returns, state=state)

    @abstractmethod
    def token_loss(self, logp: Tensor, batch: Batch, entropy: Tensor | None = None) -> Tensor:
        """(B,T), minimised."""

    def token_weights(self, mask: Tensor) -> Tensor:
        """(B,T): how tokens become one number, fixed per update; by ``aggregation``."""
        if self.aggregation == "sequence_mean":
            return ops.sequence_mean(mask)
        if self.aggregation == "token_mean":
            return ops.token_mean(mask)
        return ops.constant_length(mask, self.length)

    def value_loss(self, values: Tensor, batch: Batch) -> Tensor:
        """(B,T), only with a critic; same weights as the token loss."""
        raise NotImplementedError(f"{self.name} has no critic")

    def penalty(self, logp: Tensor, batch: Batch, entropy: Tensor | None) -> Tensor | float:
        """α·KL − c·H of the loss, (B,T) or 0: shared by all algorithms, added to the negated surrogate."""
        total: Tensor | float = 0.0
        if self.kl.place == "loss" and batch.kl_coef > 0:
            other = batch.ref_logp if self.kl.to == "reference" else batch.old_logp
            assert other is not None
            total = batch.kl_coef * self.kl_estimate(logp, other)
            if self.kl.weighted:  # unbiased off policy, gradient included (DeepSeek-V3.2, arXiv:2512.02556, eq. 7)
                total = total * self.log_ratio(logp, batch).exp()
        if self.entropy_coef > 0:
            assert entropy is not None
            total = total - self.entropy_coef * entropy
        return total

    def reward_penalty(self, batch: Batch) -> Tensor | float:
        """β·KL of each sampled token where the KL is part of the reward, (B,T), else 0."""
        return self._sampled_kl(batch) if self.kl.place == "reward" else 0.0

    def advantage_penalty(self, batch: Batch) -> Tensor | float:
        """Σ_{t' ≥ t} β·KL_t' of the sampled tokens where the KL is taken from the advantages, (B,T), else 0."""
        penalty = self._sampled_kl(batch) if self.kl.place == "advantage" else 0.0
        return penalty if isinstance(penalty, float) else ops.to_go(penalty, batch.mask, 1.0)

    def _sampled_kl(self, batch: Batch) -> Tensor | float:
        if batch.kl_coef == 0:
            return 0.0
        assert batch.old_logp is not None
        assert batch.ref_logp is not None
        return batch.kl_coef * self.kl_estimate(batch.old_logp, batch.ref_logp) * batch.mask

    def kl_estimate(self, logp: Tensor, other: Tensor) -> Tensor:
        """The estimator that the knobs name, clamped as they say: (B,T)."""
        if self.kl.clamp_in is not None:
            logp = other + (logp - other).clamp(-self.kl.clamp_in, self.kl.clamp_in)
        estimate = ops.KL_ESTIMATORS[self.kl.estimator](logp, other)
        return estimate if self.kl.clamp_out is None else estimate.clamp(-self.kl.clamp_out, self.kl.clamp_out)

    def next_state(self, batch: Batch) -> dict[str, float]:
        """Running means, once per step. ``batch.state`` holds what the step measured: ``kl`` (token mean of k3 to
        the model that ``kl.to`` names) and ``samples``.

        Adaptive coefficient: β ← β·(1 + clip(KL/target − 1, ±0.2)·n/horizon) (Ziegler et al. 2019, arXiv:1909.08593,
        §2.2). Differs: KL in token means of k3, not sequence sums.
        """
        if self.kl.control == "fixed" or "kl" not in batch.state:
            return {}
        if not math.isfinite(batch.state["kl"]):  # a step that went wrong says nothing on where the policy is
            return {"kl_coef": batch.kl_coef}
        error = min(max(batch.state["kl"] / self.kl.target - 1, -0.2), 0.2)
        return {"kl_coef": batch.kl_coef * (1 + error * batch.state["samples"] / self.kl.horizon)}

    def check(self, cfg: Config) -> list[str]:
        """Warnings about inert or half-configured settings; raises UserError on contradictions."""
        from grpo_bench.algos.checks import check  # here, since it is about this class

        return check(self, cfg)
