"""The rows of a table: runs grouped into arms, with their accuracies, costs and differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from grpo_bench.records import METRICS, Run, training_seconds
from grpo_bench.table.pairs import Estimate, Side, accuracy, difference, overshoot, refusal, side

PHASES = ("rollout", "reward", "score", "update", "eval", "total")


@dataclass
class Difference:
    """Of an arm to something else, by metric, from ``pairs`` (one per seed); ``refused`` says why there is none."""

    by: dict[str, Estimate] = field(default_factory=dict)
    pairs: list[tuple[Side, Side]] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    refused: str | None = None


@dataclass
class Arm:
    """A row of the table: all runs of one row name, model and configuration (hash without seed)."""

    label: str
    row: str
    arm: str
    algo: str
    model: str
    config_hash: str
    runs: list[Run]
    accuracy: dict[str, Estimate] = field(default_factory=dict)
    to_base: Difference = field(default_factory=Difference)
    to_baseline: Difference = field(default_factory=Difference)
    evals: dict[str, float | None] = field(default_factory=dict)
    cost: dict[str, float | None] = field(default_factory=dict)
    stability: dict[str, float | None] = field(default_factory=dict)

    @property
    def scored(self) -> list[Run]:
        return [run for run in self.runs if run.scored]

    @property
    def incomplete(self) -> bool:
        return any(not run.scored for run in self.runs)

    @property
    def settings(self) -> str:
        """What the row's name says beyond its arm: `` lr=1e-5`` of a sweep that varies it, "" elsewhere."""
        return self.row.removeprefix(self.arm)

    def called(self, name: str) -> bool:
        """``name`` means this row: its label, its row's name, or its arm's."""
        return name in (self.label, self.row, self.arm)

    @property
    def config(self) -> dict[str, Any]:
        return next((run.config for run in self.runs if run.config), {})


def group_arms(runs: Sequence[Run]) -> list[Arm]:
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.row, run.config_hash), []).append(run)
    arms = []
    for (row, config_hash), members in groups.items():
        # a run that never began knows neither its model nor its algorithm; its siblings do
        model = next((run.model for run in members if run.model != "?"), "?")
        algo = next((run.algo for run in members if run.algo != "?"), "?")
        arms.append(Arm(row, row, members[0].arm, algo, model, config_hash, sorted(members, key=lambda run: run.seed)))
    models = {arm.model for arm in arms if arm.model != "?"}
    for arm in arms:
        if len(models) > 1:
            arm.label += f" ({arm.model})"
    labels = [arm.label for arm in arms]
    for arm, label in zip(arms, labels, strict=True):
        if labels.count(label) > 1:
            arm.label += f" [{arm.config_hash}]"
    return arms


def summarise(arm: Arm, notes: list[str]) -> None:
    scored = arm.scored
    arm.cost, arm.stability = _cost(arm), _stability(arm)
    if not scored:
        return
    sides = [side(run) for run in scored]
    problems = int(scored[0].final["greedy"].get("n") or 0)
    arm.accuracy = {m: accuracy(sides, m, problems) for m in METRICS if all(m in s.means for s in sides)}
    arm.evals = mean_evals([run.final for run in scored])
    for run, one in zip(scored, sides, strict=True):
        split = run.final["greedy"]["split"]
        if split != "test":
            notes.append(f"{run.run_id} diverged before its final test and stands at its last {split} accuracy.")
        if one.scores is not None and abs(float(one.scores.by["acc"].mean()) - one.means["acc"]) > 5e-4:
            notes.append(
                f"{run.run_id}: result.json says {100 * one.means['acc']:.2f} %, its evaluation rows "
                f"{100 * float(one.scores.by['acc'].mean()):.2f} %; do not trust this run."
            )
    budgets = {repr((run.config.get("budget") or {}).get("amount")) for run in scored}
    if len(budgets) > 1:
        notes.append(f"{arm.label}: its seeds ran on different budgets ({', '.join(sorted(budgets))}).")


def mean_evals(evals: Sequence[dict[str, dict[str, Any]]]) -> dict[str, float | None]:
    """``greedy/len_mean``, ``sampled/pass@4``, … averaged over seeds; None where a seed has none."""
    keys = {f"{mode}/{key}" for one in evals for mode in one for key in one[mode] if key != "split"}
    values = {k: [(one.get(k.split("/", 1)[0]) or {}).get(k.split("/", 1)[1]) for one in evals] for k in sorted(keys)}
    return {key: mean_of(found) for key, found in values.items()}


def _cost(arm: Arm) -> dict[str, float | None]:
    """Means over complete runs (over diverged ones where there are no others); memory is the largest."""
    runs = [run for run in arm.runs if run.status == "complete"] or arm.scored
    if not runs:
        return {}
    flat = [_flat_cost(run) for run in runs]
    cost = {key: mean_of([one.get(key) for one in flat]) for key in flat[0]}
    peaks = [peak for one in flat if (peak := one.get("peak_memory_bytes")) is not None]
    cost["peak_memory_bytes"] = max(peaks, default=None)
    beyond = [value for run in runs if (value := overshoot(run)) is not None]
    cost["overshoot"] = max(beyond, default=None)
    return cost


def _flat_cost(run: Run) -> dict[str, float | None]:
    cost = run.cost
    names = ("samples", "extra_samples", "prompts", "generated_tokens", "trained_tokens", "updates", "steps", "flops")
    flat: dict[str, float | None] = {name: cost.get(name) for name in (*names, "peak_memory_bytes")}
    for network in ("policy", "critic", "reference"):
        flat[f"parameters_{network}"] = (cost.get("parameters") or {}).get(network)
    held = cost.get("memory") or {}
    flat |= {f"memory_{kind}": size for kind, size in held.items()}
    flat["model_states"] = sum(held.values()) if held else None
    seconds = cost.get("seconds") or {}
    work = training_seconds(run)
    flat |= {f"seconds_part_{part}": value for part, value in (seconds.get("parts") or {}).items()}
    for phase in PHASES:
        flat[f"seconds_{phase}"] = seconds.get(phase)
        flat[f"seconds_per_update_{phase}"] = _ratio(seconds.get(phase), cost.get("updates"))
    flat["seconds_per_step"] = _ratio(work, cost.get("steps"))
    flat["seconds_per_update"] = _ratio(work, cost.get("updates"))
    flat["samples_per_second"] = _ratio(cost.get("samples"), work)
    if scorer := cost.get("reward_model"):
        flat["parameters_reward_model"] = scorer["parameters"]
        flat["memory_reward_model"] = scorer["weight_bytes"] + scorer["peak_memory_bytes"]
        flat["seconds_per_update_reward_model"] = _ratio(scorer["seconds"], cost.get("updates"))
    return flat


def _stability(arm: Arm) -> dict[str, float | None]:
    begun = [run for run in arm.runs if run.status != "missing"]
    kept = [run.stability for run in arm.scored]
    accuracies = [run.final["greedy"]["acc"] for run in arm.scored]
    norms = [s["grad_norm_max"] for s in kept if s.get("grad_norm_max") is not None]
    nans = [s["nan_steps"] for s in kept if s.get("nan_steps") is not None]
    stability: dict[str, float | None] = {
        "diverged": sum(run.status == "diverged" for run in begun),
        "begun": len(begun),
        "worst_seed": min(accuracies, default=None),
        "grad_norm_max": max(norms, default=None),
        "nan_steps": sum(nans) if nans else None,
    }
    for key in ("reward_std_last", "kl_final", "entropy_final"):
        stability[key] = mean_of([s.get(key) for s in kept])
    for key in ("adv/std", "group/frac_zero_std", "value/explained_var"):
        stability[key] = mean_of([mean_of([row.get(key) for row in run.metrics], skip=True) for run in arm.scored])
    if arm.config.get("group_size") == 1:  # a group of one has no spread by definition, which says nothing
        stability["group/frac_zero_std"] = None
    return stability


def against_base(arm: Arm) -> Difference:
    """Each seed against the model it began from: its warm-started model (the pretrained one without a warm start)."""
    pairs, seeds = [], []
    # a run that diverged before its record was written began where its siblings did
    known = next((before for run in arm.runs if (before := _before(run)) is not None), None)
    for run in arm.scored:
        before = _before(run) or known
        if before is not None:
            own = side(run)
            if own.scores is not None and before.scores is not None and own.scores.ids != before.scores.ids:
                return Difference(refused=f"seed {run.seed} was tested on other problems than the model it began from")
            pairs.append((own, before))
            seeds.append(run.seed)
    if not pairs:
        return Difference(refused="the model before RL was not evaluated" if arm.scored else None)
    return _measured(pairs, seeds)


def before_rl(run: Run, which: str) -> dict[str, Any]:
    """Evaluations of the model that a run began from: "base", after the warm start (without one, and where only that
    was evaluated: as it came), or "pretrained"; {} where there are none."""
    evals = (run.result or {}).get("eval") or {}
    return evals.get(which) or (evals.get("pretrained") if which == "base" else None) or {}


def _before(run: Run) -> Side | None:
    for which in ("base", "pretrained"):
        greedy = (((run.result or {}).get("eval") or {}).get(which) or {}).get("greedy") or {}
        scores = run.baseline_scores(which)
        if scores is not None:
            return Side({m: float(scores.by[m].mean()) for m in METRICS}, scores)
        if greedy:
            return Side({m: float(greedy[m]) for m in METRICS}, None)
    return None


def against(arm: Arm, name: str, arms: Sequence[Arm]) -> tuple[Difference, Arm | None]:
    """The paired difference of an arm to the row that ``name`` means for it, and that row (None: not one row)."""
    named = [other for other in arms if other.called(name)]
    same_model = [other for other in named if other.model == arm.model]
    # arm=ppo,grpo lr=1e-5,1e-6: the rows of one learning rate belong together
    same_settings = [other for other in same_model if other.settings == arm.settings]
    for candidates in (same_model, same_settings):
        if len(candidates) == 1:
            return _pair(arm, candidates[0]), candidates[0]
    if not same_model:
        return Difference(refused=f"model differs ({arm.model} and {', '.join(o.model for o in named)})"), None
    return Difference(refused=f"{name} names {len(named)} rows ({', '.join(o.label for o in named)})"), None


def _pair(arm: Arm, other: Arm) -> Difference:
    theirs = {run.seed: run for run in other.scored}
    shared = [(run, theirs[run.seed]) for run in arm.scored if run.seed in theirs]
    if not shared:
        return Difference(refused="no seed has a finished run in both")
    # one refused pair refuses the whole: leaving it out would choose which seeds count
    reasons: dict[str, list[str]] = {}
    for a, b in shared:
        if (why := refusal(a, b)) is not None:
            reasons.setdefault(why, []).append(str(a.seed))
    if reasons:
        said = [f"{why} (seed {', '.join(seeds)})" for why, seeds in reasons.items()]
        return Difference(refused="; ".join(said), seeds=[a.seed for a, _ in shared])
    return _measured([(side(a), side(b)) for a, b in shared], [a.seed for a, _ in shared])


def _measured(pairs: list[tuple[Side, Side]], seeds: list[int]) -> Difference:
    known = [m for m in METRICS if all(m in a.means and m in b.means for a, b in pairs)]
    return Difference({m: difference(pairs, m) for m in known}, pairs, seeds)


def mean_of(values: Sequence[Any], skip: bool = False) -> float | None:
    """Mean of numbers; None where one is absent (or, with ``skip``, where all are)."""
    found = [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]
    if not found or (len(found) < len(values) and not skip):
        return None
    return sum(found) / len(found)


def _ratio(above: Any, below: Any) -> float | None:
    return float(above) / float(below) if isinstance(above, int | float) and below else None
