"""What ``explain`` says is what runs: the configuration's numbers, the algorithm's advantages, the run's warnings."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grpo_bench import cli
from grpo_bench.algos import ALGORITHMS
from grpo_bench.algos.dialects import dialects_of
from grpo_bench.config import Config, parse, warnings
from grpo_bench.explain import differences, explain
from grpo_bench.explain.__main__ import main
from grpo_bench.explain.cells import cells
from grpo_bench.explain.example import outcome
from grpo_bench.explain.formula import docstring, formula, per_step
from grpo_bench.explain.plot import draw, lone_winner, objective
from grpo_bench.explain.tables import Everything, everything, insert, markdown, tables
from grpo_bench.explain.text import changes
from grpo_bench.paths import conf_dir
from grpo_bench.types import UserError

REPO = Path(__file__).resolve().parent.parent
ARMS = sorted(file.stem for file in (conf_dir() / "arm").glob("*.yaml"))
SPOKEN = [(name, d) for name, found in ALGORITHMS.items() for d in dialects_of(found, name) if d != "paper"]


@pytest.fixture(scope="session")
def composed() -> Everything:
    return everything()


@pytest.fixture
def changed(composed: Everything) -> Callable[..., Config]:
    """An algorithm's configuration with some keys changed; ``algo__kl__place`` changes ``algo.kl.place``."""

    def make(name: str, **values: Any) -> Config:
        data = composed.algorithms[name].model_dump(mode="json")
        for key, value in values.items():
            *parents, last = key.split("__")
            place = data
            for parent in parents:
                place = place[parent]
            assert last in place, key
            place[last] = value
        return parse({**data, "row": None})

    return make


@pytest.fixture
def explained(composed: Everything) -> Callable[[Config], str]:
    return lambda cfg: explain(cfg, composed.algorithms["grpo"], composed.algorithms["ppo"])


def said(text: str, head: str) -> list[str]:
    """Lines of the part that begins with ``head``."""
    part = next(part for part in ("\n\n" + text).split("\n\n") if part.startswith(head))
    return [line.strip() for line in part.splitlines()[1:]]


# ------------------------------------------------------------------ everything can be explained


@pytest.mark.parametrize("name", dict.fromkeys([*ALGORITHMS, *ARMS]))
def test_every_algorithm_and_every_arm(name: str, composed: Everything, explained: Callable[[Config], str]) -> None:
    for cfg in (found[name] for found in (composed.algorithms, composed.arms) if name in found):
        text = explained(cfg)
        lines = text.splitlines()
        assert lines[0] == cfg.algo.card().title
        assert f"algo={cfg.algo.name} " in lines[2]
        assert max(map(len, lines)) <= 120
        for missing in ("None", "nan", "inf,", "{", "``"):
            assert missing not in "\n".join(said(text, "This run") + said(text, "Per step"))
        assert f"{cfg.samples} samples of at most {cfg.task.max_new_tokens} tokens" in text
        said_warnings = " ".join(said(text, "Warnings"))
        assert all(line in said_warnings for line in warnings(cfg))
        _, departures = docstring(type(cfg.algo))
        assert len(departures) == (type(cfg.algo).__doc__ or "").count("Differs:")


@pytest.mark.parametrize(("name", "dialect"), SPOKEN)
def test_every_dialect_and_what_it_changes(
    name: str, dialect: str, changed: Callable[..., Config], explained: Callable[[Config], str]
) -> None:
    text = explained(changed(name, dialect=dialect))
    shown = " ".join(said(text, "Dialect"))
    assert shown.startswith(dialect)
    found = changes(ALGORITHMS[name], name, dialect)
    assert found
    assert all(f"{change.what} {change.here} → {change.there}" in shown for change in found)


def test_dialects_of_grpo_by_name() -> None:
    found = set(changes(ALGORITHMS["grpo"], "grpo", "trl"))
    assert {("ddof", "0", "1"), ("eps", "1e-08", "0.0001"), ("aggregation", "sequence_mean", "token_mean")} <= found


# ------------------------------------------------------------------ the run's numbers


def test_grpo_in_numbers(changed: Callable[..., Config]) -> None:
    cfg = changed("grpo", group_size=16, algo__ddof=1, kl_coef=0.1, algo__clip_high=0.28)
    lines = dict(formula(cfg))
    assert lines["advantage"] == "(r − mean) / (std + 1e-08) of the group, ddof 1"
    assert lines["baseline"] == "mean of the group; group of 16"
    assert lines["clip"] == "0.8 to 1.28"
    assert lines["maximise"] == "min[ρ Ã, clip(ρ, 0.8, 1.28) Ã] − 0.1 KL"
    assert lines["KL"].startswith("k3 of each token: π_ref/π − log(π_ref/π) − 1; π_ref: ")
    # 256 samples in 2 minibatches: 128 answers an update
    assert lines["average"] == "Σᵢ 1/128 Σₜ 1/|oᵢ| over the 128 answers of an update, tokens t ≤ |oᵢ| ≤ 40"
    assert "before the 4 updates of its rollout; ρ = 1 in the first" in lines["π_old"]
    lines = dict(per_step(cfg))
    assert lines["samples"] == "16 prompts × 16 completions = 256 samples of at most 40 tokens"  # 256 / 16
    assert lines["minibatch"] == "8 groups, 128 samples"
    assert lines["updates"] == "2 epochs × 2 minibatches = 4 updates per rollout"
    assert lines["budget"] == "10,240 samples = 40 steps, 160 updates"  # 10,240 / 256, four each


@pytest.mark.parametrize(
    ("changes_", "label", "says"),
    [
        ({"algo__aggregation": "token_mean"}, "average", "Σᵢ Σₜ 1/Σⱼ|oⱼ| over the 128 answers"),
        ({"algo__aggregation": "constant_length", "algo__length": 40}, "average", "Σᵢ Σₜ 1/(128·40) over the 128"),
        ({"algo__ratio": "sequence"}, "average", "Σᵢ 1/128 over the 128 answers of an update, one loss each"),
        ({"mask_truncated": True}, "average", "truncated answers left out but counted"),
        ({"algo__kl__place": "none"}, "KL", "none"),
        ({"kl_coef": 0.0}, "KL", "none: kl_coef is 0"),
        ({"algo__kl__estimator": "k2"}, "KL", "½ (log(π/π_ref))²"),
        ({"algo__kl__to": "old"}, "KL", "π_old/π − log(π_old/π) − 1; π_old: the policy that sampled; taken from the"),
        (
            {"algo__kl__place": "reward", "algo__kl__estimator": "k1"},
            "KL",
            "log(π_old/π_ref); π_ref: the policy before this training; 0.04 KL is taken from the rewards",
        ),
        ({"algo__kl__place": "advantage"}, "KL", "still to come, is taken from the finished advantages"),
        ({"algo__kl__clamp_in": 20.0, "algo__kl__clamp_out": 10.0}, "KL", "logarithm within ±20, the whole within ±10"),
        (
            {"algo__kl__control": "adaptive", "algo__kl__target": 0.02},
            "coefficient",
            "β ← β·(1 + clip(KL/0.02 − 1, ±0.2)·256/10000) after each step, from 0.04",
        ),
        ({"target_kl": 0.01}, "stop", "KL(π_old ‖ π) > 0.01 (k3, token mean) ends the step's updates"),
        ({"algo__entropy_coef": 0.01}, "maximise", "Ã] − 0.04 KL + 0.01 H"),
        ({"algo__dual_clip": 3.0, "algo__log_clamp": 20.0}, "clip", "at least 3 A where A < 0; log ρ within ±20"),
        ({"algo__surrogate": "logprob"}, "π_old", "it has no part in the 4 updates"),
        ({"epochs": 1, "minibatches": 1}, "π_old", "one update per rollout: π_old is π itself, ρ = 1 in value"),
        ({"reward__parts": {"correct": 1.0, "finished": 0.2}}, "reward", "r = correct + 0.2·finished"),
        ({"reward__normalise": "before"}, "reward", "r = correct; each part normalised in its group"),
        ({"budget": {"unit": "seconds", "amount": 60}}, "budget", "60 seconds; steps are as many as it allows"),
    ],
)
def test_each_setting_is_said(changes_: dict[str, Any], label: str, says: str, changed: Callable[..., Config]) -> None:
    cfg = changed("grpo", **changes_)
    assert says in dict([*formula(cfg), *per_step(cfg)])[label]


def test_ppo_in_numbers(changed: Callable[..., Config]) -> None:
    lines = dict(formula(changed("ppo", algo__value_clip=0.2, algo__critic_warmup=2)))
    assert lines["baseline"] == "V of a learned critic; one answer per prompt"
    assert lines["critic"] == (
        "V is a network of its own, as large as the policy; loss + 0.5 (V − V_target)², V within ±0.2 of V_old; "
        "in the first 2 steps it learns alone"
    )
    assert dict(formula(changed("ppo", model__critic="shared")))["critic"].startswith("V is a head on the policy's")
    assert dict(per_step(changed("ppo")))["networks"] == "policy, critic, reference"
    assert dict(per_step(changed("grpo", kl_coef=0.0)))["networks"] == "policy"
    assert dict(per_step(changed("ppo", critic_lr=0.002)))["rates"].endswith("critic_lr = 0.002")


def test_departures_go_to_the_end_of_their_sentence() -> None:
    class Own:
        """J = log π

        Differs: one
        and more.
        A note.
        Differs: two.
        """

    assert docstring(Own) == (["J = log π", "", "A note."], ["one and more.", "two."])  # type: ignore[arg-type]
    assert docstring(int.__class__("Bare", (), {})) == ([], [])


# ------------------------------------------------------------------ the worked example


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_lone_winner_of_eight_is_the_one_worked_by_hand(name: str, composed: Everything) -> None:
    algo = composed.algorithms[name].algo
    found = outcome(algo, [1.0] + [0.0] * 7, 8)
    assert algo.lone_winner is not None
    assert (found.advantages[0], found.advantages[1]) == pytest.approx(algo.lone_winner, abs=1e-6)
    assert found.pushes[0] > 0 >= found.pushes[1]  # up with the right answer, never up with a wrong one


def test_the_example_has_the_runs_own_group(changed: Callable[..., Config], explained: Callable[[Config], str]) -> None:
    lines = said(explained(changed("grpo", group_size=4)), "Worked example: one prompt with 4 answers")
    # μ = 1/4, σ = √(1/4 · 3/4) = .4330: .75/.4330 = 1.7321, −.25/.4330 = −.5774
    assert lines[:3] == [
        "rewards         [1, 0 ×3]",
        "advantages    +1.7321, -0.5774 ×3",
        "push on log π +1.7321, -0.5774 ×3",
    ]
    assert lines[3:5] == ["rewards         [1 ×4]", "advantages    0 ×4"]
    assert said(explained(changed("ppo")), "Worked example: 8 prompts with one answer each")


# ------------------------------------------------------------------ what differs


def test_an_algorithm_does_not_differ_from_itself(composed: Everything, explained: Callable[[Config], str]) -> None:
    for name in ("grpo", "ppo"):
        cfg = composed.algorithms[name]
        assert differences(cfg, cfg) == []
        assert said(explained(cfg), f"Differs from {name.upper()}") == ["nothing"]


def test_ppo_and_grpo_differ_where_their_papers_do(composed: Everything) -> None:
    found = {d.what: (d.here, d.there) for d in differences(composed.algorithms["ppo"], composed.algorithms["grpo"])}
    assert set(found) == {"baseline", "advantage", "critic", "group_size"}
    assert found["baseline"] == ("V of a learned critic", "mean of the group")
    assert found["group_size"] == ("1", "8")


def test_inert_knobs_are_no_difference(changed: Callable[..., Config], composed: Everything) -> None:
    cfg = changed("grpo", algo__length=9.0, algo__kl__target=0.5, kl_coef=0.0, algo__kl__place="none")
    found = {d.what for d in differences(cfg, composed.algorithms["grpo"])}
    assert found == {"KL", "algo.kl.place"}


# ------------------------------------------------------------------ warnings


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("grpo", {"algo__kl__target": 0.02}, "algo.kl.target=0.02 is inert: algo.kl.control is fixed"),
        ("grpo", {"algo__kl__horizon": 500.0}, "algo.kl.horizon=500.0 is inert: algo.kl.control is fixed"),
        ("grpo", {"algo__length": 40.0}, "algo.length=40.0 is inert: algo.aggregation is sequence_mean"),
        ("grpo", {"algo__kl__place": "none", "algo__kl__to": "old"}, "algo.kl.to=old is inert: algo.kl.place is none"),
        (
            "ppo",
            {"algo__value_clip": 0.2, "epochs": 1, "minibatches": 1},
            "algo.value_clip is inert with one update per rollout",
        ),
        ("ppo", {"algo__vf_coef": 0.0}, "algo.vf_coef=0: the critic is never trained"),
        ("ppo", {"algo__critic_warmup": 40}, "warm-up of 40 steps covers the whole run of 40: the policy is never"),
    ],
)
def test_what_is_set_in_vain_is_said(
    name: str, values: dict[str, Any], says: str, changed: Callable[..., Config], explained: Callable[[Config], str]
) -> None:
    cfg = changed(name, **values)
    assert any(says in line for line in warnings(cfg))
    assert says in " ".join(said(explained(cfg), "Warnings"))


def test_what_a_yaml_or_a_dialect_leaves_inert_is_not_said(changed: Callable[..., Config]) -> None:
    for name in ALGORITHMS:
        for dialect in dialects_of(ALGORITHMS[name], name):
            found = [line for line in warnings(changed(name, dialect=dialect)) if " is inert: algo." in line]
            assert not [line for line in found if not line.startswith("kl_coef")], (name, dialect, found)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_one_answer_per_prompt_is_warned_of_where_every_advantage_is_0(
    name: str, changed: Callable[..., Config]
) -> None:
    cfg = changed(name, group_size=1, minibatches=1)
    silent = not any(outcome(cfg.algo, [1.0] + [0.0] * 7, 1).advantages)
    assert any("group_size=1 with a group baseline" in line for line in warnings(cfg)) == silent


@pytest.mark.parametrize("name", ALGORITHMS)
def test_one_update_per_rollout_is_warned_of_where_something_needs_more(
    name: str, changed: Callable[..., Config]
) -> None:
    cfg = changed(name, epochs=1, minibatches=1, target_kl=0.01)
    found = warnings(cfg)
    assert any(line.startswith("target_kl is inert") for line in found)
    bounded = any(np.isfinite(bound) for bound in cfg.algo.clip_range)
    assert any(line.startswith("the clip is inert") for line in found) == bounded


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if "vf_coef" in ALGORITHMS[name].model_fields])
def test_the_weight_of_a_separate_critics_loss_is_warned_of(name: str, changed: Callable[..., Config]) -> None:
    says = "algo.vf_coef=0.5 with a separate critic scales its loss alone"
    assert any(says in line for line in warnings(changed(name, algo__vf_coef=0.5)))
    assert not any(says in line for line in warnings(changed(name, algo__vf_coef=0.5, model__critic="shared")))


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("dr_grpo", {"algo__scale": "std"}, "Dr. GRPO with std"),
        ("dr_grpo", {"algo__aggregation": "sequence_mean"}, "half of it without the constant length"),
        ("gspo", {"algo__clip_low": 0.2, "algo__clip_high": 0.2}, "GSPO with ε = 0.2 never clips"),
    ],
)
def test_half_configured_relatives_are_warned_of(
    name: str, values: dict[str, Any], says: str, changed: Callable[..., Config]
) -> None:
    assert not any(says in line for line in warnings(changed(name)))
    assert any(says in line for line in warnings(changed(name, **values)))


def test_a_run_prints_them_at_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    order: list[str] = []
    monkeypatch.setattr(cli, "_run", lambda cfg: order.append(capsys.readouterr().err))
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    monkeypatch.setattr(
        sys, "argv", ["grpo_bench", "epochs=1", "minibatches=1", "target_kl=0.01", f"results={tmp_path}"]
    )
    cli.main()
    assert order == [  # before anything runs
        "warning: target_kl is inert with one update per rollout (epochs=1 minibatches=1)\n"
        "warning: the clip is inert with one update per rollout (epochs=1 minibatches=1): the ratio is 1\n"
    ]


# ------------------------------------------------------------------ the picture


def test_the_surrogate_by_hand(composed: Everything) -> None:
    ratios = np.array([0.5, 1.1, 1.5])
    for name in ("grpo", "ppo"):
        algo = composed.algorithms[name].algo
        values, gradients = objective(algo, 1.0, ratios)  # min(ρ, 1.2) − 1
        assert values == pytest.approx([-0.5, 0.1, 0.2])
        assert gradients == pytest.approx([0.5, 1.1, 0])  # ρ, and none beyond the clip
        values, gradients = objective(algo, -1.0, ratios)  # −max(ρ, .8) + 1
        assert values == pytest.approx([0.2, -0.1, -0.5])
        assert gradients == pytest.approx([0, -1.1, -1.5])


def test_the_lone_winner_over_group_sizes(composed: Everything) -> None:
    # z-score with ddof 0: √(G − 1) and −1/√(G − 1)
    winner, loser = lone_winner(composed.algorithms["grpo"].algo, [2, 5, 17])
    assert winner == pytest.approx([1, 2, 4], abs=1e-6)
    assert loser == pytest.approx([-1, -0.5, -0.25], abs=1e-6)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_surrogate_can_be_drawn(name: str, composed: Everything) -> None:
    for advantage in (1.0, -1.0):
        for curve in objective(composed.algorithms[name].algo, advantage, np.array([0.02, 1.0, 6.0])):
            assert np.isfinite(curve).all()


def test_a_picture_is_written(composed: Everything, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    svg, png = tmp_path / "grpo.svg", tmp_path / "grpo.png"
    assert main(["dialect=paper,verl", f"plot={svg}"]) == 0
    assert f"wrote {svg}" in capsys.readouterr().err
    text = svg.read_text(encoding="utf-8")
    for label in ("GRPO", "GRPO, verl", "PPO", "A = −1", "Advantage of the winner"):
        assert label in text
    draw([composed.arms["ppo_dual_clip"]], [composed.algorithms["grpo"]], png)
    assert png.read_bytes().startswith(b"\x89PNG")
    full = tmp_path / "full.svg"
    full.symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"cannot write .*full\.svg: no space left"):
        draw([composed.arms["ppo_dual_clip"]], [], full)


# ------------------------------------------------------------------ tables


def test_the_readmes_tables_are_what_the_program_writes(composed: Everything, tmp_path: Path) -> None:
    """``python -m grpo_bench.explain table into=README.md`` writes them anew."""
    page = tmp_path / "README.md"
    page.write_bytes((REPO / "README.md").read_bytes())
    insert(page, tables(composed))
    assert page.read_text(encoding="utf-8") == (REPO / "README.md").read_text(encoding="utf-8")


def test_the_tables_name_every_algorithm_arm_and_dialect(composed: Everything) -> None:
    found = tables(composed)
    for name in ALGORITHMS:
        assert sum(f"| `{name}` |" in line for line in found["algorithms"].splitlines()) == 1
    grpo = next(line for line in found["algorithms"].splitlines() if "| `grpo` |" in line)
    assert grpo == (
        "| GRPO | `grpo` | mean of the group | (r − mean) / (std + 1e-08) of the group, ddof 0 | "
        "π/π_old of each token | 0.8 to 1.2 | 0.04, k3 to the reference, in the loss | "
        "tokens of an answer, then answers | none | none | DeepSeekMath, arXiv:2402.03300, eq. 3-4 |"
    )
    header = found["algorithms"].splitlines()[0]
    for column in ("baseline", "advantage", "ratio", "clip", "KL", "average over", "critic", "extra rollouts", "paper"):
        assert f"| {column} |" in header
    arms = found["arms"].splitlines()
    assert "| `grpo_g16` | `grpo` | `group_size=16` |" in arms
    assert "| `ppo_tuned` | `ppo` | `algo.lam=1`, `algo.critic_warmup=2` |" in arms
    assert not any("| `grpo` | `grpo` |" in line for line in arms)  # no form of its own
    assert len(found["dialects"].splitlines()) > 3
    assert markdown(["a|b"], [["c"]]) == "| a\\|b |\n| :--- |\n| c |"


def test_critic_and_extra_rollouts_follow_from_the_algorithm(composed: Everything) -> None:
    for cfg in composed.algorithms.values():
        row = cells(cfg)
        assert (row["critic"] == "none") == (not cfg.algo.needs_critic)
        more = cfg.algo.extra_rollouts != "none" or cfg.algo.refill_limit > 0
        assert (row["extra rollouts"] == "none") == (not more)
        assert all(row.values())


# ------------------------------------------------------------------ the command line


def test_a_run_is_explained_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["algo=grpo", "group_size=16", "epochs=1", "minibatches=1"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "16 prompts × 16 completions = 256 samples" in captured.out
    assert "- the clip is inert with one update per rollout" in captured.out
    assert list(tmp_path.iterdir()) == []


def test_several_runs_and_seeds_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["arm=ppo,grpo_g4", "seed=0,1"]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line in ("PPO", "GRPO")] == ["PPO", "GRPO"]
    assert "arm=grpo_g4" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["algo=grop"], "algo=grop is not known; did you mean 'grpo'?"),
        (["gruop_size=4"], "unknown option 'gruop_size'; did you mean 'group_size'?"),
        (["algo.kl.place=here"], "algo.kl.place='here': should be 'none', 'loss'"),
        (["dialect=trl5"], "dialect=trl5 is not known to algo=grpo"),
        (["dialect=trl", "algo.ddof=0"], "dialect=trl sets algo.ddof=1, and algo.ddof=0 contradicts it; drop one"),
        (["group_size=7"], "group_size=7 does not divide samples_per_step=256"),
        (["arm=grpo_g8", "algo=ppo"], "algo=ppo contradicts arm=grpo_g8"),
        (["grpo"], "'grpo' is not key=value"),
        (["plot=here.pdf"], "give a file that ends in .png or .svg"),
        (["plot="], "plot= has no value"),
        (["plot=nowhere/a.png"], "there is no folder nowhere"),
        (["plot=folder.png"], "plot=folder.png is a folder; give a file in it"),
        (["--plot"], "unknown option --plot"),
        (["--config-dir", "nowhere"], "there is no such folder"),
        (["--config-dir"], "--config-dir has no value"),
        (["table", "algo=grpo"], "drop the rest, or drop table"),
        (["into=README.md"], "write python -m grpo_bench.explain table into=FILE.md"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert says in captured.err


def test_a_page_without_markers_is_left_as_it_was(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- table:one -->\n<!-- /table -->\n")
    with pytest.raises(UserError, match="no <!-- table:two --> followed by <!-- /table --> there"):
        insert(page, {"one": "| 1 |", "two": "| 2 |"})
    assert page.read_text() == "<!-- table:one -->\n<!-- /table -->\n"
    insert(page, {"one": "| 1 |"})
    assert page.read_text() == "<!-- table:one -->\n\n| 1 |\n\n<!-- /table -->\n"
    with pytest.raises(UserError, match="cannot be read"):
        insert(tmp_path / "nowhere.md", {})


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "python -m grpo_bench.explain algo=dr_grpo group_size=8" in capsys.readouterr().out


def test_an_algorithm_of_ones_own_from_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its YAML in --config-dir, its class importable from there."""
    (tmp_path / "mine.py").write_text(
        "from grpo_bench.algos import Algorithm\n"
        "class Mine(Algorithm):\n"
        "    def advantages(self, batch):\n"
        "        return 2 * batch.rewards[:, None] * batch.mask, None\n"
        "    def token_loss(self, logp, batch, entropy=None):\n"
        "        return -logp * batch.advantages\n"
    )
    (tmp_path / "algo").mkdir()
    (tmp_path / "algo" / "mine.yaml").write_text(
        "# @package _global_\nalgo:\n  name: mine\n  class: mine:Mine\n  aggregation: token_mean\n  length: 1\n"
        "  entropy_coef: 0.0\n  kl: {place: none, to: reference, estimator: k3, control: fixed, target: 0.01, "
        "horizon: 10000}\ngroup_size: 4\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["--config-dir", str(tmp_path), "algo=mine"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("mine\n")
    assert "algo.class=mine:Mine" in out
    assert "its class has no docstring" in out
    assert "advantages    +2.0000, 0 ×3" in out


def test_nothing_of_torch_until_a_number_is_computed() -> None:
    code = (
        "import sys\n"
        "import grpo_bench.explain, grpo_bench.explain.tables, grpo_bench.explain.__main__ as cli\n"
        "assert cli.main(['algo=nothing']) == 2\n"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
