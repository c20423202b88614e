"""The gradient's noise: its parts make the step's gradient, figures are worked by hand, nothing is changed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_update import GRPO, PPO, learner_of, scored

from grpo_bench.gradient_noise import gradient_noise, part_gradients, parts, spread


def test_parts_are_whole_all_and_alike_to_within_one() -> None:
    assert parts(16) == [range(i, i + 1) for i in range(16)]
    assert parts(128)[:2] == [range(0, 8), range(8, 16)]  # 16 parts of 8
    assert parts(4) == [range(0, 1), range(1, 2), range(2, 3), range(3, 4)]
    assert parts(5, 2) == [range(0, 2), range(2, 5)]
    for groups in (17, 20, 31, 101):
        found = parts(groups)
        assert [i for part in found for i in part] == list(range(groups))
        assert len(found) == 16
        assert max(map(len, found)) - min(map(len, found)) <= 1


def test_spread_by_hand() -> None:
    # g = (1,0), (3,0), (2,3): mean (2,1); squared distances 2, 2, 4; S = 8/2 = 4; variance of the mean 4/3
    found = spread(torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 3.0]], dtype=torch.float64), [1, 1, 1])
    assert found["policy/grad_variance"] == pytest.approx(4 / 3, abs=1e-12)
    assert found["policy/grad_signal"] == pytest.approx(5 - 4 / 3, abs=1e-12)  # |mean|² = 5
    assert found["policy/grad_noise"] == pytest.approx(4 / 15, abs=1e-12)


def test_spread_of_unequal_parts_by_hand() -> None:
    # sizes 2 and 1, g = 1 and 4: mean 2; (2·1² + 1·2²) / (3·1) = 2; signal 4 − 2
    found = spread(torch.tensor([[1.0], [4.0]], dtype=torch.float64), [2, 1])
    assert found["policy/grad_variance"] == pytest.approx(2.0, abs=1e-12)
    assert found["policy/grad_signal"] == pytest.approx(2.0, abs=1e-12)
    assert found["policy/grad_noise"] == pytest.approx(0.5, abs=1e-12)


def test_spread_of_unequal_parts_is_unbiased() -> None:
    """17 groups drawn around 2 with variance 1, in 16 parts: the variance of their mean is 1/17, whoever shares one."""
    groups = 2.0 + torch.randn(4000, 17, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sizes = [len(part) for part in parts(17)]
    found = []
    for drawn in groups:
        means = torch.stack([drawn[part.start : part.stop].mean(0, keepdim=True) for part in parts(17)])
        found.append(spread(means, sizes)["policy/grad_variance"])
    assert sum(found) / len(found) == pytest.approx(1 / 17, rel=0.02)  # relative sd of one 0.37, of 4,000 0.006


def test_spread_of_equal_gradients_is_nothing_and_of_one_is_unknown() -> None:
    same = spread(torch.ones(4, 3, dtype=torch.float64), [1, 2, 1, 1])
    assert (same["policy/grad_variance"], same["policy/grad_noise"]) == (0.0, 0.0)
    assert spread([torch.ones(3)], [1]) == {}
    assert "policy/grad_noise" not in spread(torch.zeros(2, 3), [1, 1])  # 0/0


def test_spread_is_unbiased() -> None:
    """Gradients drawn around (2,0) with covariance I: the variance of the mean of 8 is 2/8, the signal 4."""
    draws = torch.randn(20_000, 8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    draws += torch.tensor([2.0, 0.0], dtype=torch.float64)
    found = [spread(draw, [3] * 8) for draw in draws[:4000]]
    mean = {key: sum(one[key] for one in found) / len(found) for key in found[0]}
    assert mean["policy/grad_variance"] == pytest.approx(0.25, abs=0.01)  # sd of one about 0.09, of 4,000 0.0015
    assert mean["policy/grad_signal"] == pytest.approx(4.0, abs=0.1)


@pytest.mark.parametrize("knobs", [GRPO, PPO, (*GRPO, "algo.aggregation=token_mean"), (*GRPO, "kl_coef=0.0")])
def test_the_mean_of_the_parts_is_the_steps_gradient(knobs: tuple[str, ...]) -> None:
    learner, models, cfg = learner_of(*knobs)
    batch = scored(cfg, models)
    found = torch.stack(list(part_gradients(learner, batch)))
    assert len(found) == len(batch.mask) // batch.group_size
    weights = cfg.algo.token_weights(batch.mask)
    from grpo_bench.policy import layout

    rows = layout(batch, torch.arange(len(batch.mask)))
    logp, entropy = models.policy.logp(rows, cfg.rollout.temperature, None, False)
    (weights * cfg.algo.token_loss(logp, batch, entropy)).sum().backward()
    whole = torch.cat([p.grad.flatten() for p in learner.policy.parameters if p.grad is not None])
    torch.testing.assert_close(found.mean(0), whole, rtol=1e-9, atol=1e-12)


def test_the_mean_by_size_of_unequal_parts_is_the_steps_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, models, cfg = learner_of(*GRPO)
    batch = scored(cfg, models)
    groups = len(batch.mask) // batch.group_size
    assert groups > 2
    whole = torch.stack(list(part_gradients(learner, batch))).mean(0)  # a part a group
    monkeypatch.setattr("grpo_bench.gradient_noise.parts", lambda n: parts(n, n - 1))
    sizes = torch.tensor([len(part) for part in parts(groups, groups - 1)])
    assert sizes.tolist().count(2) == 1
    found = torch.stack(list(part_gradients(learner, batch)))
    mean = (found * sizes[:, None]).sum(0) / groups
    torch.testing.assert_close(mean, whole, rtol=1e-9, atol=1e-12)


def test_it_leaves_weights_and_gradients_alone_and_splits_as_memory_asks() -> None:
    learner, models, cfg = learner_of(*GRPO)
    batch = scored(cfg, models)
    before = [p.detach().clone() for p in learner.policy.parameters]
    found = gradient_noise(learner, batch)
    assert all(p.grad is None for p in learner.policy.parameters)
    assert all(torch.equal(a, b) for a, b in zip(before, learner.policy.parameters, strict=True))
    learner.tokens = 8  # a row or two at a time
    again = gradient_noise(learner, batch)
    assert again == pytest.approx(found, rel=1e-9)


def test_with_one_update_the_policy_is_the_one_that_sampled() -> None:
    learner, models, cfg = learner_of(*GRPO)
    batch = scored(cfg, models)
    logp = scored(cfg, models).old_logp
    known = gradient_noise(learner, replace(batch, old_logp=logp))
    assert gradient_noise(learner, replace(batch, old_logp=None)) == pytest.approx(known, rel=1e-9)


def test_groups_without_signal_have_no_gradient() -> None:
    learner, models, cfg = learner_of(*GRPO, "kl_coef=0.0")
    batch = scored(cfg, models)
    assert batch.advantages is not None
    advantages = batch.advantages.clone()
    advantages[:2] = 0.0  # the first group of two
    found = list(part_gradients(learner, replace(batch, advantages=advantages)))
    assert not found[0].any()
    assert found[1].any()
