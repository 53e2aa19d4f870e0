"""The path between two images that residual diffusion takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from distillrs.checks import check_number, check_whole
from distillrs.schedule.gaussian_paths import positive
from distillrs.schedule.path import Path
from distillrs.schedule.tables import Table


@dataclass(frozen=True, slots=True)
class Residual(Path):
    """``x_t = x0 + eta (y - x0) + kappa sqrt(eta) eps``, from an image to a degraded one, ``y``.

    Yue, Wang, Loy, "ResShift: efficient diffusion model for image super-resolution by residual shifting" (2023). Level
    ``k`` of ``n``, at time ``k / n``, has ``sqrt(eta) = sqrt(first) (last / first)^(u^power / 2)`` with
    ``u = (k - 1) / (n - 1)``; time 0 is the image itself. Between levels ``sqrt(eta)`` is linear. Without ``eta y`` the
    path is Gaussian with ``alpha = 1 - eta`` and ``sigma = kappa sqrt(eta)``; every method that takes a state takes
    ``y`` as ``reference``.

    Attributes:
        levels: Levels of noise, two or more.
        kappa: Strength of the noise.
        power: Above 1 the noise comes late, below 1 early.
        first: ``eta`` of level 1; ``None`` for the published ``min((0.04 / kappa)^2, 0.001)``.
        last: ``eta`` of the last level, below 1.
    """

    levels: int = 15
    kappa: float = 2.0
    power: float = 0.3
    first: float | None = None
    last: float = 0.999

    def __post_init__(self) -> None:
        check_whole("levels", self.levels, "two or more", least=2)
        positive("kappa", self.kappa)
        positive("power", self.power)
        check_number("last", self.last, "a number between 0 and 1", above=0, below=1)
        allowed = f"None or a number between 0 and last, {self.last}"
        check_number("first", self._first, allowed, above=0, below=self.last)

    @property
    def _first(self) -> float:
        return min((0.04 / self.kappa) ** 2, 0.001) if self.first is None else self.first

    @property
    def _roots(self) -> Table:
        return _roots(self.levels, self.power, self._first, self.last)

    def _alpha(self, t: Tensor) -> Tensor:
        root = self._roots.at(t)
        return (1 - root) * (1 + root)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.kappa * self._roots.at(t)

    def _alpha_derivative(self, t: Tensor) -> Tensor:
        return -2 * self._roots.at(t) * self._roots.derivative(t)

    def _sigma_derivative(self, t: Tensor) -> Tensor:
        return self.kappa * self._roots.derivative(t)

    def _drift(self, t: Tensor) -> Tensor | None:
        return self._roots.at(t).square()

    def _drift_derivative(self, t: Tensor) -> Tensor | None:
        return -self._alpha_derivative(t)

    def _time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        # The positive root of e^2 + 2 b e = 1 with b = kappa sqrt(SNR) / 2, divided by b where that is large.
        inverse = (-log_snr / 2).exp() / self.kappa
        return self._roots.inverse(2 * inverse / (1 + torch.hypot(2 * inverse, torch.ones_like(inverse))))

    def _time_of_sigma(self, sigma: Tensor) -> Tensor:
        return self._roots.inverse(sigma / self.kappa)

    def _rows(self) -> int:
        return self.levels


_TABLES: dict[tuple[int, float, float, float], Table] = {}


def _roots(levels: int, power: float, first: float, last: float) -> Table:
    key = (levels, power, first, last)
    if key not in _TABLES:
        growth = math.log(last / first) / 2
        shares = [(level / (levels - 1)) ** power for level in range(levels)]
        _TABLES[key] = Table("levels", [0.0, *(math.sqrt(first) * math.exp(growth * share) for share in shares)])
    return _TABLES[key]
