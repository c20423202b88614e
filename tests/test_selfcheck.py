"""The checks themselves: green for every algorithm, red for broken copies in the check that is about what is broken."""

from __future__ import annotations

import functools
import io
import runpy
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from torch import Tensor

from grpo_bench import ops
from grpo_bench.algos import ALGORITHMS, Algorithm
from grpo_bench.algos.grpo import GRPO
from grpo_bench.algos.ppo import PPO
from grpo_bench.compose import compose, composing
from grpo_bench.config import Config, parse
from grpo_bench.paths import conf_dir
from grpo_bench.selfcheck import CHECKS, Subject, verdicts
from grpo_bench.selfcheck.by_hand import winner_and_losers
from grpo_bench.selfcheck.cli import checks_table, main
from grpo_bench.selfcheck.data import make_batch, stepwise
from grpo_bench.selfcheck.variants import changed, settings, variants
from grpo_bench.types import Batch

NAMES = {check.name for check in CHECKS}


@functools.cache
def config(*overrides: str) -> Config:
    with composing():
        return parse(compose(["device=cpu", *overrides]))


def copy_of(found: type[Algorithm], name: str, *overrides: str) -> Algorithm:
    """An algorithm of another class with the knobs of ``name``."""
    return found.model_validate(config(f"algo={name}", *overrides).algo.model_dump(by_alias=True))


def reds(algo: Algorithm, as_yaml: bool = True) -> dict[str, str]:
    found = verdicts(Subject("it", algo, as_yaml))
    return {name: verdict.detail for name, verdict in found.items() if verdict.status == "red"}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_is_green(name: str) -> None:
    found = verdicts(Subject(name, config(f"algo={name}").algo))
    assert not {check: verdict.detail for check, verdict in found.items() if verdict.status in ("red", "undeclared")}
    always = NAMES - {"acting", "KL sign", "critic", "shift", "scale", "more reward", "NaN reward", "inert", "ddof"}
    assert {check for check in always if found[check].status != "pass"} == set()


# Five broken copies, each as somebody has shipped it.


class EndTokenMasked(GRPO):
    """Padding is the end token, and the mask is 1 where the token is not padding."""

    def token_weights(self, mask: Tensor) -> Tensor:
        return super().token_weights(mask - ops.last_token(mask))


class EndTokenWithoutAdvantage(GRPO):
    def advantages(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        found, _ = super().advantages(batch)
        return found * (batch.mask - ops.last_token(batch.mask)), None


class EndTokenWithoutLoss(PPO):
    def token_loss(self, logp: Tensor, batch: Batch, entropy: Tensor | None = None) -> Tensor:
        return super().token_loss(logp, batch, entropy) * (batch.mask - ops.last_token(batch.mask))


class MeanOfMicroBatchMeans(GRPO):
    """A token mean of whatever rows are there."""

    def token_weights(self, mask: Tensor) -> Tensor:
        return mask

    def token_loss(self, logp: Tensor, batch: Batch, entropy: Tensor | None = None) -> Tensor:
        return super().token_loss(logp, batch, entropy) / batch.mask.sum().clamp(min=1)


class DdofSwapped(GRPO):
    def advantages(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        scores = ops.group_zscore(batch.rewards, batch.group_size, 1 - self.ddof, self.eps)
        return scores[:, None] * batch.mask, None


class WhitenDdofSwapped(PPO):
    def advantages(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        assert batch.values is not None
        rewards = batch.rewards[:, None] * ops.last_token(batch.mask)
        advantages = ops.gae(rewards, batch.values, batch.mask, self.gamma, self.lam)
        return ops.whiten(advantages, batch.mask, 1 - self.whiten_ddof), advantages + batch.values * batch.mask


class KLSign(GRPO):
    def penalty(self, logp: Tensor, batch: Batch, entropy: Tensor | None) -> Tensor | float:
        return -super().penalty(logp, batch, entropy)


class KLSignOfTheReward(PPO):
    def reward_penalty(self, batch: Batch) -> Tensor | float:
        return -super().reward_penalty(batch)


class AdvantagesNotDetached(GRPO):
    """The KL of the present policy in the advantage, with its gradient."""

    def token_loss(self, logp: Tensor, batch: Batch, entropy: Tensor | None = None) -> Tensor:
        assert batch.old_logp is not None
        assert batch.ref_logp is not None
        assert batch.advantages is not None
        advantages = batch.advantages - batch.kl_coef * (logp - batch.ref_logp)
        return -ops.clipped_surrogate(logp, batch.old_logp, advantages, self.clip_low, self.clip_high)


class BaselineOfTheLogProbs(PPO):
    """A baseline that is computed in the loss, from what has a gradient."""

    def token_loss(self, logp: Tensor, batch: Batch, entropy: Tensor | None = None) -> Tensor:
        assert batch.advantages is not None
        baseline = (logp * batch.mask).sum(1, keepdim=True) / batch.mask.sum(1, keepdim=True).clamp(min=1)
        return -logp * (batch.advantages - baseline) + self.penalty(logp, batch, entropy)


@pytest.mark.parametrize(
    ("broken", "knobs", "expected"),
    [
        (EndTokenMasked, ("algo=grpo",), {"tokens"}),
        (EndTokenWithoutAdvantage, ("algo=grpo",), {"tokens", "lone winner"}),
        (EndTokenWithoutLoss, ("algo=ppo",), {"tokens"}),
        (MeanOfMicroBatchMeans, ("algo=grpo",), {"micro-batch"}),
        (DdofSwapped, ("algo=grpo",), {"lone winner", "ddof"}),
        (WhitenDdofSwapped, ("algo=ppo",), {"lone winner", "ddof"}),
        (KLSign, ("algo=grpo",), {"KL sign"}),
        (KLSign, ("algo=grpo", "algo.kl.to=old", "algo.kl.estimator=k2"), {"KL sign"}),
        (KLSignOfTheReward, ("algo=ppo", "algo.kl.place=reward", "algo.kl.estimator=k1"), {"KL sign"}),
        (AdvantagesNotDetached, ("algo=grpo", "algo.kl.place=none"), {"constants", "acting", "unread"}),
        (BaselineOfTheLogProbs, ("algo=ppo",), {"constants"}),
    ],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_broken_copies_are_red_where_they_are_broken(
    broken: type[Algorithm], knobs: tuple[str, ...], expected: set[str]
) -> None:
    whole = config(*knobs).algo
    assert len(knobs) == 1 or not reds(whole)
    found = reds(broken.model_validate(whole.model_dump(by_alias=True)))
    ended = {"ratios"}  # a token without a weight makes 0·∞ of an infinite loss
    assert expected <= set(found) <= expected | ended, found
    assert all("expected " in line and ", saw " in line and "\n" not in line for line in found.values())


# What else the checks are about, broken one by one.


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return 2 * grads[0]


class WrongBackward(GRPO):
    def token_loss(self, logp: Tensor, batch: Batch, entropy: Tensor | None = None) -> Tensor:
        return super().token_loss(_Doubled.apply(logp), batch, entropy)


class CentredOnTheBatch(GRPO):
    def advantages(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        return (batch.rewards - batch.rewards.mean())[:, None] * batch.mask, None


class EpsilonAlone(GRPO):
    def advantages(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        return ops.group_zscore(batch.rewards, batch.group_size, 0, 1e-8, guard=False)[:, None] * batch.mask, None


class NaNAsZero(GRPO):
    def advantages(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        return super().advantages(batch)[0].nan_to_num(), None


class Torn(GRPO):
    """0/0 for groups of one, as a deviation with ddof 1 gives it."""

    def advantages(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        grouped = batch.rewards.view(-1, batch.group_size)
        scores = (grouped - grouped.mean(1, keepdim=True)) / (grouped.std(1, keepdim=True) + 1e-4)
        return scores.view(-1, 1) * batch.mask, None


class WritesIntoItsBatch(GRPO):
    def advantages(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        batch.rewards.sub_(batch.rewards.mean())
        return super().advantages(batch)


class OutsideTheMask(GRPO):
    def advantages(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        found, _ = super().advantages(batch)
        return found + 1 - batch.mask, None


class FirstMemberIsTheBaseline(GRPO):
    invariant_to: ClassVar[frozenset[str]] = frozenset({"shift"})

    def advantages(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        grouped = batch.rewards.view(-1, batch.group_size)
        return (grouped - grouped[:, :1]).view(-1, 1) * batch.mask, None


class Upside(GRPO):
    lone_winner: ClassVar[tuple[float, float] | None] = (-2.6457513, 0.3779645)

    def advantages(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        return -super().advantages(batch)[0], None


class Ascends(GRPO):
    def token_loss(self, logp: Tensor, batch: Batch, entropy: Tensor | None = None) -> Tensor:
        return -super().token_loss(logp, batch, entropy)


class CriticAscends(PPO):
    def value_loss(self, values: Tensor, batch: Batch) -> Tensor:
        return -super().value_loss(values, batch)


class UnclippedExponential(GRPO):
    """0·∞ where the advantage is 0."""

    def token_loss(self, logp: Tensor, batch: Batch, entropy: Tensor | None = None) -> Tensor:
        assert batch.old_logp is not None
        assert batch.advantages is not None
        return -(logp - batch.old_logp).exp() * batch.advantages + self.penalty(logp, batch, entropy)


class ReadsWhatItDoesNotAskFor(GRPO):
    def token_loss(self, logp: Tensor, batch: Batch, entropy: Tensor | None = None) -> Tensor:
        assert batch.values is not None
        return super().token_loss(logp, batch, entropy) + 0 * batch.values


class SaysThatItNeedsNoAdvantage(GRPO):
    @property
    def acts_without_advantage(self) -> bool:
        return False


class AllOfTheBatchInOneSum(GRPO):
    def keep(self, batch: Batch) -> Tensor:
        return batch.mask.sum(1) > 0 if batch.finished.all() else batch.mask.sum()


@pytest.mark.parametrize(
    ("broken", "name", "expected"),
    [
        (WrongBackward, "grpo", {"differences"}),
        (CentredOnTheBatch, "grpo", {"shift", "scale", "lone winner", "zero variance"}),
        (EpsilonAlone, "grpo", {"zero variance", "ddof"}),
        (NaNAsZero, "grpo", {"NaN reward"}),
        (Torn, "grpo", {"G = 1", "lone winner", "scale", "ddof"}),
        (WritesIntoItsBatch, "grpo", {"untouched"}),
        (OutsideTheMask, "grpo", {"shapes"}),
        (FirstMemberIsTheBaseline, "grpo", {"order", "lone winner"}),
        (Upside, "grpo", {"more reward"}),
        (Ascends, "grpo", {"constants", "KL sign"}),
        (CriticAscends, "ppo", {"critic"}),
        (UnclippedExponential, "grpo", {"ratios"}),
        (ReadsWhatItDoesNotAskFor, "grpo", {"unread"}),
        (SaysThatItNeedsNoAdvantage, "grpo", {"acting"}),
    ],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_every_property_has_a_check_that_sees_it_broken(broken: type[Algorithm], name: str, expected: set[str]) -> None:
    found = reds(copy_of(broken, name))
    assert expected <= set(found), found


def test_an_error_of_the_algorithm_is_a_red_check_and_the_others_run() -> None:
    found = verdicts(Subject("it", copy_of(AllOfTheBatchInOneSum, "grpo")))
    assert found["shapes"].status == "red"
    assert found["lone winner"].status == "pass"
    assert list(found) == [check.name for check in CHECKS]


def test_a_stopped_gradient_is_a_constant_to_the_differences() -> None:
    """CISPO's weight has no gradient by design; without the stop its loss would have another one."""
    assert verdicts(Subject("cispo", config("algo=cispo").algo))["differences"].status == "pass"

    class NoGrad(GRPO):
        def token_loss(self, logp: Tensor, batch: Batch, entropy: Tensor | None = None) -> Tensor:
            assert batch.old_logp is not None
            assert batch.advantages is not None
            with torch.no_grad():
                weight = (logp - batch.old_logp).exp()
            return -weight * logp.data.exp() * batch.advantages * logp + self.penalty(logp, batch, entropy)

    assert verdicts(Subject("it", copy_of(NoGrad, "grpo")))["differences"].status == "pass"


def test_dialects_that_leave_equal_rewards_to_epsilon_are_red_there_alone() -> None:
    for dialect, expected in {"paper": set(), "trl": set(), "verl": {"zero variance"}}.items():
        assert set(reds(config("algo=grpo", f"dialect={dialect}").algo, as_yaml=False)) == expected


# What the checks are made of.


def test_the_lone_winner_by_hand() -> None:
    assert winner_and_losers(config("algo=grpo").algo) == pytest.approx([7**0.5] + [-(7**-0.5)] * 7, abs=1e-6)
    assert verdicts(Subject("it", config("algo=grpo").algo, as_yaml=False))["lone winner"].status == "n/a"

    class Silent(GRPO):
        lone_winner: ClassVar[tuple[float, float] | None] = None

    assert verdicts(Subject("it", copy_of(Silent, "grpo")))["lone winner"].status == "undeclared"


def test_values_of_branches_are_constant_within_a_step_and_begin_alike_in_a_group() -> None:
    batch = stepwise(make_batch())
    assert batch.values is not None
    assert torch.equal(batch.values[3, 0:2], batch.values[3, 0].expand(2))
    assert batch.values[3, 2] == batch.values[3, 3] != batch.values[3, 1]
    assert (batch.values[:4, 0] == batch.values[0, 0]).all()
    assert batch.values[4, 0] != batch.values[0, 0]
    assert not batch.values[batch.mask == 0].any()


def test_every_setting_of_every_knob_is_tried_and_what_is_refused_is_not() -> None:
    cfg = config("algo=grpo")
    found = variants(cfg)
    assert {"ddof=1", "kl.place=reward", "kl.to=old", "kl.clamp_in=0.2", "eps=0", "dialect=trl"} <= set(found)
    assert found["kl.place=reward"] == changed(cfg.algo, **{"kl.place": "reward"})
    assert all(algo != cfg.algo for algo in found.values())
    choices = {("ratio", "token"), ("ratio", "sequence"), ("dual_clip", None), ("dual_clip", 1.2), ("ddof", 1)}
    assert choices <= set(settings(GRPO))
    by_answer = variants(config("algo=grpo", "algo.ratio=sequence"))
    assert not any(algo.whole_answer and algo.aggregation != "sequence_mean" for algo in by_answer.values())


# The command.


def run(*words: str) -> tuple[int, str]:
    out = io.StringIO()
    return main(list(words), out), out.getvalue()


def test_one_algorithm_is_a_list_of_checks() -> None:
    code, text = run("algo=grpo")
    assert code == 0
    assert "  ok  lone winner    [1,0,0,0,0,0,0,0] gets the advantages that the class declares\n" in text
    assert "   -  critic         a step on the value loss brings values nearer to their targets (no critic)\n" in text
    assert f"1 algorithms x {len(CHECKS)} checks" in text


def test_several_algorithms_are_a_table_and_a_red_check_is_one_line_and_exit_code_1() -> None:
    code, text = run("algo=rloo", "algo=grpo", "dialect=verl")
    rows = [line.split() for line in text.splitlines() if line.startswith(("grpo ", "rloo "))]
    assert [row[0] for row in rows] == ["rloo", "grpo"]
    assert [row.count("RED") for row in rows] == [0, 1]
    assert code == 1
    line = next(line for line in text.splitlines() if line.startswith("RED "))
    assert line.startswith("RED grpo, zero variance: advantages of eight rewards of 0.7")
    assert "expected no more than 0.01 apart, saw " in line


def test_without_arguments_all_algorithms_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grpo_bench.selfcheck.cli.verdicts", lambda subject: {})
    monkeypatch.setattr("grpo_bench.selfcheck.cli.compose", lambda job: config(*job[1:]))
    monkeypatch.setattr("grpo_bench.selfcheck.cli.parse", lambda cfg: cfg)
    code, text = run()
    assert code == 0
    assert [line for line in map(str.strip, text.splitlines()) if line in ALGORITHMS] == list(ALGORITHMS)


def test_all_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grpo_bench.selfcheck.cli.verdicts", lambda subject: {})
    _, text = run("algo=grpo", "settings=all")
    assert "grpo kl.place=reward" in text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["algo=gpro"], "algo=gpro is not known; did you mean "),
        (["gpro"], "'gpro' is not KEY=VALUE"),
        (["--fast"], "'--fast' is not KEY=VALUE"),
        (["algo=grpo", "algo.gama=1"], "did you mean"),
        (["algo=grpo", "settings=some"], "the only choice is settings=all"),
        (["--config-dir"], "give --config-dir DIR"),
        (["algo.class=nowhere:Mine"], "algo.class=nowhere:Mine cannot be loaded"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.startswith("error: ")
    assert says in found.err
    assert found.err.count("\n") == 1


MINE = '''
from grpo_bench import ops
from grpo_bench.algos import Algorithm

class Mine(Algorithm):
    """log π · (r − mean r)"""

    invariant_to = frozenset({"shift"})
    lone_winner = (0.875, -0.125)
    tau: float

    def advantages(self, batch):
        return self.tau * ops.group_center(batch.rewards, batch.group_size)[:, None] * batch.mask, None

    def token_loss(self, logp, batch, entropy=None):
        return -logp * batch.advantages + self.penalty(logp, batch, entropy)

class Half(Algorithm):
    tau: float

    def advantages(self, batch):
        return batch.mask, None
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder outside the checkout with a module and a YAML of one's own."""
    (tmp_path / "algo").mkdir()
    (tmp_path / "their_own.py").write_text(MINE)
    tree = yaml.safe_load((conf_dir() / "algo" / "grpo.yaml").read_text())
    knobs = {key: tree["algo"][key] for key in ("aggregation", "length", "entropy_coef", "kl")}
    tree["algo"] = {"name": "mine", "class": "their_own:Mine", "tau": 1.0, **knobs}
    (tmp_path / "algo" / "mine.yaml").write_text("# @package _global_\n" + yaml.safe_dump(tree))
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_an_algorithm_from_outside_the_checkout(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = run("--config-dir", str(own), "algo=mine")
    assert (code, text.splitlines()[0].split()[0]) == (0, "their_own:Mine")
    code, text = run(f"--config-dir={own}", "algo=mine", "algo.tau=-1")
    assert code == 1
    assert "RED their_own:Mine, more reward: " in text
    line = "advantage of the lone winner of 8: expected 0.8750000, saw -0.8750000"
    assert f"RED their_own:Mine, lone winner: {line}\n" in text
    assert main(["--config-dir", str(own), "algo=mine", "algo.class=their_own:Half"]) == 2
    assert "an algorithm defines advantages and token_loss" in capsys.readouterr().err


def test_the_knobs_of_a_built_in_algorithm_for_a_class_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_own.py").write_text(
        "from grpo_bench.algos.grpo import GRPO\nclass Mine(GRPO):\n"
        "    def penalty(self, *args):\n        return -super().penalty(*args)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    code, text = run("algo.class=broken_own:Mine")
    assert code == 1
    assert [line.split(":")[1].split(", ")[1] for line in text.splitlines() if line.startswith("RED ")] == ["KL sign"]


def test_help_names_every_check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["selfcheck", "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("grpo_bench.selfcheck", run_name="__main__")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(check.name in text and check.says in text and check.says in checks_table() for check in CHECKS)


def test_the_table_of_checks_is_the_programs() -> None:
    page = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
    _, opened, rest = page.partition("<!-- table:checks -->")
    if not opened:
        pytest.skip("the README has no table of checks")
    assert rest.partition("<!-- /table -->")[0].strip() == checks_table()
