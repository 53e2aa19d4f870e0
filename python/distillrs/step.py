"""What an objective is called with and what it returns: :class:`Step` and :class:`Loss`."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from distillrs.errors import argument_error


class Loss(NamedTuple):
    """What every objective returns.

    Attributes:
        total: Scalar that carries the graph; call ``total.backward()`` on it.
        terms: Named, detached tensors on the device, for logging.
    """

    total: Tensor
    terms: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Step:
    """Where in a run a call stands; the only source of schedules and randomness.

    Attributes:
        index: Number of the optimiser step, from 0.
        seed: Seed of the run; every draw is a pure function of (seed, name, index, unit).
        total: Length of the run in steps, for ramps that are given as a share of it.
        first_unit: Global index of this batch's first example, so that micro-batches and ranks never share a draw.
        items: Global count that normalises the loss under gradient accumulation and data parallelism;
            ``None`` normalises by the local count.
    """

    index: int
    seed: int = 0
    total: int | None = None
    first_unit: int = 0
    items: int | None = None

    def __post_init__(self) -> None:
        for name in ("index", "seed", "total", "first_unit", "items"):
            value = getattr(self, name)
            if type(value) is int or (value is None and name in ("total", "items")):
                continue
            try:
                whole = operator.index(value)
            except TypeError:
                raise argument_error(name, value, "a whole number") from None
            if isinstance(value, bool):
                raise argument_error(name, value, "a whole number")
            object.__setattr__(self, name, whole)
        if not 0 <= self.index < 2**63:
            raise argument_error("index", self.index, "a step number from 0, below 2**63")
        if not 0 <= self.seed < 2**64:
            raise argument_error("seed", self.seed, "an integer from 0 to 2**64 - 1")
        if self.total is not None and self.total < 1:
            raise argument_error("total", self.total, "None or a positive number of steps")
        if not 0 <= self.first_unit < 2**63:
            raise argument_error("first_unit", self.first_unit, "an index from 0, below 2**63")
        if self.items is not None and self.items < 1:
            raise argument_error("items", self.items, "None or a positive count")

    @staticmethod
    def of(step: Step | int, seed: int = 0) -> Step:
        """The step itself, or the step with that index and all else by default.

        Args:
            step: A step or its index.
            seed: For a plain index.

        Raises:
            ArgumentError: Neither a step nor a whole number.
        """
        if isinstance(step, Step):
            return step
        if isinstance(step, bool) or not hasattr(step, "__index__"):
            raise argument_error("step", step, "a Step, or a whole number from 0")
        return Step(step, seed)

    def at(self, index: int) -> Step:
        """The same run at another index."""
        return replace(self, index=index)
