"""Kernels of pairs of points, for sums over all pairs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from distillrs.checks import check_number, is_number
from distillrs.errors import argument_error


class PairKernel(ABC):
    """A function of two points through their squared distance or their product.

    Subclass it for one of your own: the two methods are enough.

    Attributes:
        of_product: Whether the argument u is ``x.y``; else it is ``|x - y|^2``.
    """

    __slots__ = ()

    of_product: bool = False

    @abstractmethod
    def value(self, u: Tensor) -> Tensor:
        """The kernel ``[rows, points]``.

        Args:
            u: ``[rows, points]``: squared distances (not negative) or products.
        """

    @abstractmethod
    def derivative(self, u: Tensor) -> Tensor:
        """Its derivative with respect to u; where the points coincide, finite.

        Args:
            u: ``[rows, points]``: squared distances (not negative) or products.
        """


@dataclass(frozen=True, slots=True)
class Gaussian(PairKernel):
    """``sum_b exp(-|x - y|^2 / (2 b^2))`` over one bandwidth or several.

    Attributes:
        bandwidths: Positive: a number or several.
    """

    bandwidths: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        given = self.bandwidths if isinstance(self.bandwidths, tuple | list) else (self.bandwidths,)
        if not given or not all(_is_positive(value) for value in given):
            raise argument_error("bandwidths", self.bandwidths, "a positive, finite number or a tuple of them")
        object.__setattr__(self, "bandwidths", tuple(float(value) for value in given))

    def value(self, u: Tensor) -> Tensor:
        """``sum_b exp(-u / (2 b^2))``."""
        return self._sum(u, [1.0] * len(self.rates()))

    def derivative(self, u: Tensor) -> Tensor:
        """``-sum_b exp(-u / (2 b^2)) / (2 b^2)``."""
        return self._sum(u, [-rate for rate in self.rates()])

    def rates(self) -> tuple[float, ...]:
        """``1 / (2 b^2)`` of each bandwidth."""
        assert isinstance(self.bandwidths, tuple)
        return tuple(1 / (2 * bandwidth**2) for bandwidth in self.bandwidths)

    def _sum(self, u: Tensor, factors: list[float]) -> Tensor:
        total = torch.zeros_like(u)
        for rate, factor in zip(self.rates(), factors, strict=True):
            total += factor * (u * -rate).exp()
        return total


@dataclass(frozen=True, slots=True)
class Laplacian(PairKernel):
    """``exp(-|x - y| / b)``. Where points coincide its slope is taken as 0.

    Attributes:
        bandwidth: b, positive.
    """

    bandwidth: float = 1.0

    def __post_init__(self) -> None:
        _check_positive("bandwidth", self.bandwidth)

    def value(self, u: Tensor) -> Tensor:
        """``exp(-sqrt(u) / b)``."""
        return (u.sqrt() / -self.bandwidth).exp()

    def derivative(self, u: Tensor) -> Tensor:
        """``-exp(-sqrt(u) / b) / (2 b sqrt(u))``."""
        return self.value(u) * _inverse_root(u) / (-2 * self.bandwidth)


@dataclass(frozen=True, slots=True)
class NegativeDistance(PairKernel):
    """``-|x - y|``: the kernel whose squared maximum mean discrepancy is the energy distance.

    Where points coincide its slope is taken as 0.
    """

    def value(self, u: Tensor) -> Tensor:
        """``-sqrt(u)``."""
        return -u.sqrt()

    def derivative(self, u: Tensor) -> Tensor:
        """``-1 / (2 sqrt(u))``."""
        return _inverse_root(u) / -2


@dataclass(frozen=True, slots=True)
class InverseMultiquadric(PairKernel):
    """``(1 + |x - y|^2 / b^2)^-e``: tails that fall slowly.

    Attributes:
        bandwidth: b, positive.
        exponent: e, positive.
    """

    bandwidth: float = 1.0
    exponent: float = 0.5

    def __post_init__(self) -> None:
        _check_positive("bandwidth", self.bandwidth)
        _check_positive("exponent", self.exponent)

    def value(self, u: Tensor) -> Tensor:
        """``(1 + u / b^2)^-e``."""
        return (1 + u / self.bandwidth**2) ** -self.exponent

    def derivative(self, u: Tensor) -> Tensor:
        """``-e (1 + u / b^2)^(-e - 1) / b^2``."""
        return -self.exponent / self.bandwidth**2 * (1 + u / self.bandwidth**2) ** (-self.exponent - 1)


@dataclass(frozen=True, slots=True)
class Polynomial(PairKernel):
    """``(scale x.y + offset)^degree``; degree 1 is the linear kernel.

    Attributes:
        degree: A positive integer.
        scale: Any finite number.
        offset: Any finite number.
    """

    degree: int = 1
    scale: float = 1.0
    offset: float = 0.0

    of_product = True

    def __post_init__(self) -> None:
        if isinstance(self.degree, bool) or not isinstance(self.degree, int) or self.degree < 1:
            raise argument_error("degree", self.degree, "a positive integer")
        for name, value in (("scale", self.scale), ("offset", self.offset)):
            check_number(name, value, "a finite number")

    def value(self, u: Tensor) -> Tensor:
        """``(scale u + offset)^degree``."""
        return (self.scale * u + self.offset) ** self.degree

    def derivative(self, u: Tensor) -> Tensor:
        """``degree scale (scale u + offset)^(degree - 1)``."""
        return self.degree * self.scale * (self.scale * u + self.offset) ** (self.degree - 1)


@dataclass(frozen=True, slots=True)
class Geodesic(PairKernel):
    """``exp(-angle(x, y)^2 / (2 b^2))`` of two unit vectors: the Gaussian along the sphere.

    Products beyond -1 and 1, where rounding may lead, count as these. Where the points are opposite, the slope has no
    limit and is taken as one that is finite.

    Attributes:
        bandwidth: b, positive, in radians.
    """

    bandwidth: float = 1.0

    of_product = True

    def __post_init__(self) -> None:
        _check_positive("bandwidth", self.bandwidth)

    def value(self, u: Tensor) -> Tensor:
        """``exp(-arccos(u)^2 / (2 b^2))``."""
        return (u.clamp(-1, 1).acos().square() / (-2 * self.bandwidth**2)).exp()

    def derivative(self, u: Tensor) -> Tensor:
        """``exp(-arccos(u)^2 / (2 b^2)) arccos(u) / (b^2 sqrt(1 - u^2))``."""
        u = u.clamp(-1, 1)
        # Towards 1 both arccos and root vanish, and their quotient is 1 + (1 - u) / 3 + ...
        near = 1 - u < torch.finfo(u.dtype).eps ** 0.5
        root = (1 - u.square()).clamp_min(torch.finfo(u.dtype).eps).sqrt()
        slope = torch.where(near, 1 + (1 - u) / 3, u.acos() / root)
        return self.value(u) * slope / self.bandwidth**2


def _inverse_root(u: Tensor) -> Tensor:
    return torch.where(u == 0, 0.0, u.clamp(min=torch.finfo(u.dtype).tiny).rsqrt())


def _is_positive(value: object) -> bool:
    return is_number(value) and value > 0


def _check_positive(name: str, value: object) -> None:
    check_number(name, value, "a positive, finite number", above=0)
