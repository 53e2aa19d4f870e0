"""Laws of time: which level of noise each unit of a batch is given.

A draw is a pure function of (seed, name, step, unit): any split of a batch, any rank and any device get the same time
for the same unit. Times are float64 in [0, 1].
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from distillrs import random
from distillrs.checks import check_number, check_whole, is_number
from distillrs.errors import argument_error
from distillrs.random import Units
from distillrs.schedule._times import Time, as_float64, as_time, check_range
from distillrs.schedule.gaussian_paths import EDM, positive
from distillrs.schedule.path import Clock, Path
from distillrs.step import Step


class TimeLaw(ABC):
    """A distribution of times, one for each unit (or for each frame or token of one).

    A law defines its distribution function and the inverse; that alone makes draws, bounds and strata work.
    """

    __slots__ = ()

    @abstractmethod
    def cdf(self, t: Time) -> Tensor:
        """The probability of a time up to ``t``: float64, of the shape of ``t``."""

    @abstractmethod
    def quantile(self, u: Tensor) -> Tensor:
        """The smallest time whose :meth:`cdf` reaches ``u``.

        Args:
            u: float64 in [0, 1], any shape.

        Returns:
            float64 in [0, 1], of that shape.
        """

    def draw(
        self,
        units: Units,
        *shape: int,
        step: Step | int,
        name: str = "t",
        device: torch.device | str | None = None,
        low: Time | None = None,
        high: Time | None = None,
    ) -> Tensor:
        """Draws times.

        Args:
            units: Whom to draw for; see :mod:`distillrs.random`.
            *shape: Shape of each unit's draw (frames, tokens); none for one time.
            step: Where in the run; a plain integer has seed 0.
            name: What the draw is for; draws under different names are independent.
            device: Where the result goes; the CPU by default.
            low: Least time, a number or a tensor that broadcasts to the result: another level's floor. The draw is
                that of the law on condition of the bounds.
            high: Greatest time, likewise. Where the law has no mass between the bounds, the result is the nearer one.

        Returns:
            float64 ``[len(units), *shape]`` in [0, 1].

        Raises:
            ArgumentError: For units or shapes that are not allowed, or bounds outside [0, 1] or in the wrong order.
        """
        if low is None and high is None:
            return self._draw(units, shape, Step.of(step), name).to(device)
        lower, upper = _bound("low", 0.0 if low is None else low), _bound("high", 1.0 if high is None else high)
        check_range("high", upper - lower, 0.0, 1.0, "at least low: a distance above it")
        share = self._share(units, shape, Step.of(step), name)
        return lanewise(self._between, share, lower.expand(share.shape), upper.expand(share.shape)).to(device)

    def cdf_below(self, t: Time) -> Tensor:
        """The probability of a time below ``t``: :meth:`cdf`, except for laws that give single times a mass."""
        return self.cdf(t)

    def _between(self, share: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        start = self.cdf_below(lower)
        found = self.quantile((start + share * (self.cdf(upper) - start)).clamp(0.0, 1.0))
        return torch.minimum(torch.maximum(found, lower), upper)

    def _draw(self, units: Units, shape: tuple[int, ...], step: Step, name: str) -> Tensor:
        return lanewise(self.quantile, self._share(units, shape, step, name))

    def _share(self, units: Units, shape: tuple[int, ...], step: Step, name: str) -> Tensor:
        return random.uniform(units, *shape, step=step, name=name, dtype=torch.float64)


# Elements that torch works on at a time: below the size from which it splits the work among threads.
_BLOCK = 2**14
# A multiple of every vector width, unrolled.
_LANES = 64


def lanewise(function: Callable[..., Tensor], *values: Tensor) -> Tensor:
    """A function of single elements whose result for an element does not depend on where in the batch it is.

    Torch computes exponentials, logarithms and the like by one algorithm in whole vectors and by another, with other
    last bits, in what is left of the array and of each thread's share. Here there is never anything left.

    Args:
        function: Of tensors of one axis and equal length, element by element.
        *values: Of equal shape.
    """
    shape, count = values[0].shape, values[0].numel()
    padding = -count % _LANES
    flat = [functional.pad(value.reshape(-1), (0, padding), value=0.5) for value in values]
    starts = range(0, len(flat[0]), _BLOCK)
    parts = [function(*(value[start : start + _BLOCK] for value in flat)) for start in starts]
    return torch.cat(parts)[:count].reshape(shape) if count else torch.empty(shape, dtype=torch.float64)


def _bound(name: str, value: Time) -> Tensor:
    times = as_float64(name, value)
    check_range(name, times, 0.0, 1.0, "times")
    return times.cpu()


def _check_law(name: str, law: object) -> None:
    if not isinstance(law, TimeLaw):
        raise argument_error(name, law, "a law of time")


def _falls(clock: Clock) -> bool:
    """Whether the clock runs against time."""
    return clock == "log_snr"


@dataclass(frozen=True, slots=True)
class Uniform(TimeLaw):
    """Every time of a range equally likely, by any clock.

    Attributes:
        low: One end, by the clock.
        high: The other end, above ``low``.
        of: The clock.
        path: The path that the clock is of; for clocks other than ``time`` and ``thousand``.
    """

    low: float = 0.0
    high: float = 1.0
    of: Clock = "time"
    path: Path | None = None

    def __post_init__(self) -> None:
        if not (is_number(self.low) and is_number(self.high) and self.low < self.high):
            raise argument_error("high", (self.low, self.high), "finite ends, low below high")
        _times_of(torch.tensor([self.low, self.high], dtype=torch.float64), self.of, self.path)

    def cdf(self, t: Time) -> Tensor:
        """Linear in the clock."""
        value = _told_by(as_time(t), self.of, self.path)
        share = ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
        return 1 - share if _falls(self.of) else share

    def quantile(self, u: Tensor) -> Tensor:
        """Linear in the clock."""
        share = 1 - u if _falls(self.of) else u
        return _times_of(self.low + share * (self.high - self.low), self.of, self.path)


def _times_of(value: Tensor, clock: Clock, path: Path | None) -> Tensor:
    if clock == "time":
        return as_time(value)
    if path is None and clock != "thousand":
        raise argument_error("path", None, f"a path, which the clock {clock!r} is of")
    return (path or EDM()).clock(value, of=clock)


def _told_by(t: Tensor, clock: Clock, path: Path | None) -> Tensor:
    return t if clock == "time" else (path or EDM()).clock(t, to=clock)


@dataclass(frozen=True, slots=True)
class LogNormal(TimeLaw):
    """A normal distribution of the logarithm of the noise's level.

    ``log sigma ~ N(mean, std^2)``: Karras et al., "Elucidating the design space of diffusion-based generative models"
    (2022), with -1.2 and 1.2; -1.1 and 2.0 in Song and Dhariwal, "Improved techniques for training consistency models"
    (2023).

    Attributes:
        mean: By the clock.
        std: By the clock.
        of: ``log_sigma`` or ``log_snr``.
        path: The path that the clock is of.
        tails: What happens beyond the path's range: ``clip`` puts the mass on its end, ``cut`` takes it away.
    """

    mean: float
    std: float
    of: Literal["log_sigma", "log_snr"] = "log_sigma"
    path: Path = field(default_factory=EDM)
    tails: Literal["clip", "cut"] = "clip"

    def __post_init__(self) -> None:
        check_number("mean", self.mean, "a finite number")
        positive("std", self.std)
        if self.of not in ("log_sigma", "log_snr"):
            raise argument_error("of", self.of, "'log_sigma' or 'log_snr'")
        if self.tails not in ("clip", "cut"):
            raise argument_error("tails", self.tails, "'clip' or 'cut'")

    def cdf(self, t: Time) -> Tensor:
        """The normal distribution function of the clock."""
        times = as_time(t)
        raw = self._raw(times)
        if self.tails == "cut":
            low, high = self._mass()
            return ((raw - low) / (high - low)).clamp(0.0, 1.0)
        return torch.where(times >= 1, torch.ones_like(raw), raw)

    def quantile(self, u: Tensor) -> Tensor:
        """The inverse of the normal distribution function, by the clock."""
        if self.tails == "cut":
            low, high = self._mass()
            u = low + u * (high - low)
        score = torch.special.ndtri(u)
        return self._place(-score if _falls(self.of) else score)

    def _raw(self, times: Tensor) -> Tensor:
        score = (self.path.clock(times, to=self.of) - self.mean) / self.std
        mass: Tensor = torch.special.ndtr(-score if _falls(self.of) else score)
        return mass

    def _mass(self) -> tuple[float, float]:
        low, high = self._raw(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
        return low, high

    def _place(self, score: Tensor) -> Tensor:
        ends = self.path.clock(torch.tensor([0.0, 1.0], dtype=torch.float64), to=self.of)
        value = score * self.std + self.mean
        found = self.path.clock(value.clamp(float(ends.min()), float(ends.max())), of=self.of)
        beyond = value <= ends[1] if _falls(self.of) else value >= ends[1]
        return torch.where(beyond, torch.ones_like(found), found)

    def _draw(self, units: Units, shape: tuple[int, ...], step: Step, name: str) -> Tensor:
        if self.tails == "cut":
            return lanewise(self.quantile, self._share(units, shape, step, name))
        return lanewise(self._place, random.normal(units, *shape, step=step, name=name, dtype=torch.float64))


@dataclass(frozen=True, slots=True)
class LogitNormal(TimeLaw):
    """A normal distribution of ``log(t / (1 - t))``.

    Esser et al., "Scaling rectified flow transformers for high-resolution image synthesis" (2024).

    Attributes:
        mean: Of the logit; above 0 favours noise.
        std: Of the logit.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        check_number("mean", self.mean, "a finite number")
        positive("std", self.std)

    def cdf(self, t: Time) -> Tensor:
        """The normal distribution function of the logit."""
        times = as_time(t)
        mass: Tensor = torch.special.ndtr((times.log() - torch.log1p(-times) - self.mean) / self.std)
        return mass

    def quantile(self, u: Tensor) -> Tensor:
        """The logistic function of the normal quantile."""
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))

    def _draw(self, units: Units, shape: tuple[int, ...], step: Step, name: str) -> Tensor:
        score = random.normal(units, *shape, step=step, name=name, dtype=torch.float64)
        return lanewise(torch.sigmoid, score.mul_(self.std).add_(self.mean))


@dataclass(frozen=True, slots=True)
class UShaped(TimeLaw):
    """Density proportional to ``cosh(sharpness (t - 1/2))``: both ends more often than the middle.

    The mixture of ``exp(a t)`` and ``exp(a (1 - t))`` of Lee, Lin, Fanti, "Improving the training of rectified flows"
    (2024).

    Attributes:
        sharpness: ``a``, above 0.
    """

    sharpness: float = 4.0

    def __post_init__(self) -> None:
        positive("sharpness", self.sharpness)
        if self.sharpness > 1000:
            raise argument_error("sharpness", self.sharpness, "a positive number up to 1000")

    def cdf(self, t: Time) -> Tensor:
        """``1/2 + sinh(a (t - 1/2)) / (2 sinh(a / 2))``."""
        times = as_time(t)
        return 0.5 + (self.sharpness * (times - 0.5)).sinh() / (2 * math.sinh(self.sharpness / 2))

    def quantile(self, u: Tensor) -> Tensor:
        """``1/2 + asinh((2 u - 1) sinh(a / 2)) / a``."""
        reach = ((2 * u - 1) * math.sinh(self.sharpness / 2)).asinh() / self.sharpness
        return (0.5 + reach).clamp(0.0, 1.0)


def shift_time(t: Time, shift: float) -> Tensor:
    """``shift t / (1 + (shift - 1) t)``: moves times towards noise for a shift above 1.

    The ratio of noise to signal of a rectified flow is multiplied by ``shift``: Esser et al., "Scaling rectified flow
    transformers for high-resolution image synthesis" (2024), who choose it by the resolution.

    Args:
        t: Times, any shape.
        shift: Above 0; ``1 / shift`` undoes it.

    Returns:
        float64, of that shape.

    Raises:
        ArgumentError: For times outside [0, 1] or a shift that is not positive.
    """
    positive("shift", shift)
    times = as_time(t)
    return shift * times / (1 + (shift - 1) * times)


@dataclass(frozen=True, slots=True)
class Shifted(TimeLaw):
    """Another law's times, moved by :func:`shift_time`.

    Attributes:
        law: The other law; a shifted one is refused, because a shift that is there twice is nearly always a mistake.
        shift: Above 1 towards noise.
    """

    law: TimeLaw
    shift: float

    def __post_init__(self) -> None:
        _check_law("law", self.law)
        if isinstance(self.law, Shifted):
            raise argument_error("law", self.law, "a law that is not shifted; for both shifts take their product")
        positive("shift", self.shift)

    def cdf(self, t: Time) -> Tensor:
        """That of the other law at the time before the shift."""
        return self.law.cdf(shift_time(t, 1 / self.shift).clamp(0.0, 1.0))

    def cdf_below(self, t: Time) -> Tensor:
        """That of the other law at the time before the shift."""
        return self.law.cdf_below(shift_time(t, 1 / self.shift).clamp(0.0, 1.0))

    def quantile(self, u: Tensor) -> Tensor:
        """The other law's, shifted."""
        return shift_time(self.law.quantile(u), self.shift).clamp_(0.0, 1.0)

    def _draw(self, units: Units, shape: tuple[int, ...], step: Step, name: str) -> Tensor:
        return shift_time(self.law._draw(units, shape, step, name), self.shift).clamp_(0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Levels(TimeLaw):
    """One of several times, as few-step generators are trained at the levels that they sample with.

    Attributes:
        times: Distinct, in any order.
        weights: Their probabilities, up to a factor; ``None`` for equal ones.
    """

    times: tuple[float, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        times = _numbers("times", self.times)
        as_time(torch.tensor(times, dtype=torch.float64))
        if not times or len(set(times)) < len(times):
            raise argument_error("times", self.times, "one or more distinct times")
        weights = (1.0,) * len(times) if self.weights is None else _numbers("weights", self.weights)
        if len(weights) != len(times) or not all(0 <= weight < math.inf for weight in weights) or sum(weights) <= 0:
            raise argument_error("weights", self.weights, f"{len(times)} finite numbers from 0, not all 0")
        object.__setattr__(self, "times", times)
        object.__setattr__(self, "weights", None if self.weights is None else weights)

    def cdf(self, t: Time) -> Tensor:
        """A staircase."""
        return self._stairs(t, right=True)

    def cdf_below(self, t: Time) -> Tensor:
        """The same staircase without the step at the time itself."""
        return self._stairs(t, right=False)

    def _stairs(self, t: Time, right: bool) -> Tensor:
        times, edges = self._steps()
        found = torch.searchsorted(times, as_time(t).cpu().contiguous(), right=right)
        return torch.cat([torch.zeros(1, dtype=torch.float64), edges])[found]

    def quantile(self, u: Tensor) -> Tensor:
        """The inverse of the staircase."""
        times, edges = self._steps()
        return times[torch.searchsorted(edges, u.contiguous()).clamp(max=len(times) - 1)]

    def _steps(self) -> tuple[Tensor, Tensor]:
        order = sorted(range(len(self.times)), key=self.times.__getitem__)
        weights = self.weights or (1.0,) * len(self.times)
        # Levels that are never drawn would be drawn at u = 0.
        order = [index for index in order if weights[index] > 0]
        edges = torch.tensor([weights[index] for index in order], dtype=torch.float64).cumsum(0)
        edges = edges / edges[-1].clone()
        return torch.tensor([self.times[index] for index in order], dtype=torch.float64), edges


def _numbers(name: str, values: Sequence[float] | Tensor) -> tuple[float, ...]:
    try:
        # Not float() alone: it reads texts, too, letter by letter where the sequence itself is one.
        items = tuple(values)
        found = None if any(isinstance(value, str) for value in items) else tuple(map(float, items))
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last is a tensor's of several numbers
        found = None
    if found is None:
        raise argument_error(name, values, "a sequence of numbers")
    for value in found:
        check_number(name, value, "a sequence of finite numbers")
    return found


@dataclass(frozen=True, slots=True)
class Stratified(TimeLaw):
    """Another law, spread evenly over any ``strata`` consecutive units.

    Unit ``i`` draws from stratum ``p(i mod strata)`` of the other law's quantiles, with ``p`` a permutation of the
    step's; so each draw alone has the other law, and ``strata`` units with consecutive ids (a multiple of ``strata``
    first) have one time in each stratum, in whatever batches they are drawn. Within a unit (frames, tokens), positions
    take the following strata.

    Attributes:
        law: The other law.
        strata: Usually the global batch; at most 2^20.
    """

    law: TimeLaw
    strata: int

    def __post_init__(self) -> None:
        _check_law("law", self.law)
        if isinstance(self.law, Stratified):
            raise argument_error("law", self.law, "a law without strata")
        check_whole("strata", self.strata, "a number from 1 to 2**20", least=1, most=2**20)

    def cdf(self, t: Time) -> Tensor:
        """That of the other law."""
        return self.law.cdf(t)

    def cdf_below(self, t: Time) -> Tensor:
        """That of the other law."""
        return self.law.cdf_below(t)

    def quantile(self, u: Tensor) -> Tensor:
        """That of the other law."""
        return self.law.quantile(u)

    def _share(self, units: Units, shape: tuple[int, ...], step: Step, name: str) -> Tensor:
        within = random.uniform(units, *shape, step=step, name=name, dtype=torch.float64)
        order = random.permutation(self.strata, step=step, name=name)
        positions = torch.arange(math.prod(shape)).reshape(shape)
        ids = ids_of(units, step).reshape(-1, *(1,) * len(shape))
        # The largest double below 1: a sum may round up to it.
        share = (order[(ids + positions) % self.strata] + within) / self.strata
        return share.clamp_(max=math.nextafter(1.0, 0.0))


def ids_of(units: Units, step: Step) -> Tensor:
    """The global ids that ``units`` stands for: int64 ``[n]``."""
    if isinstance(units, Tensor):
        return units.detach().cpu()
    if isinstance(units, range):
        return torch.from_numpy(np.arange(units.start, units.stop, units.step, dtype=np.int64))
    return torch.arange(step.first_unit, step.first_unit + units)
