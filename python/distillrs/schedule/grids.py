"""Grids: the times that a sampler stops at, from noise to data."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from distillrs.checks import check_number, check_whole, numbers
from distillrs.errors import argument_error
from distillrs.schedule._times import as_time, check_range
from distillrs.schedule.gaussian_paths import EDM, RectifiedFlow, positive
from distillrs.schedule.laws import shift_time
from distillrs.schedule.path import Clock, Path, check_clock, check_path


class Grid:
    """Times of a path in the order in which a sampler visits them, strictly decreasing: ``steps + 1`` points.

    Two grids are equal if their times and paths are.

    Args:
        times: Two or more, from noise to data.
        path: What they are times of.

    Raises:
        ArgumentError: For fewer times, times outside [0, 1], or times that do not fall.
    """

    __slots__ = ("_times", "path")

    def __init__(self, times: Sequence[float] | Tensor, path: Path) -> None:
        check_path("path", path)
        values = numbers("times", times)
        if len(values) < 2:
            raise argument_error("times", values, "two or more times")
        if not (min(values) >= 0 and max(values) <= 1):
            check_range("times", torch.tensor(values, dtype=torch.float64), 0.0, 1.0, "times")
        if not all(map(operator.gt, values, values[1:])):
            early, late = next(pair for pair in itertools.pairwise(values) if not pair[1] < pair[0])
            raise argument_error("times", f"{late} after {early}", "strictly decreasing times, noise first")
        self._times = values
        self.path = path

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grid) and (self._times, self.path) == (other._times, other.path)

    def __hash__(self) -> int:
        return hash((self._times, self.path))

    def __repr__(self) -> str:
        return f"Grid([{', '.join(f'{time:.6g}' for time in self._times)}], {self.path!r})"

    def __reduce__(self) -> tuple[type[Grid], tuple[tuple[float, ...], Path]]:
        return (Grid, (self._times, self.path))

    @property
    def steps(self) -> int:
        """Number of intervals."""
        return len(self._times) - 1

    @property
    def times(self) -> Tensor:
        """float64 ``[steps + 1]``, strictly decreasing."""
        return torch.tensor(self._times, dtype=torch.float64)

    @property
    def alphas(self) -> Tensor:
        """Weights of the data: float64 ``[steps + 1]``."""
        return self.path.alpha(self.times)

    @property
    def sigmas(self) -> Tensor:
        """Weights of the noise: float64 ``[steps + 1]``."""
        return self.path.sigma(self.times)

    @property
    def ratios(self) -> Tensor:
        """``sigma / alpha``, what samplers written for EDM call sigma on any path: float64 ``[steps + 1]``."""
        return self.path.clock(self.times, to="ratio")

    @property
    def log_snr(self) -> Tensor:
        """float64 ``[steps + 1]``, rising."""
        return self.path.log_snr(self.times)

    def on(self, path: Path) -> Grid:
        """The same levels of noise on another path.

        Raises:
            ArgumentError: For what is no path, or a level that the other path does not reach.
        """
        check_path("path", path)
        return Grid(path.time_of_log_snr(self.log_snr), path)


def check_grid(name: str, value: object) -> None:
    """Refuses what is no grid, plain times for example.

    Raises:
        ArgumentError: By the argument's name.
    """
    if not isinstance(value, Grid):
        raise argument_error(name, type(value).__name__, "a Grid: times with the path that they are of")


def _whole(name: str, value: int) -> None:
    check_whole(name, value, "a positive integer", least=1)


def karras(
    steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0, *, path: Path | None = None
) -> Grid:
    """The grid of Karras et al., "Elucidating the design space of diffusion-based generative models" (2022).

    ``ratio_i = (sigma_max^(1/rho) + i / (steps - 1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho`` for ``steps``
    levels, then 0; on other paths than EDM the levels are ratios of noise to signal.

    Args:
        steps: Number of intervals; the last one ends in the data.
        sigma_min: Last level above 0.
        sigma_max: First level.
        rho: The larger, the denser near the data.
        path: What the times are of; ``EDM(sigma_max)`` by default.

    Raises:
        ArgumentError: For numbers that are not positive, levels in the wrong order or beyond the path.
    """
    _whole("steps", steps)
    for name, value in (("sigma_min", sigma_min), ("sigma_max", sigma_max), ("rho", rho)):
        positive(name, value)
    if sigma_min >= sigma_max:
        raise argument_error("sigma_min", sigma_min, f"below sigma_max, {sigma_max}")
    path = EDM(sigma_max) if path is None else path
    check_path("path", path)
    share = torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
    first, last = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    ratios = (first + share * (last - first)) ** rho
    # The ends come back from the powers with an error in the last bits.
    ratios[-1], ratios[0] = sigma_min, sigma_max
    return Grid((*path.clock(ratios, of="ratio").tolist(), 0.0), path)


def spaced(
    steps: int, path: Path, *, of: Clock = "time", start: float = 1.0, end: float = 0.0, then_data: bool = False
) -> Grid:
    """A grid in equal steps of a clock.

    Args:
        steps: Number of intervals.
        path: What the times are of.
        of: The clock: ``time``, ``angle``, ``log_snr``, ``log_sigma``, ...
        start: First time.
        end: Last time of the equal steps.
        then_data: Whether the last interval leads from there to time 0 instead of being one of the equal ones.

    Raises:
        ArgumentError: For ends in the wrong order, or where the clock is infinite.
    """
    _whole("steps", steps)
    check_path("path", path)
    check_clock("of", of)
    for name, value in (("start", start), ("end", end)):
        check_number(name, value, "a time from 0 to 1", least=0, most=1)
    ends = as_time(torch.tensor([start, end], dtype=torch.float64))
    if not end < start:
        raise argument_error("end", end, f"a time below start, {start}")
    first, last = path.clock(ends, to=of).tolist()
    for name, time, told in (("start", start, first), ("end", end, last)):
        if not math.isfinite(told):
            raise argument_error(name, time, f"a time at which {of} is finite")
    equal = steps - 1 if then_data else steps
    if equal < 1:
        raise argument_error("steps", steps, "two or more when the last one leads to the data")
    share = torch.arange(equal + 1, dtype=torch.float64) / equal
    times = path.clock(first + share * (last - first), of=of).tolist()
    # The ends come back from the clock with an error in the last bits.
    times[0], times[-1] = start, end
    return Grid((*times, 0.0) if then_data else times, path)


def shifted(steps: int, shift: float, path: Path | None = None, *, start: float = 1.0, end: float = 0.0) -> Grid:
    """Equal steps of time, moved by :func:`shift_time`: the grid of flow-matching models of images and video.

    Esser et al., "Scaling rectified flow transformers for high-resolution image synthesis" (2024). The shift goes on
    top of the equal steps; do not shift again what this gives.

    Args:
        steps: Number of intervals.
        shift: Above 1 towards noise.
        path: What the times are of; a rectified flow by default.
        start: First time before the shift.
        end: Last time before the shift.

    Raises:
        ArgumentError: For a shift that is not positive, ends in the wrong order, or what is no path.
    """
    path = RectifiedFlow() if path is None else path
    return Grid(shift_time(spaced(steps, path, start=start, end=end).times, shift).clamp(0.0, 1.0), path)


def ddim(
    steps: int,
    path: Path,
    *,
    spacing: Literal["leading", "trailing", "linspace"] = "trailing",
    offset: int = 0,
    last: Literal["data", "first_row"] = "data",
) -> Grid:
    """Rows of the table that a discrete diffusion model was trained with, and then the data.

    Song, Meng, Ermon, "Denoising diffusion implicit models" (2021); the names of the spacings are those of Lin et al.,
    "Common diffusion noise schedules and sample steps are flawed" (2024), who show that only ``trailing`` starts at the
    last row.

    Args:
        steps: Number of intervals, at most the table's rows.
        path: A path that was made from a table.
        spacing: ``leading``: multiples of ``rows // steps``; ``trailing``: from the last row in steps of
            ``rows / steps``; ``linspace``: from the last row to the first.
        offset: Added to the rows of ``leading``.
        last: Where the last step ends: the data, or row 0 of the table.

    Raises:
        ArgumentError: For a path without a table, more steps than rows, or rows beyond the table.
    """
    _whole("steps", steps)
    check_path("path", path)
    check_whole("offset", offset, "a number of rows from 0", least=0)
    rows = path._rows()
    if steps > rows:
        raise argument_error("steps", steps, f"at most the table's {rows} rows")
    if spacing == "leading":
        chosen = [row * (rows // steps) + offset for row in range(steps)][::-1]
    elif spacing == "trailing":
        chosen = [round(rows - step * rows / steps) - 1 for step in range(steps)]
    elif spacing == "linspace":
        chosen = [round(row) for row in torch.linspace(0, rows - 1, steps, dtype=torch.float64).tolist()][::-1]
    else:
        raise argument_error("spacing", spacing, "'leading', 'trailing' or 'linspace'")
    if offset and spacing != "leading":
        raise argument_error("offset", offset, "0 unless the spacing is 'leading'")
    if last not in ("data", "first_row"):
        raise argument_error("last", last, "'data' or 'first_row'")
    if not 0 <= chosen[-1] <= chosen[0] < rows:
        raise argument_error("offset", offset, f"one that keeps {chosen[-1]} to {chosen[0]} within the {rows} rows")
    end = [] if last == "first_row" and chosen[-1] == 0 else [-1.0 if last == "data" else 0.0]
    return Grid(path.clock(torch.tensor([*chosen, *end], dtype=torch.float64), of="index"), path)
