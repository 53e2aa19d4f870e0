"""The exact answers of a known distribution on a path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from distillrs.checks import check_number
from distillrs.errors import argument_error
from distillrs.random import Units
from distillrs.schedule import Grid, Path, Prediction, Residual, Solver, guide, integrate, spaced
from distillrs.schedule.grids import check_grid
from distillrs.schedule.path import check_path
from distillrs.step import Step


class KnownDistribution(Protocol):
    """A distribution whose denoiser is known."""

    def denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor, condition: Mapping[str, Any] | None) -> Tensor:
        """``E[x0 | alpha x0 + sigma eps = x]``: ``x`` is ``[n, ...]``, the coefficients are float64 ``[n]``."""
        ...

    def sample(self, units: Units, *, step: Step | int, name: str = "sample") -> Tensor:
        """Draws from it, ``[len(units), ...]`` in float64."""
        ...


@dataclass(frozen=True, slots=True)
class ExactScore:
    """A distribution's exact denoiser on a path, with guidance if it is conditional.

    Attributes:
        distribution: What is known.
        path: A Gaussian path.
        guidance: Scale ``w`` of ``u + w (c - u)`` where a condition is given; 1 is the conditional distribution.
    """

    distribution: KnownDistribution
    path: Path
    guidance: float = 1.0

    def __post_init__(self) -> None:
        check_path("path", self.path)
        check_number("guidance", self.guidance, "a finite number")
        if isinstance(self.path, Residual):
            raise argument_error("path", self.path, "a path between data and noise")

    def predict(self, x: Tensor, t: float | Tensor, condition: Mapping[str, Any] | None = None) -> Prediction:
        """The exact denoised state.

        Args:
            x: ``[n, ...]``.
            t: A number or float64 ``[n]``.
            condition: ``{"label": int64 [n]}``, where -1 stands for every class; ``None`` for none.

        Returns:
            ``x0``, of the shape and type of ``x``.

        Raises:
            ArgumentError: For states that are no tensor, times of another length or outside [0, 1], or a condition that
                the distribution does not know.
        """
        if condition is not None and not isinstance(condition, Mapping):
            raise argument_error("condition", type(condition).__name__, "{'label': int64 [n]}, or None")
        times = row_times(x, t).to(x.device)
        alpha, sigma = self.path.alpha(times), self.path.sigma(times)
        found = self.distribution.denoise(x, alpha, sigma, condition)
        if condition is not None and self.guidance != 1:
            found = guide(found, self.distribution.denoise(x, alpha, sigma, None), self.guidance)
        return Prediction(found, "x0")

    def velocity(self, x: Tensor, t: float | Tensor, condition: Mapping[str, Any] | None = None) -> Tensor:
        """The velocity of the probability flow, ``[n, ...]``."""
        return self.path.convert(self.predict(x, t, condition).value, x, t, kind="x0", to="velocity")

    def score(self, x: Tensor, t: float | Tensor, condition: Mapping[str, Any] | None = None) -> Tensor:
        """The gradient of the log-density of the noisy states, ``[n, ...]``."""
        return self.path.convert(self.predict(x, t, condition).value, x, t, kind="x0", to="score")

    def endpoints(
        self,
        noise: Tensor,
        condition: Mapping[str, Any] | None = None,
        *,
        steps: int = 40,
        solver: Solver = "heun",
        start: float = 1.0,
        end: float = 0.0,
        grid: Grid | None = None,
    ) -> Tensor:
        """Where the probability flow carries noise, by many steps of a solver.

        Paired metrics need the same noise on both sides, float64, and a smooth distribution: a kernel density of
        bandwidth 0 has a discontinuous flow.

        Args:
            noise: Standard normal, ``[n, ...]``; it is scaled to the path's level at ``start``.
            condition: See :meth:`predict`.
            steps: Equal steps of time.
            solver: The solver.
            start: First time.
            end: Last time.
            grid: In place of ``steps``, ``start`` and ``end``.

        Returns:
            ``[n, ...]``.

        Raises:
            ArgumentError: For noise that is no tensor, times in the wrong order, or what is no grid.
        """
        if not isinstance(noise, Tensor):
            raise argument_error("noise", type(noise).__name__, "a tensor [n, ...]")
        if grid is not None:
            check_grid("grid", grid)
        grid = spaced(steps, self.path, start=start, end=end) if grid is None else grid
        state = float(grid.sigmas[0]) * noise
        with torch.no_grad():
            return integrate(grid, state, lambda x, t: self.predict(x, t, condition).value, solver=solver, kind="x0")


def row_times(x: Tensor, t: float | Tensor) -> Tensor:
    """One time for each row: float64 ``[n]``.

    Raises:
        ArgumentError: For states that are no tensor with rows, or times that are not one number or ``[n]``.
    """
    if not isinstance(x, Tensor) or x.dim() == 0:
        raise argument_error("x", type(x).__name__, "a tensor [n, ...]")
    if not isinstance(t, Tensor):
        check_number("t", t, "a time from 0 to 1, or float64 [n]", least=0, most=1)
    times = torch.as_tensor(t, dtype=torch.float64)
    if times.dim() > 1 or (times.dim() == 1 and len(times) not in (1, len(x))):
        raise argument_error("t", f"shape {tuple(times.shape)}", f"one time, or one for each row, [{len(x)}]")
    return times.expand(len(x))


def per_row(coefficient: Tensor, like: Tensor) -> Tensor:
    """A coefficient ``[n]`` shaped to multiply ``[n, ...]``, in its type."""
    return coefficient.to(like).reshape(-1, *(1,) * (like.dim() - 1))
