"""What each row cost: measured, by theory from its own configuration, and what it got for it."""

from __future__ import annotations

from collections.abc import Sequence

from grpo_bench.records import Run
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
from grpo_bench.table.theory import PHASES, Theory, prompt_length, theory

AXES = ("samples", "tokens", "updates", "seconds")
_COUNTER = {"tokens": "generated_tokens"}  # in metrics.jsonl


def cost_sheet(c: Comparison) -> Sheet:
    """What each arm took, as measured: networks, seconds by phase, memory, samples, tokens."""
    header = ["", *grouped("parameters", ["policy", "critic", "reference"]), "peak memory"]
    header += grouped("s/update", ["rollout", "reward", "score", "update", "sum"])
    header += ["s/step", "eval s", "total s", "samples", "of them extra", "prompts", "tokens generated"]
    header += ["trained", "updates", "FLOPs"]
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
        if learnt:
            row += [count(cost.get("parameters_reward_model")), memory(cost.get("memory_reward_model"))]
            row.append(number(cost.get("seconds_per_update_reward_model"), 3))
        rows.append(row)
    notes = [
        "Means over seeds; memory is the largest. A step is one rollout and its updates, an update one optimiser step "
        "of the policy; s/update and s/step leave evaluation out. Samples that an algorithm drops, extra ones that it "
        "takes for its baseline, and a critic's warm-up are charged to it."
    ]
    if learnt:
        notes.append("A reward model's memory is its weights and what scoring takes; its seconds are part of reward.")
    notes += [note] if (note := machine_note(c.arms)) else []
    return Sheet("cost", "Cost, measured", header, rows, notes)


def compute_sheet(c: Comparison) -> Sheet | None:
    """Theory beside measure: FLOPs by phase, model states, and both against one row; None without costs."""
    runs = {arm.label: _run(arm) for arm in c.arms}
    prompt = prompt_length([run for arm in c.arms for run in arm.scored])
    if prompt is None:
        return None
    found = {label: t for label, run in runs.items() if run and (t := theory(run, *prompt)) is not None}
    shown = [arm for arm in c.arms if arm.label in found]
    if not shown:
        return None
    base = next((arm for arm in shown if c.baseline and arm.called(c.baseline)), shown[0])
    header = ["", *grouped("FLOPs a sample", [*PHASES, "sum", "recorded", "theory / recorded"])]
    header += ["model states", "peak memory"]
    against = ["FLOPs, theory", "FLOPs, recorded", "seconds", "model states", "peak memory"]
    header += grouped(f"× {base.label}", against)
    rows = []
    for arm in shown:
        t = found[arm.label]
        samples = arm.cost.get("samples") or 0.0
        recorded = arm.cost.get("flops")
        row = [arm_label(arm), *[scientific(t.flops[p] / samples) if t.flops[p] else NONE for p in PHASES]]
        row += [scientific(t.total / samples), scientific(recorded / samples if recorded else None)]
        row += [number(t.total / recorded if recorded else None, 2)]
        row += [memory(t.states), memory(arm.cost.get("peak_memory_bytes"))]
        rows.append([*row, *_against(arm, base, t, found[base.label])])
    lengths = f"mean prompt {prompt[0]:.1f} tokens" + (", solved from the recorded FLOPs" if prompt[1] else "")
    notes = [
        f"FLOPs a sample, by theory from each row's configuration and its recorded answers ({lengths}): 2 per "
        "parameter and token forward, twice that backward, and attention; a prompt once per group, logits at sampled "
        "tokens only, a critic without a language-model head. How many samples were scored and trained on is the "
        "record's.",
        "Model states: weights, gradients and AdamW's moments, 16 bytes per trained parameter, and a frozen "
        "reference; activations, logits and the cache are not in them. Peak memory: "
        + ("of the GPU's allocator." if _on_gpu(shown) else "of the whole process, libraries included."),
        f"Against {base.label}: per sample, theory, recorded estimate and measured seconds (evaluation left out).",
    ]
    recorded_flops = [(found[arm.label].total, arm.cost.get("flops")) for arm in shown]
    ratios = [total / flops for total, flops in recorded_flops if flops]
    if any(not 0.8 < ratio < 1.25 for ratio in ratios):
        notes.append(
            "Theory / recorded far from 1: the run's own estimate counts otherwise (older records charge a prompt once "
            "per answer in training), or it did work that its configuration does not tell (rollouts for a baseline)."
        )
    if not all(t.shaped for t in found.values()):
        notes.append("The shape of a model is not known here: its parameters stand for it, attention is left out.")
    return Sheet("compute", "Compute: theory and measure", header, rows, notes)


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


def _run(arm: Arm) -> Run | None:
    """The run that stands for its row: configuration and sizes are the same in all, tokens nearly so."""
    return next((run for run in arm.scored if run.cost), None)


def _against(arm: Arm, base: Arm, t: Theory, other: Theory) -> list[str]:
    def per_sample(one: Arm, value: float | None) -> float | None:
        samples = one.cost.get("samples")
        return None if value is None or not samples else value / samples

    pairs = [
        (per_sample(arm, t.total), per_sample(base, other.total)),
        (per_sample(arm, arm.cost.get("flops")), per_sample(base, base.cost.get("flops"))),
        (_seconds(arm), _seconds(base)),
        (t.states, other.states),
        (arm.cost.get("peak_memory_bytes"), base.cost.get("peak_memory_bytes")),
    ]
    return [number(a / b, 2) if a is not None and b else NONE for a, b in pairs]


def _seconds(arm: Arm) -> float | None:
    """Of training, a sample."""
    rate = arm.cost.get("samples_per_second")
    return 1 / rate if rate else None


def _mean(reading: Reading, name: str, arm: Arm) -> float | None:
    return mean_of([reading.value(name, run) for run in arm.scored])


def _per(gain: float | None, amount: float | None, unit: float) -> float | None:
    return None if gain is None or not amount else gain * unit / amount


def _on_gpu(arms: Sequence[Arm]) -> bool:
    return any((run.provenance.get("device") or {}).get("gpus") for arm in arms for run in arm.scored[:1])
