"""PPO and GRPO side by side, aspect by aspect, as their usual comparison has it, with measured figures in its cells."""

from __future__ import annotations

from grpo_bench.table.arms import Arm
from grpo_bench.table.compare import Comparison
from grpo_bench.table.layout import (
    NONE,
    Sheet,
    arm_label,
    count,
    estimate_text,
    general,
    integer,
    memory,
    number,
    percent,
)

COLUMNS = 4  # more side by side cannot be read


def article_sheet(c: Comparison) -> Sheet | None:
    """Value network, advantage, stability, efficiency, memory and scope of the PPO and GRPO rows; None without any."""
    families = {name: [arm for arm in c.arms if arm.algo == name and arm.accuracy] for name in ("ppo", "grpo")}
    if not any(families.values()):
        return None
    chosen, notes = _choose(families, c.baseline)
    header = ["", *[f"{arm.algo.upper()}: {arm_label(arm)}" for arm in chosen]]
    aspects = {
        "value network": _value_network,
        "advantage": _advantage,
        "stability": _stability,
        "efficiency": _efficiency,
        "memory": _memory,
        "scope": _scope,
    }
    rows = [[name, *[cell(arm) for arm in chosen]] for name, cell in aspects.items()]
    for name, members in families.items():
        if not members:
            notes.append(f"No finished {name.upper()} run in this study.")
    return Sheet("ppo_and_grpo", "PPO and GRPO, measured", header, rows, notes, wide=True)


def _choose(families: dict[str, list[Arm]], baseline: str | None) -> tuple[list[Arm], list[str]]:
    """The baseline's row first within its family, then as the study lists them."""
    ranked = {
        name: sorted(members, key=lambda arm: not (baseline and arm.called(baseline)))
        for name, members in families.items()
    }
    if sum(map(len, ranked.values())) <= COLUMNS:
        return [arm for members in ranked.values() for arm in members], []
    half = COLUMNS // 2
    kept = {
        name: members[: max(half, COLUMNS - len(o))]
        for (name, members), o in zip(ranked.items(), reversed(ranked.values()), strict=True)
    }
    left = [arm.label for name, members in ranked.items() for arm in members[len(kept[name]) :]]
    return [arm for members in kept.values() for arm in members], [f"Not shown here: {', '.join(left)}."]


def _value_network(arm: Arm) -> str:
    policy, critic = arm.cost.get("parameters_policy"), arm.cost.get("parameters_critic")
    if not critic:
        return "none"
    where = (arm.config.get("model") or {}).get("critic")
    words = "value head on the policy's trunk" if where == "shared" else "a network of its own"
    share = f", {100 * critic / policy:.0f} % of the policy's" if policy else ""
    return f"{words}: {count(critic)} parameters{share}"


def _advantage(arm: Arm) -> str:
    knobs = arm.config.get("algo") or {}
    if "lam" in knobs:
        words = f"per token, GAE (γ = {knobs.get('gamma')}, λ = {knobs['lam']})"
        words += ", whitened" if knobs.get("whiten") else ""
    else:
        words = f"per answer, relative to its group of {arm.config.get('group_size', '?')}"
        words += ", divided by the group's sd" if "eps" in knobs else ""
    sd = arm.stability.get("adv/std")
    said = [words]
    if sd is not None:
        said.append(f"sd {sd:.3f}, variance {sd**2:.3f} (mean over steps)")
    if (flat := arm.stability.get("group/frac_zero_std")) is not None:
        said.append(f"{percent(flat)} % of groups without signal")
    if (explained := arm.stability.get("value/explained_var")) is not None:
        said.append(f"critic explains {percent(explained)} % of the variance of returns")
    return "; ".join(said)


def _stability(arm: Arm) -> str:
    s = arm.stability
    said = [f"{s['diverged']:.0f} of {s['begun']:.0f} seeds diverged", f"worst seed {percent(s['worst_seed'])} %"]
    said.append(f"largest gradient norm {general(s['grad_norm_max'])}")
    said.append(f"reward sd in the last steps {number(s['reward_std_last'], 3)}")
    if s["kl_final"] is not None:
        said.append(f"KL to the reference at the end {number(s['kl_final'], 4)}")
    return "; ".join(said)


def _efficiency(arm: Arm) -> str:
    cost = arm.cost
    said = [f"{number(cost.get('seconds_per_step'), 2)} s a step"]
    said.append(f"{number(cost.get('seconds_per_update'), 2)} s an update")
    said.append(f"{number(cost.get('samples_per_second'), 1)} samples/s")
    total = cost.get("seconds_total")
    said.append(f"{integer(cost.get('samples'))} samples in {number(total, 0)} s, evaluation included")
    said.append(f"accuracy {estimate_text(arm.accuracy['acc'])} %")
    return "; ".join(said)


def _memory(arm: Arm) -> str:
    nets = {net: arm.cost.get(f"parameters_{net}") for net in ("policy", "critic", "reference")}
    held = " + ".join(f"{net} {count(size)}" for net, size in nets.items() if size)
    return f"peak {memory(arm.cost.get('peak_memory_bytes'))}; {held or NONE} parameters"


def _scope(arm: Arm) -> str:
    task = arm.config.get("task") or {}
    problems = arm.accuracy["acc"].problems
    said = f"tested: {task.get('name', '?')} v{task.get('version', '?')}, {problems:,} problems, {arm.model}"
    policy = arm.cost.get("parameters_policy")
    said += f" ({count(policy)} parameters)" if policy else ""
    untested = "code generation" + ("" if policy and policy >= 1e9 else ", models of billions of parameters")
    return f"{said}; not tested here: {untested}"
