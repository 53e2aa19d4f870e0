"""Heads: how a network's output becomes a map, ``Phi(x, t, r) = A(t, r) x + B(t, r) F``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from distillrs.checks import check_number
from distillrs.errors import argument_error, unknown_name_error
from distillrs.schedule import Kind, Path


class HeadWeights(NamedTuple):
    """Coefficients of the map: float64, of the times' shape.

    Attributes:
        state: ``A``; 1 where ``r = t``.
        network: ``B``; 0 where ``r = t``.
    """

    state: Tensor
    network: Tensor


class Head(ABC):
    """A pair (A, B) with ``A(t, t) = 1`` and ``B(t, t) = 0``, so that the map from a time to itself is the identity."""

    __slots__ = ()

    @abstractmethod
    def weights(self, path: Path, t: Tensor, r: Tensor) -> HeadWeights:
        """The coefficients, differentiable in both times.

        Args:
            path: The path.
            t: float64, any shape.
            r: float64, of that shape.
        """

    def end(self, path: Path) -> float | None:
        """The one time that the map can end at; ``None`` if it can end at any."""
        return None

    def velocity(self, path: Path, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """``dPhi/dr`` at ``r = t``: what the output on the diagonal says of the flow."""
        raise self._no_diagonal()

    def output_of_velocity(self, path: Path, velocity: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The inverse of :meth:`velocity`."""
        raise self._no_diagonal()

    def _no_diagonal(self) -> Exception:
        return argument_error("head", self, "one whose map can end anywhere (AverageVelocity, Jump): this one has no r")


@dataclass(frozen=True, slots=True)
class AverageVelocity(Head):
    """``x + (r - t) F``: the network is the mean of the velocity on the way.

    Geng et al., "Mean flows for one-step generative modeling" (2025), on a rectified flow; here on any path.
    """

    def weights(self, path: Path, t: Tensor, r: Tensor) -> HeadWeights:
        """``A = 1``, ``B = r - t``."""
        return HeadWeights(torch.ones_like(t), r - t)

    def velocity(self, path: Path, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The output itself."""
        return output

    def output_of_velocity(self, path: Path, velocity: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The velocity itself."""
        return velocity


@dataclass(frozen=True, slots=True)
class Jump(Head):
    """The state at ``r`` whose data and noise are those that a prediction at ``t`` claims.

    With the prediction as a row ``scale F = data x0 + noise eps`` and ``D = alpha_t noise - sigma_t data``::

        A = (alpha_r noise - sigma_r data) / D        B = scale (sigma_r alpha_t - alpha_r sigma_t) / D

    For ``x0`` DDIM's step (Song, Meng, Ermon, 2021), whose map of three times is that of Kim et al., "Consistency
    trajectory models" (2023); for ``F`` on the path Trig ``cos(a_t - a_r) x - sin(a_t - a_r) sigma_data F`` (Lu and
    Song, 2024). On a rectified flow ``velocity`` is the head :class:`AverageVelocity`.

    Attributes:
        kind: What the network predicts on the diagonal.
    """

    kind: Kind = "velocity"

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise unknown_name_error("kind", self.kind, list(get_args(Kind)))

    def weights(self, path: Path, t: Tensor, r: Tensor) -> HeadWeights:
        """See the class."""
        return HeadWeights(*path._jump(self.kind, t, r))

    def velocity(self, path: Path, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The prediction as a velocity."""
        return path.convert(output, x, t, kind=self.kind, to="velocity")

    def output_of_velocity(self, path: Path, velocity: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The velocity as a prediction."""
        return path.convert(velocity, x, t, kind="velocity", to=self.kind)


@dataclass(frozen=True, slots=True)
class ConsistencyBoundary(Head):
    """``c_skip x + c_out F`` towards the least level: the parametrisation of consistency models on EDM's path.

    ``c_skip = s^2 / ((sigma - sigma_min)^2 + s^2)`` and ``c_out = s (sigma - sigma_min) / sqrt(sigma^2 + s^2)`` with
    ``s`` the path's ``sigma_data`` and ``sigma`` the ratio of noise to signal: Song et al., "Consistency models"
    (2023); the difference stands in the skip's square and in the output's numerator, not under its root. Networks of
    this parametrisation take a scaled input (``scale_input``).

    Attributes:
        sigma_min: The level at which the map is the identity, and where it ends.
    """

    sigma_min: float = 0.002

    def __post_init__(self) -> None:
        check_number("sigma_min", self.sigma_min, "a positive number", above=0)

    def end(self, path: Path) -> float | None:
        """The time of the least level."""
        return float(path.clock(self.sigma_min, of="ratio"))

    def weights(self, path: Path, t: Tensor, r: Tensor) -> HeadWeights:
        """See the class; ``r`` does not enter."""
        deviation, alpha = path.sigma_data, path._alpha(t)
        ratio = path._sigma(t) / alpha
        above = ratio - self.sigma_min
        # The map is of x / alpha, the state of EDM.
        skip = deviation**2 / (above.square() + deviation**2) / alpha
        return HeadWeights(skip, deviation * above / torch.hypot(ratio, torch.full_like(ratio, deviation)))


@dataclass(frozen=True, slots=True)
class LatentBoundary(Head):
    """``c_skip x + c_out x0(F)`` with the scales of latent consistency models, towards the data.

    ``c_skip = s^2 / (u^2 + s^2)``, ``c_out = u / sqrt(u^2 + s^2)`` with ``u = scaling * 1000 t``: Luo et al., "Latent
    consistency models" (2023). ``u`` is 10 after one of a thousand rows, so that the map is nearly the plain prediction
    of x0 everywhere but at the data itself; ``c_out`` lacks the factor ``s`` of :class:`ConsistencyBoundary`.

    Attributes:
        kind: What the network predicts.
        scaling: Multiplies the time on the clock of a thousand.
        deviation: ``s``.
    """

    kind: Kind = "noise"
    scaling: float = 10.0
    deviation: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise unknown_name_error("kind", self.kind, list(get_args(Kind)))
        for name in ("scaling", "deviation"):
            check_number(name, getattr(self, name), "a positive number", above=0)

    def end(self, path: Path) -> float | None:
        """The data."""
        return 0.0

    def weights(self, path: Path, t: Tensor, r: Tensor) -> HeadWeights:
        """See the class; ``r`` does not enter."""
        jump = Jump(self.kind).weights(path, t, torch.zeros_like(t))
        scaled = 1000 * self.scaling * t
        root = torch.hypot(scaled, torch.full_like(scaled, self.deviation))
        skip, out = (self.deviation / root).square(), scaled / root
        return HeadWeights(skip + out * jump.state, out * jump.network)
