"""What every selector does with its points."""

from __future__ import annotations

import math
import operator
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from distillrs.errors import argument_error

Matrix: TypeAlias = np.ndarray[tuple[int, int], np.dtype[np.float32 | np.float64]]
Points: TypeAlias = Tensor | np.ndarray[tuple[int, ...], np.dtype[np.generic]]


def as_tensor(name: str, points: Points) -> Tensor:
    """The points as a tensor ``[n, ...]`` of floating-point values.

    Raises:
        ArgumentError: For anything else.
    """
    allowed = "a tensor or array [n, ...] of floating-point values"
    if isinstance(points, np.ndarray) and points.dtype.kind == "f" and points.dtype.itemsize <= 8:
        # Copies only what torch cannot share: negative strides, foreign byte order, read-only memory.
        points = torch.from_numpy(np.require(points, points.dtype.newbyteorder("="), ["C", "W"]))
    if not isinstance(points, Tensor):
        kind = f"an array of {points.dtype}" if isinstance(points, np.ndarray) else type(points).__name__
        raise argument_error(name, kind, allowed)
    if not points.is_floating_point() or points.dim() < 2:
        raise argument_error(name, f"{points.dtype} of shape {tuple(points.shape)}", allowed)
    return points.detach()


def as_matrix(points: Tensor) -> Matrix:
    """``[n, d]`` in float32 or float64, contiguous, on the CPU; half precision becomes float32."""
    dtype = torch.float64 if points.dtype == torch.float64 else torch.float32
    flat = points.reshape(len(points), math.prod(points.shape[1:]))
    matrix: Matrix = flat.to(device="cpu", dtype=dtype).contiguous().numpy()
    return matrix


def directions(matrix: Matrix) -> Matrix:
    """The rows in float64, each divided by its length.

    Raises:
        ArgumentError: For a row without direction; rows that are not finite are left to the core.
    """
    values = matrix.astype(np.float64)
    # The largest coordinate first: squares of very large or small ones would overflow or vanish.
    largest = np.abs(values).max(1, keepdims=True, initial=0.0)
    if not largest.all():
        row = int(np.flatnonzero(largest[:, 0] == 0)[0])
        raise argument_error(
            "points", f"only zeros in row {row}", "rows that are not zero, as their cosines are compared"
        )
    with np.errstate(invalid="ignore"):
        values /= largest
        values /= np.sqrt(np.einsum("ij,ij->i", values, values))[:, None]
    return values


def whole(name: str, value: int, low: int, high: int | None = None) -> int:
    """The integer, if it is one in the range.

    Raises:
        ArgumentError: If not.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = low - 1
    if isinstance(value, bool) or number < low or (high is not None and number > high):
        raise argument_error(name, value, f"an integer from {low}" + ("" if high is None else f" to {high}"))
    return number


def check_memory(budget: int | None, needed: int) -> None:
    """Refuses work that would take more memory than allowed.

    Raises:
        ArgumentError: With the bytes that would be needed.
    """
    if budget is not None and needed > whole("memory_budget", budget, 0):
        raise argument_error("memory_budget", f"{budget} bytes", f"None or at least the {needed} bytes that this takes")


def kept_bytes(budget: int | None, needed: int, most: int) -> int:
    """Bytes that work may keep beside those that it needs, to be faster: what the budget leaves, up to ``most``."""
    return most if budget is None else max(0, min(most, budget - needed))
