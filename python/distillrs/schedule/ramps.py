"""Numbers that change over a run: pure functions of the step.

Every ramp is called with a :class:`~distillrs.Step` (or its index) and gives a number. A ramp whose length is ``None``
takes the run's own, ``step.total``, and refuses a step that does not say it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

from distillrs.checks import check_number, check_whole
from distillrs.errors import argument_error
from distillrs.step import Step


class Ramp(Protocol):
    """A number that depends on the step alone."""

    def __call__(self, step: Step | int) -> float:
        """The value at a step."""
        ...


@dataclass(frozen=True, slots=True)
class Constant:
    """The same number at every step."""

    value: float

    def __post_init__(self) -> None:
        _finite(self, "value")

    def __call__(self, step: Step | int) -> float:
        """The number."""
        Step.of(step)
        return self.value


@dataclass(frozen=True, slots=True)
class LinearRamp:
    """From ``start`` in equal increments to ``end``, which it reaches at ``begin + steps`` and keeps.

    Attributes:
        start: Value until ``begin``.
        end: Value from ``begin + steps`` on.
        steps: Length; ``None`` lets it reach the end at the run's last step.
        begin: First step at which it moves.
    """

    start: float
    end: float
    steps: int | None = None
    begin: int = 0

    def __post_init__(self) -> None:
        _finite(self, "start", "end")
        _length(self.steps, self.begin)

    def __call__(self, step: Step | int) -> float:
        """The value at a step."""
        share = _share(step, self.steps, self.begin, type(self).__name__)
        return self.start * (1 - share) + self.end * share


@dataclass(frozen=True, slots=True)
class Cosine:
    """From ``start`` along half a cosine to ``end``: flat at both ends, steepest in the middle.

    Attributes:
        start: Value until ``begin``.
        end: Value from ``begin + steps`` on.
        steps: Length; ``None`` lets it reach the end at the run's last step.
        begin: First step at which it moves.
    """

    start: float
    end: float
    steps: int | None = None
    begin: int = 0

    def __post_init__(self) -> None:
        _finite(self, "start", "end")
        _length(self.steps, self.begin)

    def __call__(self, step: Step | int) -> float:
        """The value at a step."""
        share = (1 - math.cos(math.pi * _share(step, self.steps, self.begin, type(self).__name__))) / 2
        return self.start * (1 - share) + self.end * share


@dataclass(frozen=True, slots=True)
class Doubling:
    """``start``, twice as much after every ``every`` steps, at most ``limit``.

    Attributes:
        start: First value, from 0.
        every: Steps between two doublings.
        limit: Largest value; ``None`` for no limit.
    """

    start: float
    every: int
    limit: float | None = None

    def __post_init__(self) -> None:
        _finite(self, "start")
        if self.start < 0:
            raise argument_error("start", self.start, "a number from 0")
        check_whole("every", self.every, "a positive number of steps", least=1)
        if self.limit is not None:
            check_number("limit", self.limit, f"None or a number from start, {self.start}", least=self.start)

    def __call__(self, step: Step | int) -> float:
        """The value at a step.

        Raises:
            ArgumentError: Without a limit, when the value exceeds every float.
        """
        index = Step.of(step).index
        try:
            value = math.ldexp(self.start, index // self.every)
        except OverflowError:
            value = math.inf
        if self.limit is not None:
            return min(value, self.limit)
        if math.isinf(value):
            raise argument_error(
                "limit", None, f"a number: {self.start} doubled {index // self.every} times is infinite"
            )
        return value


@dataclass(frozen=True, slots=True)
class Halving:
    """``start``, half as much after every ``every`` steps, at least ``limit``.

    Attributes:
        start: First value, from 0.
        every: Steps between two halvings.
        limit: Smallest value, from 0.
    """

    start: float
    every: int
    limit: float = 0.0

    def __post_init__(self) -> None:
        _finite(self, "start", "limit")
        if not 0 <= self.limit <= self.start:
            raise argument_error("limit", self.limit, f"a number from 0 to start, {self.start}")
        check_whole("every", self.every, "a positive number of steps", least=1)

    def __call__(self, step: Step | int) -> float:
        """The value at a step."""
        # Beyond this many halvings every float is 0.
        return max(math.ldexp(self.start, -min(Step.of(step).index // self.every, 4000)), self.limit)


@dataclass(frozen=True, slots=True)
class WarmUp:
    """Another ramp, times a factor that grows in equal increments from 0 at step 0 to 1 at ``steps``.

    Attributes:
        ramp: The other ramp.
        steps: Length of the growth.
    """

    ramp: Ramp
    steps: int

    def __post_init__(self) -> None:
        if not callable(self.ramp):
            raise argument_error("ramp", self.ramp, "a ramp: Constant(1.0) for a number")
        check_whole("steps", self.steps, "a positive number of steps", least=1)

    def __call__(self, step: Step | int) -> float:
        """The value at a step."""
        return self.ramp(step) * min(Step.of(step).index / self.steps, 1.0)


@dataclass(frozen=True, slots=True)
class Feedback:
    """A number that follows a measurement: it grows by a factor while the measurement exceeds its target.

    Between two measurements it is constant in the step, and :meth:`after` gives the next one, so that a run's state is
    this object and nothing else: a multiplier in Lagrange's sense, or the weight of a guarded loss.

    Attributes:
        value: The number now, above 0.
        target: What the measurement should be.
        rate: How fast: a measurement off by ``d`` multiplies the number by ``exp(rate d)``; negative to fall instead.
        low: Smallest value, above 0.
        high: Largest value.
    """

    value: float
    target: float
    rate: float
    low: float = 1e-6
    high: float = 1e6

    def __post_init__(self) -> None:
        _finite(self, "value", "target", "rate", "low", "high")
        if not 0 < self.low <= self.value <= self.high:
            raise argument_error("value", self.value, f"a number from low, {self.low}, above 0, to high, {self.high}")

    def __call__(self, step: Step | int) -> float:
        """The number now."""
        Step.of(step)
        return self.value

    def after(self, measured: float) -> Feedback:
        """The ramp after a measurement.

        Raises:
            ArgumentError: For a measurement that is not finite.
        """
        try:
            finite = math.isfinite(measured)  # of a tensor of one element, too
        except (TypeError, ValueError, OverflowError, RuntimeError):
            finite = False
        if not finite:
            raise argument_error("measured", measured, "a finite number")
        # Beyond a factor of e^700 the limits decide anyway.
        exponent = min(max(self.rate * (measured - self.target), -700.0), 700.0)
        return replace(self, value=min(max(self.value * math.exp(exponent), self.low), self.high))


@dataclass(frozen=True, slots=True)
class ExpandingWindow:
    """A range of starts whose upper end grows: ``range(low, U(t))``.

    ``U(t) = min(last_high, first_high + floor((last_high - first_high) t / steps))``, the difficulty alignment of Guo
    et al., "Towards Lossless Dataset Distillation via Difficulty-Aligned Trajectory Matching" (ICLR 2024). Both ends
    are those of :class:`range`: the upper one is exclusive.

    Attributes:
        low: First start.
        first_high: Upper end at step 0, above ``low``.
        last_high: Upper end from ``steps`` on, at least ``first_high``.
        steps: Length; ``None`` is the run's own.
    """

    low: int
    first_high: int
    last_high: int
    steps: int | None = None

    def __post_init__(self) -> None:
        check_whole("low", self.low, "a start from 0", least=0)
        check_whole("first_high", self.first_high, f"a number above low, {self.low}", least=self.low + 1)
        check_whole("last_high", self.last_high, f"at least first_high, {self.first_high}", least=self.first_high)
        _length(self.steps, 0)

    def __call__(self, step: Step | int) -> range:
        """The starts that are allowed at a step."""
        step = Step.of(step)
        steps = self.steps if self.steps is not None else step.total
        if steps is None:
            raise _without_length("ExpandingWindow")
        # In integers: a floor of floats may fall short by one.
        high = self.first_high + (self.last_high - self.first_high) * step.index // steps
        return range(self.low, min(self.last_high, high))


def _share(step: Step | int, steps: int | None, begin: int, name: str) -> float:
    step = Step.of(step)
    if steps is None:
        if step.total is None:
            raise _without_length(name)
        # The last step of a run has the index total - 1.
        steps = max(step.total - 1 - begin, 1)
    return min(max((step.index - begin) / steps, 0.0), 1.0)


def _without_length(name: str) -> Exception:
    return argument_error("step", "one without a total", f"Step(..., total=...), or {name}(steps=...)")


def _finite(ramp: object, *names: str) -> None:
    for name in names:
        check_number(name, getattr(ramp, name), "a finite number")


def _length(steps: int | None, begin: int) -> None:
    if steps is not None:
        check_whole("steps", steps, "None or a positive number of steps", least=1)
    check_whole("begin", begin, "a step from 0", least=0)
