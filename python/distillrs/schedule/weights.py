"""Weights of losses by the level of noise, told for any prediction."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from distillrs.checks import check_number
from distillrs.errors import unknown_name_error
from distillrs.schedule._times import Time, as_time
from distillrs.schedule.gaussian_paths import positive
from distillrs.schedule.path import Kind, Path


class LossWeight(ABC):
    """A weight of the squared error of a prediction, a function of the path and the time.

    A published weight belongs to one kind of prediction. Errors of different kinds about one state are multiples of
    each other, so :meth:`at` gives the weight of any kind that makes the same loss.
    """

    __slots__ = ()

    @abstractmethod
    def of_x0(self, path: Path, t: Tensor) -> Tensor:
        """Weight of ``|x0 error|^2``: float64, of the times' shape."""

    def at(self, path: Path, t: Time, kind: Kind = "x0") -> Tensor:
        """The weight of the squared error of a kind.

        Args:
            path: The path.
            t: Times, any shape.
            kind: What the loss compares.

        Returns:
            float64, of the times' shape. At the ends of a path it may be 0 or infinite.

        Raises:
            ArgumentError: For an unknown kind or times outside [0, 1].
        """
        times = as_time(t)
        return self.of_x0(path, times) * error_scale(path, times, kind=kind, to="x0").square()


def error_scale(path: Path, t: Time, *, kind: Kind, to: Kind) -> Tensor:
    """How an error of one kind becomes an error of another: ``d to / d kind`` at a fixed state.

    Args:
        path: The path.
        t: Times, any shape.
        kind: The kind of the given error.
        to: The kind of the wanted error.

    Returns:
        float64, of the times' shape.

    Raises:
        ArgumentError: For an unknown kind or times outside [0, 1].
    """
    times = as_time(t)
    for name in (kind, to):
        if name not in get_args(Kind):
            raise unknown_name_error("kind", name, list(get_args(Kind)))
    given, wanted = path._row(kind, times), path._row(to, times)
    if kind == to:
        return torch.ones_like(times)
    alpha, sigma = path._alpha(times), path._sigma(times)
    # Of the state and the given kind the error is in the given kind alone.
    numerator = (alpha * wanted.noise - sigma * wanted.data) * given.scale
    return numerator / ((alpha * given.noise - sigma * given.data) * wanted.scale)


@dataclass(frozen=True, slots=True)
class UniformWeight(LossWeight):
    """1 for one kind: ``noise`` as Ho, Jain, Abbeel (2020), ``velocity`` as flow matching.

    Attributes:
        kind: Whose squared error is taken as it is.
    """

    kind: Kind = "x0"

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise unknown_name_error("kind", self.kind, list(get_args(Kind)))

    def of_x0(self, path: Path, t: Tensor) -> Tensor:
        """The square of what an error of x0 is as an error of the kind."""
        return error_scale(path, t, kind="x0", to=self.kind).square()


@dataclass(frozen=True, slots=True)
class TruncatedSNR(LossWeight):
    """``max(SNR, floor)`` on x0, with ``SNR = alpha^2 / sigma^2``.

    Salimans and Ho, "Progressive distillation for fast sampling of diffusion models" (2022), with floor 1: the larger
    of the x0 loss and the noise loss.

    Attributes:
        floor: Keeps the weight from vanishing near noise.
    """

    floor: float = 1.0

    def __post_init__(self) -> None:
        _from_zero("floor", self.floor)

    def of_x0(self, path: Path, t: Tensor) -> Tensor:
        """See the class."""
        return path._log_snr(t).exp().clamp(min=self.floor)


@dataclass(frozen=True, slots=True)
class MinSNR(LossWeight):
    """``min(SNR, ceiling)`` on x0.

    Hang et al., "Efficient diffusion training via Min-SNR weighting strategy" (2023), with ceiling 5.

    Attributes:
        ceiling: Keeps the weight from growing near the data.
    """

    ceiling: float = 5.0

    def __post_init__(self) -> None:
        positive("ceiling", self.ceiling)

    def of_x0(self, path: Path, t: Tensor) -> Tensor:
        """See the class."""
        return path._log_snr(t).exp().clamp(max=self.ceiling)


@dataclass(frozen=True, slots=True)
class SigmoidWeight(LossWeight):
    """``sigmoid(bias - log SNR)`` on the noise.

    Kingma and Gao, "Understanding diffusion objectives as the ELBO with simple data augmentation" (2023).

    Attributes:
        bias: The log-SNR at which the weight is half.
    """

    bias: float = 2.0

    def __post_init__(self) -> None:
        check_number("bias", self.bias, "a finite number")

    def of_x0(self, path: Path, t: Tensor) -> Tensor:
        """An error of x0 is ``sqrt(SNR)`` times as large as one of the noise."""
        # exp(l) sigmoid(b - l) without the overflow of its first factor.
        return math.exp(self.bias) * torch.sigmoid(path._log_snr(t) - self.bias)


@dataclass(frozen=True, slots=True)
class PreconditionedWeight(LossWeight):
    """``(ratio^2 + sigma_data^2) / (ratio sigma_data)^2`` on x0, with ``ratio = sigma / alpha``.

    1 on the network ``F`` of Karras et al., "Elucidating the design space of diffusion-based generative models" (2022),
    on any path. The standard deviation of the data is the path's.
    """

    def of_x0(self, path: Path, t: Tensor) -> Tensor:
        """See the class."""
        return path._log_snr(t).exp() + 1 / path.sigma_data**2


def _from_zero(name: str, value: float) -> None:
    check_number(name, value, "a number from 0", least=0)
