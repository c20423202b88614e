"""How a measure's numbers read: fractions as percent, bytes as MB, ratios with a ×."""

from __future__ import annotations

import math

from grpo_bench.stats import Interval
from grpo_bench.table.layout import NONE
from grpo_bench.table.measures import Measure

_SUFFIX = {"tokens": " tokens", "s": " s", "nats/token": "", "FLOPs": " FLOPs"}


def number_text(value: float, measure: Measure | None, *, points: bool = False) -> str:
    """One value; ``points``: it is a difference, and of percentages those are points."""
    if measure is None:
        return f"{value:.3g}"
    if measure.unit == "fraction":
        return f"{100 * value:.1f} {'points' if points else '%'}"
    if measure.unit == "bytes":
        return f"{value / 1e6:,.0f} MB" if abs(value) < 1e9 else f"{value / 1e9:.2f} GB"
    if abs(value) >= 1e7:
        text = f"{value:.2e}".replace("e+", "e")
    elif abs(value) >= 1000:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.3g}"
    return text + _SUFFIX.get(measure.unit, "")


def interval_text(interval: Interval, measure: Measure, scale: str = "difference") -> str:
    """A difference with its sign, or a ratio, and the 95 % interval where one is known; "–" for no figure."""
    if math.isnan(interval.estimate):
        return NONE
    if scale == "ratio":
        bounds = f" [{interval.low:.2f}, {interval.high:.2f}]" if interval.known else ""
        return f"{interval.estimate:.2f} ×{bounds}"
    if measure.unit == "fraction":
        bounds = f" [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]" if interval.known else ""
        return f"{100 * interval.estimate:+.1f}{bounds} points"
    size = _scale(interval, measure)
    digits = 2 if math.isclose(size, 1e9) else 0 if measure.unit == "bytes" else 3
    form = f"+,.{digits}f" if measure.unit == "bytes" else "+.3g"
    bounds = f" [{interval.low / size:{form}}, {interval.high / size:{form}}]" if interval.known else ""
    suffix = {1e9: " GB", 1e6: " MB"}.get(size, "") if measure.unit == "bytes" else _SUFFIX.get(measure.unit, "")
    return f"{interval.estimate / size:{form}}{bounds}{suffix}"


def _scale(interval: Interval, measure: Measure) -> float:
    if measure.unit != "bytes":
        return 1.0
    return 1e9 if abs(interval.estimate) >= 1e9 else 1e6
