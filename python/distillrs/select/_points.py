"""What every selector does with its points."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from distillrs.errors import argument_error

Matrix: TypeAlias = np.ndarray[tuple[int, int], np.dtype[np.float32 | np.float64]]
Prepare: TypeAlias = Callable[[Matrix], Matrix]
Points: TypeAlias = Tensor | np.ndarray[tuple[int, ...], np.dtype[np.generic]]
Integers: TypeAlias = Tensor | np.ndarray[tuple[int, ...], np.dtype[np.integer]]
Whole: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]


def as_tensor(name: str, points: Points, *, axes: int | None = None) -> Tensor:
    """The points as a tensor ``[n, ...]`` of floating-point values, with so many axes, or with two or more.

    Raises:
        ArgumentError: For anything else.
    """
    allowed = f"a tensor or array [{'n, ...' if axes is None else 'n'}] of floating-point values"
    if isinstance(points, np.ndarray) and points.dtype.kind == "f" and points.dtype.itemsize <= 8:
        points = _shared(points)
    if not isinstance(points, Tensor):
        kind = f"an array of {points.dtype}" if isinstance(points, np.ndarray) else type(points).__name__
        raise argument_error(name, kind, allowed)
    is_shaped = points.dim() >= 2 if axes is None else points.dim() == axes
    if not points.is_floating_point() or not is_shaped or points.layout != torch.strided or points.is_meta:
        got = f"{points.dtype} of shape {tuple(points.shape)}"
        if points.layout != torch.strided or points.is_meta:
            got += " without values" if points.is_meta else f", {points.layout}"
        raise argument_error(name, got, allowed)
    return points.detach()


class _Writable:
    """An array's own memory, said to be writable; it stays alive with what is made of it."""

    def __init__(self, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> None:
        self._array = array
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}


def _shared(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> Tensor:
    """A tensor of the array's memory; copies only foreign byte order and negative strides, which torch has not."""
    own = array.astype(array.dtype.newbyteorder("="), copy=False)
    if any(stride < 0 or stride % own.itemsize for stride in own.strides):
        own = np.ascontiguousarray(own)
    # torch warns of read-only memory, such as that of a file; points are only read.
    return torch.from_numpy(own if own.flags.writeable else np.asarray(_Writable(own)))


def copied_bytes(points: Tensor) -> int:
    """Bytes that :func:`as_matrix` takes beside the points."""
    is_half = points.element_size() < 4
    is_rows = points.is_contiguous()
    if is_rows and not is_half and points.device.type == "cpu":
        return 0
    return points.numel() * (max(4, points.element_size()) + (points.element_size() if is_half and not is_rows else 0))


def as_matrix(points: Tensor) -> Matrix:
    """``[n, d]`` in float32 or float64, contiguous, on the CPU; half precision becomes float32."""
    dtype = torch.float64 if points.dtype == torch.float64 else torch.float32
    flat = points.reshape(len(points), math.prod(points.shape[1:]))
    matrix: Matrix = flat.to(device="cpu", dtype=dtype).contiguous().numpy()
    return matrix


def width_of(points: Tensor, prepare: Prepare | None) -> int:
    """Bytes of each value of the matrix that is worked on: what changes points gives float64."""
    return 8 if prepare is not None or points.dtype == torch.float64 else 4


def prepared_bytes(points: Tensor, prepare: Prepare | None) -> int:
    """Bytes that the matrix takes beside the points, and what it is made from."""
    return copied_bytes(points) + (0 if prepare is None else 8 * points.numel())


def integers(name: str, values: Integers, shape: tuple[int | None, ...], allowed: str) -> Whole:
    """A tensor or array of integers as int64 on the CPU.

    Args:
        name: The argument, as the caller wrote it.
        values: What was passed.
        shape: Its sizes, ``None`` for any.
        allowed: What would have been accepted, in words.

    Raises:
        ArgumentError: It is none, is of another shape, or has integers beyond 64 bits with a sign.
    """
    found: object = values
    if isinstance(values, Tensor):
        # Half of what a tensor can be has no array.
        is_plain = values.layout == torch.strided and not values.is_meta and not values.is_floating_point()
        found = values.detach().cpu().numpy() if is_plain and not values.is_quantized else None
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "iu":
        got = type(values).__name__
        if isinstance(values, Tensor | np.ndarray):
            got = f"{values.dtype} of shape {tuple(values.shape)}"
        raise argument_error(name, got, allowed)
    if found.ndim != len(shape) or any(size not in (None, own) for size, own in zip(shape, found.shape, strict=True)):
        raise argument_error(name, f"{values.dtype} of shape {tuple(found.shape)}", allowed)
    if found.dtype == np.uint64 and found.size and int(found.max()) >= 2**63:
        raise argument_error(name, int(found.max()), f"{allowed}, below 2^63")
    return np.ascontiguousarray(found, dtype=np.int64)


def directions(matrix: Matrix) -> Matrix:
    """The rows in float64, each divided by its length.

    Raises:
        ArgumentError: For a row without direction; rows that are not finite are left to the core.
    """
    values = matrix.astype(np.float64)
    # The largest coordinate first: squares of very large or small ones would overflow or vanish.
    largest = np.maximum(values.max(1, keepdims=True, initial=0.0), -values.min(1, keepdims=True, initial=0.0))
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
