"""States: where on the path, and from what, a residual is looked at."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from distillrs import random
from distillrs.diffusion.checks import check_shape
from distillrs.diffusion.conditions import Condition, check_condition
from distillrs.errors import argument_error
from distillrs.schedule import Grid, Path, Times
from distillrs.schedule.grids import check_grid
from distillrs.step import Step


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What a call of an objective is given; all tensors have the same first axis.

    Attributes:
        x0: Clean examples, ``[n, ...]``; ``None`` where no data are used.
        condition: Keyword arguments of the network; see :data:`~distillrs.diffusion.Condition`.
        null_condition: The same names for no condition.
        noise: The noise that belongs to ``x0``, ``[n, ...]``: of pairs that a teacher made. ``None`` draws one that is
            independent. Whatever is done to one of the two (a flip) must be done to both.
        path_states: A teacher's states at the times of a grid, ``[n, steps + 1, ...]``, for :class:`TeacherPath`.
        size: Number of rows, where no other tensor tells it.
    """

    x0: Tensor | None = None
    condition: Condition = None
    null_condition: Condition = None
    noise: Tensor | None = None
    path_states: Tensor | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        for name in ("x0", "noise", "path_states"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Tensor):
                raise argument_error(name, type(value).__name__, "a floating-point tensor, or None")
            if value is not None and value.dim() == 0:
                raise argument_error(name, "a tensor without axes", "one with an axis of rows")
        if self.size is not None and (isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 0):
            raise argument_error("size", self.size, "a number of rows from 0, or None")
        rows = self.rows
        if self.size not in (None, rows):
            raise argument_error("size", self.size, f"{rows}, the rows of the tensors, or None")
        for name in ("x0", "noise", "path_states"):
            value = getattr(self, name)
            if value is not None and (not value.is_floating_point() or len(value) != rows):
                got = f"shape {tuple(value.shape)} of {value.dtype}"
                raise argument_error(name, got, f"a floating-point tensor of {rows} rows")
        if self.x0 is not None and self.noise is not None and self.x0.shape != self.noise.shape:
            raise argument_error("noise", f"shape {tuple(self.noise.shape)}", f"that of x0, {tuple(self.x0.shape)}")
        for name in ("condition", "null_condition"):
            entries = getattr(self, name)
            check_condition(name, entries)
            for key, value in (entries or {}).items():
                if isinstance(value, Tensor) and (value.dim() == 0 or len(value) != rows):
                    raise argument_error(name, f"{key!r} of shape {tuple(value.shape)}", f"tensors of {rows} rows")

    @property
    def rows(self) -> int:
        """Number of rows."""
        for value in (self.x0, self.noise, self.path_states):
            if value is not None:
                return len(value)
        if self.size is None:
            raise argument_error("size", None, "the number of rows: nothing else in the batch tells it")
        return self.size


class Drawn(NamedTuple):
    """States and their times.

    Attributes:
        x: ``[n, ...]``.
        t: Their times, float64 ``[n]``.
        r: Where the map is to end.
        middle: Where it is cut; ``None`` if the law does not say.
        end: The state that the flow reaches at ``r``; ``None`` where it is not known.
        x0: Clean examples; ``None`` where there are none.
        noise: Their noise.
    """

    x: Tensor
    t: Tensor
    r: Tensor
    middle: Tensor | None = None
    end: Tensor | None = None
    x0: Tensor | None = None
    noise: Tensor | None = None


class States(ABC):
    """A way to get states at drawn times."""

    __slots__ = ()

    @abstractmethod
    def draw(self, batch: Batch, times: Times, path: Path, step: Step) -> Drawn:
        """The states of a batch.

        Args:
            batch: The batch.
            times: Drawn for its rows, on its device.
            path: The path.
            step: Where in the run.
        """

    @property
    def moves_times(self) -> bool:
        """Whether states stand at other times than those that were drawn."""
        return False

    @property
    def knows_noise(self) -> bool:
        """Whether states are noised data, for :class:`Data`."""
        return False

    @property
    def may_know_ends(self) -> bool:
        """Whether the flow's endpoint may be known, for :class:`Endpoint`."""
        return False


@dataclass(frozen=True, slots=True)
class NoisedData(States):
    """``alpha x0 + sigma eps``. Noise that the batch brings makes the pair a coupling, whose path has known ends.

    Attributes:
        coupled: Whether every batch must bring the noise that belongs to its examples.
    """

    coupled: bool = False

    def draw(self, batch: Batch, times: Times, path: Path, step: Step) -> Drawn:
        """See :class:`States`."""
        if batch.x0 is None:
            raise argument_error("x0", None, "clean examples: the states are noised data")
        x0, noise = batch.x0, batch.noise
        if noise is None and self.coupled:
            raise argument_error("noise", None, "the noise that belongs to each of x0: pairs that a teacher made")
        if noise is None:
            noise = random.normal(batch.rows, *x0.shape[1:], step=step, name="noise", dtype=x0.dtype, device=x0.device)
        end = None if batch.noise is None else path.corrupt(x0, noise, times.r)
        return Drawn(path.corrupt(x0, noise, times.t), *times, end, x0, noise)

    @property
    def knows_noise(self) -> bool:
        """They are."""
        return True

    @property
    def may_know_ends(self) -> bool:
        """With noise in the batch."""
        return True


@dataclass(frozen=True, slots=True)
class PriorOnly(States):
    """Pure noise at time 1, without any data; the law's first time is replaced by 1.

    Attributes:
        shape: Of an example.
        dtype: Of the states.
        device: Where the states are.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    device: torch.device | str | None = None

    def __post_init__(self) -> None:
        check_shape("shape", self.shape)

    def draw(self, batch: Batch, times: Times, path: Path, step: Step) -> Drawn:
        """See :class:`States`."""
        noise = batch.noise
        if noise is None:
            noise = random.normal(
                batch.rows, *self.shape, step=step, name="noise", dtype=self.dtype, device=self.device
            )
        elif noise.shape[1:] != tuple(self.shape):
            raise argument_error("noise", f"shape {tuple(noise.shape)}", f"[n, {', '.join(map(str, self.shape))}]")
        t, r, middle = (None if time is None else time.to(noise.device) for time in times)
        one = torch.ones_like(t)  # type: ignore[arg-type]  # the first two are never None
        return Drawn(float(path.sigma(1.0)) * noise, one, r, middle)  # type: ignore[arg-type]  # likewise

    @property
    def moves_times(self) -> bool:
        """To 1."""
        return True


@dataclass(frozen=True, slots=True)
class TeacherPath(States):
    """States that a teacher passed, from a store; each time moves to the nearest of theirs.

    A start and an end that meet are moved one step apart, unless the law put them on the diagonal.

    Attributes:
        grid: The times of ``batch.path_states``.
    """

    grid: Grid

    def __post_init__(self) -> None:
        check_grid("grid", self.grid)

    def draw(self, batch: Batch, times: Times, path: Path, step: Step) -> Drawn:
        """See :class:`States`."""
        states = batch.path_states
        if states is None or states.dim() < 2 or states.shape[1] != self.grid.steps + 1:
            got = None if states is None else f"shape {tuple(states.shape)}"
            raise argument_error("path_states", got, f"[n, {self.grid.steps + 1}, ...]: the grid's times")
        if self.grid.path != path:
            raise argument_error("states", self.grid.path, f"a grid of the objective's path, {path}")
        known = self.grid.times.to(states.device)
        start, end = self._nearest(times.t, known), self._nearest(times.r, known)
        on = times.t == times.r
        start = torch.where(on, start, start.clamp(max=self.grid.steps - 1))
        end = torch.where(on, start, torch.maximum(end, start + 1))
        rows = torch.arange(len(states), device=states.device)
        middle = times.middle
        if middle is not None:
            place = torch.minimum(torch.maximum(self._nearest(middle, known), start), end)
            middle = known[place]
        return Drawn(states[rows, start], known[start], known[end], middle, states[rows, end])

    def _nearest(self, times: Tensor, known: Tensor) -> Tensor:
        return (times.to(known.device)[:, None] - known).abs().argmin(1)

    @property
    def moves_times(self) -> bool:
        """To those of the grid."""
        return True

    @property
    def may_know_ends(self) -> bool:
        """They are stored."""
        return True
