"""The study files: what each compares exists, on the embedded task and on real data; W&B agents make the same runs."""

from __future__ import annotations

import functools
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from grpo_bench.config import Config, config_hash
from grpo_bench.config_checks import total_steps, total_updates
from grpo_bench.config_errors import ConfigError
from grpo_bench.preflight import Plan, preflight
from grpo_bench.row_names import PLACE, is_each
from grpo_bench.table.measures import MEASURES

SWEEPS = Path(__file__).resolve().parent.parent / "sweeps"
STUDIES = [
    "learning_rate", "ppo_vs_grpo", "group_size", "kl_coef", "kl_placement", "kl_target", "std_normalisation",
    "aggregation", "clip", "inner_epochs", "critic", "length", "budget", "model_size",
]  # fmt: skip
REAL = {
    "length": ["task=gsm8k_short,gsm8k_long", "model=smollm2-135m"],
    "model_size": ["task=gsm8k", "model=smollm2-135m,smollm2-360m"],
}


@functools.cache
def plan_of(name: str, *overrides: str) -> Plan:
    """One seed of every row: the others differ in nothing else."""
    return preflight([*overrides, "seed=0", "results=nowhere"], name, str(SWEEPS), multirun=True)


def seeds_of(name: str) -> list[int]:
    text = str(content(name)["hydra"]["sweeper"]["params"]["seed"])
    count = re.fullmatch(r"range\((\d+)\)", text)
    return list(range(int(count[1]))) if count else [int(word) for word in text.split(",")]


@functools.cache
def content(name: str) -> dict[str, Any]:
    return yaml.safe_load((SWEEPS / f"{name}.yaml").read_text(encoding="utf-8"))


def rows_of(name: str, *overrides: str) -> dict[str, Config]:
    return {str(job.config.row): job.config for job in plan_of(name, *overrides).jobs}


def named(study: str, name: str) -> list[str]:
    """Rows that a baseline, a contrast or a hypothesis means: by their name, or by their arm where something varies.
    Which model is the smallest is known from records, so that any model's row stands for a place."""
    rows = rows_of(study)
    if place := PLACE.search(name):
        found = [row for row, cfg in rows.items() if PLACE.sub(cfg.model.name, name) == row]
        return found[: None if place[0] == "each" else 1]
    return [row for row, cfg in rows.items() if name in (row, cfg.arm)]


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_asks_about_rows_and_measures_that_exist(name: str) -> None:
    study = plan_of(name).jobs[0].config.study
    for row in study.rows():
        assert named(name, row), row
    for hypothesis in study.hypotheses:
        assert hypothesis.measure in MEASURES, hypothesis.id
        meant = {row: len(named(name, row)) for row in hypothesis.all_rows() if row != "warm-started"}
        assert all(n == 1 or (is_each(row) and n >= 3) for row, n in meant.items()), (hypothesis.id, meant)
    assert study.hypotheses
    assert study.baseline is not None or study.contrasts or name == "learning_rate"


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_file_says_what_it_asks(name: str) -> None:
    text = (SWEEPS / f"{name}.yaml").read_text(encoding="utf-8")
    header = text.partition("\ndefaults:")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    assert "?" in header.partition("python -m")[0]  # a question
    assert "On real data" in header or "On GSM8K" in header
    config = content(name)
    assert (config["threads"], config["parallel"]) == (1, 2)  # two jobs share two cores
    assert all(hypothesis.get("claim", "").endswith(".") for hypothesis in config["study"]["hypotheses"])


def test_seeds_are_enough_for_what_a_study_says() -> None:
    seeds = {name: seeds_of(name) for name in STUDIES}
    assert seeds.pop("ppo_vs_grpo") == list(range(10))
    tuning = seeds.pop("learning_rate")
    assert len(tuning) == 3
    assert not set(tuning) & set(range(10))  # rates are not chosen by the luck of the seeds that judge them
    assert all(len(found) == 5 for found in seeds.values())


def test_rates_are_tuned_once_on_one_grid_and_taken_by_all_others() -> None:
    grids: dict[str, set[float | None]] = {}
    for job in plan_of("learning_rate").jobs:
        grids.setdefault(job.config.name, set()).add(job.config.lr)
    assert set(grids) == {"ppo", "ppo_tuned", "ppo_g8", "grpo_g8"}
    assert all(grid == {1e-5, 3e-5, 1e-4, 3e-4} for grid in grids.values())
    for name in STUDIES:
        params = content(name)["hydra"]["sweeper"]["params"]
        assert "lr" not in content(name)
        assert ("lr" in params) == (name == "learning_rate")


def test_the_article_is_tested_on_equal_samples() -> None:
    rows = rows_of("ppo_vs_grpo")
    assert list(rows) == ["ppo", "ppo_g8", "ppo_tuned", "grpo_g4", "grpo_g8", "grpo_g16", "random_reward"]
    assert {(cfg.samples, cfg.budget.amount, total_updates(cfg)) for cfg in rows.values()} == {(128, 2048, 64)}
    assert {row: cfg.prompts for row, cfg in rows.items()} == {
        "ppo": 128, "ppo_g8": 16, "ppo_tuned": 128, "grpo_g4": 32, "grpo_g8": 16, "grpo_g16": 8, "random_reward": 16,
    }  # fmt: skip
    assert {cfg.kl_coef for cfg in rows.values()} == {0.04}


def test_group_sizes_at_equal_samples_and_at_equal_prompts() -> None:
    rows = rows_of("group_size")
    fixed = {row: cfg for row, cfg in rows.items() if not row.endswith("_p16")}
    assert [cfg.group_size for cfg in fixed.values()] == [2, 4, 8, 16, 32]
    assert {cfg.samples for cfg in fixed.values()} == {128}
    more = {row: cfg for row, cfg in rows.items() if row.endswith("_p16")} | {"grpo_g8": rows["grpo_g8"]}
    assert {cfg.prompts for cfg in more.values()} == {16}
    assert sorted(cfg.samples for cfg in more.values()) == [32, 64, 128, 256, 512]  # 16 prompts times G
    assert {total_steps(cfg) for cfg in rows.values()} == {16}  # 64 updates of 4 a step


def test_one_thing_changes_at_a_time() -> None:
    """What rows of an ablation differ in, apart from their names: nothing that would explain the result otherwise."""
    free = {"arm", "row", "study", "seed"}

    def flat(node: Any, prefix: str = "") -> dict[str, Any]:
        if not isinstance(node, dict):
            return {prefix: node}
        return {key: value for k, v in node.items() for key, value in flat(v, f"{prefix}.{k}".lstrip(".")).items()}

    def changed(study: str, row: str, other: str) -> set[str]:
        rows = rows_of(study)
        a, b = (flat(rows[name].model_dump(mode="json", exclude=free)) for name in (row, other))
        return {key for key in {*a, *b} if a.get(key) != b.get(key)}

    assert changed("aggregation", "grpo_token_mean", "grpo_g8") == {"algo.aggregation"}
    assert changed("aggregation", "grpo_constant_length", "grpo_g8") == {"algo.aggregation", "algo.length"}
    assert changed("clip", "grpo_clip_higher", "grpo_g8") == {"algo.clip_high"}
    assert changed("clip", "grpo_clip_narrow", "grpo_g8") == {"algo.clip_low", "algo.clip_high"}
    assert changed("kl_placement", "grpo_kl_k2", "grpo_g8") == {"algo.kl.estimator"}
    assert changed("kl_placement", "grpo_kl_old", "grpo_g8") == {"algo.kl.to"}
    assert changed("kl_placement", "grpo_kl_reward", "grpo_g8") == {"algo.kl.place", "algo.kl.estimator"}
    assert changed("critic", "ppo_tuned_cold", "ppo_tuned") == {"algo.critic_warmup"}
    assert changed("critic", "ppo_tuned_lam95", "ppo_tuned") == {"algo.lam"}
    assert changed("critic", "ppo_tuned_shared", "ppo_tuned") == {"model.critic"}
    assert changed("critic", "ppo_tuned_fast_critic", "ppo_tuned") == {"critic_lr"}
    # at the policy that sampled, where the gradient's noise is measured, a ratio is 1 and no clip acts
    assert changed("std_normalisation", "grpo_no_baseline", "grpo_no_std") == {
        "algo.name", "algo.baseline", "algo.decay", "algo.scale", "algo.ddof", "algo.eps", "algo.guard",
        "algo.clip_low", "algo.clip_high",
    }  # fmt: skip
    # another class has knobs of another name: what both have is equal but for the normalisation itself
    for arm in ("grpo_no_std", "grpo_batch_std"):
        found = changed("std_normalisation", arm, "grpo_g8")
        assert found <= {"algo.name", "algo.scale", "algo.dual_clip", "algo.log_clamp", "algo.ratio", "algo.surrogate"}


@pytest.mark.parametrize("name", STUDIES)
def test_the_same_file_runs_on_real_data(name: str) -> None:
    overrides = REAL.get(name, ["task=gsm8k", "model=smollm2-135m"])
    plan = plan_of(name, *overrides)
    assert len({config_hash(job.config) for job in plan.jobs}) == len(plan.jobs)
    first = plan.jobs[0].config
    assert first.task.name == "gsm8k"
    assert first.task.arithmetic is None
    assert first.study.name == name
    study = content(name)["study"]
    for pair in study.get("contrasts") or []:
        if name != "model_size":  # its rows are called after their models
            assert all(set(named(name, row)) & set(rows_of(name, *overrides)) for row in pair), pair


def test_the_same_file_runs_on_math() -> None:
    plan = plan_of("ppo_vs_grpo", "task=math", "model=smollm2-135m")
    assert {job.config.task.name for job in plan.jobs} == {"math"}


def test_rows_are_called_after_the_variant_of_their_task() -> None:
    rows = rows_of("length")
    assert list(rows)[:4] == ["grpo_g8 short", "ppo short", "ppo_tuned short", "grpo_g8 middle"]
    assert list(rows_of("length", *REAL["length"])) == [
        f"{arm} {length}" for length in ("short", "long") for arm in ("grpo_g8", "ppo", "ppo_tuned")
    ]
    steps = [cfg.task.arithmetic.steps for cfg in rows.values() if cfg.task.arithmetic]
    assert steps[::3] == [(2, 3), (4, 5), (7, 8)]
    two = preflight(["arm=ppo", "task=gsm8k,math", "model=smollm2-135m"], multirun=True)
    assert [job.config.row for job in two.jobs] == ["ppo", "ppo"]  # tasks have folders of their own


def test_claims_of_no_worse_allow_two_points() -> None:
    declared = {h.id: h for name in ("critic", "kl_placement") for h in plan_of(name).jobs[0].config.study.hypotheses}
    for name in ("lambda_one", "no_kl_is_no_worse"):
        assert (declared[name].expect, declared[name].at_least) == ("greater", -0.02)


def test_that_length_matters_is_asked_of_the_same_rows_on_short_and_long_chains() -> None:
    asked = [h for h in plan_of("length").jobs[0].config.study.hypotheses if h.than is not None]
    assert [(h.measure, h.expect, h.scale) for h in asked] == [
        ("learning_curve_area", "greater", "difference"),
        ("gradient_norm_max", "less", "ratio"),
        ("learning_curve_area", "greater", "difference"),
    ]
    assert all(h.than == [row.replace(" long", " short") for row in h.rows] for h in asked)


def test_sizes_are_asked_of_any_models() -> None:
    rows = rows_of("model_size", *REAL["model_size"])
    declared = next(iter(rows.values())).study.hypotheses
    assert [h.rows for h in declared] == [
        ["grpo_g8 model=each"],
        ["ppo_tuned model=smallest", "grpo_g8 model=smallest"],
        ["ppo_tuned model=largest", "grpo_g8 model=largest"],
    ]


def test_budgets_are_in_every_unit() -> None:
    rows = rows_of("budget")
    units = [cfg.budget.unit for cfg in rows.values() if cfg.name == "grpo_g8"]
    assert units == ["samples", "tokens", "updates", "seconds", "flops"]
    assert all(cfg.experiment == f"equal_{cfg.budget.unit}" for cfg in rows.values())


def test_a_row_that_is_no_arm_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        preflight(['study.contrasts=[["grpo_g9 lr=1",ppo]]', "seed=0"], "demo", str(SWEEPS), multirun=True)
    assert any("study: arm 'grpo_g9' is not known; did you mean 'grpo_g8'" in line for line in caught.value.lines)


# ------------------------------------------------------------------ W&B


def expanded(name: str) -> list[tuple[dict[str, Any], list[str]]]:
    """Parameters and command line of each job, as an agent makes them: a macro is a whole word of the command."""
    sweep = yaml.safe_load((SWEEPS / "wandb" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert sweep["method"] == "grid"
    keys = list(sweep["parameters"])
    jobs = []
    for values in itertools.product(*(sweep["parameters"][key]["values"] for key in keys)):
        words = [f"{key}={value}" for key, value in zip(keys, values, strict=True)]
        macros = {"${env}": ["/usr/bin/env"], "${args_no_hyphens}": words}
        command = [word for part in sweep["command"] for word in macros.get(str(part), [str(part)])]
        jobs.append((dict(zip(keys, values, strict=True)), command))
    return jobs


def test_each_study_has_a_grid_for_agents() -> None:
    assert sorted(file.stem for file in (SWEEPS / "wandb").glob("*.yaml")) == sorted(STUDIES)


@pytest.mark.parametrize("name", STUDIES)
def test_agents_make_the_runs_of_the_sweep_file(name: str) -> None:
    pytest.importorskip("wandb")
    jobs = expanded(name)
    wanted = {job.config.row: config_hash(job.config) for job in plan_of(name).jobs}
    assert len(jobs) == len(wanted) * len(seeds_of(name))
    assert sorted({values["seed"] for values, _ in jobs}) == seeds_of(name)
    made = {}
    for values, command in jobs:
        head = ["/usr/bin/env", "python", "-m", "grpo_bench", "--config-dir", "sweeps", "--config-name", name]
        assert command[: len(head)] == head
        if values["seed"] == seeds_of(name)[0]:
            (job,) = preflight([*command[len(head) :], "results=nowhere"], name, str(SWEEPS)).jobs
            assert (job.parsed.tracker.name, job.parsed.seed) == ("wandb", values["seed"])
            made[job.parsed.row] = config_hash(job.parsed)
    assert made == wanted


def test_a_job_by_itself_keeps_a_row_that_it_was_given() -> None:
    alone = ["hydra.mode=RUN", "results=nowhere", "seed=0", "arm=grpo_g8", "kl_coef=0.04"]
    rows = [preflight([*alone, *more], "kl_coef", str(SWEEPS)).jobs[0].parsed.row for more in ([], ["row=mine"])]
    assert rows == ["grpo_g8 kl_coef=0.04", "mine"]


def test_an_agent_fills_in_what_the_files_leave_to_it() -> None:
    """W&B's own rule, where it is installed."""
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    args = utils.create_sweep_command_args({"args": {"arm": {"value": "grpo_g8"}, "kl_coef": {"value": 0.04}}})
    assert args["args_no_hyphens"] == ["arm=grpo_g8", "kl_coef=0.04"]
    for name in STUDIES:
        sweep = yaml.safe_load((SWEEPS / "wandb" / f"{name}.yaml").read_text(encoding="utf-8"))
        words = [str(word) for word in utils.create_sweep_command(sweep["command"])]
        macros = [word for word in words if re.fullmatch(r"\$\{\w+\}", word)]
        assert macros == ["${env}", "${args_no_hyphens}"]
