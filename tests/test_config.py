"""The configuration: every YAML composes and parses, every error says what to do, a hash means what it says."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString

from grpo_bench.compose import compose, composing
from grpo_bench.config import Config, config_hash, parse, plain, run_dir, run_id, warnings
from grpo_bench.config_checks import divisors, total_steps, total_updates
from grpo_bench.config_errors import ConfigError, hint
from grpo_bench.device import resolve_device, resolve_dtype
from grpo_bench.identity import fingerprint
from grpo_bench.paths import conf_dir
from grpo_bench.preflight import preflight
from grpo_bench.study_check import study_problems
from grpo_bench.tuned import namesakes
from grpo_bench.types import UserError

REPO = Path(__file__).resolve().parent.parent
GROUPS = ("algo", "arm", "experiment", "model", "reward", "rollout", "task", "tracker")
FILES = [(group, file.stem) for group in GROUPS for file in sorted((conf_dir() / group).glob("*.yaml"))]
SWEEPS = sorted(file.stem for file in (REPO / "sweeps").glob("*.yaml"))
# what a choice cannot do without
NEEDS = {
    ("model", "hf"): ["model.id=owner/name"],
    ("task", "custom"): ["model=smollm2-135m", "task.path=rows.jsonl"],
    ("reward", "model"): ["reward.model.id=owner/name"],
    ("reward", "function"): ["reward.function=mine.py:brevity"],
}
LONG = ["model=smollm2-135m"]  # the embedded model has no room for prompts of data sets


@pytest.fixture(scope="module", autouse=True)
def _hydra() -> Iterator[None]:
    with composing():
        yield


@functools.cache
def _composed(groups: tuple[str, ...]) -> str:
    return json.dumps(plain(compose(["device=cpu", *groups])))


def make(*overrides: str) -> Config:
    """Composed and parsed. Values of keys that exist are set on a cached composition: composing takes 0.2 s."""
    groups = tuple(o for o in overrides if o.partition("=")[0] in GROUPS)
    data = json.loads(_composed(groups)) if all("=" in o and o[0] not in "+~" for o in overrides) else None
    for override in OverridesParser.create().parse_overrides([o for o in overrides if o not in groups]):
        *parents, last = override.key_or_group.split(".")
        node = data
        for part in parents:
            node = node.get(part) if isinstance(node, dict) else None
        value = override.value()
        if not isinstance(node, dict) or last not in node or isinstance(value, dict) or "${" in str(value):
            return parse(compose(["device=cpu", *overrides]))
        node[last] = value.text if isinstance(value, QuotedString) else value
    return parse(data) if data is not None else parse(compose(["device=cpu", *overrides]))


def lines(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        make(*overrides)
    return caught.value.lines


# ------------------------------------------------------------------ all files


@pytest.mark.parametrize(("group", "name"), FILES)
def test_every_choice_composes_and_parses(group: str, name: str) -> None:
    more = NEEDS.get((group, name), LONG if group == "task" and name != "arithmetic" else [])
    if group == "arm" and name.endswith("deepseekmath"):
        more = ["samples_per_step=1024"]
    cfg = make(f"{group}={name}", *more)
    if group == "arm":
        assert cfg.arm == cfg.row == name
    if group == "experiment":
        assert cfg.experiment == name
    if group == "model":
        assert cfg.model.name == name


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_composes_and_parses(name: str, tmp_path: Path) -> None:
    classifier = tmp_path / "reward_model-arithmetic" / "classifier"  # one that a command before its sweep trains
    classifier.mkdir(parents=True)
    (classifier / "config.json").write_text('{"num_labels": 1}')
    (classifier / "model.safetensors").touch()
    # two seeds of every row: others differ in nothing else
    plan = preflight(["seed=0,1", f"results={tmp_path}"], name, str(REPO / "sweeps"), multirun=True)
    assert len(plan.jobs) >= 2
    assert {job.config.study.name for job in plan.jobs} == {name}
    assert len({run_id(job.config) for job in plan.jobs}) == len(plan.jobs)
    header = (REPO / "sweeps" / f"{name}.yaml").read_text()
    task = plan.jobs[0].config.task.name
    assert f"python -m grpo_bench -m --config-dir sweeps --config-name {name}\n" in header
    assert re.search(rf"python -m grpo_bench.table results/{name}-{task}( '.+')?\n", header)


def test_the_default_is_the_embedded_task_and_grpo() -> None:
    cfg = make()
    assert (cfg.algo.name, cfg.task.name, cfg.model.name, cfg.tracker.name) == ("grpo", "arithmetic", "tiny", "none")
    assert (cfg.samples, cfg.prompts, cfg.group_size) == (256, 32, 8)  # 256 / 8 = 32


def test_group_size_splits_the_samples_of_a_step() -> None:
    assert make("algo=grpo", "group_size=16").prompts == 16  # 256 / 16
    fixed = make("prompts_per_step=10", "samples_per_step=null", "minibatches=2", "group_size=4")
    assert (fixed.prompts, fixed.samples) == (10, 40)


def test_precedence_experiment_below_arm_below_command_line() -> None:
    alone = make("experiment=deepseekmath")
    assert (alone.group_size, alone.samples, alone.task.name) == (64, 1024, "math")
    assert alone.task.max_new_tokens == 1024
    with_arm = make("experiment=deepseekmath", "arm=ppo_deepseekmath")
    assert (with_arm.algo.name, with_arm.group_size, with_arm.lr) == ("ppo", 1, 1e-6)
    assert make("experiment=deepseekmath", "arm=grpo_g8").group_size == 8
    assert make("experiment=deepseekmath", "arm=grpo_g8", "kl_coef=0.5").kl_coef == 0.5


def test_what_a_study_shares_loses_to_the_arm(tmp_path: Path) -> None:
    text = "defaults: [base, _self_, {arm: null}, {override /model: smollm2-135m}]\ngroup_size: 32\nkl_coef: 0.5\n"
    (tmp_path / "own.yaml").write_text(text)
    with composing(str(tmp_path)):
        cfg = parse(compose(["arm=grpo_g8"], "own"))
    assert (cfg.group_size, cfg.kl_coef, cfg.model.name) == (8, 0.5, "smollm2-135m")


# ------------------------------------------------------------------ resolution


def test_parse_is_idempotent_and_takes_what_a_record_holds() -> None:
    cfg = make("arm=ppo_tuned", "seed=3")
    recorded = json.loads(json.dumps(cfg.model_dump(mode="json")))
    assert parse(recorded) == cfg
    assert recorded["algo"]["class"] is None
    assert recorded["algo"]["lam"] == 1.0
    assert run_id(parse(recorded)) == run_id(cfg)


def test_rates_resolve_by_arm_then_algorithm_then_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "arithmetic-tiny.yaml").write_text(
        "default: {lr: 0.1, critic_lr: 0.2}\nppo: {lr: 0.3}\nppo_tuned: {lr: 0.4, critic_lr: 0.5}\n"
    )
    (tmp_path / "tuned" / "default.yaml").write_text("lr: 1e-6\ncritic_lr: 1e-5\n")
    monkeypatch.setattr("grpo_bench.tuned.conf_dir", lambda: tmp_path)
    tuned, ppo, grpo = make("arm=ppo_tuned"), make("arm=ppo"), make("arm=grpo")
    assert (tuned.lr, tuned.critic_lr) == (0.4, 0.5)
    assert (ppo.lr, ppo.critic_lr) == (0.3, 0.2)
    assert (grpo.lr, grpo.critic_lr) == (0.1, None)  # no critic, no rate
    assert make("arm=ppo_tuned", "lr=0.01").lr == 0.01  # an explicit one wins
    assert make("model=smollm2-135m").lr == 1e-6
    (tmp_path / "tuned" / "gsm8k-smollm2-135m.yaml").write_text("grpo: {lr: fast}\n")
    with pytest.raises(UserError, match=r"gsm8k-smollm2-135m\.yaml: lr='fast' should be a number"):
        make("task=gsm8k", "model=smollm2-135m")


def test_a_rate_may_be_a_multiple_of_the_tuned_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "arithmetic-tiny.yaml").write_text("ppo_tuned: {lr: 1.0e-4, critic_lr: 1.0e-4}\n")
    monkeypatch.setattr("grpo_bench.tuned.conf_dir", lambda: tmp_path)
    cfg = make("arm=ppo_tuned", "lr=0.5x", "critic_lr=3x")
    assert (cfg.lr, cfg.critic_lr) == (5e-5, 3e-4)  # as written by hand; 3 * 1e-4 is 0.00030000000000000003
    assert config_hash(cfg) == config_hash(make("arm=ppo_tuned", "lr=5e-5", "critic_lr=3e-4"))
    assert parse(cfg.model_dump(mode="json")) == cfg
    with pytest.raises(UserError, match=r"^critic_lr=20000x: 20000 times the tuned 0.0001 should be below 1$"):
        make("arm=ppo_tuned", "critic_lr=20000x")


@pytest.mark.parametrize(("arm", "times"), [("slow_critic", 0.1), ("fast_critic", 3)])
def test_arms_with_another_rate_ask_the_same_of_every_task_and_model(arm: str, times: float) -> None:
    for choice in ([], ["task=gsm8k", "model=smollm2-135m"]):
        usual = make("arm=ppo_tuned", *choice).critic_lr
        assert usual is not None
        assert make(f"arm=ppo_tuned_{arm}", *choice).critic_lr == pytest.approx(times * usual, rel=1e-12)
    assert usual == 1e-5


@pytest.mark.parametrize("arm", ["ppo_tuned_slow_critic", "ppo_tuned_fast_critic"])
def test_a_multiple_is_the_number_that_runs_recorded(arm: str) -> None:
    recorded = sorted((REPO / "results" / "critic-arithmetic").glob(f"{arm}-s*"))
    assert len(recorded) == 5
    with composing(str(REPO / "sweeps")):
        for directory in recorded:
            cfg = parse(compose([f"arm={arm}", f"seed={directory.name.split('-')[1][1:]}"], "critic"))
            assert run_id(cfg) == directory.name
            assert cfg.critic_lr == yaml.safe_load((directory / "config.yaml").read_text())["critic_lr"]


@pytest.mark.parametrize("value", ["3y", "x", "-1x", "1e-2x", "0.1 x", "fast"])
def test_a_rate_that_is_neither_number_nor_multiple_is_refused_in_one_line(value: str) -> None:
    line = f"critic_lr={value!r}: should be a number, or a multiple of the tuned rate such as 0.1x"
    with pytest.raises(ConfigError) as error:
        make("arm=ppo_tuned", f"critic_lr={value}")
    assert error.value.lines == [line]


def test_an_arm_takes_the_rate_of_the_one_it_is_named_after() -> None:
    known = ["default", "ppo", "ppo_tuned", "grpo", "grp"]
    assert namesakes("ppo_tuned_cold", known) == ["ppo_tuned", "ppo"]
    assert namesakes("grpo_no_std", known) == ["grpo"]  # whose algorithm is dr_grpo
    assert namesakes("grpo", known) == ["grpo"]
    assert namesakes("ppo_tunedish", known) == ["ppo"]  # whole words only


def test_every_tuned_file_names_arms_algorithms_and_rates() -> None:
    names = {file.stem for group in ("arm", "algo") for file in (conf_dir() / group).glob("*.yaml")} | {"default"}
    from omegaconf import OmegaConf

    for file in (conf_dir() / "tuned").glob("*.yaml"):
        content: Any = OmegaConf.to_container(OmegaConf.load(file))
        entries = {"default": content} if file.stem == "default" else content
        assert set(entries) <= names, file.name
        for entry in entries.values():
            assert set(entry) <= {"lr", "critic_lr"}
            assert all(isinstance(rate, float) and 0 < rate < 0.1 for rate in entry.values())


def test_device_and_dtype() -> None:
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto") in ("cpu", "cuda")
    assert [resolve_dtype("auto", d) for d in ("cpu", "cuda")] == ["float32", "bfloat16"]
    assert make("model.dtype=bfloat16").model.dtype == "bfloat16"  # allowed on the CPU
    assert make().model.dtype == "float32"


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["gruop_size=4"], "unknown option 'gruop_size'; did you mean 'group_size'?"),
        (["+gruop_size=4"], "unknown option 'gruop_size'; did you mean 'group_size'?"),
        (["++task.pth=x"], "unknown option 'task.pth'; did you mean 'task.path'"),
        (["foo=1"], "unknown option 'foo'"),
        (["algo=ppo", "gamma=0.9"], "'gamma' is not a key; it belongs to algo.gamma"),
        (["algo=grpo", "tau_pos=0.9"], "'tau_pos' belongs to algo.tau_pos of algo=sapo, not to algo=grpo"),
        (["algo=grpo", "+tau_pos=0.9"], "'tau_pos' belongs to algo.tau_pos of algo=sapo, not to algo=grpo"),
        (["algo=grpo", "algo.tau_pos=0.9"], "'algo.tau_pos' belongs to algo=sapo, not to algo=grpo"),
        (["algo=grpo", "+algo.gamma=0.9"], "'algo.gamma' belongs to algo=ppo|"),
        (["algo=ppo", "algo.surrogate=clip"], "'algo.surrogate' belongs to algo=grpo, not to algo=ppo"),
        (["algo.group_size=4"], "'algo.group_size' is not a key; it belongs to group_size"),
        (["temperature=0.7"], "'temperature' is not a key; it belongs to eval.temperature or rollout.temperature"),
        (["algo.clip_lo=0.1"], "unknown option 'algo.clip_lo'; did you mean 'algo.clip_low'"),
        (["optim={beta: 1}"], "unknown option 'optim.beta'; did you mean 'optim.betas'"),
        (["algo=grop"], "algo=grop is not known; did you mean 'grpo'? (algo has cispo, dapo,"),
        (["arm=grpo_8"], "arm=grpo_8 is not known; did you mean 'grpo_g8'"),
        (["model=qwen2.5"], "model=qwen2.5 is not known; did you mean 'qwen2.5-"),
        (["+seed=3"], "'seed' exists: write seed=... without +"),
        (["+algo=ppo"], "'algo' exists: write algo=... without +"),
        (["reward.parts={corect: 1}"], "'reward.parts' has no entry 'corect'; a new one is written"),
        (["+reward.parts.corect=1"], "reward.parts.corect is not known; choose correct"),
        (["seed=zero"], "seed='zero': should be a valid integer"),
        (["group_size=true"], "group_size=True: should not be true or false"),
        (["group_size=1.5"], "group_size=1.5: should be a valid integer"),
        (["lr=1.5"], "lr=1.5: should be less than 1"),
        (["kl_coef=-1"], "kl_coef=-1: should be greater than or equal to 0"),
        (["algo=ppo", "algo.lam=1.1"], "algo.lam=1.1: should be less than or equal to 1"),
        (["device=gpu"], "device='gpu': should be 'auto', 'cpu' or 'cuda'"),
        (["optim.betas=[0.9,1]"], "optim.betas.1=1: should be less than 1"),
        (["optim.betas=[-0.1,0.99]"], "optim.betas.0=-0.1: should be greater than or equal to 0"),
        (["task.path=data"], "task.path=data: task=arithmetic makes its problems itself"),
        (["task.filters.limit=5"], "task.filters.limit=5: task=arithmetic makes its problems itself"),
        (["task.filters.steps=[2]"], "task.filters.steps belongs to task=gsm8k, not to task=arithmetic"),
        ([*LONG, "task=gsm8k", "task.math500_path=m"], "task.math500_path=m belongs to task=math, not to task=gsm8k"),
        ([*LONG, "model.path=w", "model.revision=main"], "model.revision=main is of the hub, and model.path=w wins"),
        (["task.stop=['']"], "task.stop contains an empty string"),
        (["reward.parts.correct=0"], "reward.parts: all weights are 0"),
        (
            [*LONG, "task=custom", "task.hub=a/b", "task.eval_split=train"],
            "task.split and task.eval_split are both train",
        ),
        (["eval.n=0"], "eval.n=0: should be greater than or equal to 1"),
        (["lr=inf"], "lr=inf: should be"),
        (["study.name='Über/x'"], "study.name='Über/x': String should match pattern"),
        (["~seed"], "'seed' is missing from the composed configuration"),
        (["group_size=7"], "group_size=7 does not divide samples_per_step=256; the nearest divisors are 4 or 8"),
        (["group_size=512"], "group_size=512 does not divide samples_per_step=256; the nearest divisors are 256"),
        (["minibatches=3"], "minibatches=3 does not divide the 32 groups of a step, and a minibatch holds whole"),
        (["prompts_per_step=8"], "samples_per_step=256 and prompts_per_step=8 contradict each other"),
        (["samples_per_step=null"], "samples_per_step and prompts_per_step are both null"),
        (["eval.samples=2"], "eval.ks=[1, 2, 4] needs eval.samples of at least 4, not 2; give 'eval.ks=[1, 2]'"),
        (["eval.ks=[0]"], "eval.ks=[0]: each should be at least 1"),
        ([*LONG, "task=math", "task.eval_split=test"], "task.split=12k with task.eval_split=test is refused; choose"),
        ([*LONG, "task=gsm8k", "task.split=test"], "task.split=test with task.eval_split=test is refused"),
        ([*LONG, "task=gsm8k", "task.filters.level=[1]"], "task.filters.level belongs to task=math, not to task=gsm8k"),
        (["task.prompt.template=Answer"], "task.prompt.template has no {question}"),
        (["task.prompt.system=hi"], "task.prompt.system needs task.prompt.style=chat"),
        (["task.arithmetic.steps=[4,2]"], "task.arithmetic.steps=[4,2]: the smaller number comes first"),
        (["task.demonstrations.worked=0.9"], "task.demonstrations: shares should be at least 0 and add up to 1"),
        ([*LONG, "task=custom"], "task=custom needs task.path="),
        (["model=hf"], "model=hf needs model.id=owner/name or model.path="),
        (["model.path=weights"], "model=tiny is built from config; for a model on disk or from the hub give model=hf"),
        (["model.tiny.heads=3"], "model.tiny: hidden_size=128 should be an even multiple of heads=3"),
        (["task.max_new_tokens=500"], "task.max_prompt_tokens + task.max_new_tokens = 628 exceeds model.tiny"),
        (["study.contrasts=[[ppo]]"], "study.contrasts: ['ppo'] should name two different rows"),
        (["algo.class=nowhere:Thing"], "algo.class=nowhere:Thing cannot be loaded"),
        (["algo.class=json:loads"], "algo.class=json:loads is not a subclass of grpo_bench.algos.Algorithm"),
        (["task.prompt.template=${nowhere}"], "Interpolation key 'nowhere' not found"),
    ],
)
def test_every_error_says_what_to_do(overrides: list[str], expected: str) -> None:
    found = lines(*overrides)
    assert any(line.startswith(expected) for line in found), found
    assert all("\n" not in line for line in found)


def test_all_errors_come_at_once() -> None:
    found = lines("gruop_size=4", "algo=grpo", "algo.gamma=1", "+foo=1", "lr=7", "group_size=7", "arm=nothing")
    for part in ("'gruop_size'", "'algo.gamma'", "'foo'", "lr=7", "arm=nothing"):
        assert sum(part in line for line in found) == 1, (part, found)
    assert "group_size=7 does not divide" in " ".join(lines("group_size=7", "eval.samples=0"))
    assert len(lines("group_size=7", "eval.samples=0")) == 2


def test_hints_without_composition() -> None:
    assert hint("model.lr", {"name": "grpo"}) == "'model.lr' is not a key; it belongs to lr or model.warmstart.lr"
    assert "did you mean 'algo.tau_pos'? (algo.tau_pos is of algo=sapo)" in hint("tau_po", {"name": "grpo"})


def test_contradictions_of_an_algorithm_are_raised_by_parse() -> None:
    with pytest.raises(UserError, match="kl_coef=0 stays 0"):
        make("algo.kl.control=adaptive", "kl_coef=0")
    with pytest.raises(UserError, match="dialect=nonsense is not known"):
        make("dialect=nonsense")
    adaptive = ["algo.kl.control=adaptive"]  # 0.2 x 256 samples = 51.2: a step may change the coefficient by all of it
    with pytest.raises(UserError, match=r"horizon=51 is too short for the 256 samples .*give more than 51.2"):
        make(*adaptive, "algo.kl.horizon=51")
    assert make(*adaptive, "algo.kl.horizon=52").algo.kl.horizon == 52


def wanting(**properties: Any) -> Any:
    """GRPO with other answers to what an algorithm asks of the run."""
    algo = make().algo
    kind = type("Wanting", (type(algo),), {k: property(lambda self, v=v: v) for k, v in properties.items()})
    return kind.model_validate(algo.model_dump(by_alias=True))


@pytest.mark.parametrize(
    ("properties", "line"),
    [
        ({"branching": (4, ("\n",)), "needs_critic": True}, "takes its values from branches and asks for a critic too"),
        ({"branching": (0, ("\n",))}, "branches 0 times at"),
        ({"branching": (4, ())}, "at least one delimiter"),
        ({"branching": (4, ("\n", ""))}, "none of them empty"),
    ],
)
def test_branches_that_cannot_be_are_refused(properties: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        wanting(extra_rollouts="branches", **properties).check(make())


def test_an_algorithm_that_drops_nothing_need_not_draw_again() -> None:
    assert any("it drops none" in line for line in wanting(refill_limit=3).check(make()))


def test_own_data_may_name_their_splits_as_they_like() -> None:
    cfg = make("task=custom", *LONG, "task.hub=a/b", "task.split=train_sft", "task.eval_split=validation")
    assert (cfg.task.split, cfg.task.eval_split) == ("train_sft", "validation")


def test_a_kl_that_is_not_finite_leaves_the_coefficient_alone() -> None:
    algo = make("algo.kl.control=adaptive").algo
    for kl in (float("nan"), float("inf")):
        batch: Any = SimpleNamespace(kl_coef=0.03, state={"kl": kl, "samples": 256.0})
        assert algo.next_state(batch) == {"kl_coef": 0.03}


def test_plain_data_without_an_algorithm() -> None:
    with pytest.raises(ConfigError, match="algo=None: should be one of conf/algo"):
        parse({})


# ------------------------------------------------------------------ warnings


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["rollout.top_p=0.9"], "rollout.top_p=0.9 samples from a cut distribution"),
        (["rollout.top_k=50"], "rollout.top_k=50 samples from a cut distribution"),
        (["budget.unit=seconds"], "budget.unit=seconds: runs end at different samples"),
        (["budget.amount=512", "epochs=1", "minibatches=1"], "optim.warmup_updates=10 covers the whole run of 2"),
        (["critic_lr=0.1"], "critic_lr=0.1 is inert: algo=grpo trains no critic"),
        (["model.critic=shared"], "model.critic=shared is inert"),
        (["checkpoint.every=0"], "checkpoint.every=0"),
        (["parallel=2"], "parallel=2 with threads=null: each job takes all CPU cores"),
        (["target_kl=0.01", "epochs=1", "minibatches=1"], "target_kl is inert with one update per rollout"),
        (["epochs=1", "minibatches=1"], "the clip is inert with one update per rollout"),
        (["algo.kl.estimator=k1"], "algo.kl.estimator=k1 in the loss"),
        (["algo=ppo"], "algo.vf_coef=0.5 with a separate critic"),
    ],
)
def test_warnings_name_what_is_inert_or_biased(overrides: list[str], expected: str) -> None:
    assert any(line.startswith(expected) for line in warnings(make(*overrides)))


def test_the_default_has_no_warning() -> None:
    assert warnings(make()) == []


def test_updates_of_a_run() -> None:
    # 10240 / 256 = 40 steps of 2 epochs x 2 minibatches; 10241 needs a 41st step
    assert total_updates(make()) == 160
    assert total_updates(make("budget.amount=10241")) == 164
    assert total_updates(make("budget.unit=flops")) is total_steps(make("budget.unit=flops")) is None
    assert total_steps(make("budget.amount=10241")) == 41
    assert total_steps(make("budget.unit=updates", "budget.amount=9")) == 3  # 9 / (2 x 2), up
    assert divisors(12) == [1, 2, 3, 4, 6, 12]


# ------------------------------------------------------------------ identity


@pytest.mark.parametrize(
    "same",
    [
        ["seed=5"],
        ["device=auto", "model.dtype=float32"],
        ["threads=1"],
        ["micro_batch_tokens=4096"],
        ["rollout.batch_size=8"],
        ["task.verify_workers=3"],
        ["budget.amount=99999"],
        ["study.name=x", "study.baseline=ppo"],
        ["tracker=wandb", "tracker.project=y"],
        ["results=elsewhere"],
        ["checkpoint.every=1", "checkpoint.keep=5"],
        ["resume=false", "isolate=false", "export=true"],
        ["lr=0.0001"],  # what null resolves to
        ["lr=1e-4"],
        ["kl_coef=0.040"],
        ["arm=grpo_g8"],  # the same settings under the name of an arm
        ["model.gradient_checkpointing=true"],
        ["measure_kl=true"],
    ],
)
def test_the_hash_leaves_out_what_is_not_identity(same: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grpo_bench.tuned._load", lambda path: {"default": {"lr": 1e-4, "critic_lr": 1e-3}})
    assert config_hash(make(*same)) == config_hash(make())


@pytest.mark.parametrize(
    "other",
    [
        ["lr=3e-4"],
        ["group_size=4"],
        ["algo=ppo"],
        ["algo.clip_high=0.28"],
        ["algo.kl.estimator=k2"],
        ["budget.unit=updates"],
        ["eval.test_n=100"],
        ["rollout.temperature=0.7"],
        ["optim.schedule=linear"],
        ["model.dtype=bfloat16"],
        ["task.prompt.template='Q: {question} A:'"],
        ["model.warmstart.steps=401"],
        ["dialect=paper", "samples_per_step=128"],
        ["reward=random"],
    ],
)
def test_the_hash_has_everything_else(other: list[str]) -> None:
    assert config_hash(make(*other)) != config_hash(make())


def test_the_hash_does_not_depend_on_the_order_of_overrides() -> None:
    assert config_hash(make("lr=1e-6", "seed=1", "kl_coef=0")) == config_hash(make("kl_coef=0.0", "lr=0.000001"))


def test_a_new_field_at_its_default_leaves_hashes_alone() -> None:
    class Later(Config):
        novelty: float = 0.5

    cfg = make()
    data = cfg.model_dump()
    assert config_hash(Later.model_validate({**data, "algo": cfg.algo})) == config_hash(cfg)
    assert config_hash(Later.model_validate({**data, "algo": cfg.algo, "novelty": 0.7})) != config_hash(cfg)


def test_paths_count_by_their_content(tmp_path: Path) -> None:
    for name in ("here", "there", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_text("{}\n" if name != "other" else "{ }\n")
    same, again, other = (
        config_hash(make("task=gsm8k", *LONG, f"task.path={tmp_path / name}")) for name in ("here", "there", "other")
    )
    assert same == again != other
    (tmp_path / "a.gguf").write_bytes(b"weights")
    (tmp_path / "b.gguf").write_bytes(b"weights")
    hashes = {config_hash(make(*LONG, f"model.path={tmp_path / name}.gguf")) for name in "ab"}
    assert len(hashes) == 1
    assert config_hash(make(*LONG)) not in hashes


def test_an_algorithm_from_outside_counts_by_the_content_of_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a run of the file as it was would be taken for one of the file as it is."""
    monkeypatch.syspath_prepend(tmp_path)
    code = "from grpo_bench.algos.grpo import GRPO\nclass Mine(GRPO):\n    {}\n"
    for name in ("hashed_here", "hashed_there"):
        (tmp_path / f"{name}.py").write_text(code.format("pass"))
    here, there = (config_hash(make(f"algo.class={name}:Mine")) for name in ("hashed_here", "hashed_there"))
    assert here == there != config_hash(make())
    (tmp_path / "hashed_here.py").write_text(code.format("more = 1"))
    assert config_hash(make("algo.class=hashed_here:Mine")) != here


def test_the_hash_has_the_files_that_are_read_and_no_others(tmp_path: Path) -> None:
    folder = tmp_path / "gsm8k"
    (folder / "main").mkdir(parents=True)  # as the hub stores it: in a folder named after the config
    for split in ("train", "test"):
        (folder / "main" / f"{split}.jsonl").write_text("{}\n")

    def now() -> str:
        return config_hash(make("task=gsm8k", *LONG, f"task.path={folder}"))

    before = now()
    (folder / "README.md").write_text("notes")
    assert now() == before
    (folder / "main" / "test.jsonl").write_text("{ }\n")
    assert now() != before


def test_the_hash_has_math500_beside_math(tmp_path: Path) -> None:
    for name, splits in (("math", ("train", "test")), ("math500", ("test",))):
        (tmp_path / name).mkdir()
        for split in splits:
            (tmp_path / name / f"{split}.jsonl").write_text("{}\n")

    def now(*more: str) -> str:
        return config_hash(make("task=math", *LONG, f"task.path={tmp_path / 'math'}", *more))

    before, without = now(), now("task.split=7.5k", "task.eval_split=test")
    assert now(f"task.math500_path={tmp_path / 'math500'}") == before  # named or found
    (tmp_path / "math500" / "test.jsonl").write_text("{ }\n")
    assert now() != before
    assert now("task.split=7.5k", "task.eval_split=test") == without  # not read there


def test_the_hash_has_weights_and_tokenizer_of_a_model_folder(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_text(name)

    def now() -> str:
        return config_hash(make("model=hf", f"model.path={tmp_path}"))

    before = now()
    (tmp_path / "README.md").write_text("notes")
    (tmp_path / "optimizer.pt").write_text("state")
    assert now() == before
    hashes = {before}
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_text(f"another {name}")
        hashes.add(now())
    assert len(hashes) == 4


def test_a_fingerprint_sees_changes_in_large_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grpo_bench.identity.WHOLE", 1 << 21)
    file = tmp_path / "weights.bin"
    file.write_bytes(bytes(4 << 20))
    before = fingerprint(file)
    file.write_bytes(bytes(4 << 20) + b"1")
    assert fingerprint(file) != before
    file.write_bytes(bytes((4 << 20) - 1) + b"1")
    assert fingerprint(file) != before


def test_names_of_runs_and_folders() -> None:
    adhoc, study = make("seed=3"), make("arm=grpo_g16", "study.name=groups", "results=out")
    assert run_id(adhoc) == f"grpo-s3-{config_hash(adhoc)}"
    assert run_dir(adhoc) == Path("results/adhoc") / run_id(adhoc)
    assert run_dir(study) == Path("out/groups-arithmetic") / f"grpo_g16-s0-{config_hash(study)}"
    assert len(config_hash(adhoc)) == 8


# ------------------------------------------------------------------ hypotheses

LEAD = {"id": "lead", "claim": "GRPO leads.", "rows": ["grpo_g8", "ppo_tuned"], "expect": "greater"}


def studied(*hypotheses: dict[str, Any]) -> Config:
    data = json.loads(_composed(()))
    return parse({**data, "study": {**data["study"], "hypotheses": list(hypotheses)}})


def test_a_hypothesis_is_data_with_defaults() -> None:
    (found,) = studied(LEAD).study.hypotheses
    assert (found.measure, found.scale, found.at_least, found.at_most) == ("accuracy", "difference", None, None)
    assert config_hash(studied(LEAD)) == config_hash(make())  # what is expected of a run is no part of it


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rows": ["a", "b", "c"]}, "hypothesis lead: expect=greater compares two rows, not 3"),
        ({"expect": "flat"}, "hypothesis lead: expect=flat is over three rows or more"),
        ({"rows": ["ppo", "ppo"]}, "hypothesis lead names a row twice"),
        ({"at_least": 2.0, "at_most": 1.0}, "hypothesis lead: at_least=2 is above at_most=1"),
        ({"expect": "better"}, "study.hypotheses.0.expect='better': should be 'greater', 'less', 'equal',"),
        ({"id": "Lead!"}, "study.hypotheses.0.id='Lead!': String should match pattern"),
        ({"measur": "reward"}, "unknown option 'study.hypotheses.0.measur'"),
        ({"rows": ["a"]}, "hypothesis lead: expect=greater compares two rows, not 1"),
        ({"than": ["a"]}, "hypothesis lead: than names two rows that differ, not ['a']"),
        ({"than": ["a", "a"]}, "hypothesis lead: than names two rows that differ, not ['a', 'a']"),
        ({"than": ["a", "b"], "rows": ["a", "b", "c"]}, "hypothesis lead: expect=greater compares two rows, not 3"),
        ({"than": ["ppo_tuned", "grpo_g8"]}, "hypothesis lead: than names the pair of rows itself"),
        ({"than": ["a", "ppo_tuned"]}, "hypothesis lead: ppo_tuned cancels out of both differences; compare the other"),
        ({"than": ["a", "b"], "rows": ["a", "b", "c"], "expect": "flat"}, "so expect is one of greater, less, equal"),
        ({"rows": ["ppo model=each", "ppo"]}, "hypothesis lead: model=each is a list by itself, for increasing, decr"),
        ({"rows": ["ppo model=each"]}, "hypothesis lead: model=each is a list by itself, for increasing, decreasing"),
        ({"than": ["ppo model=each", "ppo"]}, "hypothesis lead: model=each is a list by itself"),
        ({"scale": "ratio", "at_least": 0.0}, "hypothesis lead: at_least=0 is no bound of a ratio, which lies above 0"),
        ({"scale": "ratio", "at_most": -1.5}, "hypothesis lead: at_most=-1.5 is no bound of a ratio"),
        ({"scale": "ratio", "expect": "equal", "at_most": 0.1}, "at_most=0.1 of a ratio that is equal lies above 1"),
        (
            {"rows": ["warm-started", "pretrained"]},
            "hypothesis lead: warm-started, pretrained are models before RL alone",
        ),
        ({"than": ["warm-started", "pretrained"]}, "hypothesis lead: warm-started, pretrained are models before RL"),
    ],
)
def test_a_hypothesis_that_means_nothing_is_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        studied(LEAD | changes)
    assert any(expected in line for line in caught.value.lines), caught.value.lines


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"measure": "acuracy"}, ["hypothesis lead: no measure 'acuracy'; did you mean 'accuracy'?"]),
        (
            {"measure": "kl_final", "expect": "equal"},
            [
                "hypothesis lead: expect=equal needs at_most=...: the study's margin is of fractions, and kl_final is "
                "in nats/token"
            ],
        ),
        ({"measure": "kl_final", "expect": "equal", "at_most": 0.1}, []),
        ({"measure": "gain", "expect": "equal"}, []),  # a fraction, as the margin is
        ({"at_least": -0.02}, []),  # no worse: of a difference
    ],
)
def test_what_no_table_could_judge_is_found_before_the_runs(changes: dict[str, Any], expected: list[str]) -> None:
    assert study_problems(studied(LEAD | changes).study) == expected


def test_a_sweep_with_an_unknown_measure_stops_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        preflight(
            [
                "study.hypotheses=[{id:lead,claim:c,rows:[grpo_g8,ppo],expect:greater,measure:acuracy}]",
                "arm=grpo_g8,ppo",
            ],
            multirun=True,
        )
    assert any("no measure 'acuracy'; did you mean 'accuracy'?" in line for line in caught.value.lines)


def test_a_hypothesis_may_be_of_two_differences_and_of_models_by_their_place() -> None:
    rows, than = ["grpo_g8 model=largest", "warm-started"], ["grpo_g8 model=smallest", "warm-started"]
    trend = LEAD | {"id": "trend", "rows": ["ppo model=each"], "expect": "increasing"}
    study = studied(LEAD | {"rows": rows, "than": than}, trend).study
    assert study.hypotheses[0].all_rows() == [*rows, *than]
    assert study.rows() == ["grpo_g8 model=largest", "grpo_g8 model=smallest", "ppo model=each"]


@pytest.mark.parametrize("named", [{"baseline": "ppo model=smallest"}, {"contrasts": [["ppo", "grpo_g8 model=each"]]}])
def test_only_a_hypothesis_names_models_by_their_place(named: dict[str, Any]) -> None:
    data = json.loads(_composed(()))
    with pytest.raises(ConfigError, match="only a hypothesis names models by their place"):
        parse({**data, "study": {**data["study"], **named}})


def test_a_hypothesis_is_declared_once() -> None:
    with pytest.raises(ConfigError, match="lead is declared 2 times; give each an id of its own"):
        studied(LEAD, LEAD)


def test_a_study_knows_the_rows_that_it_names() -> None:
    before = LEAD | {"id": "gain", "rows": ["grpo_g8 kl_coef=0.1", "warm-started"]}
    study = studied(LEAD, before).study.model_copy(update={"baseline": "ppo", "contrasts": [["grpo_g8", "ppo"]]})
    assert study.rows() == ["ppo", "grpo_g8", "ppo_tuned", "grpo_g8 kl_coef=0.1"]
