"""Laws of pairs that are made from other laws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from distillrs import random
from distillrs.checks import check_number
from distillrs.errors import argument_error
from distillrs.random import Units
from distillrs.schedule.laws import TimeLaw, Uniform, _check_law, _numbers
from distillrs.schedule.pair_laws import PairLaw, Segments, Times
from distillrs.step import Step


def _check_pairs(name: str, law: object) -> None:
    if not isinstance(law, PairLaw):
        raise argument_error(name, law, "a law of pairs")


def _sorted_times(values: tuple[float, ...]) -> tuple[float, ...]:
    times = tuple(sorted(_numbers("times", values)))
    if len(times) < 2 or len(set(times)) < len(times) or not 0 <= times[0] < times[-1] <= 1:
        raise argument_error("times", values, "two or more distinct times from 0 to 1")
    return times


@dataclass(frozen=True, slots=True)
class Adjacent(PairLaw):
    """A pair of neighbours as the first step of a map to somewhere else: ``(t, s)`` becomes ``t``, middle ``s``, ``r``.

    What discrete consistency compares: the map from ``t`` and the map from ``s``, both to ``r``.

    Attributes:
        law: Of the pairs of neighbours.
        end: ``r``: a time, or segments whose lower edge it is; never above ``s``.
    """

    law: PairLaw
    end: float | Segments = 0.0

    def __post_init__(self) -> None:
        _check_pairs("law", self.law)
        if not isinstance(self.end, Segments):
            check_number("end", self.end, "a time from 0 to below 1, or segments", least=0, below=1)

    def pairs(self, units: Units, shape: tuple[int, ...], step: Step, name: str) -> Times:
        """See :class:`PairLaw`."""
        t, s, _ = self.law.pairs(units, shape, step, name)
        end = self.end.below(t) if isinstance(self.end, Segments) else torch.full_like(t, self.end)
        # A step that would cross the end stops there.
        s = torch.maximum(s, torch.minimum(end, t))
        return Times(t, torch.minimum(end, t), s)


@dataclass(frozen=True, slots=True)
class Neighbouring(PairLaw):
    """Two neighbours of a list of times, every pair equally likely.

    Attributes:
        times: Two or more distinct ones, in any order.
    """

    times: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", _sorted_times(self.times))

    def pairs(self, units: Units, shape: tuple[int, ...], step: Step, name: str) -> Times:
        """See :class:`PairLaw`."""
        low = random.integers(units, len(self.times) - 1, *shape, step=step, name=name)
        times = torch.tensor(self.times, dtype=torch.float64)
        return Times(times[low + 1], times[low])


@dataclass(frozen=True, slots=True)
class AnyPair(PairLaw):
    """Two different times of a list, every pair equally likely: a stored path, between any two of its states.

    Attributes:
        times: Two or more distinct ones, in any order.
    """

    times: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", _sorted_times(self.times))

    def pairs(self, units: Units, shape: tuple[int, ...], step: Step, name: str) -> Times:
        """See :class:`PairLaw`."""
        times = torch.tensor(self.times, dtype=torch.float64)
        high, low = torch.tril_indices(len(times), len(times), -1)
        drawn = random.integers(units, len(high), *shape, step=step, name=name)
        return Times(times[high[drawn]], times[low[drawn]])


@dataclass(frozen=True, slots=True)
class FromNoise(PairLaw):
    """From time 1 to a drawn time: for maps whose states are pure noise.

    Attributes:
        law: Of the end ``r``.
        gap: The middle stands this far before the end, at 1 at most; ``None`` for no middle.
    """

    law: TimeLaw = field(default_factory=Uniform)
    gap: float | None = None

    def __post_init__(self) -> None:
        _check_law("law", self.law)
        if self.gap is not None:
            check_number("gap", self.gap, "None or a time above 0, up to 1", above=0, most=1)

    def pairs(self, units: Units, shape: tuple[int, ...], step: Step, name: str) -> Times:
        """See :class:`PairLaw`."""
        r = self.law.draw(units, *shape, step=step, name=name)
        return Times(torch.ones_like(r), r, None if self.gap is None else (r + self.gap).clamp(max=1.0))


@dataclass(frozen=True, slots=True)
class WithDiagonal(PairLaw):
    """Another law's times, with a share of units on the diagonal, ``r = t``.

    Attributes:
        law: The other law.
        share: Probability of ``r = t``.
        diagonal_law: Of the times there; ``None`` leaves ``t`` as the other law drew it.
    """

    law: PairLaw
    share: float = 0.75
    diagonal_law: TimeLaw | None = None

    def __post_init__(self) -> None:
        _check_pairs("law", self.law)
        check_number("share", self.share, "a share from 0 to 1", least=0, most=1)
        if self.diagonal_law is not None:
            _check_law("diagonal_law", self.diagonal_law)

    def pairs(self, units: Units, shape: tuple[int, ...], step: Step, name: str) -> Times:
        """See :class:`PairLaw`."""
        t, r, middle = self.law.pairs(units, shape, step, name)
        kind = random.uniform(units, *shape, step=step, name=f"{name}/on diagonal", dtype=torch.float64)
        on = kind < self.share
        if self.diagonal_law is not None:
            t = torch.where(on, self.diagonal_law.draw(units, *shape, step=step, name=f"{name}/diagonal"), t)
        r = torch.where(on, t, r)
        middle = None if middle is None else torch.where(on, t, middle)
        return Times(t, r, middle)


@dataclass(frozen=True, slots=True)
class ScheduledPairs(PairLaw):
    """A law that changes over the run: curricula of discretisations and of segments.

    Attributes:
        make: The law at a step; a pure function of it.
    """

    make: Callable[[Step], PairLaw]

    def __post_init__(self) -> None:
        if not callable(self.make):
            raise argument_error("make", self.make, "a function of the step to a law of pairs")

    def pairs(self, units: Units, shape: tuple[int, ...], step: Step, name: str) -> Times:
        """See :class:`PairLaw`."""
        law = self.make(step)
        _check_pairs("make", law)
        return law.pairs(units, shape, step, name)
