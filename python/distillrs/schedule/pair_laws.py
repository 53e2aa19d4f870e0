"""Laws of two or three times: where a flow map starts, where it ends, and where it stops on the way."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from distillrs import random
from distillrs.checks import check_number, check_whole
from distillrs.errors import argument_error
from distillrs.random import Units
from distillrs.schedule._times import check_range
from distillrs.schedule.gaussian_paths import EDM, positive
from distillrs.schedule.laws import TimeLaw, Uniform, _check_law, _numbers, lanewise
from distillrs.schedule.path import Path
from distillrs.step import Step


class Times(NamedTuple):
    """Times of a map from ``t`` to ``r``, ``r <= middle <= t``: float64, of equal shape.

    Attributes:
        t: Where it starts, nearer to noise.
        r: Where it ends, nearer to data.
        middle: Where two maps that make up the whole meet; ``None`` for laws of pairs.
    """

    t: Tensor
    r: Tensor
    middle: Tensor | None = None


class PairLaw(ABC):
    """A distribution of pairs (or triples) of times, one for each unit."""

    __slots__ = ()

    @abstractmethod
    def pairs(self, units: Units, shape: tuple[int, ...], step: Step, name: str) -> Times:
        """What a law has to say: its times on the CPU, a pure function of the arguments.

        Args:
            units: Whom to draw for.
            shape: Of each unit's draw.
            step: Where in the run.
            name: What the draw is for.

        Returns:
            float64 ``[len(units), *shape]`` each.
        """

    def draw(
        self,
        units: Units,
        *shape: int,
        step: Step | int,
        name: str = "t",
        device: torch.device | str | None = None,
    ) -> Times:
        """Draws times; arguments are those of :meth:`TimeLaw.draw`.

        Returns:
            Tensors ``[len(units), *shape]``.
        """
        t, r, middle = self.pairs(units, shape, Step.of(step), name)
        return Times(t.to(device), r.to(device), None if middle is None else middle.to(device))


@dataclass(frozen=True, slots=True)
class Triangle(PairLaw):
    """Two times of one law in order, with a share on the diagonal and a share that ends in the data.

    ``t`` is the greater and ``r`` the smaller of two draws, as in Geng et al., "Mean flows for one-step generative
    modeling" (2025). With a largest gap, ``r`` follows the law on condition of ``r >= t - maximum_gap``; the law of
    ``t`` stays. On the diagonal, ``r = t``, the map's derivative is the velocity; without it nothing ties the map to
    the data.

    Attributes:
        diagonal: Probability of ``r = t``.
        endpoint: Probability of ``r = 0``, whatever the largest gap.
        law: Of both times.
        diagonal_law: Of the times on the diagonal; ``None`` for that of ``t`` elsewhere.
        maximum_gap: Largest ``t - r`` off the diagonal and the endpoint, in (0, 1].
    """

    diagonal: float = 0.75
    endpoint: float = 0.0
    law: TimeLaw = field(default_factory=Uniform)
    diagonal_law: TimeLaw | None = None
    maximum_gap: float = 1.0

    def __post_init__(self) -> None:
        check_number("diagonal", self.diagonal, "a share from 0 to 1", least=0, most=1)
        rest = 1 - self.diagonal
        check_number("endpoint", self.endpoint, f"a share from 0 to 1 - diagonal, {rest}", least=0, most=rest)
        check_number("maximum_gap", self.maximum_gap, "a number above 0, up to 1", above=0, most=1)
        _check_law("law", self.law)
        if self.diagonal_law is not None:
            _check_law("diagonal_law", self.diagonal_law)

    def pairs(self, units: Units, shape: tuple[int, ...], step: Step, name: str) -> Times:
        """See :class:`PairLaw`."""
        # The greater of two draws has the square of the law's distribution function, the smaller, given the greater,
        # the law up to there: two quantiles and no sorting, so that bounds stay exact.
        top = self.law._share(units, shape, step, name).sqrt()
        both = random.uniform(units, *shape, 2, step=step, name=f"{name}/pair", dtype=torch.float64)
        within, kind = both.unbind(-1)
        t = lanewise(self.law.quantile, top)
        r = lanewise(self._lower, t, top, within)
        r = torch.where(kind >= 1 - self.endpoint, torch.zeros_like(r), r)
        on_diagonal = kind < self.diagonal
        if self.diagonal_law is not None:
            alone = self.diagonal_law.draw(units, *shape, step=step, name=f"{name}/diagonal")
            t = torch.where(on_diagonal, alone, t)
        return Times(t, torch.where(on_diagonal, t, r))

    def _lower(self, t: Tensor, top: Tensor, within: Tensor) -> Tensor:
        if self.maximum_gap == 1:
            return torch.minimum(self.law.quantile(within * top), t)
        low = (t - self.maximum_gap).clamp(min=0.0)
        bottom = self.law.cdf_below(low)
        r = self.law.quantile((bottom + within * (top - bottom)).clamp(0.0, 1.0))
        return torch.minimum(torch.maximum(r, low), t)


@dataclass(frozen=True, slots=True)
class Segments(PairLaw):
    """A time, and the lower edge of the segment that it lies in: targets of multi-step consistency models.

    Wang et al., "Phased consistency models" (2024). A time on an edge belongs to the segment below it.

    Attributes:
        edges: Ascending, from 0 to 1; a number stands for that many equal segments.
        law: Of the time.
    """

    edges: tuple[float, ...] | int
    law: TimeLaw = field(default_factory=Uniform)

    def __post_init__(self) -> None:
        if isinstance(self.edges, int):
            check_whole("edges", self.edges, "a positive number of segments", least=1)
            edges = tuple(edge / self.edges for edge in range(self.edges + 1))
        else:
            edges = _numbers("edges", self.edges)
        ascending = all(low < high for low, high in itertools.pairwise(edges))
        if len(edges) < 2 or edges[0] != 0 or edges[-1] != 1 or not ascending:
            raise argument_error("edges", self.edges, "ascending times from 0 to 1, or a number of segments")
        object.__setattr__(self, "edges", edges)
        _check_law("law", self.law)

    def pairs(self, units: Units, shape: tuple[int, ...], step: Step, name: str) -> Times:
        """See :class:`PairLaw`."""
        t = self.law.draw(units, *shape, step=step, name=name)
        return Times(t, self.below(t))

    def below(self, t: Tensor) -> Tensor:
        """The lower edge of each time's segment: float64, of the shape of ``t``."""
        assert isinstance(self.edges, tuple)
        edges = torch.tensor(self.edges, dtype=torch.float64, device=t.device)
        return edges[(torch.searchsorted(edges, t.double()) - 1).clamp(min=0)]


@dataclass(frozen=True, slots=True)
class Nested(PairLaw):
    """A part of a randomly fine partition, with its middle: two short maps that a long one must agree with.

    The partition into ``2^k`` equal parts, ``k`` from 0 to ``depth - 1`` with equal probability, then one of its parts:
    the step sizes and aligned starts of Frans et al., "One step diffusion via shortcut models" (2024), whose shortest
    step is ``2^-depth``.

    Attributes:
        depth: Number of partitions, 1 to 52.
    """

    depth: int = 7

    def __post_init__(self) -> None:
        check_whole("depth", self.depth, "an integer from 1 to 52", least=1, most=52)

    def pairs(self, units: Units, shape: tuple[int, ...], step: Step, name: str) -> Times:
        """See :class:`PairLaw`."""
        level = random.integers(units, self.depth, *shape, step=step, name=name)
        share = random.uniform(units, *shape, step=step, name=name, dtype=torch.float64)
        size = torch.exp2(-level.double())
        r = (share / size).floor() * size
        return Times((r + size), r, (r + size / 2))


@dataclass(frozen=True, slots=True)
class BinnedLogNormal(PairLaw):
    """Neighbouring levels of a grid, by the normal probability of the logarithms between them.

    The pair of levels ``sigma_i < sigma_(i+1)`` has weight ``erf((log sigma_(i+1) - mean) / (sqrt(2) std)) - erf((log
    sigma_i - mean) / (sqrt(2) std))``: Song and Dhariwal, "Improved techniques for training consistency models" (2023).

    Attributes:
        times: Levels of the path, two or more, in any order; those of a :class:`Grid` without its time 0.
        mean: Of ``log sigma``.
        std: Of ``log sigma``.
        path: What the times are of.
    """

    times: tuple[float, ...]
    mean: float = -1.1
    std: float = 2.0
    path: Path = field(default_factory=EDM)

    def __post_init__(self) -> None:
        times = tuple(sorted(_numbers("times", self.times)))
        if len(set(times)) < len(times) or len(times) < 2:
            raise argument_error("times", self.times, "two or more distinct times")
        check_range("times", torch.tensor(times, dtype=torch.float64), math.ulp(0.0), 1.0, "times above 0, up")
        check_number("mean", self.mean, "a finite number")
        positive("std", self.std)
        object.__setattr__(self, "times", times)
        if not float(self._weights().sum()) > 0:
            raise argument_error("mean", (self.mean, self.std), "a normal distribution that reaches the levels")

    @property
    def probabilities(self) -> Tensor:
        """Of each pair of neighbours, from the data's end: float64 ``[levels - 1]``."""
        weights = self._weights()
        return weights / weights.sum()

    def _weights(self) -> Tensor:
        logs = self.path.sigma(torch.tensor(self.times, dtype=torch.float64)).log()
        scores = (logs - self.mean) / (self.std * math.sqrt(2))
        # Both in the same tail: the difference of what is left of it does not cancel.
        low, high = scores[:-1], scores[1:]
        return torch.where(low > 0, torch.erfc(low) - torch.erfc(high), torch.erfc(-high) - torch.erfc(-low))

    def pairs(self, units: Units, shape: tuple[int, ...], step: Step, name: str) -> Times:
        """See :class:`PairLaw`."""
        edges = self._weights().cumsum(0)
        share = random.uniform(units, *shape, step=step, name=name, dtype=torch.float64) * edges[-1]
        low = torch.searchsorted(edges, share, right=True).clamp(max=len(edges) - 1)
        times = torch.tensor(self.times, dtype=torch.float64)
        return Times(times[low + 1], times[low])
