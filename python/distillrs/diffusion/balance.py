"""Balance: how much each row counts, and how far its target may be.

The unweighted loss is always reported beside the weighted one: learned weights can hide a loss that grows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from distillrs.checks import check_number, check_whole
from distillrs.schedule import Kind, LossWeight, Path


class Rows(NamedTuple):
    """What a weight may depend on.

    Attributes:
        path: The path.
        t: float64 ``[n]``.
        r: Likewise.
        middle: Likewise, where the law says it.
    """

    path: Path
    t: Tensor
    r: Tensor
    middle: Tensor | None = None


@runtime_checkable
class Balance(Protocol):
    """One rule; several are applied in order."""

    def tangent(self, tangent: Tensor) -> Tensor:
        """Changes ``target - prediction``, ``[n, ...]``, detached."""
        ...

    def weigh(self, loss: Tensor, rows: Rows) -> Tensor:
        """Changes the rows' losses, ``[n]``."""
        ...


class _Plain:
    __slots__ = ()

    def tangent(self, tangent: Tensor) -> Tensor:
        """Leaves it."""
        return tangent

    def weigh(self, loss: Tensor, rows: Rows) -> Tensor:
        """Leaves them."""
        return loss


@dataclass(frozen=True, slots=True)
class Weighted(_Plain):
    """A fixed weight of each row's times.

    Attributes:
        weight: A :class:`~distillrs.schedule.LossWeight`, or a function of :class:`Rows` to float64 ``[n]``.
        kind: What the loss compares, for a ``LossWeight``.
    """

    weight: LossWeight | Callable[[Rows], Tensor]
    kind: Kind = "x0"

    def weigh(self, loss: Tensor, rows: Rows) -> Tensor:
        """Times the weight."""
        if isinstance(self.weight, LossWeight):
            weight = self.weight.at(rows.path, rows.t, self.kind)
        else:
            weight = self.weight(rows)
        return loss * weight.to(loss)


@dataclass(frozen=True, slots=True)
class AdaptivePower(_Plain):
    """``L / sg(L + constant)^power``: Geng et al., "Mean flows for one-step generative modeling" (2025).

    At power 1 every row has nearly the same gradient norm per unit of error; 0.5 is close to the pseudo-Huber metric.

    Attributes:
        power: From 0, the loss itself.
        constant: Above 0.
    """

    power: float = 1.0
    constant: float = 1e-3

    def __post_init__(self) -> None:
        check_number("power", self.power, "a number from 0", least=0)
        check_number("constant", self.constant, "a positive number", above=0)

    def weigh(self, loss: Tensor, rows: Rows) -> Tensor:
        """Over its own detached power."""
        scale: Tensor = (loss.detach() + self.constant) ** self.power
        return loss / scale


@dataclass(frozen=True, slots=True)
class TangentNormalisation(_Plain):
    """``g / (|g| + constant)`` for ``g = target - prediction``: Lu and Song (2024), with constant 0.1.

    Attributes:
        constant: Above 0.
        per_element: Whether the norm is divided by the root of the number of elements first, as some code has it; the
            same constant is then another strength, and the result is longer by that root.
    """

    constant: float = 0.1
    per_element: bool = False

    def __post_init__(self) -> None:
        check_number("constant", self.constant, "a positive number", above=0)

    def tangent(self, tangent: Tensor) -> Tensor:
        """Its direction, nearly of length 1."""
        rows = tangent.flatten(1)
        norm: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        if self.per_element:
            norm = norm / rows.shape[1] ** 0.5
        return (rows / (norm + self.constant)).reshape(tangent.shape)


@dataclass(frozen=True, slots=True)
class MaskNonFinite(_Plain):
    """Rows whose target is infinite or not a number count nothing; their share is reported as ``masked``."""


class LogVariance(nn.Module):
    """``exp(-w(t, r)) L + w(t, r)`` with a learned ``w``, at first 0.

    Kendall, Gal, Cipolla, "Multi-task learning using uncertainty to weigh losses" (2018); Karras et al. (2024).
    The one part of the engine with parameters of its own: a linear function of Fourier features of the times.

    Args:
        features: Frequencies for each time.
        seed: Of the frequencies.
    """

    def __init__(self, features: int = 32, seed: int = 0) -> None:
        super().__init__()
        check_whole("features", features, "a positive number", least=1)
        generator = torch.Generator().manual_seed(seed)
        self.frequencies: Tensor
        self.register_buffer("frequencies", torch.randn(2, features, generator=generator))
        self.linear = nn.Linear(2 * features, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def tangent(self, tangent: Tensor) -> Tensor:
        """Leaves it."""
        return tangent

    def weigh(self, loss: Tensor, rows: Rows) -> Tensor:
        """See the class."""
        times = torch.stack([rows.t, rows.r], 1).to(self.frequencies)
        angles = 2 * math.pi * times @ self.frequencies
        w: Tensor = self.linear(torch.cat([angles.sin(), angles.cos()], 1))[:, 0].to(loss)
        return (-w).exp() * loss + w
