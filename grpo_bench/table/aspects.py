"""What PPO and GRPO are, in a row's own figures: value network, advantage, stability, cost, memory, scope."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from grpo_bench.table.arms import Arm
from grpo_bench.table.collapse import collapse_count
from grpo_bench.table.layout import NONE, count, general, integer, memory, number, percent
from grpo_bench.table.theory import size_of, states


def value_network(arm: Arm) -> str:
    policy, critic = arm.cost.get("parameters_policy"), arm.cost.get("parameters_critic")
    if not critic:
        return "none"
    where = (arm.config.get("model") or {}).get("critic")
    words = "value head on the policy's trunk" if where == "shared" else "a network of its own"
    share = f", {100 * critic / policy:.0f} % of the policy's" if policy else ""
    return f"{words}: {count(critic)} parameters{share}"


def advantage(arm: Arm) -> str:
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


def collapses(arm: Arm) -> str:
    fell, known = collapse_count(arm)
    return f"{fell} of {known} seeds collapsed" if known else "no evaluations on dev to see a collapse by"


def steadiness(arm: Arm) -> str:
    s = arm.stability
    accuracies = [run.final["greedy"]["acc"] for run in arm.scored]
    said = [collapses(arm), f"{s['diverged']:.0f} of {s['begun']:.0f} seeds non-finite"]
    if len(accuracies) > 1:
        said.insert(0, f"sd over seeds {100 * np.std(accuracies, ddof=1):.1f} points")
    said.append(f"worst seed {percent(s['worst_seed'])} %")
    said.append(f"largest gradient norm {general(s['grad_norm_max'])}")
    return "; ".join(said)


def speed(arm: Arm) -> str:
    cost = arm.cost
    said = [
        f"{number(cost.get('seconds_per_step'), 2)} s a step, {number(cost.get('seconds_per_update'), 2)} s an update"
    ]
    said.append(f"{number(cost.get('samples_per_second'), 1)} samples/s")
    total = cost.get("seconds_total")
    said.append(f"{integer(cost.get('samples'))} samples in {number(total, 0)} s, evaluation included")
    return "; ".join(said)


def room(arm: Arm) -> str:
    nets = {net: arm.cost.get(f"parameters_{net}") for net in ("policy", "critic", "reference")}
    return " + ".join(f"{net} {count(size)}" for net, size in nets.items() if size) or NONE


def peak_of(arms: Sequence[Arm]) -> str:
    """What a peak of memory is the peak of."""
    on_gpu = any((run.provenance.get("device") or {}).get("gpus") for arm in arms for run in arm.scored[:1])
    return "of the GPU's allocator" if on_gpu else "of the whole process, libraries included"


def held(arm: Arm) -> str:
    """Model states by kind, as counted."""
    kinds: dict[str, int] = next((run.cost["memory"] for run in arm.scored if run.cost.get("memory")), {})
    return " + ".join(f"{kind} {memory(size)}" for kind, size in kinds.items() if size) or NONE


def uncounted(arm: Arm) -> str:
    """What a peak of memory is worth where model states were not counted."""
    run = next((run for run in arm.scored if (run.cost.get("parameters") or {}).get("policy")), None)
    share = None
    if run is not None:
        share = states(run, size_of(run.config.get("model") or {}, float(run.cost["parameters"]["policy"]))[0])
    return peak_of([arm]) + (f"; model states by theory {memory(share)}" if share else "")


def scope(arm: Arm) -> str:
    task = arm.config.get("task") or {}
    problems = arm.accuracy["acc"].problems
    said = f"tested: {task.get('name', '?')} v{task.get('version', '?')}, {problems:,} problems, {arm.model}"
    policy = arm.cost.get("parameters_policy")
    return said + (f" ({count(policy)} parameters)" if policy else "")
