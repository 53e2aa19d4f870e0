"""Live progress of long phases: bars on a terminal, sparse lines in a log, nothing where a program reads.

A phase counts units towards a total, and shows its rate and its remaining time. The library calls back; it never draws.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichBars
from rich.text import Text


class Phase(Protocol):
    """A phase that is under way."""

    def update(self, done: float, *, total: float | None = None, **figures: float | str) -> None:
        """Tells how far the phase is.

        Args:
            done: Units that are finished, those before this phase's start included; may be fractional.
            total: Number of units when it is finished, where that changed or was not known before.
            figures: What to show beside the bar ("loss", "validation").
        """
        ...


class Progress(Protocol):
    """Where phases report to."""

    def phase(self, title: str, total: float, unit: str, start: float = 0) -> contextlib.AbstractContextManager[Phase]:
        """A context within which a phase runs.

        Args:
            title: One or two words.
            total: Number of units when it is finished.
            unit: What is counted, in the plural ("steps").
            start: Units that were already finished when it began; they do not count for the rate.
        """
        ...

    def note(self, text: str) -> None:
        """Says something in one line."""
        ...


def show_figures(figures: dict[str, float | str]) -> str:
    """Figures in one line: ``loss 0.4321  validation 91.2%``."""
    return "  ".join(f"{name} {value if isinstance(value, str) else f'{value:.4g}'}" for name, value in figures.items())


def show_rate(per_second: float, unit: str) -> str:
    """A rate with as many digits as one reads: per second, or per minute for what is slower."""
    if per_second >= 1:
        return f"{per_second:,.0f} {unit}/s" if per_second >= 10 else f"{per_second:.1f} {unit}/s"
    return f"{per_second * 60:.1f} {unit}/min"


def show_duration(seconds: float) -> str:
    """Seconds as ``1:02:03``, ``2:03``, or ``0:03``."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


class Bars:
    """Progress bars on a terminal.

    Args:
        console: Where to draw.
    """

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextlib.contextmanager
    def phase(self, title: str, total: float, unit: str, start: float = 0) -> Iterator[Phase]:
        """See :class:`Progress`."""
        bars = RichBars(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("[bold]{task.description:<9}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            _RateColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]left"),
            TimeRemainingColumn(),
            TextColumn("[cyan]{task.fields[figures]}"),
            console=self._console,
            transient=False,
        )
        with bars:
            # rich measures the speed from the first update on, so what was finished before does not count.
            task = bars.add_task(escape(title), total=total, completed=int(start), unit=unit, figures="")

            class Bar:
                def update(self, done: float, *, total: float | None = None, **figures: float | str) -> None:
                    if figures:
                        bars.update(task, figures=escape(show_figures(figures)))
                    bars.update(task, completed=_whole(done), total=total)

            yield Bar()

    def note(self, text: str) -> None:
        """See :class:`Progress`."""
        self._console.print(text, highlight=False, markup=False)


def _whole(done: float) -> float:
    return int(done) if done == int(done) else round(done, 2)


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(show_rate(speed, task.fields["unit"]) if speed else "", style="progress.data.speed")


class Lines:
    """One line now and then, for logs and pipes.

    Args:
        write: Takes a line without its end.
        interval: Least number of seconds between two lines of a phase.
        clock: Seconds that only grow.
    """

    def __init__(
        self, write: Callable[[str], None], interval: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write = write
        self._interval = interval
        self._clock = clock

    @contextlib.contextmanager
    def phase(self, title: str, total: float, unit: str, start: float = 0) -> Iterator[Phase]:
        """See :class:`Progress`."""
        line = _Line(self._write, self._interval, self._clock, title, total, unit, start)
        yield line
        line.finish()

    def note(self, text: str) -> None:
        """See :class:`Progress`."""
        self._write(text)


class _Line:
    def __init__(
        self,
        write: Callable[[str], None],
        interval: float,
        clock: Callable[[], float],
        title: str,
        total: float,
        unit: str,
        start: float,
    ) -> None:
        self._write, self._interval, self._clock = write, interval, clock
        self._title, self._total, self._unit, self._start = title, total, unit, start
        self._began = self._shown = clock()
        self._done, self._figures = start, dict[str, float | str]()
        write(f"{title}: {start:g}/{total:g} {unit}" if total else title)

    def update(self, done: float, *, total: float | None = None, **figures: float | str) -> None:
        self._done, self._figures = done, figures or self._figures
        self._total = self._total if total is None else total
        now = self._clock()
        if now - self._shown >= self._interval and done < self._total:
            self._shown = now
            self._write(self._text(now))

    def _text(self, now: float) -> str:
        parts = [f"{self._title}: {_whole(self._done):g}/{self._total:g} {self._unit}"]
        elapsed, fresh = now - self._began, self._done - self._start
        if elapsed > 0 and fresh > 0:
            parts.append(show_rate(fresh / elapsed, self._unit))
            if self._done < self._total:
                parts.append(f"{show_duration((self._total - self._done) * elapsed / fresh)} left")
        if self._figures:
            parts.append(show_figures(self._figures))
        return ", ".join(parts)

    def finish(self) -> None:
        now = self._clock()
        self._write(f"{self._text(now)}, took {show_duration(now - self._began)}")


class Silent:
    """Draws nothing."""

    @contextlib.contextmanager
    def phase(self, title: str, total: float, unit: str, start: float = 0) -> Iterator[Phase]:
        """See :class:`Progress`."""
        yield self

    def update(self, done: float, *, total: float | None = None, **figures: float | str) -> None:
        """See :class:`Phase`."""

    def note(self, text: str) -> None:
        """See :class:`Progress`."""


def choose(console: Console, *, quiet: bool = False) -> Progress:
    """Bars on a terminal, lines elsewhere, nothing when quiet."""
    if quiet:
        return Silent()
    if console.is_terminal:
        return Bars(console)
    return Lines(lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True))
