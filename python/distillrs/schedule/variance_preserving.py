"""Variance-preserving paths and their variance-reduced kin, by the logarithm of their signal."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from distillrs.checks import check_number, check_whole, is_number
from distillrs.errors import argument_error, unknown_name_error
from distillrs.schedule.gaussian_paths import positive
from distillrs.schedule.path import Path, Row
from distillrs.schedule.tables import Table

BetaTable: TypeAlias = Literal["linear", "scaled_linear", "cosine"]


class Signal(Protocol):
    """How the weight of the data falls with time, from 1 at time 0; all on float64 tensors."""

    def log_alpha(self, t: Tensor) -> Tensor:
        """Logarithm of the data's weight."""
        ...

    def alpha(self, t: Tensor) -> Tensor:
        """Weight of the data."""
        ...

    def alpha_derivative(self, t: Tensor) -> Tensor:
        """Its derivative in time."""
        ...

    def remainder(self, t: Tensor) -> Tensor:
        """``1 - alpha^2``, without cancellation."""
        ...

    def time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        """The inverse of ``log_alpha``."""
        ...

    @property
    def rows(self) -> int | None:
        """Rows of the table that it was made from."""
        ...


class _Logarithmic(ABC):
    """What follows when the logarithm of alpha is the simple thing."""

    __slots__ = ()

    @abstractmethod
    def log_alpha(self, t: Tensor) -> Tensor: ...

    def alpha(self, t: Tensor) -> Tensor:
        return self.log_alpha(t).exp()

    def remainder(self, t: Tensor) -> Tensor:
        return -torch.expm1(2 * self.log_alpha(t))


@dataclass(frozen=True, slots=True)
class LinearBeta(_Logarithmic):
    """``log alpha = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2``.

    Song et al., "Score-based generative modeling through stochastic differential equations" (2021).

    Attributes:
        beta_min: Rate of noise at time 0.
        beta_max: Rate of noise at time 1, at least ``beta_min``.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        positive("beta_min", self.beta_min)
        check_number("beta_max", self.beta_max, f"a number from beta_min, {self.beta_min}", least=self.beta_min)

    rows = None

    def log_alpha(self, t: Tensor) -> Tensor:
        """Logarithm of the data's weight."""
        return -t * (t * (self.beta_max - self.beta_min) / 4 + self.beta_min / 2)

    def alpha_derivative(self, t: Tensor) -> Tensor:
        """Derivative of the data's weight."""
        return -(t * (self.beta_max - self.beta_min) + self.beta_min) / 2 * self.alpha(t)

    def time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        """The root of the quadratic, in the form that does not cancel."""
        linear, quadratic = self.beta_min / 2, (self.beta_max - self.beta_min) / 4
        return -2 * log_alpha / (linear + (linear**2 - 4 * quadratic * log_alpha).sqrt())


@dataclass(frozen=True, slots=True)
class CosineAlpha:
    """``alpha = cos(p(t)) / cos(p(0))``, ``p(t) = (pi / 2) (t + offset) / (1 + offset)``.

    Nichol and Dhariwal, "Improved denoising diffusion probabilistic models" (2021), without their bound on the last
    steps.

    Attributes:
        offset: Keeps the first steps' noise from vanishing.
    """

    offset: float = 0.008

    def __post_init__(self) -> None:
        positive("offset", self.offset)

    rows = None

    @property
    def _start(self) -> float:
        return math.pi / 2 * self.offset / (1 + self.offset)

    @property
    def _rate(self) -> float:
        return math.pi / 2 / (1 + self.offset)

    def alpha(self, t: Tensor) -> Tensor:
        """Weight of the data; exactly 0 at time 1."""
        return (self._rate * (1 - t)).sin() / math.cos(self._start)

    def log_alpha(self, t: Tensor) -> Tensor:
        """Logarithm of the data's weight."""
        return self.alpha(t).log()

    def alpha_derivative(self, t: Tensor) -> Tensor:
        """Derivative of the data's weight."""
        return -self._rate * (self._rate * (1 - t)).cos() / math.cos(self._start)

    def remainder(self, t: Tensor) -> Tensor:
        """From ``cos^2 a - cos^2 b = sin(b - a) sin(b + a)``."""
        turned = self._rate * t
        return turned.sin() * (turned + 2 * self._start).sin() / math.cos(self._start) ** 2

    def time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        """The inverse cosine."""
        cosine = log_alpha.exp() * math.cos(self._start)
        return 1 - torch.asin(cosine) / self._rate


@dataclass(frozen=True, slots=True)
class AlphaTable(_Logarithmic):
    """A table of cumulative products of ``1 - beta``, as discrete diffusion models are trained with.

    Row ``i`` of ``n`` stands at time ``(i + 1) / n``, where ``alpha = sqrt(alphas_cumprod[i])``; time 0 is clean data.
    Between rows the logarithm of alpha is linear, as in Lu et al., "DPM-Solver" (2022).

    Attributes:
        logarithms: ``log alpha`` at ``0, 1/n, ..., 1``.
    """

    logarithms: Table

    @classmethod
    def of(cls, alphas_cumprod: Sequence[float] | Tensor) -> AlphaTable:
        """The table of strictly decreasing numbers between 0 and 1.

        Raises:
            ArgumentError: For other numbers; a last one of 0 has no logarithm.
        """
        values = [float(value) for value in alphas_cumprod]
        if not values or not all(0 < value < 1 for value in values):
            raise argument_error("alphas_cumprod", f"{len(values)} values", "numbers between 0 and 1, ends excluded")
        return cls(Table("alphas_cumprod", [0.0, *(math.log(value) / 2 for value in values)]))

    @property
    def rows(self) -> int | None:
        """Rows of the table."""
        return self.logarithms.rows

    def log_alpha(self, t: Tensor) -> Tensor:
        """Logarithm of the data's weight."""
        return self.logarithms.at(t)

    def alpha_derivative(self, t: Tensor) -> Tensor:
        """Derivative of the data's weight; jumps at the rows."""
        return self.logarithms.derivative(t) * self.alpha(t)

    def time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        """The inverse of the broken line."""
        return self.logarithms.inverse(log_alpha)


@dataclass(frozen=True, slots=True)
class VP(Path):
    """``x_t = alpha x0 + sqrt(1 - alpha^2) eps``.

    The velocity is infinite at time 0: ``sigma' = -alpha alpha' / sigma``.

    Attributes:
        signal: How ``alpha`` falls: :class:`LinearBeta`, :class:`CosineAlpha`, :class:`AlphaTable`, or one of your own.
    """

    signal: Signal = field(default_factory=LinearBeta)

    @classmethod
    def linear(cls, beta_min: float = 0.1, beta_max: float = 20.0) -> VP:
        """The path of :class:`LinearBeta`."""
        return cls(LinearBeta(beta_min, beta_max))

    @classmethod
    def cosine(cls, offset: float = 0.008) -> VP:
        """The path of :class:`CosineAlpha`."""
        return cls(CosineAlpha(offset))

    @classmethod
    def table(cls, alphas_cumprod: Sequence[float] | Tensor) -> VP:
        """The path of :class:`AlphaTable`.

        Args:
            alphas_cumprod: Strictly decreasing numbers between 0 and 1.
        """
        return cls(AlphaTable.of(alphas_cumprod))

    @classmethod
    def betas(
        cls, kind: BetaTable = "scaled_linear", steps: int = 1000, start: float | None = None, end: float | None = None
    ) -> VP:
        """The path of a published table of betas.

        - ``linear``: from 1e-4 to 0.02 (Ho, Jain, Abbeel, "Denoising diffusion probabilistic models", 2020).
        - ``scaled_linear``: square roots from sqrt(0.00085) to sqrt(0.012) (Rombach et al., "High-resolution image
          synthesis with latent diffusion models", 2022).
        - ``cosine``: ratios of :class:`CosineAlpha`'s squares, at most 0.999.

        Args:
            kind: Which.
            steps: Rows.
            start: First beta, in place of the published one; not for ``cosine``.
            end: Last beta, likewise.

        Raises:
            ArgumentError: For an unknown name, fewer than two steps, or betas outside (0, 1).
        """
        if kind not in ("linear", "scaled_linear", "cosine"):
            raise unknown_name_error("table of betas", kind, ["linear", "scaled_linear", "cosine"])
        check_whole("steps", steps, "two or more rows", least=2)
        if kind == "cosine":
            if start is not None or end is not None:
                raise argument_error("start", (start, end), "None for the cosine")
            edges = [math.cos((row / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for row in range(steps + 1)]
            ratios = [min(1 - edges[row + 1] / edges[row], 0.999) for row in range(steps)]
            betas = torch.tensor(ratios, dtype=torch.float64)
        else:
            first, last = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012)}[kind]
            first, last = (first if start is None else start), (last if end is None else end)
            if not all(is_number(beta) and 0 < beta < 1 for beta in (first, last)):
                raise argument_error("start", (first, last), "first and last beta between 0 and 1")
            power = 0.5 if kind == "scaled_linear" else 1.0
            betas = torch.linspace(first**power, last**power, steps, dtype=torch.float64) ** (1 / power)
        return cls.table((1 - betas).cumprod(0))

    def _alpha(self, t: Tensor) -> Tensor:
        return self.signal.alpha(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.signal.remainder(t).sqrt()

    def _alpha_derivative(self, t: Tensor) -> Tensor:
        return self.signal.alpha_derivative(t)

    def _sigma_derivative(self, t: Tensor) -> Tensor:
        return -self._alpha(t) * self._alpha_derivative(t) / self._sigma(t)

    def _velocity(self, t: Tensor) -> Row:
        sigma, slope = self._sigma(t), self._alpha_derivative(t)
        return Row(sigma, sigma * slope, -self._alpha(t) * slope)

    def _log_snr(self, t: Tensor) -> Tensor:
        return 2 * self.signal.log_alpha(t) - self.signal.remainder(t).log()

    def _time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        # alpha^2 is the logistic function of the log-SNR.
        return self.signal.time_of_log_alpha(functional.logsigmoid(log_snr) / 2)

    def _time_of_sigma(self, sigma: Tensor) -> Tensor:
        return self.signal.time_of_log_alpha(torch.log1p(-sigma.clamp(max=1.0).square()) / 2)

    def _rows(self) -> int:
        rows = self.signal.rows
        # Without a table, the base names the remedy. Not super(): dataclasses with slots are made twice.
        return Path._rows(self) if rows is None else rows


@dataclass(frozen=True, slots=True)
class SubVP(Path):
    """``x_t = alpha x0 + (1 - alpha^2) eps``, of smaller variance than :class:`VP`.

    Song et al., "Score-based generative modeling through stochastic differential equations" (2021).

    Attributes:
        signal: How ``alpha`` falls, as for :class:`VP`.
    """

    signal: Signal = field(default_factory=LinearBeta)

    def _alpha(self, t: Tensor) -> Tensor:
        return self.signal.alpha(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.signal.remainder(t)

    def _alpha_derivative(self, t: Tensor) -> Tensor:
        return self.signal.alpha_derivative(t)

    def _sigma_derivative(self, t: Tensor) -> Tensor:
        return -2 * self._alpha(t) * self._alpha_derivative(t)

    def _log_snr(self, t: Tensor) -> Tensor:
        return 2 * (self.signal.log_alpha(t) - self.signal.remainder(t).log())

    def _time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        # The root of alpha / (1 - alpha^2) = m, with 1/m so that neither end overflows.
        inverse = (-log_snr / 2).exp()
        alpha = 2 / (inverse + (inverse.square() + 4).sqrt())
        return self.signal.time_of_log_alpha(alpha.log())

    def _time_of_sigma(self, sigma: Tensor) -> Tensor:
        return self.signal.time_of_log_alpha(torch.log1p(-sigma.clamp(max=1.0)) / 2)

    def _rows(self) -> int:
        rows = self.signal.rows
        return Path._rows(self) if rows is None else rows
