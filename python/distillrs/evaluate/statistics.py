"""Means over seeds, and differences between runs that share their seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distillrs.errors import argument_error


@dataclass(frozen=True, slots=True)
class Summary:
    """One figure over several seeds.

    Attributes:
        values: One per seed.
        seeds: In the same order.
        mean: Of the values.
        std: Sample standard deviation (n - 1); ``None`` for a single value, which has none.
    """

    values: tuple[float, ...]
    seeds: tuple[int, ...]
    mean: float
    std: float | None

    @classmethod
    def of(cls, values: Sequence[float], seeds: Sequence[int]) -> Summary:
        """Summarises at least one value.

        Raises:
            ArgumentError: No value, one that is not finite, or another number of seeds.
        """
        if not values or any(not math.isfinite(value) for value in values):
            raise argument_error("values", list(values), "one or more finite numbers")
        if len(seeds) != len(values):
            raise argument_error("seeds", len(seeds), f"one for each of the {len(values)} values")
        mean = math.fsum(values) / len(values)
        std = None
        if len(values) > 1:
            std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
        return cls(tuple(values), tuple(seeds), mean, std)

    def to_dict(self) -> dict[str, Any]:
        """As a report has it: mean, std, seeds, values."""
        return {"mean": self.mean, "std": self.std, "seeds": list(self.seeds), "values": list(self.values)}


@dataclass(frozen=True, slots=True)
class Paired:
    """The difference between two sets that were evaluated with the same seeds.

    Networks, orders and draws of a seed are shared, so differences vary less than the accuracies themselves.

    Attributes:
        differences: First minus second, one per seed.
        mean: Of the differences.
        std: Sample standard deviation; ``None`` for one seed.
        low: Lower end of the t interval of the mean; ``None`` for one seed.
        high: Upper end; ``None`` for one seed.
        confidence: Of the interval.
        wins: Seeds at which the first is higher.
    """

    differences: tuple[float, ...]
    mean: float
    std: float | None
    low: float | None
    high: float | None
    confidence: float
    wins: int

    @classmethod
    def of(cls, first: Summary, second: Summary, confidence: float = 0.95) -> Paired:
        """Compares two summaries.

        Raises:
            ArgumentError: Their seeds differ, or a confidence outside (0, 1).
        """
        if first.seeds != second.seeds:
            raise argument_error("second", second.seeds, f"a summary over the same seeds, {first.seeds}")
        if not 0 < confidence < 1:
            raise argument_error("confidence", confidence, "a number above 0 and below 1")
        differences = [one - two for one, two in zip(first.values, second.values, strict=True)]
        summary = Summary.of(differences, first.seeds)
        low = high = None
        if summary.std is not None:
            count = len(differences)
            reach = student_quantile(0.5 + confidence / 2, count - 1) * summary.std / math.sqrt(count)
            low, high = summary.mean - reach, summary.mean + reach
        wins = sum(difference > 0 for difference in differences)
        return cls(tuple(differences), summary.mean, summary.std, low, high, confidence, wins)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "differences": list(self.differences),
            "mean": self.mean,
            "std": self.std,
            "interval": None if self.low is None else [self.low, self.high],
            "confidence": self.confidence,
            "wins": self.wins,
        }


def student_distribution(value: float, freedom: int) -> float:
    """P(T <= value) of Student's t with a whole number of degrees of freedom.

    The finite sums for odd and even degrees are Abramowitz and Stegun (1964), 26.7.3 and 26.7.4.

    Args:
        value: Any finite number.
        freedom: Degrees of freedom, from 1.
    """
    if freedom < 1:
        raise argument_error("freedom", freedom, "degrees of freedom from 1")
    angle = math.atan2(abs(value), math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    total, term = 0.0, 1.0
    if freedom % 2:
        for odd in range(1, freedom - 1, 2):
            term *= cosine if odd == 1 else cosine * cosine * (odd - 1) / odd
            total += term
        inside = 2 / math.pi * (angle + sine * total)
    else:
        for even in range(0, freedom - 1, 2):
            term *= 1.0 if even == 0 else cosine * cosine * (even - 1) / even
            total += term
        inside = sine * total
    return 0.5 + math.copysign(inside / 2, value)


def student_quantile(probability: float, freedom: int) -> float:
    """The value that :func:`student_distribution` maps to a probability from 0.5 to below 1, by bisection."""
    if not 0.5 <= probability < 1:
        raise argument_error("probability", probability, "a number from 0.5 to below 1")
    low, high = 0.0, 1.0
    while student_distribution(high, freedom) < probability:
        low, high = high, high * 2
    # Bisection stops by itself when no number lies between the two.
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if student_distribution(middle, freedom) < probability else (low, middle)
    return high
