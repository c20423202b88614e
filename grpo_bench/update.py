"""epochs x minibatches x micro-batches: the only place with ``.backward()``."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from grpo_bench import heap
from grpo_bench.cost import Size, Timed, untimed
from grpo_bench.lanes import LEAST_PARAMETERS, side_by_side
from grpo_bench.lanes import count as lane_count
from grpo_bench.observed import metrics, observe, on_host
from grpo_bench.optimiser import Optimiser
from grpo_bench.policy import Layout, Models, Policy, layout, memory_errors
from grpo_bench.policy.linear import cast_once
from grpo_bench.policy.memory import is_out_of_memory, smaller
from grpo_bench.policy.replica import Lane, remembers, replica
from grpo_bench.policy.score import live_values, memory_tokens, micro_batch_tokens, score, share_out, tokens_at_once
from grpo_bench.rollout.noise import generator
from grpo_bench.types import Batch

if TYPE_CHECKING:
    from grpo_bench.algos import Algorithm
    from grpo_bench.config import Config

# of a model in lanes; of a larger one a lane's Python takes little, and the second lane's gradients take memory
LANE_PARAMETERS = range(LEAST_PARAMETERS, 2**28)
PER_TOKEN = ("old_logp", "ref_logp", "values", "step_ids", "advantages", "returns")


@contextlib.contextmanager
def _cast_once(networks: Sequence[Policy | None]) -> Iterator[None]:
    low = [x.model for x in networks if x is not None and x.dtype == torch.bfloat16 and x.device.type == "cpu"]
    with cast_once(low):
        yield


def take(batch: Batch, rows: Tensor) -> Batch:
    """The batch with these rows only; (b,...) of every field."""
    fields: dict[str, Any] = {
        name: getattr(batch, name)[rows] for name in PER_TOKEN if getattr(batch, name) is not None
    }
    for name in ("tokens", "mask", "group_ids", "rewards", "correct", "finished", "prompt_lengths", "baseline_rewards"):
        if getattr(batch, name) is not None:
            fields[name] = getattr(batch, name)[rows]
    return replace(batch, **fields)


def descend(optimiser: Optimiser, losses: Iterable[Tensor], progress: float = 0.0) -> float:
    """One update on a sum of micro-batch losses; returns its value. For plain supervised training."""
    heap.make_room()
    optimiser.reserve()
    total = 0.0
    for loss in losses:
        loss.backward()
        total += float(loss.detach())
    optimiser.step(total, progress)
    return total


class Learner:
    """Policy and critic with their optimisers; ``update`` is one step's worth of them.

    ``timed`` gets the seconds of the parts of scoring and updating, such as ``Meter.part``.
    """

    def __init__(self, cfg: Config, algo: Algorithm, models: Models, timed: Timed = untimed) -> None:
        assert cfg.lr is not None
        self.timed = timed
        self.cfg, self.algo, self.models = cfg, algo, models
        self.tokens = micro_batch_tokens(models.policy, cfg.micro_batch_tokens)  # halved when memory runs out
        self._most = self.tokens
        networks = (models.policy, models.reference, None if models.critic is None else models.critic.trunk)
        self._alone = not models.policy.takes_plans or any(remembers(x.model) for x in networks if x is not None)
        self.lanes = [Lane(models.policy, models.critic)]  # and replicas, once they are used
        self.kept: list[list[tuple[Tensor, Tensor]]] = []  # values of each lane's rows of this step, with their graphs
        self.size = Size.of(models.policy.model)
        self.trained_tokens = 0  # of the last step, once per epoch
        self.flops = 0.0  # of the last step
        self.empty_updates = 0  # of the last step, not made because all of their rows were dropped
        self.skipped_groups = 0  # of the last step, not computed because their advantages are 0
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

    def scored(self, batch: Batch, old: bool) -> Batch:
        """The batch with what it needs of ``old_logp``, ``ref_logp`` and ``values``, see ``score``.

        With one update per rollout a critic of its own looks at the batch once: its values are kept with their graph,
        where memory holds it, and the update trains on them. Where the advantages are known already, groups without
        signal are left out, or come last where only the KL to the reference is measured on them: the others are
        computed with as they are without that. Halves micro-batches that run out of memory.
        """
        heap.make_room()
        self.kept = []
        critic, needed = self.models.critic, self.algo.needs_critic
        keep = needed and critic is not None and not self.shared and self.cfg.epochs * self.cfg.minibatches == 1
        if keep and critic is not None:
            lanes = self._lanes()
            live = batch.mask.any(1).nonzero().squeeze(-1)
            shares = self._shares(batch, live, len(lanes))
            room = memory_tokens(self.models.policy) if self.cfg.micro_batch_tokens is None else self.tokens
            at_once = self.tokens if len(shares) == 1 else self._at_once(len(shares))
            if max(map(len, shares)) * at_once <= room:  # beside them the policy's own micro-batch needs as much
                critics = [(lane.critic or critic, share) for lane, share in zip(lanes, shares, strict=False)]
                try:
                    with self.timed("values"):
                        found = side_by_side([partial(live_values, batch, *given) for given in critics])
                        self.kept = found if any(found) else []  # all rows may be dropped
                except (RuntimeError, MemoryError) as e:
                    self._halve(e)  # the graph is given up: the critic looks twice
        without = self.without_signal(batch)
        out = self._score(batch, ~without, old, needed and not self.kept)
        if (measured := without & ~self.unscored(batch, old)).any():
            tokens = self.tokens
            last = self._score(batch, measured, old, False)
            self.tokens = tokens  # memory for what is only measured changes nothing in the updates
            both: dict[str, Any] = {
                name: torch.where(measured[:, None], getattr(last, name), getattr(out, name))
                for name in ("old_logp", "ref_logp")
            }
            out = replace(out, **both)
        if self.kept:
            kept = [one for lane in self.kept for one in lane]
            known = torch.zeros(batch.mask.shape, dtype=kept[0][1].dtype, device=batch.mask.device)
            for rows, part in kept:
                known[rows] = part.detach()
            out = replace(out, values=known)
        return out

    def _score(self, batch: Batch, taken: Tensor, old: bool, values: bool) -> Batch:
        """The batch with the ``taken`` rows scored and zeros in the others."""
        some = replace(batch, mask=batch.mask * taken[:, None])
        while True:
            try:
                temperature, tokens = self.cfg.rollout.temperature, 4 * self.tokens
                out = score(some, self.models, temperature, tokens, old, values, self.timed, self._lanes())
                return replace(out, mask=batch.mask)
            except (RuntimeError, MemoryError) as e:
                self._halve(e)

    def unscored(self, batch: Batch, old: bool) -> Tensor:
        """(B,) rows that ``scored`` leaves out: those without signal, unless their KL to the reference is measured.

        The KL is a mean over all tokens; zeros in place of some would make it smaller the more groups agree. With one
        update per rollout (not ``old``) it is taken from the update's forward, and so of the rows that act.
        """
        without = self.without_signal(batch)
        return torch.zeros_like(without) if old and self.models.has_reference else without

    def _halve(self, e: Exception) -> None:
        if not is_out_of_memory(e):
            raise e
        for lane in self.lanes:
            lane.release()
        with memory_errors():
            self.tokens = smaller(self.tokens, e)

    @memory_errors()  # also of moments, which no smaller micro-batch helps
    def update(self, batch: Batch, step: int, progress: float) -> dict[str, float]:
        """All updates of one step; returns metrics by the glossary's names.

        With ``target_kl`` a minibatch whose KL(old‖new) (token mean of k3) exceeds δ is not stepped on and ends the
        step, the critic's updates too: its forward measures what the minibatches before it did. So ``policy/kl_old`` is
        the KL before a step's last update; what that one adds is not measured. A minibatch whose rows are all dropped
        is passed over: it moves nothing and measures nothing. A minibatch that runs out of memory is done again in
        smaller micro-batches, which give the same gradient; UserError when a single row does not fit.
        """
        heap.make_room()
        train_policy = step > self.algo.frozen_steps
        if train_policy or self.shared:
            self.policy.reserve()
        if self.critic is not None:
            self.critic.reserve()
        self.trained_tokens, self.flops, self.empty_updates = 0, 0.0, 0
        without = self.without_signal(batch)
        self.skipped_groups = int((without & batch.mask.any(1)).view(-1, batch.group_size).any(1).sum())
        seen: dict[str, list[float]] = defaultdict(list)
        stopped = skipped = 0
        for epoch in range(self.cfg.epochs):
            for rows in self.minibatches(batch, step, epoch):
                if not batch.mask[rows].any():
                    self.empty_updates += 1
                    continue
                loss, value_loss = self._whole(batch, rows, without, train_policy, seen)
                over = self.cfg.target_kl is not None and train_policy and seen["kl_old"][-1] > self.cfg.target_kl
                if over:
                    self._forget_gradients()
                    stopped = 1
                    break
                if train_policy or self.shared:
                    with self.timed("actor"):
                        norm, applied = self.policy.step(loss + (value_loss if self.shared else 0.0), progress)
                    skipped += not applied
                    if train_policy:
                        seen["grad_norm"].append(norm)
                        seen["n_updates"].append(float(applied))
                if self.critic is not None:
                    with self.timed("critic"):
                        norm, applied = self.critic.step(value_loss, progress)
                    skipped += not applied
                    seen["value_grad_norm"].append(norm)
            if stopped:
                break
        self.kept = []
        rate, value_rate = self.policy.adamw.param_groups[0], (self.critic or self.policy).adamw.param_groups[-1]
        reference = self.models.has_reference
        return metrics(seen, stopped, skipped, reference, float(rate["lr"]), float(value_rate["lr"]))

    def _forget_gradients(self) -> None:
        for optimiser in (self.policy, self.critic):
            if optimiser is not None:
                optimiser.forget()
        for lane in self.lanes:
            lane.forget()

    def _lanes(self) -> list[Lane]:
        """Those that scoring and updates use: the models themselves first, then replicas of them.

        One where memory ran out once: a second lane has gradients of its own. The limit that was halved then is on
        record, so a resumed run does the same.
        """
        policy = self.models.policy
        fits = sum(p.numel() for p in policy.parameters()) in LANE_PARAMETERS and self.tokens >= self._most
        count = lane_count(policy.device) if fits and not self._alone else 1
        if not all(lane.holds() for lane in self.lanes):
            del self.lanes[1:]
        while len(self.lanes) < count:
            self.lanes.append(replica(self.models))
        return self.lanes[:count]

    @property
    def lanes_at_most(self) -> int:
        """Those that an update uses where its groups can be shared out evenly."""
        return len(self._lanes())

    def tokens_of_lane(self, lanes: int) -> int:
        """Tokens that one of so many lanes computes at once."""
        return self.tokens if lanes == 1 else self._at_once(lanes) // lanes

    def _at_once(self, count: int) -> int:
        return tokens_at_once(self.models.policy, self.tokens, self.cfg.micro_batch_tokens, count)

    def _shares(self, batch: Batch, rows: Tensor, count: int) -> list[list[Tensor]]:
        """Each lane's micro-batches of these rows."""
        packed = self.models.policy.takes_plans
        return share_out(batch, rows, self.tokens, packed, count, self._at_once(count))

    def without_signal(self, batch: Batch) -> Tensor:
        """(B,) rows of groups whose advantages are all 0, where nothing else acts on them: they move nothing.

        A coefficient of 0 makes a KL act on nothing. With ``target_kl`` they are kept, for what they say of the KL.
        """
        algo = self.algo
        if batch.kl_coef == 0 and algo.kl.place != "none":
            algo = algo.model_copy(update={"kl": algo.kl.model_copy(update={"place": "none"})})
        if batch.advantages is None or algo.acts_without_advantage or self.cfg.target_kl is not None:
            return torch.zeros(len(batch.mask), dtype=torch.bool, device=batch.mask.device)
        acted_P = ((batch.advantages != 0) & batch.mask.bool()).any(1).view(-1, batch.group_size).any(1)
        return (~acted_P).repeat_interleave(batch.group_size)

    def _whole(
        self, batch: Batch, rows: Tensor, without: Tensor, train_policy: bool, seen: dict[str, list[float]]
    ) -> tuple[float, float]:
        """``_accumulate``, again in smaller micro-batches until they fit."""
        charged = self.trained_tokens, self.flops
        while True:
            try:
                return self._accumulate(batch, rows, without, train_policy, seen)
            except (RuntimeError, MemoryError) as e:
                self._halve(e)
                self._forget_gradients()
                self.kept = []  # their graph may be used up, and it takes room: the critic looks again
                self.trained_tokens, self.flops = charged

    def _accumulate(
        self, batch: Batch, rows: Tensor, without: Tensor, train_policy: bool, seen: dict[str, list[float]]
    ) -> tuple[float, float]:
        """Gradients of one minibatch, micro-batch by micro-batch: weights are fixed beforehand, so sums are exact.

        Policy and a critic of its own go one after the other: neither's activations stand beside the other's. Lanes
        work at the same time, each on its share of the micro-batches; their gradients are added in one order.
        """
        algo, models = self.algo, self.models
        weights = torch.zeros_like(batch.mask)
        weights[rows] = algo.token_weights(batch.mask[rows])
        rows = rows[batch.mask[rows].any(1) & ~without[rows]]  # the others count in the weights and cost no forward
        lanes, ahead = self._lanes(), models.policy.takes_plans and models.policy.device.type != "cpu"
        shares = self._shares(batch, rows, len(lanes)) if train_policy or not self.kept else []
        waiting: list[list[tuple[Batch, Layout, Tensor]]] = []
        for share in shares:
            waiting.append([])
            for some in share:
                part, own = take(batch, some), layout(batch, some)
                if ahead:  # sizes are read from the device, which would wait between parts
                    models.policy.tokens_of(own)
                self._charge(part, train_policy, self.critic is not None and not self.kept)
                waiting[-1].append((part, own, weights[some]))
        kept = [[(take(batch, some), weights[some], values) for some, values in lane] for lane in self.kept]
        for part, _, _ in (one for lane in kept for one in lane):
            self._charge(part, False, True)
        clocks, found = [self.timed, *[untimed] * len(lanes)], []
        given = list(zip(lanes, waiting, clocks, strict=False))
        if train_policy or self.shared:
            with _cast_once([lane.policy for lane in lanes]):
                last = self.critic is None or bool(kept)
                found += side_by_side([partial(self._actors, *own, train_policy, last) for own in given])
        if self.critic is not None and not kept:
            with _cast_once([lane.critic.trunk for lane in lanes if lane.critic is not None]):
                found += side_by_side([partial(self._critics, *own) for own in given])
        found += side_by_side([partial(self._kept_values, *own) for own in zip(kept, clocks, strict=False)])
        for lane in self.lanes[1:]:
            gradients = lane.gradients()
            for optimiser in (self.policy, self.critic):
                if optimiser is not None:
                    optimiser.add(gradients)
        parts: dict[str, list[Tensor]] = defaultdict(list)
        for of_lane in found:
            for name, values in of_lane.items():
                parts[name] += values
        if train_policy and not len(rows):  # moments decay and move weights, as they do on a gradient of 0
            for parameter in self.policy.parameters:
                parameter.grad = torch.zeros_like(parameter)
        told = on_host(parts)
        ratio_min, ratio_max = told.pop("ratio_min", []), told.pop("ratio_max", [])
        sums = defaultdict(float, {name: sum(values) for name, values in told.items()})
        tokens = sums.pop("tokens", 0.0)
        if train_policy and tokens:
            for name in ("entropy", "ratio", "k1", "k2", "k3", "clip_low", "clip_high", "ref_k1", "ref_k2", "ref_k3"):
                seen[name].append(sums[name] / tokens)
            seen["kl_old"].append(sums["k3"] / tokens)
            seen["ratio_min"].append(min(ratio_min))
            seen["ratio_max"].append(max(ratio_max))
        if train_policy:
            seen["loss"].append(sums["policy_loss"])
        if models.critic is not None:
            seen["value_loss"].append(sums["value_loss"])
        return sums["policy_loss"], algo.value_weight * sums["value_loss"]

    def _actors(
        self, lane: Lane, parts: list[tuple[Batch, Layout, Tensor]], timed: Timed, train_policy: bool, last: bool
    ) -> dict[str, list[Tensor]]:
        """What one lane's policy gives, micro-batch by micro-batch; ``last``: nobody looks at these after it."""
        found: dict[str, list[Tensor]] = defaultdict(list)
        for number in range(len(parts)):
            part, own, weight = parts.pop(0) if last else parts[number]
            with timed("actor"):
                self._actor(lane, part, own, weight, train_policy, found)
            own.forget()
        return found

    def _critics(self, lane: Lane, parts: list[tuple[Batch, Layout, Tensor]], timed: Timed) -> dict[str, list[Tensor]]:
        """What a lane's critic of its own gives."""
        assert lane.critic is not None
        found: dict[str, list[Tensor]] = defaultdict(list)
        while parts:
            part, own, weight = parts.pop(0)
            with timed("critic"):
                self._value_loss(part, weight, lane.critic.values(own), found).backward()
        return found

    def _kept_values(self, kept: list[tuple[Batch, Tensor, Tensor]], timed: Timed) -> dict[str, list[Tensor]]:
        """What a lane's values give that were computed when they were scored."""
        found: dict[str, list[Tensor]] = defaultdict(list)
        for part, weight, values in kept:
            with timed("critic"):
                self._value_loss(part, weight, values, found).backward()
        return found

    def _actor(
        self, lane: Lane, part: Batch, rows: Layout, weight: Tensor, train_policy: bool, parts: dict[str, list[Tensor]]
    ) -> None:
        """Forward and backward of the policy on some rows, with a value head on its trunk if it has one."""
        algo, temperature = self.algo, self.cfg.rollout.temperature
        loss = torch.zeros((), device=weight.device)
        states = lane.policy.states(rows)
        if train_policy:
            logp, entropy = lane.policy.logp(rows, temperature, states, algo.needs_entropy)
            if part.old_logp is None:  # one update per rollout: the policy is the one that sampled
                part = replace(part, old_logp=logp.detach())
            policy_loss = (weight * algo.token_loss(logp, part, entropy if algo.needs_entropy else None)).sum()
            loss = loss + policy_loss
            parts["policy_loss"].append(policy_loss.detach())
            observe(algo, part, logp.detach(), entropy.detach(), parts)
        if self.shared and lane.critic is not None:
            # the policy is frozen: only the head learns
            states = states if train_policy else states.detach()
            loss = loss + self._value_loss(part, weight, lane.critic.values(rows, states), parts)
        loss.backward()

    def _value_loss(self, part: Batch, weight: Tensor, values: Tensor, parts: dict[str, list[Tensor]]) -> Tensor:
        """The weighted value loss of some rows, which joins the parts."""
        loss = (weight * self.algo.value_loss(values, part)).sum()
        parts["value_loss"].append(loss.detach())
        return self.algo.value_weight * loss

    def _charge(self, part: Batch, train_policy: bool, critic: bool) -> None:
        """Tokens and FLOPs of one forward and backward of the networks that are trained, each prompt once per group.

        A backward costs two forwards; one where all but adapters is frozen, since the weights' own gradients are not
        computed. What gradient checkpointing computes again is not charged.
        """
        whole = 2 if self.models.policy.peft_model[0] is not None else 3  # in forwards
        completions = part.mask.sum(1)
        assert part.prompt_lengths is not None
        prompts, lengths = part.prompt_lengths.tolist(), completions.long().tolist()
        groups = part.group_ids.tolist() if self.models.policy.takes_plans else range(len(prompts))
        tokens = int(completions.sum())
        if train_policy:
            self.trained_tokens += tokens
            self.flops += whole * self.size.shared(prompts, groups, lengths, tokens)
        elif self.shared:
            self.flops += self.size.shared(prompts, groups, lengths, 0)
        if critic:  # kept values had their forward when they were scored
            self.flops += (whole - bool(self.kept)) * self.size.shared(prompts, groups, lengths, 0)
