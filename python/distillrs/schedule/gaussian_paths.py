"""Paths with coefficients in closed form: EDM, rectified flow, TrigFlow."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from distillrs.checks import check_number
from distillrs.schedule.path import Kind, Path, Row


def positive(name: str, value: float) -> None:
    """Refuses what is not a positive, finite number."""
    check_number(name, value, "a positive number", above=0)


@dataclass(frozen=True, slots=True)
class EDM(Path):
    """``x_t = x0 + sigma eps`` with ``sigma = sigma_max t``.

    Karras et al., "Elucidating the design space of diffusion-based generative models" (2022). The kind
    ``F`` is the network of their preconditioning, ``x0 = c_skip x_t + c_out F`` with
    ``c_skip = sigma_data^2 / (sigma^2 + sigma_data^2)`` and
    ``c_out = sigma sigma_data / sqrt(sigma^2 + sigma_data^2)``, so that
    ``F = (sigma x0 - sigma_data^2 eps) / (sigma_data sqrt(sigma^2 + sigma_data^2))``.

    Attributes:
        sigma_max: Level at time 1.
        sigma_data: Standard deviation of the data.
    """

    sigma_max: float = 80.0
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        positive("sigma_max", self.sigma_max)
        positive("sigma_data", self.sigma_data)

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.sigma_max * t

    def _alpha_derivative(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def _sigma_derivative(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.sigma_max)

    def _time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        return (-log_snr / 2).exp() / self.sigma_max

    def _time_of_sigma(self, sigma: Tensor) -> Tensor:
        return sigma / self.sigma_max

    def _time_of_ratio(self, ratio: Tensor) -> Tensor:
        # Not through a logarithm, so that a grid's levels are those asked for.
        return self.time_of_sigma(ratio)

    def _network(self, t: Tensor) -> Row:
        sigma = self._sigma(t)
        scale = self.sigma_data * torch.hypot(sigma, torch.full_like(t, self.sigma_data))
        return Row(scale, sigma, torch.full_like(t, -(self.sigma_data**2)))


@dataclass(frozen=True, slots=True)
class RectifiedFlow(Path):
    """``x_t = (1 - t) x0 + t eps``, whose velocity is ``eps - x0``.

    Liu, Gong, Liu, "Flow straight and fast" (2022); Lipman et al., "Flow matching for generative modeling" (2022).
    """

    def _alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def _sigma(self, t: Tensor) -> Tensor:
        return t * 1

    def _alpha_derivative(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def _sigma_derivative(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _log_snr(self, t: Tensor) -> Tensor:
        return 2 * (torch.log1p(-t) - t.log())

    def _time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr / 2)

    def _time_of_sigma(self, sigma: Tensor) -> Tensor:
        return sigma * 1

    def _jump(self, kind: Kind, t: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        return (torch.ones_like(t), r - t) if kind == "velocity" else Path._jump(self, kind, t, r)


@dataclass(frozen=True, slots=True)
class Trig(Path):
    """``x_t = cos(a) x0 + sin(a) sigma_data eps`` with the angle ``a = pi t / 2``.

    Lu and Song, "Simplifying, stabilizing and scaling continuous-time consistency models" (2024), whose time is the
    angle. The kind ``F`` is their network, ``x0 = cos(a) x_t - sin(a) sigma_data F``; it is minus EDM's at the same
    log-SNR. The velocity is per unit of ``t``: ``pi/2`` times theirs, ``sigma_data F``.

    Attributes:
        sigma_data: Standard deviation of the data.
    """

    sigma_data: float = 1.0

    def __post_init__(self) -> None:
        positive("sigma_data", self.sigma_data)

    def _alpha(self, t: Tensor) -> Tensor:
        # The cosine, so that it is 0 at time 1 and not 6e-17.
        return (math.pi / 2 * (1 - t)).sin()

    def _sigma(self, t: Tensor) -> Tensor:
        return self.sigma_data * (math.pi / 2 * t).sin()

    def _alpha_derivative(self, t: Tensor) -> Tensor:
        return -math.pi / 2 * (math.pi / 2 * t).sin()

    def _sigma_derivative(self, t: Tensor) -> Tensor:
        return math.pi / 2 * self.sigma_data * (math.pi / 2 * (1 - t)).sin()

    def _time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        return torch.atan((-log_snr / 2).exp() / self.sigma_data) * (2 / math.pi)

    def _time_of_sigma(self, sigma: Tensor) -> Tensor:
        return torch.asin((sigma / self.sigma_data).clamp(max=1.0)) * (2 / math.pi)

    def _time_of_angle(self, angle: Tensor) -> Tensor:
        return angle * (2 / math.pi)

    def _angle(self, t: Tensor) -> Tensor:
        return math.pi / 2 * t

    def _deviation(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.sigma_data)

    def _jump(self, kind: Kind, t: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        if kind != "F":
            return Path._jump(self, kind, t, r)
        gap = t - r
        return self._alpha(gap), -self._sigma(gap)

    def _network(self, t: Tensor) -> Row:
        cosine, sine = self._alpha(t), (math.pi / 2 * t).sin()
        return Row(torch.full_like(t, self.sigma_data), -sine, cosine * self.sigma_data)
