"""The benchmark: its arithmetic by hand, its table from measurements, its processes, and a step of each engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from model_data import SMALL, network

from grpo_bench.cost import Size
from grpo_bench.speed import child, cli, driver, floors, ours, products, summary, table, theory, workloads
from grpo_bench.speed.child import Clock, Spec
from grpo_bench.speed.driver import Entry, Failed, Runner
from grpo_bench.speed.rewards import reward_of
from grpo_bench.speed.summary import Spread
from grpo_bench.types import UserError

SHAPE = floors.Shape(Size(trunk=100, head=20, layers=2, width=4), kv_width=2, prompts=(3, 5), group_size=2, tokens=3)
TINY = ["model.tiny.init_std=0.02", *SMALL, "model.warmstart.steps=0"]


def test_medians_and_ratios() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0, 3)
    # medians 5 and 2; pair by pair 3, 2, 5
    assert summary.ratio([6.0, 4.0, 5.0], [2.0, 2.0, 1.0]) == Spread(2.5, 2.0, 5.0, 3)


def test_flops_of_a_step() -> None:
    # prompts: 2·100·8 + 2·2·4·(3² + 5²) = 2144
    # a row of prompt 3: 2·100·3 + 16·(6² − 3²) + 2·20·3 = 1152; of prompt 5: 600 + 16·(8² − 5²) + 120 = 1344
    assert floors.forward_flops(SHAPE) == 2144 + 2 * 1152 + 2 * 1344 == 7136
    assert floors.forward_flops(SHAPE, headless=True) == 7136 - 4 * 120
    assert floors.training_flops(SHAPE) == 3 * 7136
    assert floors.step_flops(SHAPE) == 4 * 7136
    assert floors.step_flops(SHAPE, "separate") == 4 * 7136 + 4 * 6656
    assert floors.step_flops(SHAPE, "shared") == 4 * 7136 + 6656


def test_decode_floor() -> None:
    # weights 120·4 = 480 B; 2·2·2·4 = 32 B per token; 8 prompt tokens once per group, 4 rows with 1, then 2 own ones
    assert floors.decode_seconds(SHAPE, "float32", 1.0, float("inf")) == (480 + 32 * 12) + (480 + 32 * 16)
    # 2·120·4 = 960; attention 4·2·4·(8·2 + 4·1) = 640, then 32·24 = 768
    assert floors.decode_seconds(SHAPE, "float32", float("inf"), 1.0) == 1600 + 1728
    # at 1 B/s and 1.8 FLOP/s the first step is bound by its products, the second by its reads: 888.9 > 864, 992 > 960
    assert floors.decode_seconds(SHAPE, "float32", 1.0, 1.8) == pytest.approx(1600 / 1.8 + 992)
    assert floors.decode_seconds(SHAPE, "bfloat16", 1.0, float("inf")) == 928  # half the bytes
    assert floors.prefill_seconds(SHAPE, 2.0) == (2144 + 2 * 20 * 2) / 2


def test_ppo_to_grpo_in_theory() -> None:
    # SmolLM2-135M, 134.5M parameters multiply, 106M without the head: (8·134.5 + 8·106) / (8·134.5)
    assert theory.dense_ratio(134.5, 106) == pytest.approx(1.788, abs=5e-4)
    assert theory.dense_ratio(134.5, 106, old=True, reference=True) == pytest.approx(2462 / 1614)
    assert theory.dense_ratio(134.5, 106, shared=True) == pytest.approx((1076 + 212) / 1076)
    assert theory.dense_ratio(134.5, 106, shared=True, old=True) == 1.0  # the values come with the old log-probs
    assert theory.ratio_as_run(SHAPE, shared=False) == (4 * 7136 + 4 * 6656) / (4 * 7136)


def test_every_group_has_a_signal() -> None:
    rewards = [reward_of(row, 4) for row in range(8)]
    assert rewards == [0, 1, 0, 1, 1, 0, 1, 0]


class FakeMeter:
    """Counts what a clock asks of it."""

    device = type("Device", (), {"type": "cpu"})()

    def __init__(self) -> None:
        self.forgotten = 0

    def forget_peak(self) -> None:
        self.forgotten += 1


def test_a_clock_splits_steps_into_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 0.0, 10.0, 11.0, 14.0, 20.0])
    monkeypatch.setattr(child.time, "perf_counter", lambda: next(ticks))
    meter = FakeMeter()
    clock = Clock(meter, Spec("native", "float32", warmup=1))
    clock.begin()
    clock.end(samples=1)  # warms up
    assert (clock.steps, meter.forgotten) == ([], 1)
    clock.begin()  # at 11
    inner = clock.wrap("score", lambda: None)
    clock.wrap("rollout", inner)()  # from 14 to 20, and the score inside it is the rollout's
    monkeypatch.setattr(child.time, "perf_counter", lambda: 23.0)
    clock.end(samples=2)
    phases = {"rollout": 6.0, "reward": 0.0, "score": 0.0, "update": 6.0}
    assert clock.steps == [{"seconds": 12.0, "phases": phases, "samples": 2}]


# --- the table, from measurements ---------------------------------------------------------------------------------


def step(seconds: float, rollout: float, score: float = 0.0) -> dict[str, Any]:
    phases = {"rollout": rollout, "reward": 0.0, "score": score, "update": seconds - rollout - score}
    return {"seconds": seconds, "phases": phases, "samples": 4, "tokens": 12, "prompt_lengths": [3, 5]}


def visit(contender: str, repetition: int, steps: list[dict[str, Any]], peak: int, **more: Any) -> dict[str, Any]:
    return {
        "kind": "visit", "contender": contender, "dtype": "float32", "repetition": repetition, "idle_bytes": 1000,
        "peak_bytes": peak, "steps": steps, "states": "float32 weights", **more,
    }  # fmt: skip


def measurements() -> list[dict[str, Any]]:
    size = {"trunk": 100, "head": 20, "layers": 2, "width": 4}
    shape = {"size": size, "kv_width": 2, "prompts": [3, 5], "group_size": 2, "tokens": 3}
    rounds = [
        {
            "prefill_s": 0.5,
            "rollout_s": rollout,
            "decode_products_s": 0.5,
            "training_s": 4.0,
            "training_products_s": training,
        }
        for rollout, training in ((1.5, 1.0), (2.5, 2.0), (0.75, 3.0))
    ]
    measured = {"rounds": rounds, "decode_best_s": 0.4, "training_best_s": 0.8}
    rates = {"bandwidth": 1856.0, "rates": {"float32": 7136.0}, "device": {"type": "cpu", "threads": 2}}
    own = {"shape": shape, "floors": measured}
    made = {"cpu": "a processor", "python": "3.11", "packages": {"torch": "2"}, "git_sha": "a" * 40, "started": "today"}
    return [
        {
            "kind": "run", "workload": {"title": "a test", "prompts": 2, "group_size": 2, "tokens": 3}, "model": "m",
            "prompts": "p", "provenance": {**made, "command": "python -m grpo_bench.speed"},
        },
        {"kind": "machine", "repetition": 0, **rates},
        {"kind": "machine", "repetition": 1, **rates, "bandwidth": 100.0},
        visit("native", 0, [step(4.0, 2.0), step(6.0, 2.5)], 3000, **own),
        visit("trl", 0, [step(20.0, 8.0)], 9000),
        visit("ppo", 0, [step(9.0, 2.0, 1.0)], 4000, shape=shape),
        visit("native", 1, [step(5.0, 3.0)], 3000, **own),
        visit("trl", 1, [step(25.0, 8.0)], 11000),
        {"kind": "failed", "contender": "trl-ppo", "dtype": "float32", "reason": "not measured: no such thing"},
    ]  # fmt: skip


def test_the_summary_by_hand() -> None:
    made = summary.summarise(measurements(), [])
    assert made["machine"]["bandwidth"] == 1856.0  # the best of the repetitions
    native, trl, _ = made["contenders"]
    assert native["seconds"] == {"median": 5.0, "low": 4.0, "high": 6.0, "n": 3}
    assert native["memory_above_idle"]["median"] == 2000
    assert native["tokens_per_s"]["median"] == 12 / 2.5
    assert native["mfu"] == 4 * 7136 / (5.0 * 7136)  # four passes in five seconds at one pass a second
    assert "mfu" in trl  # of the same work, whoever measured its shape
    (peer,) = made["against_peers"]
    # visits: trl 20, 25; native (4 + 6) / 2 = 5, 5
    assert peer["times_faster"] == {"median": 22.5 / 5, "low": 4.0, "high": 5.0, "n": 2}
    assert peer["times_faster_by_pairs"] == {"median": 5.0, "low": 5.0, "high": 5.0, "n": 2}  # 20 / 4, 25 / 5
    assert peer["memory_share"]["median"] == 2000 / 9000
    (floor,) = made["floors"]
    # prompts' forward (2144 + 2 * 20 * 2) / 7136; then 1600/7136 against 864/1856, and 992/1856
    rollout = floor["rollout"]
    assert rollout["seconds"] == 2.5
    assert rollout["floor_s"] == pytest.approx(2224 / 7136 + 1.0)
    assert rollout["fraction"] == pytest.approx((2224 / 7136 + 1.0) / 2.5)
    # products alone beside the same steps: 0.5 s of 1.5, 2.5 and 0.75 s, in two visits
    assert rollout["products_s"] == 0.5
    assert rollout["fraction_of_products"] == {"median": 0.5 / 1.5, "low": 0.2, "high": 0.5 / 0.75, "n": 6}
    assert rollout["fraction_of_best"] == 0.4 / 2.5
    assert floor["prefill"] == {"seconds": 0.5, "floor_s": 2224 / 7136}
    assert floor["training"]["fraction_of_best"] == 0.8 / 2.0
    assert floor["training"]["fraction_of_products"] == {"median": 0.5, "low": 0.25, "high": 0.75, "n": 6}
    assert floor["training"]["floor_s"] == 3.0
    assert floor["training"]["seconds"] == 2.0  # of 2, 3.5 and 2
    (critic,) = made["ppo_to_grpo"]
    assert critic["measured"]["median"] == 9.0 / 5.0
    assert critic["theory"] == (8 * 120 + 8 * 100) / (8 * 120)
    assert critic["quotient"] == pytest.approx(1.8 / (1760 / 960))


def test_floors_of_an_earlier_version_are_refused() -> None:
    rows = measurements()
    rows[3]["floors"] = {"prefill_s": 0.5, "decode_products_s": 0.25, "training_products_s": 0.75}
    with pytest.raises(UserError, match="measured by an earlier version"):
        summary.summarise(rows, [])


def test_products_that_cannot_be_recorded_are_made_as_they_are() -> None:
    """An empty tape would take no time, and be the floor."""
    x, w = torch.randn(4, 8), torch.randn(6, 8)

    def looks() -> torch.Tensor:
        return torch.nonzero(x)  # of a size that values decide

    assert products._played(looks) is looks
    played = products._played(lambda: torch.nn.functional.linear(x, w))
    x.mul_(2)
    assert torch.equal(played(), x @ w.T)


def test_a_run_has_its_products_alone_beside_further_steps() -> None:
    spec = Spec("native", "float32", TINY, prompts=2, group_size=2, tokens=5, warmup=0, floors=True, threads=2)
    made = ours.run(spec)
    floors = made["floors"]
    assert len(made["steps"]) == 1  # the further ones are not measured steps
    assert len(floors["rounds"]) == ours.ROUNDS
    for one in floors["rounds"]:
        assert one["rollout_s"] > 0 < one["training_s"]
        assert one["decode_products_s"] >= 0.5 * floors["decode_best_s"] > 0  # of four steps as well
        assert one["training_products_s"] >= 0.5 * floors["training_best_s"] > 0


@pytest.mark.parametrize(
    ("lanes", "tokens", "headed", "expected"),
    [
        (1, 1000, 900, (3, 334, 300)),  # of at most 400 tokens
        (2, 1000, 900, (1, 500, 450)),  # of at most 600 in each of two lanes
        (2, 1201, 1200, (2, 301, 300)),
        (2, 1000, 1000, (1, 500, 500)),
        (2, 1020, 1010, (2, 255, 253)),  # the head takes 504 at once
    ],
)
def test_micro_batches_of_products(monkeypatch, lanes, tokens, headed, expected) -> None:
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=10)))
    policy = SimpleNamespace(model=model, device=torch.device("cpu"), dtype=torch.float32)
    learner = SimpleNamespace(tokens_of_lane=lambda count: {1: 400, 2: 600}[count])
    monkeypatch.setattr(ours, "kept_elements", lambda device, dtype: 5049)
    parts: Any = SimpleNamespace(models=SimpleNamespace(policy=policy), learner=learner)
    assert ours.micro_batch(parts, tokens, headed, lanes) == expected


@pytest.mark.parametrize("lanes", [1, 2])
def test_products_of_an_update_are_all_of_its_micro_batches(monkeypatch, lanes) -> None:
    """Two of 6 tokens of each lane, 4 of which the head takes; by hand: 3 products of each layer for each."""
    model = network("llama", double=False)
    found: list[tuple[int, ...]] = []
    linear = torch.nn.functional.linear

    def seen(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        found.append((*x.shape, *w.shape))
        return linear(x, w)

    monkeypatch.setattr(products.nn.functional, "linear", seen)
    alone = products.update(model, {lanes: (2, 6, 4)}, torch.float32)
    found.clear()
    alone._found = dict.fromkeys(alone._found, 1.0)
    assert alone.seconds() > 0
    head = model.get_output_embeddings().weight
    layers = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear) and m.weight is not head]
    expected = [(6, w.shape[1], *w.shape) for w in layers] + [(4, head.shape[1], *head.shape)]
    assert sorted(found) == sorted(2 * lanes * expected)


def test_the_fastest_way_counts_and_much_slower_ones_are_not_tried_again() -> None:
    called: list[str] = []

    def way(name: str, slow: float) -> products.Way:
        def work(times: int) -> None:
            called.append(name)
            time.sleep(slow * times)

        return work

    alone = products.Alone([way("fast", 0.01), way("slow", 0.2)], torch.device("cpu"))
    assert 0.01 <= alone.best < 0.2
    called.clear()
    assert 0.03 <= alone.seconds(3) < 0.6
    assert called == ["fast"]


def test_steps_in_turns_are_compared_two_by_two() -> None:
    """What slows the machine for both is in both: 20 / 4, 27 / 9 and 25 / 5, not the medians' 25 / 5.

    Elsewhere steps do not stand next to each other.
    """
    rows = measurements()
    rows[0]["workload"]["turns"] = "steps"
    rows[3]["steps"][1]["seconds"] = 9.0
    rows[4]["steps"].append({**rows[4]["steps"][0], "seconds": 27.0})
    made = summary.summarise(rows, [])
    assert made["against_peers"][0]["times_faster_by_pairs"] == {"median": 5.0, "low": 3.0, "high": 5.0, "n": 3}
    pairs = "median of each two steps in turns"
    assert pairs in table.render(rows[0], made, [])
    rows[0]["workload"]["turns"] = "visits"
    assert pairs not in table.render(rows[0], made, [])


def test_the_table_is_made_of_measurements_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in measurements())
    (tmp_path / summary.MEASUREMENTS).write_text(lines)
    curve = {"kind": "curve", "curve": "group", "model": "m", "dtype": "float32", "idle_bytes": 0, "peak_bytes": 5,
             "prompts": 2, "prompt_tokens": 256, "tokens": 1, "phases": {"rollout": 1.0, "update": 1.0}}  # fmt: skip
    rows = [curve | {"x": g, "group_size": g, "seconds": s} for g, s in ((1, 2.0), (16, 2.2), (1, 2.0), (16, 2.3))]
    (tmp_path / summary.CURVES).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert table.main([str(tmp_path)]) == 0
    text = (tmp_path / "README.md").read_text()
    assert capsys.readouterr().out == text
    assert "| grpo_bench, GRPO | float32 | 5 [4, 6] | 2.5 | 0 | 0 | 2 | 0.8 |" in text
    assert "| grpo_bench, GRPO | TRL GRPOTrainer | float32 | 4.5 [4, 5] |" in text
    assert "22 % of the peer's" in text
    assert "| rollout | float32 | 2.5 | 1.31 | 52 % | 0.5 | 33 % [20, 67] | 0.4 | 16 % |" in text
    assert "TRL PPOTrainer (1.10), float32: not measured: no such thing" in text
    assert "| 16 | 2 x 16 | 256 + 1 | 2.25 [2.2, 2.3] |" in text
    assert "1.12 |" in text  # 2.25 / 2
    for name in ("speed.png", "speed.svg", "growth.png", "growth.svg", "speed.json"):
        assert (tmp_path / name).stat().st_size > 0


def test_the_table_needs_no_torch() -> None:
    code = "import sys, grpo_bench.speed.table, grpo_bench.speed.cli; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_table_refuses_what_it_cannot_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert table.main([str(tmp_path)]) == 2
    assert "holds no measurements" in capsys.readouterr().err
    (tmp_path / summary.MEASUREMENTS).write_text('{"kind": "run"\n')
    assert table.main([str(tmp_path)]) == 2
    assert "damaged" in capsys.readouterr().err
    assert table.main([]) == 2


# --- the command line ---------------------------------------------------------------------------------------------


def test_arguments() -> None:
    words = "workload=llama3m dtype=bfloat16 contenders=native,trl+checkpointing+accumulation4 steps=5 seconds=60"
    given = cli.arguments([*words.split(), "model.path=x", "threads=2"])
    assert given.workload.dtypes == ("bfloat16",)
    assert (given.workload.steps, given.workload.seconds, given.threads) == (5, 60.0, 2)
    assert given.config == {"model.path": "x"}
    (_, peer) = driver.entries(given.workload)
    assert (peer.contender, peer.options) == ("trl", ["checkpointing", "accumulation4"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("workload=huge", "choose one of tiny, llama3m"),
        ("contenders=native,vllm", "contenders=vllm is not known"),
        ("contenders=native+checkpointing", "is not known"),
        ("dtype=int8", "dtype=int8 is not known"),
        ("steps=0", "at least 1"),
        ("curves=width", "curves=width is not known"),
        ("quick", "is not key=value"),
        ("trl_ppo_python=/nowhere/python", "there is no such file"),
        ("model.colour=blue", "model.colour"),
        ("workload=smollm2 model.path=/nowhere/model.gguf", "model.path=/nowhere/model.gguf does not exist"),
    ],
)
def test_refusals(words: str, said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main([*words.split(), f"out={tmp_path / 'made'}"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "made").exists()


def test_every_workload_composes() -> None:
    for name in workloads.WORKLOADS:
        spec = cli.check(cli.arguments([f"workload={name}"]))
        assert spec.prompts * spec.group_size == workloads.WORKLOADS[name].rows
    assert cli.check(cli.arguments(["workload=smollm2"])).prompt_tokens == workloads.GSM8K_PROMPT


def test_real_weights_and_data_take_the_workloads_files(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    lines = workloads.overrides(
        workloads.WORKLOADS["smollm2"], {"model.path": "model.gguf", "task.path": "data"}
    )  # fmt: skip
    assert {"model=smollm2-135m", "task=gsm8k", "model.path=model.gguf"} <= set(lines)
    assert not any(line.startswith("model.tiny.") for line in lines)
    assert workloads.stretched(workloads.WORKLOADS["smollm2"], {"task.path": "data"}) is None


def test_bfloat16_weights_in_float32_are_no_contender() -> None:
    workload = workloads.choose("llama3m", {"contenders": ("trl", "trl-pure")})
    assert [str(e) for e in driver.entries(workload)] == ["trl, float32", "trl, bfloat16", "trl-pure, bfloat16"]


# --- processes ----------------------------------------------------------------------------------------------------


def test_a_child_answers_through_its_file(tmp_path: Path) -> None:
    result = Runner(tmp_path).visit(Spec("idle", "float32", modules=["json", "no_such_module"]))
    assert result["bytes"] > 0
    assert "json" in result["imported"]


def test_a_child_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(Failed, match=r"trl\+sideways: options are|ModuleNotFoundError"):
        Runner(tmp_path).visit(Spec("trl-ppo", "float32", folder=str(tmp_path), options=["sideways"]))


def test_a_child_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nsleep 600 &\necho $! > " + str(tmp_path / "grandchild") + "\nwait\n")
    script.chmod(0o755)
    with pytest.raises(Failed, match="did not end within 1 s"):
        Runner(tmp_path).visit(Spec("native", "float32"), limit=1.0, python=str(script))
    grandchild = int((tmp_path / "grandchild").read_text())
    state = Path(f"/proc/{grandchild}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


TURNS = """
import json, os, signal, sys, time
place = sys.argv[-1]
spec = json.load(open(place))
for step in range(3):
    if spec["turns"]:
        os.kill(os.getpid(), signal.SIGSTOP)
    if spec["contender"] == "broken" and step == 1:
        sys.exit("ValueError: it broke")
    with open(os.path.dirname(place) + "/order", "a") as file:
        print(spec["contender"], "begins", file=file, flush=True)
        time.sleep(0.05)
        print(spec["contender"], "ends", file=file, flush=True)
json.dump({"name": spec["contender"]}, open(place[:-5] + ".out.json", "w"))
"""


@pytest.fixture
def turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    """Children that write down when their steps begin and end."""
    script = tmp_path / "turns.py"
    script.write_text(TURNS)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
    python.chmod(0o755)
    runner = Runner(tmp_path)
    monkeypatch.setattr(runner, "python", lambda contender: str(python))
    return runner


def test_children_together_take_one_step_each_in_turns(turns: Runner, tmp_path: Path) -> None:
    specs = [Spec(name, "float32") for name in ("a", "broken", "c")]
    first, second, third = turns.together(specs, 60.0)
    assert (first, third) == ({"name": "a"}, {"name": "c"})
    assert isinstance(second, Failed)
    assert "it broke" in str(second)
    order = (tmp_path / "order").read_text().split()
    steps = [("a", "broken", "c"), ("a", "c"), ("a", "c")]
    assert order == [word for step in steps for name in step for word in (name, "begins", name, "ends")]


def test_children_together_are_all_ended_at_the_limit(turns: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    start = turns._start

    def remembered(*args: Any) -> Any:
        begun.append((child := start(*args)).process.pid)
        return child

    monkeypatch.setattr(turns, "_start", remembered)
    out = turns.together([Spec("a", "float32"), Spec("c", "float32")], 0.0)
    assert all(isinstance(x, Failed) and "did not end within" in str(x) for x in out)
    assert len(begun) == 2
    for pid in begun:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_contenders_take_steps_in_turns_for_real(tmp_path: Path) -> None:
    words = [
        "contenders=native,ppo", "turns=steps", "repetitions=1", "steps=2", "prompts=2", "group_size=2", "tokens=3",
        f"out={tmp_path / 'out'}", "machine=here", *TINY,
    ]  # fmt: skip
    given = cli.arguments(words)
    text, _ = cli.run(given, cli.check(given), Runner(tmp_path), words)
    visits = [row for row in summary.read(tmp_path / "out" / summary.MEASUREMENTS) if row["kind"] == "visit"]
    assert [(row["contender"], len(row["steps"])) for row in visits] == [("native", 2), ("ppo", 2)]
    assert "one step each in turns" in text
    assert "contenders in turns" not in text


class InProcess(Runner):
    """Every visit in this process: what is measured is the same, but for the memory."""

    def visit(self, spec: Spec, limit: float = 0.0, python: str | None = None) -> dict[str, Any]:
        if spec.contender == "machine":
            rates = dict.fromkeys(spec.dtype.split(","), 1e9)
            return {"bandwidth": 1e9, "rates": rates, "device": {"type": "cpu", "threads": 1}, "imported": []}
        if spec.contender == "idle":
            return {"bytes": 1}
        if spec.contender == "hf":
            raise Failed("was killed (out of memory?)")
        return {**child._contender(spec)(spec), "imported": []}


def test_a_run_measures_its_engines_and_goes_on_after_a_failure(tmp_path: Path) -> None:
    words = [
        "contenders=hf,native,ppo,ppo-shared,trl-ppo", "repetitions=1", "steps=1", "prompts=2", "group_size=2",
        "tokens=3", f"out={tmp_path}", *TINY,
    ]  # fmt: skip
    given = cli.arguments(words)
    text, paths = cli.run(given, cli.check(given), InProcess(tmp_path), words)
    rows = summary.read(tmp_path / summary.MEASUREMENTS)
    visits = [row for row in rows if row["kind"] == "visit"]
    assert [row["contender"] for row in visits] == ["native", "ppo", "ppo-shared"]
    for row in visits:
        (made,) = row["steps"]
        assert (made["samples"], made["tokens"]) == (4, 12)  # full length, whatever was drawn
        assert sum(made["phases"].values()) <= made["seconds"]
    assert "was killed" in text
    assert "give trl_ppo_python=" in text
    assert str(tmp_path) not in (tmp_path / "README.md").read_text() + (tmp_path / "speed.json").read_text()
    assert all(path.is_file() for path in paths)


def test_growth_is_measured_at_the_lengths_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from grpo_bench.speed import curves

    places = [curves.Point(g, 1, g, 12, 2) for g in (2, 4)]
    monkeypatch.setattr(curves, "points", lambda kind, scale: places)
    words = ["curves=group", "repetitions=1", f"out={tmp_path}", *TINY]
    given = cli.arguments(words)
    cli.run(given, cli.check(given), InProcess(tmp_path), words)
    rows = [row for row in summary.read(tmp_path / summary.CURVES) if row["kind"] == "curve"]
    assert [(row["x"], row["prompt_tokens"]) for row in rows] == [(2, 12), (4, 12)]
    assert "group size" in (tmp_path / "README.md").read_text()


def test_a_repetition_that_would_not_end_in_time_is_left_out(tmp_path: Path) -> None:
    workload = workloads.choose("tiny", {"contenders": ("native",), "repetitions": 3, "seconds": 0.5})
    said: list[str] = []
    rows = list(driver.measure(workload, Spec("machine", "float32"), InProcess(tmp_path), said.append))
    assert [row["kind"] for row in rows] == ["machine"] * 3
    assert all("left out" in line for line in said if "native" in line)
    assert Entry("native", "float32") in driver.entries(workload)


def test_unknown_options_of_a_peer_are_refused() -> None:
    trl_grpo = pytest.importorskip("grpo_bench.speed.trl_grpo")
    assert trl_grpo.settings(["checkpointing", "accumulation2"], 8)["per_device_train_batch_size"] == 4
    with pytest.raises(ValueError, match="options are"):
        trl_grpo.settings(["sideways"], 8)
    with pytest.raises(ValueError, match="do not split"):
        trl_grpo.settings(["accumulation3"], 8)


@pytest.mark.slow
def test_the_smallest_workload_for_real(tmp_path: Path) -> None:
    words = "contenders=native,ppo,trl repetitions=2 steps=1 prompts=2 group_size=2 tokens=4 threads=1"
    done = subprocess.run(
        [sys.executable, "-m", "grpo_bench.speed", *words.split(), f"out={tmp_path}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "speed.json").read_text())
    assert {"native", "ppo"} <= {line["contender"] for line in made["contenders"]}


def test_errors_of_a_user_are_user_errors() -> None:
    with pytest.raises(UserError):
        workloads.named("nothing")
