"""A diagnosis names what is wrong with a run, and is silent on a healthy one."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import study_builder

from grpo_bench.diagnose import RULES, Evidence, by_row, diagnose
from grpo_bench.diagnose.__main__ import main, rules
from grpo_bench.records import Run, load_run, load_study

RESULTS = Path(__file__).resolve().parent.parent / "results"
STEPS = 20
LEARNED = ([0] * 10 + [1] * 90, [0] * 50 + [1] * 50)  # final and base answers of 100 problems: 50 % to 90 %
SAME = ([0] * 50 + [1] * 50, [0] * 50 + [1] * 50)


def healthy(step: int) -> dict[str, Any]:
    """A step of a run that learns: 30 % to 50 % right, in groups that differ, with an entropy that falls by half."""
    done = step / STEPS
    right = 0.3 + 0.2 * done
    return {
        "step": step, "samples": 128 * step, "updates": 4 * step, "cost/samples": 128, "health/nan_steps": 0,
        "reward/mean": right, "reward/correct": right, "reward/flexible": right + 0.05, "reward/min": 0.0,
        "reward/max": 1.0, "group/frac_zero_std": 0.1, "group/frac_all_correct": 0.05, "group/frac_all_wrong": 0.05,
        "adv/abs_mean": 0.8, "policy/clip_frac": 0.001, "policy/ratio_max": 1.3, "policy/kl_old": 2e-4,
        "policy/approx_kl_k3": 1e-4, "rollout/entropy": 0.3 - 0.15 * done, "policy/grad_norm": 1.5,
        "policy/grad_norm_max": 3.0, "policy/lr": 3e-5, "completions/len_mean": 11 + 5 * done,
        "completions/eos_frac": 1.0, "completions/truncated_frac": 0.0, "kl/ref_k3_token": 0.02 * done,
    }  # fmt: skip


CONFIG = {
    "group_size": 8, "epochs": 1, "minibatches": 4, "lr": 3e-5, "critic_lr": None, "kl_coef": 0.0,
    "optim": {"grad_clip": 1.0, "warmup_updates": 10},
    "reward": {"name": "correct", "parts": {"correct": 1.0}},
}  # fmt: skip
CLIPPED = {"name": "grpo", "clip_low": 0.2, "clip_high": 0.2}


def make(
    folder: Path,
    answers: tuple[list[int], list[int]] = SAME,
    changed: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    steps: int = STEPS,
    dev: Mapping[int, float] | None = None,
    result: Mapping[str, Any] | None = None,
    algo: str = "grpo",
) -> Run:
    """A run whose steps are healthy but for ``changed``: values, or functions of the step."""
    curve = []
    for step in range(1, steps + 1):
        line = healthy(step) | {k: v(step) if callable(v) else v for k, v in (changed or {}).items()}
        if dev and step in dev:
            line |= {"eval/dev/greedy/acc": dev[step], "eval/dev/greedy/stderr": 0.03}
        curve.append({k: v for k, v in line.items() if v is not None})
    final, base = answers
    directory = study_builder.write_run(
        folder, f"{algo}_g8", 0, final, base=base, curve=curve, result=result,
        changes=CONFIG | {"algo": CLIPPED | {"name": algo}} | dict(config or {}),
    )  # fmt: skip
    return load_run(directory)


def kinds(run: Run) -> list[str]:
    return [finding.kind for finding in diagnose(run)]


def the(run: Run, kind: str) -> Any:
    (found,) = [finding for finding in diagnose(run) if finding.kind == kind]
    return found


def test_a_run_that_learned_is_silent(tmp_path):
    assert diagnose(make(tmp_path, LEARNED)) == []


def test_a_gain_is_one_beyond_its_noise(tmp_path):
    # 4 of 100 problems turned right, none wrong: 4 points, standard error sqrt(0.04 * 0.96 * 100/99) / 10 = 1.97 points
    four = make(tmp_path / "a", ([0] * 46 + [1] * 54, [0] * 50 + [1] * 50))
    assert Evidence(four).change.se == pytest.approx((0.04 * 0.96 * 100 / 99) ** 0.5 / 10)
    assert Evidence(four).change.rose  # 4 > 1.96 * 1.97 = 3.86
    # six turned right and two wrong: the same 4 points, standard error sqrt((0.08 - 0.04^2) * 100/99) / 10 = 2.81
    both = make(tmp_path / "b", ([0] * 44 + [1] * 6 + [1] * 48 + [0] * 2, [0] * 50 + [1] * 50))
    assert Evidence(both).change.gain == pytest.approx(0.04)
    assert Evidence(both).change.se == pytest.approx(((0.08 - 0.0016) * 100 / 99) ** 0.5 / 10)
    assert not Evidence(both).change.rose
    assert the(both, "no_gain").text.startswith("accuracy went from 50.0 % to 54.0 % of 100 test problems (+4.0 ± 5.5")


def test_nothing_to_go_by_is_no_finding(tmp_path):
    run = make(tmp_path, LEARNED, steps=0)
    assert diagnose(run) == []


@pytest.mark.parametrize(
    ("changed", "config", "kind", "text", "knob"),
    [
        ({"reward/max": 0.0, "reward/mean": 0.0, "reward/correct": 0.0, "reward/flexible": 0.0}, {},
         "reward_constant", "in 20 of 20 steps every completion got the same reward (0), and 0 % were right", "task.f"),
        ({"reward/max": 0.0, "reward/mean": 0.0, "reward/correct": 0.0, "reward/flexible": 0.2}, {},
         "reward_constant", "20 % held the right answer in a form that does not count", "task.prompt.template"),
        ({"reward/min": 1.0, "reward/correct": 1.0}, {}, "reward_constant", "the task is solved", "a harder task"),
        ({"group/frac_zero_std": 0.85, "group/frac_all_wrong": 0.8}, {},
         "zero_variance", "85 % of the groups of 8 had equal rewards (80 % all wrong, 5 % all right)", "group_size"),
        ({"reward/flexible": 0.7}, {}, "form", "70 % of the completions held the right answer and only 48 %", "shots"),
        ({"value/explained_var": -0.3}, {"critic_lr": 1e-4, "algo": CLIPPED | {"critic_warmup": 2, "lam": 0.95}},
         "critic", "explained variance -0.3 in the last quarter", "critic_lr (now 0.0001), algo.critic_warmup (now 2)"),
        ({"policy/clip_frac": 0.0, "policy/ratio_max": 1.1}, {},
         "inert_clip", "no ratio left [0.8, 1.2] on the side that counts; the largest ratio was 1.1", "algo.clip_low"),
        ({"policy/clip_frac": 0.0}, {"minibatches": 1},
         "inert_clip", "with one update per rollout every ratio is 1", "epochs or minibatches above 1"),
        ({"completions/len_mean": lambda step: 100.0 - 4 * step}, {},
         "length_collapse", "answers shrank from 88 to 28 tokens", "kl_coef (now 0.0)"),
        ({"updates": 0}, {}, "no_updates", "the policy was never updated in 20 steps", "algo.*"),
        ({"updates": 0}, {"algo": CLIPPED | {"critic_warmup": 20}},
         "no_updates", "all 20 steps were the critic's warm-up", "algo.critic_warmup (now 20)"),
    ],
)  # fmt: skip
def test_why_it_did_not_learn_is_said_of_a_run_that_did_not(tmp_path, changed, config, kind, text, knob):
    stuck = the(make(tmp_path / "stuck", SAME, changed, config), kind)
    assert text in stuck.text
    assert knob in stuck.knob
    assert kind not in kinds(make(tmp_path / "learned", LEARNED, changed, config))


@pytest.mark.parametrize(
    ("changed", "kind", "text", "knob"),
    [
        ({"health/nan_steps": lambda step: step // 10}, "non_finite", "not finite in 2 of 20 steps", "lr (now 3e-05)"),
        ({"policy/grad_norm_max": lambda step: 60.0 if step == 7 else 3.0},
         "gradient_spike", "jumped to 60 at step 7, 40 times its median of 1.5", "optim.grad_clip (now 1.0)"),
        ({"policy/kl_old": lambda step: 0.2 if step == 3 else 1e-4},
         "kl_jump", "at step 3: 0.2 nats a token from the policy that sampled", "4 updates a step"),
        ({"kl/ref_k3_token": lambda step: 0.01 if step < 9 else 0.3},
         "kl_jump", "at step 9: 0.29 nats a token further from the reference", "target_kl"),
        ({"completions/eos_frac": 0.0, "completions/truncated_frac": 1.0},
         "no_eos", "0 % of the last quarter", "task.stop"),
        ({"completions/truncated_frac": 0.2},
         "truncation", "20 % of the last quarter's completions were cut at 64", "mask_"),
        ({"rollout/entropy": lambda step: 0.4 / step**2},
         "entropy_collapse", "its entropy fell from 0.12 to 0.0013", "clip_"),
    ],
)  # fmt: skip
def test_what_ails_a_run_is_said_of_one_that_learned_too(tmp_path, changed, kind, text, knob):
    found = the(make(tmp_path, LEARNED, changed), kind)
    assert text in found.text
    assert knob in found.knob
    assert kinds(load_run(found_in(tmp_path))) == [kind]


def found_in(folder: Path) -> Path:
    return next(path for path in folder.iterdir() if path.name != "baselines")


def test_limits_are_limits(tmp_path):
    # gradient spikes: 10 times the median is not yet one, nor is any below the clip
    for number, (largest, clip, expected) in enumerate(
        [(15.0, 1.0, []), (15.1, 1.0, ["gradient_spike"]), (90.0, 100.0, [])]
    ):
        spike = {"policy/grad_norm_max": lambda step, top=largest: top if step == 5 else 1.5}
        assert kinds(make(tmp_path / str(number), LEARNED, spike, {"optim": {"grad_clip": clip}})) == expected
    assert kinds(make(tmp_path / "cut", LEARNED, {"completions/truncated_frac": 0.15})) == []
    assert kinds(make(tmp_path / "kl", LEARNED, {"policy/kl_old": 0.05})) == []


def test_a_task_that_is_solved_may_lose_its_entropy(tmp_path):
    changed = {"rollout/entropy": lambda step: 0.4 / step**2, "reward/correct": lambda step: 0.95}
    assert "entropy_collapse" not in kinds(make(tmp_path, LEARNED, changed))


def test_groups_of_an_algorithm_that_does_not_compare_within_them_say_nothing(tmp_path):
    critic = {"group/frac_zero_std": 1.0, "value/explained_var": 0.2}
    assert "zero_variance" not in kinds(make(tmp_path / "critic", SAME, critic))
    batch = {"group/frac_zero_std": 1.0, "adv/abs_mean": 0.5}  # equal within groups, and advantages all the same
    assert "zero_variance" not in kinds(make(tmp_path / "batch", SAME, batch))
    single = {"group/frac_zero_std": 1.0, "adv/abs_mean": 0.0}
    assert "zero_variance" not in kinds(make(tmp_path / "one", SAME, single, {"group_size": 1}))


def test_a_cause_is_not_said_twice(tmp_path):
    nothing = {"reward/max": 0.0, "reward/correct": 0.0, "reward/flexible": 0.0, "group/frac_zero_std": 1.0,
               "adv/abs_mean": 0.0, "policy/clip_frac": 0.0, "value/explained_var": -1.0}  # fmt: skip
    assert kinds(make(tmp_path, ([0] * 99 + [1], [0] * 99 + [1]), nothing)) == [
        "no_gain", "reward_constant", "hardly_moved",
    ]  # fmt: skip


def test_accuracy_below_the_start(tmp_path):
    run = make(tmp_path, ([0] * 80 + [1] * 20, [0] * 50 + [1] * 50))
    assert kinds(run) == ["below_start"]
    found = the(run, "below_start")
    assert "that of the warm-started model: 50.0 % to 20.0 % of 100 test problems (-30.0 ± 9.0 points)" in found.text
    assert found.knob.startswith("lr (now 3e-05) lower, kl_coef (now 0) higher")


def test_answers_that_did_not_change(tmp_path):
    run = make(tmp_path)
    assert Evidence(run).unchanged == 1.0
    found = the(run, "hardly_moved")
    assert found.text == (
        "the policy hardly moved: after 80 updates at a learning rate of up to 3e-05 100 % of the greedy answers are "
        "word for word those from before"
    )
    rows = [json.loads(line) for line in gzip.decompress((run.directory / "eval.jsonl.gz").read_bytes()).splitlines()]
    for row in [row for row in rows if row["split"] == "test"][:6]:
        row["response"] = "another"
    study_builder.write_gz(run.directory, rows)
    again = load_run(run.directory)
    assert Evidence(again).unchanged == pytest.approx(0.94)
    assert "hardly_moved" not in kinds(again)


def test_a_reward_that_is_pursued_at_the_cost_of_accuracy(tmp_path):
    config = {"reward": {"name": "classifier", "parts": {"model": 1.0}}}
    rising = {"reward/mean": lambda step: 0.2 + 0.02 * step}
    run = make(tmp_path / "model", LEARNED, rising, config, dev={5: 0.8, 10: 0.6, 20: 0.5})
    assert kinds(run) == ["over_optimised"]
    found = the(run, "over_optimised")
    # at steps 1 to 5 (0.22 + ... + 0.30) / 5 = 0.26, at 16 to 20 (0.52 + ... + 0.60) / 5 = 0.56
    assert "rose from 0.26 to 0.56 while accuracy on dev fell from 80 % (step 5) to 50 %" in found.text
    # 0.8 to 0.68: 0.12 / sqrt(2 * 0.03^2) = 2.8 standard errors
    assert kinds(make(tmp_path / "little", LEARNED, rising, config, dev={5: 0.8, 20: 0.68})) == []
    # where being right is the reward there is nothing to exploit: it learned and lost it again
    assert kinds(make(tmp_path / "correct", LEARNED, rising, dev={5: 0.8, 20: 0.5})) == ["collapse"]


def test_rewards_that_say_nothing(tmp_path):
    coin = {"reward": {"name": "random", "parts": {"random": 1.0, "correct": 0.0}}}
    assert kinds(make(tmp_path / "coin", LEARNED, config=coin)) == ["random_reward"]
    own = make(tmp_path / "own", LEARNED, config={"reward": {"name": "function", "parts": {"function": 1.0}}})
    samples = own.directory / "samples.jsonl"

    def write(right: list[float], wrong: list[float]) -> None:
        rows = [{"step": 1, "reward": r, "correct": True} for r in right]
        rows += [{"step": 1, "reward": r, "correct": False} for r in wrong]
        samples.write_text("".join(json.dumps(row) + "\n" for row in rows))

    write([0.0, 1.0] * 20, [0.0, 1.0] * 30)
    assert the(own, "blind_reward").text.endswith("on average 0.5 for 40 right completions and 0.5 for 60 wrong ones")
    write([1.0] * 40, [0.0] * 60)
    assert kinds(load_run(own.directory)) == []
    write([0.0, 1.0] * 9, [0.0, 1.0] * 30)  # too few right ones to tell
    assert kinds(load_run(own.directory)) == []


def test_a_short_run_and_one_that_was_still_rising(tmp_path):
    short = make(tmp_path / "short", steps=3)
    assert the(short, "short_run").text == (
        "it was over after 3 steps with 12 updates, and the learning rate rises over the first 10 of them"
    )
    # quarters of 5 steps x 128 completions in groups of 8: 80 groups each; 20 % to 60 % is 5.6 standard errors
    rising = make(tmp_path / "rising", changed={"reward/correct": lambda step: 0.2 + 0.4 * (step > 10)})
    assert "still_rising" in kinds(rising)
    assert "still_rising" not in kinds(make(tmp_path / "flat", changed={"reward/correct": 0.4}))


def test_a_run_without_its_final_test_is_judged_by_its_training(tmp_path):
    run = make(tmp_path, changed={"reward/correct": 0.0, "reward/flexible": 0.0, "reward/max": 0.0})
    (run.directory / "result.json").unlink()
    (run.directory / "state.json").write_text(json.dumps({"status": "failed", "reason": "killed", "exit_code": 137}))
    found = diagnose(load_run(run.directory))
    assert [finding.kind for finding in found] == ["no_gain", "reward_constant"]
    assert found[0].text == "accuracy stayed at 0.0 % of 640 training completions"


def test_verifier_that_gives_up(tmp_path):
    run = make(tmp_path, LEARNED)
    line = {"step": 20, "elapsed_s": 9.0, "seconds": {}, "health/verifier_timeouts": 30, "health/verifier_errors": 10}
    (run.directory / "timing.jsonl").write_text(json.dumps(line) + "\n")
    assert the(load_run(run.directory), "verifier").text.startswith(
        "the verifier gave up on 30 comparisons and failed on 10, of 2,560 completions"
    )


# ------------------------------------------------------------------ the committed studies, whose outcome is known


def test_committed_studies_are_told_apart():
    """Of the study of all algorithms only the control with a random reward has symptoms, of the study of a reward
    model only the rows that a reward model trained."""
    zoo = load_study(RESULTS / "zoo-arithmetic")
    assert {one.row for one in by_row(zoo.runs)} == {"random_reward"}
    assert sum(not diagnose(run) for run in zoo.runs) >= 99
    bought = load_study(RESULTS / "reward_model-arithmetic")
    found = by_row(bought.runs)
    assert {one.row for one in found} == {"grpo_g8 reward=classifier", "ppo_tuned reward=classifier"}
    over = [one for one in found if one.finding.kind == "over_optimised"]
    assert [one.seeds for one in over] == [(0, 1, 2), (0, 1, 2)]


def test_first_light_says_why_nothing_was_learned():
    for task in ("gsm8k", "math"):
        for run in load_study(RESULTS / f"first_light-{task}").runs:
            found = kinds(run)
            assert found[:3] == ["no_gain", "short_run", "reward_constant"]
            assert "truncation" in found


# ------------------------------------------------------------------ the command


def test_command_prints_a_study_and_a_run(tmp_path, capsys):
    make(tmp_path / "demo", LEARNED)
    assert main([str(tmp_path / "demo")]) == 0
    assert capsys.readouterr().out == "demo: 1 run\n  nothing to say: no symptom of a run that fails to learn\n"
    run = make(tmp_path / "ill", LEARNED, {"completions/truncated_frac": 0.2})
    assert main([str(run.directory)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "grpo_g8-s0-bbbbbbbb (complete)"
    assert out.splitlines()[1].startswith("  truncation: 20 % of the last quarter's completions")
    assert "    turn: task.max_new_tokens (now 64)" in out


@pytest.mark.parametrize("words", [[], ["nowhere"], ["--verbose"], ["key=value"]])
def test_bad_input_is_one_line_and_exit_code_2(words, capsys):
    assert main(words) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_every_rule_gives_its_reason(capsys):
    assert len({rule.kind for rule in RULES}) == len(RULES)
    assert {cause for rule in RULES for cause in rule.covered_by} <= {rule.kind for rule in RULES}
    assert all(len(rule.reason) > 40 for rule in RULES)
    assert main(["rules"]) == 0
    assert capsys.readouterr().out == rules()
    assert rules().count("\n") == len(RULES) + 2


def test_no_torch():
    code = "import sys, grpo_bench.diagnose.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
