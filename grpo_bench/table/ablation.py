"""One knob at a time: rows that differ in a single setting, block by block."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from grpo_bench.table.arms import Arm, mean_of
from grpo_bench.table.compare import Comparison
from grpo_bench.table.layout import Sheet, arm_label, estimate_text, general, number, percent, points, seeds
from grpo_bench.table.measures import Reading

# names, places and how work was split: no settings of the method
IGNORED = (
    "arm", "row", "seed", "study", "experiment", "tracker", "results", "threads", "parallel", "device", "isolate",
    "resume", "checkpoint", "export", "micro_batch_tokens", "config_version", "grad_noise_every", "measure_kl",
)  # fmt: skip
# tuned per row: they may differ in a block of another knob, which a note says; where they were varied they may not
RATES = ("lr", "critic_lr")
MOST = 4  # knobs; a study that turns more at once has no blocks


def ablation_sheet(c: Comparison) -> Sheet | None:
    """A block per knob, all else equal, by its value; None where no two rows differ in one setting alone."""
    arms = [arm for arm in c.arms if arm.accuracy and arm.config]
    found = blocks(arms)
    if not found:
        return None
    reading = Reading(c.arms)
    header = ["knob", "value", "row", "seeds", "accuracy % [95 %]"]
    header += [f"Δ {c.baseline} [95 %]"] if c.baseline else []
    header += ["KL to reference, end", "entropy, end", "groups without signal %", "beyond the clip %"]
    header += ["gradient norm", "tokens", "s/step"]
    rows, notes = [], []
    for knob, members in found:
        for value, arm in members:
            row = [knob, value, arm_label(arm), seeds(arm), estimate_text(arm.accuracy["acc"])]
            if c.baseline:
                row.append("baseline" if arm.called(c.baseline) else points(arm.to_baseline))
            row += [number(arm.stability["kl_final"], 4), number(arm.stability["entropy_final"], 3)]
            row += [percent(_mean(reading, "zero_signal", arm)), percent(_mean(reading, "clip_fraction", arm))]
            row += [general(_mean(reading, "gradient_norm", arm)), number(arm.evals.get("greedy/len_mean"), 1)]
            rows.append([*row, number(arm.cost.get("seconds_per_step"), 3)])
        for rate in RATES:
            rates = {arm.label: arm.config.get(rate) for _, arm in members}
            if knob.partition(" ")[0] != rate and len({r for r in rates.values() if r is not None}) > 1:
                said = ", ".join(f"{label} {value}" for label, value in rates.items())
                notes.append(f"Within {knob} the tuned {rate} differs: {said}.")
    notes.insert(
        0,
        "Rows of a block differ in that setting alone. Means over seeds. KL and entropy: at the last step; groups, "
        "clip and gradient norm: over all steps; tokens: greedy answers on the test.",
    )
    return Sheet("ablation", "One knob at a time", header, rows, notes)


def blocks(arms: Sequence[Arm]) -> list[tuple[str, list[tuple[str, Arm]]]]:
    """(knob, [(value, row)]) of every setting in which at least two rows differ while all others are equal.

    A row may stand in several blocks: the one that all are varied from does.
    """
    flat = {arm.label: _settings(arm.config) for arm in arms}
    keys = {key for settings in flat.values() for key in settings}
    varied = sorted(key for key in keys if len({settings.get(key) for settings in flat.values()}) > 1)
    found = []
    for knob in varied:
        groups: dict[tuple[str | None, ...], list[Arm]] = {}
        for arm in arms:
            rest = tuple(flat[arm.label].get(k) for k in varied if k != knob and (k not in RATES or knob in RATES))
            groups.setdefault(rest, []).append(arm)
        by_rate = [one for members in groups.values() for one in _at_rates(members, flat, knob)]
        several = [members for members in by_rate if len({flat[a.label].get(knob) for a in members}) > 1]
        for i, members in enumerate(several):
            name = f"{knob} ({_words(several, i, flat, varied, knob)})" if len(several) > 1 else knob
            values = [(flat[arm.label].get(knob) or "null", arm) for arm in members]
            found.append((name, sorted(values, key=lambda pair: _order(pair[0]))))
    return found


def _at_rates(members: Sequence[Arm], flat: Mapping[str, Mapping[str, str]], knob: str) -> list[list[Arm]]:
    """Rows that are equal but for ``knob`` and rates, as blocks: one for each pair of rates that several values of the
    knob share, where a value was tried at several; rates of a value that has but one were tuned, and it stays."""
    by_value: dict[str | None, list[Arm]] = {}
    by_rates: dict[tuple[str | None, ...], list[Arm]] = {}
    for arm in members:
        settings = flat[arm.label]
        by_value.setdefault(settings.get(knob), []).append(arm)
        by_rates.setdefault(tuple(settings.get(rate) for rate in RATES), []).append(arm)
    tried = [arm for own in by_value.values() if len(own) > 1 for arm in own]
    shared = [own for own in by_rates.values() if len({flat[arm.label].get(knob) for arm in own}) > 1]
    if knob in RATES or not any(arm in own for own in shared for arm in tried):
        return [list(members)]
    placed = [*tried, *(arm for own in shared for arm in own)]
    return [[arm for arm in members if arm in own or arm not in placed] for own in shared]


def _words(
    several: Sequence[Sequence[Arm]], i: int, flat: Mapping[str, Mapping[str, str]], varied: Sequence[str], knob: str
) -> str:
    """What tells this block of a knob from the others of the same knob."""
    settings = [flat[members[0].label] for members in several]
    telling = [k for k in varied if k != knob and k not in RATES and len({s.get(k) for s in settings}) > 1]
    said = []
    if len({tuple(s.get(k) for k in telling) for s in settings}) < len(settings):  # blocks of the same at other rates
        said = [f"{k}={settings[i].get(k)}" for k in RATES if k != knob and len({s.get(k) for s in settings}) > 1]
    if "algo.name" in telling:  # an algorithm's own knobs go with its name, if that tells the blocks apart
        said.append(settings[i]["algo.name"])
        names = {tuple(s.get(k) for k in telling if not k.startswith("algo.") or k == "algo.name") for s in settings}
        telling = [k for k in telling if k != "algo.name" and not (len(names) == len(settings) and k[:5] == "algo.")]
    said += [f"{key.removeprefix('algo.')}={settings[i].get(key, 'null')}" for key in telling]
    return ", ".join(said[:MOST]) + (", …" if len(said) > MOST else "")


def _settings(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in config.items():
        if not prefix and key in IGNORED:
            continue
        if isinstance(value, Mapping):
            flat |= _settings(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = json.dumps(value, ensure_ascii=False).strip('"')
    return flat


def _order(value: str) -> tuple[int, float, str]:
    try:
        return (0, float(value), "")
    except ValueError:
        return (1, 0.0, value)


def _mean(reading: Reading, name: str, arm: Arm) -> float | None:
    return mean_of([reading.value(name, run) for run in arm.scored], skip=True)
