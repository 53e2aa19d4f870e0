"""Tensors as the bytes that cross the border to the core, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distillrs.errors import ArgumentError, argument_error
from distillrs.trajectory.dtypes import dtype_name
from distillrs.trajectory.schema import Column

BITS = {torch.bfloat16: torch.uint16, torch.float8_e4m3fn: torch.uint8, torch.float8_e5m2: torch.uint8}
"""Types that numpy lacks, and those that have the same bits."""


def as_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor as bytes, shared with it."""
    if tensor.numel() == 0:
        return memoryview(bytearray())
    if tensor.dtype in BITS:
        tensor = tensor.view(BITS[tensor.dtype])
    # Through a memoryview and not torch's own views: three times faster, which counts for small records.
    return tensor.numpy().data.cast("B")


def memory(tensor: Tensor) -> tuple[int, int]:
    """Address and bytes of a contiguous CPU tensor; the caller holds the tensor while the core uses them.

    The buffer protocol does the same at ten times the cost, which a window of a small network notices.
    """
    return tensor.data_ptr(), tensor.nbytes


def describe(tensor: Tensor) -> str:
    """Type, shape and place of a tensor in a few words, for messages."""
    strided = "" if tensor.is_contiguous() else "strided "
    place = "" if tensor.device.type == "cpu" else f" on {tensor.device}"
    return f"{strided}{dtype_name(tensor.dtype)} {list(tensor.shape)}{place}"


def record_tensor(name: str, value: Any, column: Column) -> Tensor:
    """What is appended under a column, as a contiguous CPU tensor of exactly the column's type and shape.

    Numbers and nested lists are converted; tensors and arrays of another type are refused, as rounding would be silent.

    Args:
        name: The column's name, for messages.
        value: Tensor or array of the column's shape, [rows, *shape] if it is ragged, or numbers.
        column: What the schema says.

    Raises:
        ArgumentError: Type or shape differ from the schema.
    """
    try:
        if isinstance(value, Tensor):
            tensor = value.detach()
        elif isinstance(value, np.ndarray | np.generic):
            tensor = torch.from_numpy(np.array(value))
        else:
            tensor = torch.as_tensor(value, dtype=column.dtype)
    except (TypeError, ValueError, RuntimeError, OverflowError) as failure:
        raise argument_error(name, value, _allowed(column)) from failure
    expected = tuple(tensor.shape[:1]) + column.shape if column.ragged else column.shape
    if tensor.layout != torch.strided or tensor.dtype != column.dtype or tuple(tensor.shape) != expected:
        raise _mismatch(name, tensor, column)
    if column.ragged and tensor.ndim == 0:
        raise _mismatch(name, tensor, column)
    if tensor.is_meta:
        raise argument_error(name, "a tensor on the meta device", "a tensor with data")
    if hasattr(tensor, "full_tensor"):
        raise argument_error(name, "a sharded tensor", "tensor.full_tensor()")
    return tensor.cpu().contiguous().resolve_neg()


def _allowed(column: Column) -> str:
    shape = ", ".join([*(["rows"] if column.ragged else []), *map(str, column.shape)])
    return f"{dtype_name(column.dtype)} of shape [{shape}]"


def _mismatch(name: str, tensor: Tensor, column: Column) -> ArgumentError:
    kind = "" if tensor.layout == torch.strided else f"{tensor.layout} "
    return argument_error(name, f"{kind}{dtype_name(tensor.dtype)} {list(tensor.shape)}", _allowed(column))


def output_tensor(name: str, out: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """``out`` if it can be filled from the core, or a new tensor.

    Raises:
        ArgumentError: ``out`` has another type or shape, is not contiguous, is not on the CPU or requires a gradient.
    """
    if out is None:
        return torch.empty(shape, dtype=dtype)
    if not isinstance(out, Tensor):
        raise argument_error(name, type(out).__name__, "a tensor")
    if (
        out.shape != shape
        or out.dtype is not dtype
        or not out.is_cpu
        or not out.is_contiguous()
        or out.requires_grad
        or out.is_neg()
    ):
        gradient = " that requires a gradient" if out.requires_grad else ""
        raise argument_error(
            name,
            f"{describe(out)}{gradient}",
            f"a contiguous {dtype_name(dtype)} tensor of shape {list(shape)} on the CPU that requires no gradient",
        )
    return out


def announce_write(tensors: Sequence[Tensor]) -> None:
    """Lets autograd notice that values which it may have saved will be gone: the core writes past torch."""
    torch.autograd.graph.increment_version(tensors)
