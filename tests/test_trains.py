"""Every registered algorithm through a whole run on the embedded task, from one small warm start; new ones join."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from model_data import SMALL, make, same, snapshot
from torch import Tensor

from grpo_bench import run as run_module
from grpo_bench.algos import ALGORITHMS
from grpo_bench.config import Config
from grpo_bench.cost import Meter
from grpo_bench.identity import run_dir
from grpo_bench.policy import Models
from grpo_bench.run import run
from grpo_bench.tasks import arithmetic

# sums within 0..5 and 150 batches of them: about one answer in seven is right, so that groups differ
LEARNT = (
    *SMALL,
    "model.tiny.hidden_size=32",
    "model.tiny.intermediate_size=48",
    "threads=1",
    "task.arithmetic.steps=[1,2]",
    "task.arithmetic.operands=[1,3]",
    "task.arithmetic.results=[0,5]",
    "task.demonstrations={worked: 0.5, bare: 0.5, unmarked: 0.0}",
    "task.max_new_tokens=20",
    "model.warmstart.steps=150",
    "model.warmstart.batch_size=16",
    "optim.warmup_updates=0",
    "group_size=4",
    "samples_per_step=16",
    "minibatches=2",
    "budget.amount=17",  # two steps where nothing is sampled beside them
    "eval.every=0",
    "eval.n=2",
    "eval.test_n=3",
    "eval.samples=0",
    "eval.ks=[]",
    "checkpoint.every=1",
)
UNTAUGHT = ("model.warmstart.steps=1", "task.max_new_tokens=4")  # nothing is ever right
TIMES = {"seconds", "machine", "peak_memory_bytes"}


@pytest.fixture(scope="module", autouse=True)
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One warm start and one evaluation of it for the whole file."""
    folder = tmp_path_factory.mktemp("trains")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRPO_BENCH_CACHE", str(folder / "cache"))
        patch.setattr(arithmetic, "DEV", 4)  # of so few chains it would search long for as many as it usually wants
        patch.setattr(arithmetic, "TEST", 4)
        patch.setattr(Meter, "forget_peak", lambda self: None)  # collecting garbage would take most of the time
        yield folder


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Models, dict[str, Tensor]]]:
    """The models of each run with the weights that the policy began from."""
    found: list[tuple[Models, dict[str, Tensor]]] = []
    plain = run_module.make_models

    def watched(*args: Any) -> Models:
        models = plain(*args)
        found.append((models, snapshot(models.policy)))
        return models

    monkeypatch.setattr(run_module, "make_models", watched)
    return found


def settings(shared: Path, name: str, *overrides: str) -> Config:
    """With one warm-up step of the critic where there is such a thing: the second step trains the policy."""
    warm = ("algo.critic_warmup=1",) if "critic_warmup" in ALGORITHMS[name].model_fields else ()
    return make(*LEARNT, f"algo={name}", *warm, f"results={shared / 'results'}", *overrides)


def lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def check_costs(cfg: Config, cost: dict[str, Any], steps: list[dict[str, Any]]) -> None:
    """What the record says was spent is what was sampled, drawn, held and updated."""
    algo = cfg.algo
    draws = len(steps) + sum(row["group/refills"] for row in steps)
    assert cost["prompts"] == cfg.prompts * draws
    assert cost["samples"] == cfg.group_size * cost["prompts"] + cost["extra_samples"]
    assert sum(row["cost/samples"] for row in steps) == cost["samples"] >= cfg.budget.amount
    assert sum(row["cost/gen_tokens"] for row in steps) == cost["generated_tokens"]
    if algo.extra_rollouts == "none":
        assert (cost["extra_samples"], cost["extra_tokens"]) == (0, 0)
    elif algo.extra_rollouts == "greedy":
        assert cost["extra_samples"] == cost["prompts"]
    else:
        assert cost["extra_samples"] >= algo.branching[0] * cost["prompts"]
        assert cost["extra_samples"] % algo.branching[0] == 0
    assert 0 <= cost["extra_tokens"] < cost["generated_tokens"]
    made = cost["updates"] + cost["warmup_updates"] + cost["empty_updates"]
    assert made == len(steps) * cfg.epochs * cfg.minibatches
    assert cost["flops"] > 0
    held = cost["parameters"]
    assert (held["critic"] > 0) == algo.needs_critic
    assert (held["reference"] > 0) == (algo.needs_reference and cfg.kl_coef > 0)


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
@pytest.mark.parametrize("updates", [(), ("epochs=1", "minibatches=1")], ids=["own-epochs", "one-update"])
def test_every_algorithm_trains(
    shared: Path, begun: list[tuple[Models, dict[str, Tensor]]], name: str, updates: tuple[str, ...]
) -> None:
    cfg = settings(shared, name, *updates)
    directory = run_dir(cfg)
    result = run(cfg, directory)
    assert result["status"] == "complete"
    assert result["stability"]["nan_steps"] == 0
    assert result["stability"]["skipped_updates"] == 0
    steps = lines(directory)
    assert len(steps) == result["cost"]["steps"]
    check_costs(cfg, result["cost"], steps)
    assert all(0 < row["reward/correct"] < 1 for row in steps)  # else little of the algorithm was seen
    ((models, before),) = begun
    assert not same(before, models.policy)
    last = steps[-1]
    assert last["policy/n_updates"] > 0
    assert last["policy/entropy"] > 0
    if cfg.algo.needs_critic:
        assert last["value/loss"] > 0
    if cfg.algo.extra_rollouts == "branches":
        assert 0 < last["value/mean"] < 1
        assert last["completions/steps_mean"] > 1
        assert "value/explained_var" not in last
    for file in ("config.yaml", "provenance.json", "result.json", "samples.jsonl", "timing.jsonl", "eval.jsonl.gz"):
        assert (directory / file).stat().st_size > 0


def test_a_kl_that_is_only_measured_moves_nothing(shared: Path, begun: list[tuple[Models, dict[str, Tensor]]]) -> None:
    found = []
    for measured in ("false", "true"):
        own = (f"measure_kl={measured}", f"results={shared / measured}")  # the same run_id: it is no other run
        cfg = settings(shared, "grpo", "kl_coef=0", "minibatches=1", "budget.amount=33", *own)
        assert run(cfg, run_dir(cfg))["status"] == "complete"
        found.append(lines(run_dir(cfg)))
    (plain, _), (models, before) = begun
    assert plain.reference is None
    assert models.reference is not None
    assert same(before, models.reference)  # the model that training began from
    assert not same(before, models.policy)
    assert same(snapshot(plain.policy), models.policy)
    without, beside = found
    assert len(without) == len(beside) == 3
    extra = [{key: row[key] for key in row.keys() - other.keys()} for other, row in zip(*found, strict=True)]
    assert all(row["kl/ref_k3_token"] >= 0 for row in extra)
    assert extra[0]["kl/ref_k3_token"] == 0  # before the first update
    assert all(row["kl/ref_k3_token"] > 0 for row in extra[1:])
    assert any(row["group/skipped"] for row in beside[1:])  # groups that move nothing are measured too
    assert all(key.startswith("kl/ref") for row in extra for key in row)
    for row, other in zip(*found, strict=True):
        assert {key for key in row if row[key] != other[key]} == {"flops"}  # the reference is computed with


@pytest.mark.parametrize("name", ["dapo", "raft"])
def test_a_run_that_drops_everything_ends_and_moves_nothing(
    shared: Path, begun: list[tuple[Models, dict[str, Tensor]]], name: str
) -> None:
    """Its updates are not made and yet charged, else a budget in updates would never be spent."""
    cfg = settings(shared, name, *UNTAUGHT, "budget.unit=updates", "budget.amount=6", "epochs=1", "kl_coef=0")
    directory = run_dir(cfg)
    result = run(cfg, directory)
    cost = result["cost"]
    assert result["status"] == "complete"
    assert (cost["updates"], cost["empty_updates"], cost["steps"]) == (0, 6, 3)
    assert cost["trained_tokens"] == 0
    assert cost["prompts"] == cfg.prompts * (1 + cfg.algo.refill_limit) * cost["steps"]
    ((models, before),) = begun
    assert same(before, models.policy)
    for row in lines(directory):
        assert row["group/frac_kept"] == 0
        assert row["group/effective"] == 0
        assert row["policy/n_updates"] == 0
        assert "policy/loss" not in row  # nothing was measured, which is not 0
        assert "adv/mean" not in row
    assert result["stability"]["nan_steps"] == 0


class Killed(Exception):
    pass


@pytest.mark.parametrize("name", ["dapo", "vineppo", "remax", "raft"])
def test_an_interrupted_run_ends_like_an_unbroken_one(shared: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Further draws, greedy answers and branches repeat bit for bit, at and between checkpoints."""
    longer = ("checkpoint.every=2", f"budget.amount={({'dapo': 200, 'vineppo': 400}).get(name, 70)}", "minibatches=4")
    whole = settings(shared, name, *longer)
    want = run(whole, run_dir(whole))
    assert want["cost"]["steps"] >= 4
    broken = settings(shared, name, *longer, f"results={shared / 'broken'}")
    directory, plain = run_dir(broken), run_module.one_step
    for at in (2, 4):

        def stopped(parts: Any, state: Any, progress: float, at: int = at) -> Any:
            if state.step == at:
                raise Killed
            return plain(parts, state, progress)

        monkeypatch.setattr(run_module, "one_step", stopped)
        with pytest.raises(Killed):
            run(broken, directory)
    monkeypatch.setattr(run_module, "one_step", plain)
    got = run(broken, directory)
    for file in ("metrics.jsonl", "samples.jsonl", "eval.jsonl.gz"):
        assert (directory / file).read_bytes() == (run_dir(whole) / file).read_bytes(), file
    for result in (want, got):
        result["cost"] = {key: value for key, value in result["cost"].items() if key not in TIMES}
    assert got == want
    if name == "dapo":
        assert any(row["group/refills"] for row in lines(directory))
