"""What a person sees of a run: a bar with ETA on a terminal, a line now and then anywhere else.

Everything goes to stderr but the last line of the run, which goes to stdout.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

EVERY_SECONDS = 30.0
_SHOWN = {
    "reward/mean": "reward",
    "reward/correct": "correct",
    "kl/ref_k3_token": "kl",
    "rollout/entropy": "entropy",
    "completions/len_mean": "len",
    "eval/dev/greedy/acc": "dev",
}


class Console:
    """Progress of one run.

    ``step`` and ``phase`` may be called as often as there is news: a terminal shows all of it on one line, a file gets
    a line every ``every_seconds`` (and the first and the last). ``initial`` is the share of the budget that was spent
    before this process began, so that the ETA of a continued run is of its own pace.
    """

    def __init__(
        self, initial: float = 0.0, stream: TextIO | None = None, every_seconds: float = EVERY_SECONDS
    ) -> None:
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._every = every_seconds
        self._label = ""
        self._bar: tqdm[Any] | None = None
        self._seen = time.monotonic()  # of the latest news
        self._start = self._seen  # of the present label
        self._first = (self._seen, 0.0)  # when the label's first news came, and its fraction
        self._last_line = float("-inf")
        self._dev: dict[str, Any] = {}

    def begin(self, fraction_done: float) -> None:
        """Training starts now with ``fraction_done`` of the budget spent; without this the first step is its start."""
        self._seen = time.monotonic()
        self._enter("train", fraction_done)

    def step(self, step: int, fraction_done: float, metrics: dict[str, Any]) -> None:
        """One step is done; ``fraction_done`` (0..1) of the budget is spent. ``metrics`` are the step's."""
        # the last known dev accuracy stays in view between evaluations
        self._dev = {k: v for k, v in metrics.items() if k == "eval/dev/greedy/acc"} or self._dev
        shown = {short: (metrics | self._dev).get(name) for name, short in _SHOWN.items()}
        text = "  ".join(f"{short} {value:.3g}" for short, value in shown.items() if value is not None)
        self._show("train", f"step {step}", min(fraction_done, 1.0), text)

    def phase(self, name: str, done: int, total: int) -> None:
        """Progress of what is not a training step: ``console.phase("warm start", 120, 400)``."""
        self._show(name, name, done / total if total else 1.0, f"{done}/{total}")

    def evaluation(self, done: int, total: int) -> None:
        """Progress of an evaluation, in completions; the bar of the training comes back with its next step."""
        self.phase("evaluation", done, total)

    def note(self, text: str) -> None:
        """One line that stays."""
        if self._terminal:
            tqdm.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the terminal tidy; harmless when called twice."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def last_line(self, result: dict[str, Any], directory: Path) -> None:
        """Close, and print accuracy before and after and where the record lies, to stdout."""
        self.close()
        print(summary(result, directory), flush=True)

    def _enter(self, label: str, fraction: float) -> None:
        self.close()
        now = time.monotonic()
        self._label, self._start, self._first = label, self._seen, (now, fraction)
        self._seen, self._last_line = now, float("-inf")

    def _show(self, label: str, what: str, fraction: float, text: str) -> None:
        if label != self._label:
            self._enter(label, fraction)
        self._seen = now = time.monotonic()
        elapsed = _duration(now - self._start)
        since, already = self._first
        left = (now - since) * (1 - fraction) / (fraction - already) if fraction > already else None
        eta = "?" if left is None and fraction < 1 else _duration(left or 0.0)
        if self._terminal:
            if self._bar is None:
                self._bar = tqdm(
                    total=1.0,
                    file=self._stream,
                    leave=False,
                    dynamic_ncols=True,
                    bar_format="{desc} {percentage:3.0f}%|{bar:20}|{postfix}",
                )
            self._bar.n = fraction
            self._bar.set_description_str(what, refresh=False)
            # tqdm's own estimate would count what an earlier process did
            self._bar.set_postfix_str(f"{elapsed}<{eta}  {text}", refresh=False)
            self._bar.refresh()
            return
        if fraction >= 1.0 or now - self._last_line >= self._every:
            self._last_line = now
            line = f"{what}  {fraction:.0%}  {elapsed}, {eta} left  {text}"
            print(line, file=self._stream, flush=True)


def summary(result: dict[str, Any], directory: Path) -> str:
    """The last line of a run: accuracy before and after (greedy, test split), and where its record lies.

    Before is the model that RL started from (``eval.base``), or the pretrained one where nothing was done to it.
    """
    evals = result.get("eval") or {}
    before = _greedy(evals.get("base")) or _greedy(evals.get("pretrained"))
    after = _greedy(evals.get("final"))
    accuracy = " -> ".join(_percent(e) for e in (before, after))
    n = f" (test, greedy, n={after['n']})" if after.get("n") else ""
    status = result.get("status", "complete")
    return f"{result.get('run_id', 'run')} {status}: accuracy {accuracy}{n}; record in {_relative(directory)}"


def _greedy(found: dict[str, Any] | None) -> dict[str, Any]:
    return ((found or {}).get("greedy")) or {}


def _percent(found: dict[str, Any]) -> str:
    if found.get("acc") is None:
        return "not measured"
    error = found.get("stderr")
    return f"{100 * found['acc']:.1f} %" + (f" ± {100 * error:.1f}" if error is not None else "")


def _relative(directory: Path) -> Path:
    try:
        return directory.resolve().relative_to(Path.cwd())
    except ValueError:
        return directory


def _duration(seconds: float) -> str:
    """``3:07`` or ``1:02:03``."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
