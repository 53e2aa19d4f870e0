from __future__ import annotations

import io

import pytest
from rich.console import Console

from distillrs.cli import progress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_lines_show_rate_and_remaining_time_without_what_was_done_before():
    clock, lines = Clock(), []
    reporter = progress.Lines(lines.append, interval=5, clock=clock)
    with reporter.phase("distil", 100, "steps", start=50) as phase:
        for done in range(51, 101):
            clock.now += 0.5
            phase.update(done, loss=1 / done)
    assert lines[0] == "distil: 50/100 steps"
    assert lines[1] == "distil: 60/100 steps, 2.0 steps/s, 0:20 left, loss 0.01667"
    assert len(lines) == 6
    assert lines[-1] == "distil: 100/100 steps, 2.0 steps/s, loss 0.01, took 0:25"


def test_lines_are_sparse():
    clock, lines = Clock(), []
    with progress.Lines(lines.append, interval=5, clock=clock).phase("train", 1000, "epochs") as phase:
        for done in range(1, 1001):
            clock.now += 0.01
            phase.update(done)
    assert len(lines) == 3


def test_phase_that_fails_says_no_end():
    lines = []
    reporter = progress.Lines(lines.append)

    def fail():
        with reporter.phase("distil", 10, "steps"):
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        fail()
    assert lines == ["distil: 0/10 steps"]


def test_bars_show_figures_rate_and_remaining_time():
    drawn = io.StringIO()
    console = Console(file=drawn, force_terminal=True, width=140, color_system=None)
    with progress.Bars(console).phase("distil", 10, "steps") as phase:
        for done in range(1, 11):
            phase.update(done, loss=0.5, note="[best]")
    text = drawn.getvalue()
    for part in ("distil", "10/10", "steps", "loss 0.5", "[best]", "left"):
        assert part in text


def test_only_a_terminal_gets_bars():
    assert isinstance(progress.choose(Console(file=io.StringIO())), progress.Lines)
    assert isinstance(progress.choose(Console(file=io.StringIO(), force_terminal=True)), progress.Bars)
    assert isinstance(progress.choose(Console(file=io.StringIO(), force_terminal=True), quiet=True), progress.Silent)


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (125, "2:05"), (3723, "1:02:03")])
def test_durations_read_like_a_clock(seconds, text):
    assert progress.show_duration(seconds) == text


@pytest.mark.parametrize(("rate", "text"), [(1234.5, "1,234 x/s"), (2.54, "2.5 x/s"), (0.05, "3.0 x/min")])
def test_slow_rates_are_per_minute(rate, text):
    assert progress.show_rate(rate, "x") == text
