"""Functions of time that are given by a table."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor

from distillrs.checks import numbers
from distillrs.errors import argument_error


class Table:
    """A strictly monotone function on [0, 1], linear between its values at ``k / n``.

    Two tables are equal if their values are.
    """

    __slots__ = ("_device_values", "values")

    def __init__(self, name: str, values: Iterable[float]) -> None:
        self.values = numbers(name, values)
        steps = [later - earlier for earlier, later in itertools.pairwise(self.values)]
        if len(self.values) < 2:
            raise argument_error(name, f"{len(self.values)} values", "two or more finite numbers")
        if not (all(step > 0 for step in steps) or all(step < 0 for step in steps)):
            raise argument_error(name, "values that rise and fall or stand still", "strictly monotone values")
        self._device_values: dict[torch.device, Tensor] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and self.values == other.values

    def __hash__(self) -> int:
        return hash(self.values)

    def __repr__(self) -> str:
        return f"Table({self.values[0]:.6g} ... {self.values[-1]:.6g}, {len(self.values)} values)"

    def __reduce__(self) -> tuple[type[Table], tuple[str, tuple[float, ...]]]:
        return (Table, ("values", self.values))

    @property
    def rows(self) -> int:
        """Number of intervals."""
        return len(self.values) - 1

    def at(self, t: Tensor) -> Tensor:
        """Values at times: float64, of their shape."""
        low, slope = self._interval(t)
        values = self._on(t.device)
        return values[low] + (t * self.rows - low) * (slope / self.rows)

    def derivative(self, t: Tensor) -> Tensor:
        """Slopes at times, at a value of the table that of the interval towards time 1."""
        return self._interval(t)[1]

    def inverse(self, value: Tensor) -> Tensor:
        """Times of values; beyond the table's ends, those of its last intervals' lines."""
        values = self._on(value.device)
        sign = 1.0 if self.values[1] > self.values[0] else -1.0
        plain = value.detach()
        low = torch.searchsorted(sign * values, sign * plain, right=True) - 1
        low = low.clamp(0, self.rows - 1)
        return (low + (value - values[low]) / (values[low + 1] - values[low])) / self.rows

    def _interval(self, t: Tensor) -> tuple[Tensor, Tensor]:
        values = self._on(t.device)
        # A time k / n, rounded, may fall just short of row k.
        low = (t.detach() * self.rows * (1 + 1e-15)).floor().clamp(0, self.rows - 1).to(torch.int64)
        return low, (values[low + 1] - values[low]) * self.rows

    def _on(self, device: torch.device) -> Tensor:
        found = self._device_values.get(device)
        if found is None:
            found = self._device_values[device] = torch.tensor(self.values, dtype=torch.float64, device=device)
        return found
