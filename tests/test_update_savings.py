"""What an update leaves out or does again: groups without signal, a critic's second look, batches too large."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_update import GRPO, PPO, Recorder, learner_of, scored
from torch import Tensor

from grpo_bench.policy import Policy
from grpo_bench.types import Batch, UserError

OFF = ("epochs=1", "minibatches=1")


def flattened(batch: Batch, groups: list[int]) -> Batch:
    """Without advantages in these groups of two."""
    assert batch.advantages is not None
    advantages = batch.advantages.clone()
    for group in groups:
        advantages[2 * group : 2 * group + 2] = 0
    return replace(batch, advantages=advantages)


def equal(got: list[Tensor], want: list[Tensor]) -> None:
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=0, atol=1e-12)


@pytest.mark.parametrize("overrides", [("kl_coef=0",), ("kl_coef=0", "algo.aggregation=token_mean")])
def test_groups_without_signal_are_not_computed_and_the_gradient_is_the_same(
    overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(monkeypatch)
    learner, models, cfg = learner_of(*GRPO, *OFF, *overrides)
    batch = flattened(scored(cfg, models), [0, 2])
    seen: list[int] = []
    states = Policy.states
    monkeypatch.setattr(Policy, "states", lambda self, rows: seen.append(len(rows.mask)) or states(self, rows))
    learner.update(batch, step=1, progress=0.0)
    assert (learner.skipped_groups, sum(seen)) == (2, 4)
    flops, tokens = learner.flops, learner.trained_tokens
    assert tokens == int(batch.mask[[2, 3, 6, 7]].sum())
    monkeypatch.setattr(type(learner), "without_signal", lambda self, batch: torch.zeros(8, dtype=torch.bool))
    learner.update(batch, step=1, progress=0.0)
    assert sum(seen) == 4 + 8
    assert learner.flops > flops
    equal(recorder.grads[0], recorder.grads[1])


def test_the_kl_of_groups_without_signal_is_measured_where_there_is_a_reference() -> None:
    learner, models, cfg = learner_of(*GRPO, "kl_coef=0")
    batch = flattened(scored(cfg, models), [0, 2])
    bare = replace(batch, old_logp=None, ref_logp=None)
    assert models.has_reference
    got = learner.scored(bare, True)
    assert got.old_logp is not None
    assert got.ref_logp is not None
    equal([got.old_logp, got.ref_logp], [batch.old_logp, batch.ref_logp])
    assert got.mask.equal(batch.mask)
    assert not learner.unscored(bare, True).any()
    learner.models = replace(models, reference=None)
    without = learner.scored(bare, True)
    assert without.ref_logp is None
    assert without.old_logp is not None
    acting = torch.tensor([2, 3, 6, 7])
    assert without.old_logp[acting].equal(got.old_logp[acting])  # the KL of the others changes no bit of them
    assert not without.old_logp[[0, 1, 4, 5]].any()
    assert learner.unscored(bare, True).equal(learner.without_signal(bare))


@pytest.mark.parametrize(
    "overrides",
    [("kl_coef=0.1",), ("kl_coef=0", "algo.entropy_coef=0.1"), ("kl_coef=0", "target_kl=0.5")],
)
def test_where_something_else_acts_or_measures_no_group_is_skipped(overrides: tuple[str, ...]) -> None:
    learner, models, cfg = learner_of(*GRPO, *OFF, *overrides)
    assert not learner.without_signal(flattened(scored(cfg, models), [0, 1, 2, 3])).any()


def test_a_critic_learns_from_groups_without_signal() -> None:
    learner, models, cfg = learner_of(*PPO, *OFF, "group_size=2", "kl_coef=0")
    assert not learner.without_signal(flattened(scored(cfg, models), [0])).any()


def test_an_update_without_any_signal_still_moves_along_its_moments() -> None:
    learner, models, cfg = learner_of(*GRPO, *OFF, "kl_coef=0", "optim.warmup_updates=0")
    plain, others, _ = learner_of(*GRPO, *OFF, "kl_coef=0", "optim.warmup_updates=0")
    plain.without_signal = lambda batch: torch.zeros(len(batch.mask), dtype=torch.bool)  # type: ignore[method-assign]
    batch = scored(cfg, models)
    for one in (learner, plain):
        one.update(batch, step=1, progress=0.0)
        metrics = one.update(flattened(batch, [0, 1, 2, 3]), step=2, progress=0.0)
        assert metrics["policy/n_updates"] == 1
    assert learner.skipped_groups == 4
    for a, b in zip(models.policy.parameters(), others.policy.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_with_one_update_the_critic_looks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch)
    learner, models, cfg = learner_of(*PPO, *OFF, "model.critic=separate")
    assert models.critic is not None
    looks: list[int] = []
    values = type(models.critic).values
    monkeypatch.setattr(
        type(models.critic), "values", lambda self, rows, states=None: looks.append(1) or values(self, rows, states)
    )
    batch = replace(scored(cfg, models), old_logp=None, values=None)
    looks.clear()
    known = learner.scored(batch, old=False)
    assert known.values is not None
    assert not known.values.requires_grad
    learner.update(known, step=1, progress=0.0)
    assert looks == [1]
    assert learner.kept == []  # its graph is not held until the next step
    learner.update(known, step=1, progress=0.0)  # as if they had been scored without gradients
    assert looks == [1, 1]
    equal(recorder.grads[0], recorder.grads[2])
    equal(recorder.grads[1], recorder.grads[3])


def test_values_are_kept_only_where_they_fit_and_one_update_follows() -> None:
    learner, models, cfg = learner_of(*PPO, *OFF, "model.critic=separate", "micro_batch_tokens=20")
    learner.scored(replace(scored(cfg, models), values=None), old=False)
    assert learner.kept == []  # several micro-batches
    learner, models, cfg = learner_of(*PPO, "epochs=2", "minibatches=1", "model.critic=separate")
    learner.scored(replace(scored(cfg, models), values=None), old=True)
    assert learner.kept == []


class Scarce:
    """Forwards of more rows than fit run out of memory, as an allocator says it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fits: int, late: bool = False) -> None:
        self.refused = 0
        states = Policy.states

        def limited(policy: Policy, rows: Any) -> Tensor:
            out = states(policy, rows)
            if len(rows.mask) > fits:
                self.refused += 1
                raise torch.OutOfMemoryError("out of memory")
            return out

        monkeypatch.setattr(Policy, "states", limited)


@pytest.mark.parametrize("overrides", [(*GRPO, *OFF), (*PPO, *OFF, "model.critic=separate"), (*GRPO, "epochs=2")])
def test_a_step_that_runs_out_of_memory_is_done_again_in_smaller_parts(
    overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder(monkeypatch)
    learner, models, cfg = learner_of(*overrides)
    batch = scored(cfg, models)
    learner.update(batch, step=1, progress=0.0)
    want, flops, tokens, trained = list(recorder.grads), learner.flops, learner.tokens, learner.trained_tokens
    recorder.grads.clear()
    learner.tokens = 200
    scarce = Scarce(monkeypatch, fits=2)
    metrics = learner.update(batch, step=1, progress=0.0)
    assert scarce.refused
    assert learner.tokens < 200 < tokens
    assert learner.trained_tokens == trained  # what was done in vain is charged to nobody
    assert learner.flops >= flops  # a prompt that is split between parts is computed in each
    assert metrics["policy/n_updates"] == len(want) / (2 if learner.critic else 1)
    for grads, expected in zip(recorder.grads, want, strict=True):
        equal(grads, expected)
    assert "out of memory: micro-batches of" in capsys.readouterr().err


def test_scoring_that_runs_out_of_memory_is_done_again_in_smaller_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, models, cfg = learner_of(*GRPO, "epochs=2")
    batch = scored(cfg, models)
    learner.tokens = 100
    Scarce(monkeypatch, fits=2)
    again = learner.scored(replace(batch, advantages=None), old=True)
    assert again.old_logp is not None
    assert batch.old_logp is not None
    torch.testing.assert_close(again.old_logp, batch.old_logp, rtol=0, atol=1e-12)


def test_a_row_that_does_not_fit_alone_ends_the_run_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, models, cfg = learner_of(*GRPO, *OFF)
    batch = scored(cfg, models)
    Scarce(monkeypatch, fits=0)
    with pytest.raises(UserError, match="out of memory; set a smaller"):
        learner.update(batch, step=1, progress=0.0)


def test_another_error_is_not_taken_for_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, models, cfg = learner_of(*GRPO, *OFF)
    batch = scored(cfg, models)

    def broken(policy: Policy, rows: Any) -> Tensor:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Policy, "states", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        learner.update(batch, step=1, progress=0.0)


def test_where_advantages_are_known_flat_groups_are_not_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, models, cfg = learner_of(*GRPO, "epochs=2", "kl_coef=0")
    learner.models = replace(models, reference=None)  # as a run without a KL has it
    batch = scored(cfg, models)
    part = learner.scored(flattened(batch, [1]), old=True)
    assert part.old_logp is not None
    assert batch.old_logp is not None
    assert torch.equal(part.mask, batch.mask)
    assert not part.old_logp[2:4].any()
    torch.testing.assert_close(part.old_logp[4:], batch.old_logp[4:], rtol=0, atol=1e-12)
