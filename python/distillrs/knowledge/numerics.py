"""Arithmetic that stays safe in low precision and where a row is zero."""

from __future__ import annotations

import torch
from torch import Tensor

from distillrs.checks import is_number as is_number


def wide(tensor: Tensor) -> Tensor:
    """The values in float32, or in float64 if they come so."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def unit(vectors: Tensor, dim: int = -1, epsilon: float = 1e-12) -> Tensor:
    """Vectors of length 1; a vector no longer than ``epsilon`` gives 0, and its gradient is 0.

    ``torch.nn.functional.normalize`` has a slope of ``1 / epsilon`` there: one dead row would outweigh all others.

    Args:
        vectors: Any shape.
        dim: The axis of a vector.
        epsilon: Length up to which a vector has no direction.
    """
    squares = vectors.square().sum(dim, keepdim=True)
    there = squares > epsilon**2
    return vectors * torch.where(there, squares.where(there, 1.0).rsqrt(), 0.0)


def products(first: Tensor, second: Tensor) -> Tensor:
    """``first @ second`` in the operands' own precision: autocast would multiply in half precision, and overflow.

    Args:
        first: ``[..., n, d]``.
        second: ``[..., d, m]``.

    Returns:
        ``[..., n, m]``.
    """
    with torch.autocast(first.device.type, enabled=False):
        return first @ second
