"""Updates: one gradient however it is split, what is trained when, what stops or skips an update."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
import torch
from model_data import batch_of, make, make_double, network, ragged, same, snapshot
from torch import Tensor

from grpo_bench.algos import Algorithm
from grpo_bench.config import Config
from grpo_bench.observed import observe
from grpo_bench.optimiser import Optimiser
from grpo_bench.policy import Models, make_models
from grpo_bench.policy.score import score
from grpo_bench.types import Batch, Rollouts, UserError
from grpo_bench.update import Learner, take

GRPO = ("algo=grpo", "group_size=2", "samples_per_step=8", "lr=0.01")
PPO = ("algo=ppo", "samples_per_step=8", "lr=0.01", "critic_lr=0.02")


def scored(cfg: Config, models: Models, rows: int = 8, old: bool = True) -> Batch:
    """A batch of ragged rows as it reaches the update; the policy that sampled was a little different."""
    algo: Algorithm = cfg.algo
    batch = replace(batch_of(ragged(rows, cfg.group_size, seed=4)), kl_coef=cfg.kl_coef)
    batch = score(batch, models, cfg.rollout.temperature, 50, old, algo.needs_critic)
    advantages, returns = algo.advantages(batch)
    return replace(batch, advantages=advantages, returns=returns)


def learner_of(*overrides: str, kind: str = "llama") -> tuple[Learner, Models, Config]:
    cfg = make(*overrides)
    models = make_double(kind, cfg, cfg.algo.needs_critic, cfg.algo.needs_reference)
    return Learner(cfg, cfg.algo, models), models, cfg


class Recorder:
    """Stands in for the optimiser's step: keeps the gradients of each update and changes nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.grads: list[list[Tensor]] = []
        self.losses: list[float] = []

        def step(optimiser: Optimiser, loss: float, progress: float) -> tuple[float, bool]:
            self.grads.append(
                [p.grad.clone() if p.grad is not None else torch.zeros_like(p) for p in optimiser.parameters]
            )
            self.losses.append(loss)
            optimiser.adamw.zero_grad(set_to_none=True)
            return 1.0, True

        monkeypatch.setattr(Optimiser, "step", step)


def drifted(batch: Batch) -> Batch:
    """Old log-probs of a policy that differs from the one trained, so that ratios are not 1 and some are clipped."""
    assert batch.old_logp is not None
    noise = torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return replace(batch, old_logp=(batch.old_logp + 0.3 * noise) * batch.mask)


@pytest.mark.parametrize(
    "overrides",
    [
        (*GRPO, "epochs=1", "minibatches=2"),
        (*GRPO, "epochs=1", "minibatches=2", "algo.aggregation=token_mean", "algo.entropy_coef=0.1"),
        (*GRPO, "epochs=1", "minibatches=1", "algo.ratio=sequence"),
        (*GRPO, "epochs=1", "minibatches=1", "algo.aggregation=constant_length", "algo.length=7"),
        (*PPO, "epochs=1", "minibatches=2", "model.critic=separate"),
        (*PPO, "epochs=1", "minibatches=2", "model.critic=shared", "algo.aggregation=token_mean"),
    ],
)
def test_gradients_do_not_depend_on_micro_batches_or_padding(
    overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(monkeypatch)
    want: list[list[Tensor]] = []
    for tokens, pad in ((100_000, 0), (1, 0), (17, 0), (40, 4)):
        learner, models, cfg = learner_of(*overrides, f"micro_batch_tokens={tokens}")
        batch = drifted(scored(cfg, models))
        if pad:
            extra = batch.mask.new_zeros(len(batch.mask), pad)
            wide: dict[str, Any] = {
                name: torch.cat([x, extra], dim=1)
                for name in ("mask", "old_logp", "ref_logp", "values", "advantages", "returns")
                if (x := getattr(batch, name)) is not None
            }
            batch = replace(batch, tokens=torch.cat([batch.tokens, torch.full_like(extra, 9).long()], dim=1), **wide)
        recorder.grads.clear()
        learner.update(batch, step=1, progress=0.0)
        if not want:
            want = list(recorder.grads)
            assert all(any(g.abs().max() > 1e-6 for g in grads) for grads in want)
            continue
        assert len(recorder.grads) == len(want)
        for grads, expected in zip(recorder.grads, want, strict=True):
            for g, e in zip(grads, expected, strict=True):
                torch.testing.assert_close(g, e, rtol=1e-9, atol=1e-12)


def test_the_gradient_is_that_of_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch)
    learner, models, cfg = learner_of(*GRPO, "epochs=1", "minibatches=1", "kl_coef=0.1", "micro_batch_tokens=20")
    with torch.no_grad():
        models.reference.model.get_input_embeddings().weight.add_(0.1)  # type: ignore[operator, union-attr]
    batch = drifted(scored(cfg, models))
    metrics = learner.update(batch, step=1, progress=0.0)

    # the same from the definition, row by row, on unpadded sequences
    rollouts = ragged(8, 2, seed=4)
    total = torch.zeros((), dtype=torch.float64)
    for i, completion in enumerate(rollouts.completion_ids):
        prompt, n = rollouts.prompt_ids[i // 2], len(completion)
        logits = models.policy.model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        logp = torch.log_softmax(logits, -1)[torch.arange(n), torch.tensor(completion)]
        ratio = (logp - batch.old_logp[i, :n]).exp()  # type: ignore[index]
        a = batch.advantages[i, :n]  # type: ignore[index]
        surrogate = torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a)
        gap = batch.ref_logp[i, :n] - logp  # type: ignore[index]
        total = total + (-surrogate + 0.1 * (gap.exp() - gap - 1)).sum() / (8 * n)
    expected = torch.autograd.grad(total, list(models.policy.parameters()))
    assert metrics["policy/loss"] == pytest.approx(float(total.detach()), abs=1e-12)
    assert len(recorder.grads) == 1
    for g, e in zip(recorder.grads[0], expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-9, atol=1e-12)


def test_dropped_rows_count_in_the_average_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch)
    learner, models, cfg = learner_of(*GRPO, "epochs=1", "minibatches=1", "kl_coef=0")
    batch = scored(cfg, models)
    keep = torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0], dtype=torch.float64)
    learner.update(replace(batch, mask=batch.mask * keep[:, None]), step=1, progress=0.0)
    learner.update(take(batch, torch.arange(4)), step=1, progress=0.0)
    dropped, alone = recorder.grads
    for d, a in zip(dropped, alone, strict=True):
        torch.testing.assert_close(2 * d, a, rtol=1e-9, atol=1e-12)  # 8 rows share what 4 had


def test_a_batch_without_any_token_changes_nothing() -> None:
    learner, models, cfg = learner_of(*GRPO)
    batch = scored(cfg, models)
    before = snapshot(models.policy)
    metrics = learner.update(replace(batch, mask=torch.zeros_like(batch.mask)), step=1, progress=0.0)
    assert same(before, models.policy)
    assert metrics == {"health/skipped_updates": 0.0, "policy/n_updates": 0.0}  # nothing was measured either
    updates = cfg.epochs * cfg.minibatches
    assert (learner.empty_updates, learner.policy.updates, learner.flops) == (updates, 0, 0.0)


@pytest.mark.parametrize("overrides", [GRPO, PPO, (*PPO, "model.critic=shared")])
def test_a_minibatch_without_any_token_is_passed_over(overrides: tuple[str, ...]) -> None:
    """It is no update, and takes no part in the averages over updates."""
    learner, models, cfg = learner_of(*overrides, "epochs=1", "minibatches=2", "lr=0", "critic_lr=0")
    batch = scored(cfg, models)
    kept = next(iter(learner.minibatches(batch, 1, 0)))
    mask = torch.zeros_like(batch.mask)
    mask[kept] = batch.mask[kept]
    metrics = learner.update(replace(batch, mask=mask), step=1, progress=0.0)
    assert (learner.empty_updates, learner.policy.updates, metrics["policy/n_updates"]) == (1, 1, 1)
    learner.cfg = cfg.model_copy(update={"minibatches": 1})
    alone = learner.update(take(batch, kept), step=1, progress=0.0)
    assert metrics == pytest.approx(alone, abs=1e-9)


def test_minibatches_hold_whole_groups_and_every_row_once_per_epoch() -> None:
    learner, _, cfg = learner_of("group_size=3", "samples_per_step=24", "epochs=2", "minibatches=4")
    batch = batch_of(ragged(24, 3))
    orders = {}
    for seed in (0, 1):
        learner.cfg = cfg.model_copy(update={"seed": seed})
        for step in (1, 2):
            for epoch in (0, 1):
                parts = [part.tolist() for part in learner.minibatches(batch, step, epoch)]
                assert [len(part) for part in parts] == [6] * 4
                assert sorted(row for part in parts for row in part) == list(range(24))
                for part in parts:
                    assert [row % 3 for row in part] == [0, 1, 2] * 2
                    assert all(part[i] // 3 == part[i + 2] // 3 for i in (0, 3))
                again = [part.tolist() for part in learner.minibatches(batch, step, epoch)]
                assert again == parts
                orders[seed, step, epoch] = str(parts)
    assert len(set(orders.values())) == 8


@pytest.mark.parametrize("overrides", [GRPO, PPO, (*PPO, "model.critic=shared")])
def test_epochs_times_minibatches_are_the_optimisers_steps(overrides: tuple[str, ...]) -> None:
    learner, models, cfg = learner_of(*overrides, "epochs=3", "minibatches=2")
    before = snapshot(models.policy)
    metrics = learner.update(scored(cfg, models), step=1, progress=0.0)
    assert learner.policy.updates == 6 == metrics["policy/n_updates"]
    if learner.critic is not None:
        assert learner.critic.updates == 6
    assert not same(before, models.policy)
    tokens = sum(map(len, ragged(8, cfg.group_size, seed=4).completion_ids))
    assert learner.trained_tokens == 3 * tokens  # once per epoch


def test_old_log_probs_may_be_the_updates_own_when_there_is_one() -> None:
    ends = []
    for old in (True, False):
        learner, models, cfg = learner_of(*GRPO, "epochs=1", "minibatches=1", "kl_coef=0.1")
        metrics = learner.update(scored(cfg, models, old=old), step=1, progress=0.0)
        ends.append((snapshot(models.policy), metrics))
    for name, weights in ends[0][0].items():
        torch.testing.assert_close(ends[1][0][name], weights, rtol=0, atol=1e-12)
    assert ends[0][1].keys() == ends[1][1].keys()
    assert ends[1][1]["policy/ratio_mean"] == 1.0
    assert ends[1][1]["policy/loss"] == pytest.approx(ends[0][1]["policy/loss"], abs=1e-12)


# --- what is trained when ---


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_only_the_critic_learns_in_its_warm_up(critic: str) -> None:
    learner, models, cfg = learner_of(*PPO, "algo.critic_warmup=2", f"model.critic={critic}", "optim.weight_decay=0.1")
    assert models.critic is not None
    batch = scored(cfg, models)
    for step in (1, 2):
        policy, critic_before = snapshot(models.policy), snapshot(models.critic)
        metrics = learner.update(batch, step, progress=0.0)
        assert same(policy, models.policy)
        assert not same(critic_before, models.critic)
        assert metrics["policy/n_updates"] == 0
        assert "policy/loss" not in metrics
    learner.update(batch, step=3, progress=0.0)
    assert not same(policy, models.policy)


def test_the_critic_fits_its_targets() -> None:
    learner, models, cfg = learner_of(*PPO, "algo.critic_warmup=1000", "optim.warmup_updates=0")
    batch = scored(cfg, models)
    losses = [learner.update(batch, step, 0.0)["value/loss"] for step in range(1, 31)]
    assert losses[-1] < 0.2 * losses[0]


def test_target_kl_ends_a_steps_updates() -> None:
    runs = {}
    for target in ("null", "1e-6", "1e6"):
        learner, models, cfg = learner_of(
            *GRPO, "epochs=4", "minibatches=2", "optim.warmup_updates=0", f"target_kl={target}"
        )
        metrics = learner.update(scored(cfg, models), step=1, progress=0.0)
        runs[target] = (learner.policy.updates, metrics["policy/kl_stopped"], metrics["policy/kl_old"])
    assert runs["null"][:2] == (8, 0.0)
    assert runs["1e6"] == runs["null"]
    assert runs["1e-6"][:2] == (1, 1.0)  # the first update is always made; the second minibatch measures its KL
    assert runs["1e-6"][2] > 1e-6


def test_a_stopped_minibatch_leaves_no_gradient_behind() -> None:
    learner, models, cfg = learner_of(*PPO, "optim.warmup_updates=0", "target_kl=1e-9")
    learner.update(scored(cfg, models), step=1, progress=0.0)
    assert models.critic is not None
    assert all(p.grad is None for p in [*models.policy.parameters(), *models.critic.parameters()])


@pytest.mark.parametrize("overrides", [GRPO, PPO, (*PPO, "model.critic=shared")])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_update_that_is_not_finite_changes_no_bit(overrides: tuple[str, ...], bad: float) -> None:
    learner, models, cfg = learner_of(*overrides, "epochs=1", "minibatches=1")
    good = scored(cfg, models)
    learner.update(good, step=1, progress=0.0)  # so that AdamW has moments to spoil
    assert good.advantages is not None
    policy = snapshot(models.policy)
    moments = [x.clone() for s in learner.policy.adamw.state.values() for x in s.values()]
    spoiled = good.advantages.clone()
    spoiled[0, 0] = bad
    metrics = learner.update(replace(good, advantages=spoiled), step=2, progress=0.0)
    assert metrics["health/skipped_updates"] == 1
    assert metrics["policy/n_updates"] == 0
    assert same(policy, models.policy)
    now = [x for s in learner.policy.adamw.state.values() for x in s.values()]
    assert all(torch.equal(a, b) for a, b in zip(moments, now, strict=True))
    assert learner.policy.updates == 1
    metrics = learner.update(good, step=3, progress=0.0)  # and the run goes on
    assert metrics["policy/n_updates"] == 1
    assert not same(policy, models.policy)


def test_gradients_are_clipped_per_network(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    apply = torch.optim.AdamW.step

    def step(adamw: torch.optim.AdamW, *args: Any) -> Any:
        grads = [p.grad for group in adamw.param_groups for p in group["params"] if p.grad is not None]
        seen.append(math.sqrt(sum(float((g**2).sum()) for g in grads)))
        return apply(adamw, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    learner, models, cfg = learner_of(*PPO, "epochs=1", "minibatches=1", "optim.grad_clip=1e-3")
    metrics = learner.update(scored(cfg, models), step=1, progress=0.0)
    assert metrics["policy/grad_norm"] > 1e-3  # reported before clipping
    assert metrics["value/grad_norm"] > 1e-3
    assert seen == [pytest.approx(1e-3, rel=1e-2)] * 2  # policy and critic have 1e-3 each, not together


def test_the_learning_rate_in_the_record_is_the_one_used() -> None:
    learner, models, cfg = learner_of(*PPO, "epochs=1", "minibatches=1", "optim.warmup_updates=4")
    metrics = learner.update(scored(cfg, models), step=1, progress=0.0)
    assert metrics["policy/lr"] == pytest.approx(0.01 / 4)
    assert metrics["value/lr"] == pytest.approx(0.02 / 4)


def test_a_shared_critics_head_has_its_own_learning_rate() -> None:
    learner, _, _ = learner_of(*PPO, "model.critic=shared")
    assert learner.critic is None
    assert [group["lr"] for group in learner.policy.adamw.param_groups] == [0.01, 0.02]
    assert [sum(p.numel() for p in g["params"]) for g in learner.policy.adamw.param_groups][1] == 17


def test_a_group_algorithm_needs_no_critic_rate() -> None:
    cfg = make(*GRPO)
    assert cfg.critic_lr is None
    assert Learner(cfg, cfg.algo, make_double("llama", cfg, False, False)).critic is None


@pytest.mark.parametrize("where", ["reserve", "step"])
def test_no_memory_for_moments_is_one_line(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 4 bytes")

    monkeypatch.setattr(Optimiser, where, full)
    learner, models, cfg = learner_of(*GRPO)
    with pytest.raises(UserError, match="out of memory; set a smaller") as e:
        learner.update(scored(cfg, models), step=1, progress=0.0)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("where", ["reserve", "step"])
def test_another_error_of_an_update_passes(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: Any) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(Optimiser, where, wrong)
    learner, models, cfg = learner_of(*GRPO)
    with pytest.raises(RuntimeError, match="shapes differ"):
        learner.update(scored(cfg, models), step=1, progress=0.0)


def test_adapters_alone_are_trained() -> None:
    cfg = make(*GRPO, "model.lora={r:2,alpha:4,targets:null}")
    models = make_models(network("llama", double=False), cfg.model, torch.float32, False, True)
    learner = Learner(cfg, cfg.algo, models)
    before = snapshot(models.policy)
    learner.update(scored(cfg, models), step=1, progress=0.0)
    changed = {name for name, p in models.policy.named_parameters() if not torch.equal(before[name], p)}
    assert changed
    assert all("lora_" in name for name in changed)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        # log-ratios of the two answers' tokens: (0.1, 0.1, 0.1) and (-0.15, -0.15), at clip 0.2. No token is clipped;
        # e^0.1 = 1.105170918, e^-0.15 = 0.860707976
        (("algo.ratio=token",), (0.860707976, 1.105170918, 0.0, 0.0)),
        # whole answers: e^0.3 = 1.349858808 > 1.2 with advantage 1, e^-0.3 = 0.740818221 < 0.8 with advantage -1:
        # 3 of 5 tokens are clipped above, 2 of 5 below
        (("algo.ratio=sequence",), (0.740818221, 1.349858808, 0.4, 0.6)),
        (("algo.surrogate=logprob", "algo.ratio=sequence"), (0.860707976, 1.105170918, 0.0, 0.0)),  # nothing is clipped
    ],
)
def test_the_ratio_observed_is_the_one_that_is_clipped(
    overrides: tuple[str, ...], expected: tuple[float, float, float, float]
) -> None:
    learner, _, _ = learner_of(*GRPO, "algo.clip_low=0.2", "algo.clip_high=0.2", *overrides)
    batch = batch_of(Rollouts([[1]], [[2, 3, 4], [5, 6]], ["", ""], [True, True], 2))
    logp = torch.tensor([[0.1, 0.1, 0.1], [-0.15, -0.15, 0.0]], dtype=torch.float64)
    advantages = torch.tensor([[1.0], [-1.0]], dtype=torch.float64) * batch.mask
    part = replace(batch, old_logp=torch.zeros_like(logp), advantages=advantages)
    seen: dict[str, list[torch.Tensor]] = defaultdict(list)
    observe(learner.algo, part, logp, torch.zeros_like(logp), seen)
    sums = {name: float(value) for name, (value,) in seen.items()}
    found = (sums["ratio_min"], sums["ratio_max"], sums["clip_low"] / 5, sums["clip_high"] / 5)
    assert found == pytest.approx(expected, abs=1e-9)
    # the KL stays per token: k1 of old to new is old − new, −3·0.1 + 2·0.15 = 0; k2 = (3·0.01 + 2·0.0225)/2
    assert sums["k1"] == pytest.approx(0.0, abs=1e-12)
    assert sums["k2"] == pytest.approx(0.0375)


@pytest.mark.parametrize(("lora", "forwards"), [("null", 3), ("{r:2,alpha:4,targets:null}", 2)])
@pytest.mark.parametrize("algo", [GRPO, PPO])
def test_a_backward_costs_one_forward_where_the_weights_are_frozen(
    algo: tuple[str, ...], lora: str, forwards: int
) -> None:
    cfg = make(*algo, "epochs=1", "minibatches=1", f"model.lora={lora}", "model.critic=separate")
    models = make_models(network("llama", double=False), cfg.model, torch.float32, cfg.algo.needs_critic, True)
    learner = Learner(cfg, cfg.algo, models)
    batch = scored(cfg, models)
    learner.update(batch, step=1, progress=0.0)
    assert batch.prompt_lengths is not None
    prompts, lengths = batch.prompt_lengths.tolist(), batch.mask.sum(1).long().tolist()
    each = prompts, batch.group_ids.tolist(), lengths  # a group's prompt counts once
    once = learner.size.shared(*each, sum(lengths)) + (learner.size.shared(*each, 0) if models.critic else 0.0)
    assert learner.flops == pytest.approx(forwards * once)
