"""The console: lines without a terminal, a bar with ETA on one, and the last line."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from grpo_bench import console
from grpo_bench.console import Console, summary

METRICS = {"reward/mean": 0.5, "kl/ref_k3_token": 0.00123, "samples": 8}


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    return clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_now_and_then_without_a_terminal(clock):
    out = io.StringIO()
    shown = Console(stream=out, every_seconds=30)
    for step in range(1, 11):
        clock.now += 10
        shown.step(step, step / 10, METRICS)
    shown.close()
    lines = out.getvalue().splitlines()
    # the first step starts the clock; then a line at 30 s, 60 s, 90 s, which is the end
    assert [line.split("  ")[0] for line in lines] == ["step 1", "step 4", "step 7", "step 10"]
    assert "\r" not in out.getvalue()
    assert "reward 0.5  kl 0.00123" in lines[1]


def test_eta_is_of_this_process(clock):
    out = io.StringIO()
    shown = Console(stream=out, every_seconds=0)
    clock.now += 20
    shown.step(7, 0.6, METRICS)  # continued: nearly all of the 60 % were there
    clock.now += 100
    shown.step(8, 0.7, METRICS)  # a tenth took 100 s, so three tenths take 300 s
    assert [line.split("  reward")[0] for line in out.getvalue().splitlines()] == [
        "step 7  60%  0:20, ? left",
        "step 8  70%  2:00, 5:00 left",
    ]


def test_eta_from_the_start_of_training(clock):
    out = io.StringIO()
    shown = Console(stream=out, every_seconds=0)
    shown.begin(0.6)
    clock.now += 100
    shown.step(8, 0.7, METRICS)
    assert out.getvalue().startswith("step 8  70%  1:40, 5:00 left")


def test_phases_and_the_dev_accuracy_stay_in_view(clock):
    out = io.StringIO()
    shown = Console(stream=out, every_seconds=0)
    shown.phase("warm start", 100, 400)
    clock.now += 3
    shown.phase("warm start", 400, 400)
    shown.step(1, 0.5, METRICS | {"eval/dev/greedy/acc": 0.25})
    shown.step(2, 1.0, METRICS)
    shown.note("a note")
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("warm start  25%")
    assert lines[1].startswith("warm start  100%  0:03, 0:00 left  400/400")
    assert "dev 0.25" in lines[3]
    assert lines[-1] == "a note"


def test_a_terminal_gets_one_line_that_is_redrawn(clock):
    out = Terminal()
    shown = Console(stream=out)
    shown.step(1, 0.25, METRICS)
    clock.now += 65
    shown.step(2, 0.5, METRICS)
    shown.note("a note")
    shown.close()
    shown.close()
    text = out.getvalue()
    assert "step 2  50%|" in text
    assert "1:05<2:10  reward 0.5" in text
    assert "a note\n" in text
    assert text.count("\n") == 1  # the note's


def test_last_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = {
        "run_id": "grpo-s0-ab",
        "status": "complete",
        "eval": {
            "base": {"greedy": {"acc": 0.45, "stderr": 0.0157, "n": 1000}},
            "final": {"greedy": {"acc": 0.741, "stderr": 0.0138, "n": 1000}},
        },
    }
    Console(stream=io.StringIO()).last_line(result, tmp_path / "results" / "adhoc" / "grpo-s0-ab")
    assert capsys.readouterr().out == (
        "grpo-s0-ab complete: accuracy 45.0 % ± 1.6 -> 74.1 % ± 1.4 (test, greedy, n=1000); "
        "record in results/adhoc/grpo-s0-ab\n"
    )


def test_last_line_without_a_warm_start_or_any_evaluation():
    pretrained = {"eval": {"pretrained": {"greedy": {"acc": 0.1}}, "base": None, "final": {"greedy": {"acc": 0.2}}}}
    assert "accuracy 10.0 % -> 20.0 %;" in summary(pretrained, Path("x"))
    assert "accuracy not measured -> not measured;" in summary({}, Path("x"))
