"""What a run should cost by arithmetic from its own configuration, beside what was measured."""

from __future__ import annotations

from grpo_bench.cost import PARTS
from grpo_bench.records import Run
from grpo_bench.table.arms import Arm
from grpo_bench.table.aspects import peak_of
from grpo_bench.table.compare import Comparison
from grpo_bench.table.layout import NONE, Sheet, arm_label, grouped, memory, number, scientific
from grpo_bench.table.theory import PHASES, Theory, prompt_length, theory
from grpo_bench.table.theory_memory import Memory, memory_by_theory

_UNKNOWN = " and left out here, the tokens of a micro-batch or the model's shape not being recorded"
_MEMORY = (
    "Beside model states, by theory: activations of a micro-batch, 34 bytes per token, layer and hidden unit in 16 "
    "bits and twice that in 32 (arXiv:2205.05198), with one update per rollout also those of a critic's kept values; "
    "probabilities over the vocabulary at its sampled tokens, of which never more than 2^26 are kept; keys and values "
    "of the rows sampled together (all of a step unless rollout.batch_size says fewer), a group's prompt once, with "
    "room for the longest answer. Sampling and updating take turns: all by theory is model states and the larger. Left "
    "out: interpreter and libraries, the scoring pass, the step's batch, work space of single operations, what an "
    "allocator keeps; where memory did not hold all rows or values at once it is less."
)
_TIMED = (
    "ms a sample, measured: old log-probs to critic are parts of score and update; rewards, advantages and metrics are "
    "in all training alone. A value head on the policy's trunk is part of the actor."
)


def compute_sheet(c: Comparison) -> Sheet | None:
    """Theory beside measure: FLOPs and seconds by phase, memory, and these against one row; None without costs."""
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
    timed = any("seconds_part_actor" in arm.cost for arm in shown)
    header += grouped("ms a sample", [*PHASES, "all training"]) if timed else []
    held = {label: memory_by_theory(run, prompt[0]) for label, run in runs.items() if run}
    detailed = any(held[arm.label] for arm in shown)
    counted = any(arm.cost.get("model_states") for arm in shown)
    header += ["model states", *(["activations", "logits", "cache", "all by theory"] if detailed else [])]
    header += [*(["model states, counted"] if counted else []), "peak memory"]
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
        row += _milliseconds(arm) if timed else []
        row += [memory(t.states), *(_beside_states(held[arm.label], t.states) if detailed else [])]
        row += [memory(arm.cost.get("model_states"))] if counted else []
        row.append(memory(arm.cost.get("peak_memory_bytes")))
        rows.append([*row, *_against(arm, base, t, found[base.label])])
    lengths = f"mean prompt {prompt[0]:.1f} tokens" + (", solved from the recorded FLOPs" if prompt[1] else "")
    notes = [
        f"FLOPs a sample, by theory from each row's configuration and its recorded answers ({lengths}): 2 per "
        "parameter and token forward, twice that backward, and attention; a prompt once per group, logits at sampled "
        "tokens only, a critic without a language-model head. How many samples were scored and trained on is the "
        "record's.",
        "Model states: weights, gradients and AdamW's moments, 16 bytes per trained parameter, and a frozen "
        f"reference; activations, logits and the cache are not in them{'' if detailed else _UNKNOWN}. Peak memory: "
        f"{peak_of(shown)}.",
        f"Against {base.label}: per sample, theory, recorded estimate and measured seconds (evaluation left out).",
    ]
    notes += [_MEMORY] if detailed else []
    notes += [_TIMED] if timed else []
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


def _run(arm: Arm) -> Run | None:
    """The run that stands for its row: configuration and sizes are the same in all, tokens nearly so."""
    return next((run for run in arm.scored if run.cost), None)


def _milliseconds(arm: Arm) -> list[str]:
    """A sample, by phase and in all."""
    clocks = [arm.cost.get("seconds_rollout"), *[arm.cost.get(f"seconds_part_{part}") for part in PARTS]]
    samples, whole = arm.cost.get("samples"), _seconds(arm)
    each = [number(1000 * seconds / samples, 2) if seconds and samples else NONE for seconds in clocks]
    return [*each, number(None if whole is None else 1000 * whole, 2)]


def _beside_states(held: Memory | None, states: float | None) -> list[str]:
    """Cells of what is held beside the model states, and of all."""
    if held is None:
        return [NONE] * 4
    whole = None if states is None else states + held.largest
    return [memory(x) for x in (held.activations, held.logits, held.cache, whole)]


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
