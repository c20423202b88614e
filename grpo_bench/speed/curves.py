"""Growth curves: what one quantity costs, the others fixed. All points in one process, taken in turns."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from grpo_bench.cost import Meter
from grpo_bench.speed.child import Spec
from grpo_bench.speed.machine import wait
from grpo_bench.speed.ours import build
from grpo_bench.speed.workloads import SIZES, WORKLOADS, Workload


@dataclass(frozen=True, slots=True)
class Point:
    """One place on a curve."""

    x: float
    prompts: int
    group_size: int
    prompt_tokens: int
    tokens: int
    model: str = ""  # a workload's random model in place of the given one


def points(kind: str, scale: int) -> list[Point]:
    """The curve's points; ``scale`` multiplies its largest lengths and batches (1: minutes on two cores)."""
    if kind == "group":
        return [Point(g, 4 * scale, g, 256, 1) for g in (1, 2, 4, 8, 16)]
    if kind == "prompt":
        return [Point(n, 2, 4, n, 8) for n in (64, 128, 256, 512 * scale)]
    if kind == "completion":
        return [Point(n, 2, 4, 64, n) for n in (8, 16, 32, 64 * scale)]
    if kind == "batch":
        return [Point(4 * p, p, 4, 64, 16) for p in (1, 2, 4, 8 * scale)]
    return [Point(i, 2, 4, 64, 8, name) for i, name in enumerate(SIZES)]


def run(spec: Spec) -> dict[str, Any]:
    """``repetitions`` measurements of every point of one curve, after one that warms it up."""
    kind, asked = spec.curves["kind"], spec.curves
    places = points(kind, asked["scale"])
    if (
        kind == "group"
    ):  # a group of one has no advantage: without a term that acts all the same it would not be trained on
        spec = replace(spec, overrides=[*spec.overrides, "algo.entropy_coef=1.0e-3"])
    if kind != "size":
        rows = list(_in_turns(spec, places, asked["repetitions"]))
    else:  # a model at a time: three of them would not fit beside each other
        rows = []
        for place in places:
            workload = WORKLOADS[place.model]
            lines = [line for line in spec.overrides if not line.startswith(("model.", "model=", "task.", "task="))]
            alone = replace(spec, overrides=[*lines, *_model(workload)])
            rows += list(_in_turns(alone, [place], asked["repetitions"]))
            gc.collect()
    return {"rows": rows}


def _model(workload: Workload) -> list[str]:
    return ["model.warmstart.steps=0", *(f"model.tiny.{key}={value}" for key, value in workload.shape.items())]


def _in_turns(spec: Spec, places: list[Point], repetitions: int) -> Iterator[dict[str, Any]]:
    from grpo_bench.run import one_step
    from grpo_bench.state import State

    longest = max(place.prompt_tokens for place in places)
    first = replace(spec, group_size=places[0].group_size, prompts=places[0].prompts, prompt_tokens=longest)
    parts = build(replace(first, tokens=max(place.tokens for place in places)))
    parameters = sum(p.numel() for p in parts.models.policy.parameters())
    states = [State() for _ in places]
    for repetition in range(1 + repetitions):
        for place, state in zip(places, states, strict=True):
            cfg = parts.cfg.model_copy(
                update={
                    "group_size": place.group_size,
                    "samples_per_step": place.prompts * place.group_size,
                    "task": parts.cfg.task.model_copy(update={"max_new_tokens": place.tokens}),
                }
            )
            parts.task.length = place.prompt_tokens  # type: ignore[attr-defined]
            parts.learner.cfg = cfg
            meter = Meter(parts.meter.device)
            meter.forget_peak()
            state.step += 1
            wait(meter.device)
            start = time.perf_counter()
            one_step(replace(parts, cfg=cfg, meter=meter), state, 0.0)
            wait(meter.device)
            seconds, phases = time.perf_counter() - start, meter.end_step()
            if repetition:
                yield {
                    "curve": spec.curves["kind"],
                    "x": parameters if place.model else place.x,
                    "repetition": repetition,
                    "seconds": seconds,
                    "phases": phases,
                    "peak_bytes": meter.peak_memory(),
                    "prompts": place.prompts,
                    "group_size": place.group_size,
                    "prompt_tokens": place.prompt_tokens,
                    "tokens": place.tokens,
                }
        print(f"turn {repetition} of {repetitions}", file=sys.stderr, flush=True)
    del parts
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
