"""One Gaussian: denoiser, score and flow map in closed form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distillrs import random
from distillrs.checks import numbers
from distillrs.errors import argument_error
from distillrs.evaluate.beds.exact import ExactScore, per_row, row_times
from distillrs.random import Units
from distillrs.schedule import Path
from distillrs.schedule.path import check_path
from distillrs.step import Step


@dataclass(frozen=True, slots=True)
class Gaussian:
    """``N(mean, diag(deviation^2))`` in as many dimensions as it has means.

    At time t its marginal has the mean ``alpha m`` and the deviation ``S(t) = sqrt(alpha^2 s^2 + sigma^2)`` in every
    coordinate, and the flow carries ``(x - alpha m) / S`` unchanged.

    Attributes:
        mean: One number for each coordinate.
        deviation: Likewise; positive.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("mean", "deviation"):
            object.__setattr__(self, name, numbers(name, getattr(self, name)))
        if not self.mean or len(self.mean) != len(self.deviation):
            raise argument_error("deviation", self.deviation, f"a number for each of the {len(self.mean)} means")
        if not all(value > 0 for value in self.deviation):
            raise argument_error("deviation", self.deviation, "positive numbers")

    def on(self, path: Path) -> ExactScore:
        """Its exact score on a path."""
        return ExactScore(self, path)

    def denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor, condition: Mapping[str, Any] | None = None) -> Tensor:
        """``m + alpha s^2 / S^2 (x - alpha m)`` for ``x`` ``[n, d]``."""
        mean, deviation = self._parts(x)
        a, spread = per_row(alpha, x), self._spread(alpha, sigma, x)
        return mean + a * deviation**2 / spread**2 * (x - a * mean)

    def flow(self, x: Tensor, t: float | Tensor, r: float | Tensor, path: Path) -> Tensor:
        """The exact flow map from time ``t`` to ``r``; differentiable in all three.

        Args:
            x: ``[n, d]``.
            t: A number or float64 ``[n]``.
            r: Likewise.
            path: The path.
        """
        check_path("path", path)
        t, r = row_times(x, t), row_times(x, r)
        mean, _ = self._parts(x)
        here, there = self._spread(path.alpha(t), path.sigma(t), x), self._spread(path.alpha(r), path.sigma(r), x)
        return per_row(path.alpha(r), x) * mean + there / here * (x - per_row(path.alpha(t), x) * mean)

    def sample(self, units: Units, *, step: Step | int, name: str = "sample") -> Tensor:
        """Draws ``[len(units), d]`` in float64."""
        noise = random.normal(units, len(self.mean), step=step, name=name, dtype=torch.float64)
        mean, deviation = self._parts(noise)
        return mean + deviation * noise

    def _parts(self, like: Tensor) -> tuple[Tensor, Tensor]:
        if like.dim() != 2 or like.shape[1] != len(self.mean):
            raise argument_error("x", f"shape {tuple(like.shape)}", f"[n, {len(self.mean)}]")
        return like.new_tensor(self.mean), like.new_tensor(self.deviation)

    def _spread(self, alpha: Tensor, sigma: Tensor, like: Tensor) -> Tensor:
        _, deviation = self._parts(like)
        return torch.sqrt((per_row(alpha, like) * deviation) ** 2 + per_row(sigma, like) ** 2)
