"""Steps that are not taken: a loss out of bounds gives no gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distillrs.checks import check_number


@dataclass(frozen=True, slots=True)
class Guard:
    """Skips an iteration whose loss exceeds a threshold or is not finite.

    Late in training an expert hardly moves, so the normaliser of the matching loss is tiny and one bad window can throw
    the images far away. Guo et al. (ICLR 2024) skip all updates of an iteration whose loss exceeds about 1, which is
    the loss of not moving at all.

    A skipped call has gradients of exactly zero, whatever the loss, and ``terms["skipped"]`` of 1. An optimiser with
    momentum would still move, so a loop leaves the optimiser's step out, as :func:`distillrs.fit` does. Nothing of this
    waits for the device.

    Attributes:
        threshold: Largest loss that counts; ``inf`` skips only what is not finite.
    """

    threshold: float = math.inf

    def __post_init__(self) -> None:
        if not (isinstance(self.threshold, float) and self.threshold == math.inf):
            check_number("threshold", self.threshold, "a number above 0", above=0)

    def skips(self, loss: Tensor) -> Tensor:
        """Whether the iteration is skipped, a scalar of type bool on the loss's device."""
        value = loss.detach()
        return ~(torch.isfinite(value) & (value <= self.threshold))


class Gate:
    """Lets gradients through, or replaces them by zeros, as is decided between the forward and the backward pass."""

    def __init__(self) -> None:
        self.closed: Tensor | None = None

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The same values; their gradients pass through this gate. Integers are returned as they are."""
        return tuple(_Gated.apply(each, self) if each.requires_grad else each for each in inputs)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gate: Gate) -> Tensor:
        ctx.gate = gate
        # A copy: torch forbids views from here once their base is changed in place, as an optimiser does.
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        closed = ctx.gate.closed
        # torch.where and not a product: zero times infinity is not zero.
        return (
            upstream[0] if closed is None else torch.where(closed, torch.zeros_like(upstream[0]), upstream[0])
        ), None
