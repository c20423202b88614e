"""What each row cost, as measured, and what it got for it."""

from __future__ import annotations

from grpo_bench.stats.curves import ToTarget, to_target
from grpo_bench.table.arms import Arm, mean_of
from grpo_bench.table.compare import Comparison
from grpo_bench.table.layout import (
    NONE,
    Sheet,
    arm_label,
    count,
    general,
    grouped,
    integer,
    memory,
    number,
    scientific,
)
from grpo_bench.table.machine import machine_note
from grpo_bench.table.measures import Reading

AXES = ("samples", "tokens", "updates", "seconds")
_COUNTER = {"tokens": "generated_tokens"}  # in metrics.jsonl


def cost_sheet(c: Comparison) -> Sheet:
    """What each arm took, as measured: networks, seconds by phase, memory, samples, tokens."""
    header = ["", *grouped("parameters", ["policy", "critic", "reference"]), "peak memory"]
    header += grouped("s/update", ["rollout", "reward", "score", "update", "sum"])
    header += ["s/step", "eval s", "total s", "samples", "of them extra", "prompts", "tokens generated"]
    header += ["trained", "updates", "FLOPs"]
    counted = [(run.cost.get("memory") or {}).items() for arm in c.arms for run in arm.scored]
    kinds_held = list(dict.fromkeys(kind for states in counted for kind, size in states if size))
    header += grouped("model states", [*kinds_held, "sum"]) if kinds_held else []
    learnt = any("parameters_reward_model" in arm.cost for arm in c.arms)
    header += ["reward model", "its memory", "its s/update"] if learnt else []
    rows = []
    for arm in c.arms:
        cost = arm.cost
        if not cost:
            continue
        nets = [count(cost.get(f"parameters_{net}")) for net in ("policy", "critic", "reference")]
        phases = [number(cost.get(f"seconds_per_update_{p}"), 3) for p in ("rollout", "reward", "score", "update")]
        clocks = [cost.get(key) for key in ("seconds_per_update", "seconds_per_step", "seconds_eval", "seconds_total")]
        kinds = ("samples", "extra_samples", "prompts", "generated_tokens", "trained_tokens", "updates")
        row = [arm_label(arm), *nets, memory(cost.get("peak_memory_bytes")), *phases]
        row += [*[number(x, 3) for x in clocks[:2]], *[number(x, 0) for x in clocks[2:]]]
        row += [*[integer(cost.get(kind)) for kind in kinds], scientific(cost.get("flops"))]
        if kinds_held:
            row += [memory(cost.get(f"memory_{kind}") or None) for kind in kinds_held]
            row.append(memory(cost.get("model_states")))
        if learnt:
            row += [count(cost.get("parameters_reward_model")), memory(cost.get("memory_reward_model"))]
            row.append(number(cost.get("seconds_per_update_reward_model"), 3))
        rows.append(row)
    notes = [
        "Means over seeds; memory is the largest. A step is one rollout and its updates, an update one optimiser step "
        "of the policy; s/update and s/step leave evaluation out. Samples that an algorithm drops, extra ones that it "
        "takes for its baseline, and a critic's warm-up are charged to it."
    ]
    if kinds_held:
        notes.append(
            "Model states: bytes of tensors at the end of a run, the gradients as an update holds them; optimizer is "
            "AdamW's moments, sampler a copy of the weights that is kept for sampling."
        )
    if learnt:
        notes.append("A reward model's memory is its weights and what scoring takes; its seconds are part of reward.")
    notes += [note] if (note := machine_note(c.arms)) else []
    return Sheet("cost", "Cost, measured", header, rows, notes)


def efficiency_sheet(c: Comparison) -> Sheet | None:
    """What was got for it: gain per cost, and samples and seconds to a target; None without a gain to speak of."""
    reading = Reading(c.arms)
    aim = reading.target
    shown = [arm for arm in c.arms if arm.accuracy and arm.cost]
    if not any("acc" in arm.to_base.by for arm in shown):
        return None
    header = ["", *grouped("gain", ["points", "per 1,000 samples", "per minute", "per 1e12 FLOPs"])]
    header += ["area under the curve %", *grouped("to the target", ["reached", *AXES])]
    rows = []
    for arm in shown:
        difference = arm.to_base.by.get("acc")
        gain = None if difference is None else 100 * difference.interval.estimate
        cost = arm.cost
        seconds = mean_of([reading.value("seconds_training", run) for run in arm.scored], skip=True)
        per = [
            _per(gain, cost.get("samples"), 1000),
            _per(gain, seconds, 60),
            _per(gain, cost.get("flops"), 1e12),
        ]
        area = _mean(reading, "learning_curve_area", arm)
        row = [arm_label(arm), number(gain, 1), *[general(x) for x in per], number(area and 100 * area, 1)]
        took = {axis: took_to_target(reading, arm, axis) for axis in AXES}
        samples = took["samples"]
        row.append(f"{samples.reached} of {samples.n}" if samples else NONE)
        row += [_median(one, 1 if axis == "seconds" else 0) for axis, one in took.items()]
        rows.append(row)
    notes = ["Gain: accuracy on the final test minus that of the model before RL; means over seeds, training only."]
    if aim:
        notes.append(
            f"{aim.words[0].upper()}{aim.words[1:]}. Medians over seeds, one that never got there being later "
            "than all that did; beyond: fewer than half got there by then. "
            "Area: mean dev accuracy over the samples of a run."
        )
    return Sheet("efficiency", "Gain for cost", header, rows, notes)


def took_to_target(reading: Reading, arm: Arm, axis: str) -> ToTarget | None:
    """What a row's seeds took to the study's target; None without one, or without curves."""
    met = [one for run in arm.scored if (one := reading.reached(run, _COUNTER.get(axis, axis))) is not None]
    return to_target(met) if met else None


def _median(took: ToTarget | None, digits: int) -> str:
    if took is None:
        return NONE
    return f"beyond {number(took.until, digits)}" if took.median is None else number(took.median, digits)


def _mean(reading: Reading, name: str, arm: Arm) -> float | None:
    return mean_of([reading.value(name, run) for run in arm.scored])


def _per(gain: float | None, amount: float | None, unit: float) -> float | None:
    return None if gain is None or not amount else gain * unit / amount
