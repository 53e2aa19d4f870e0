"""What every path does with the times and tensors that it is given."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from distillrs.errors import argument_error

Time: TypeAlias = float | Tensor
"""Times: a number, or a floating-point tensor of any shape."""


def as_float64(name: str, value: Time) -> Tensor:
    """The value as a float64 tensor on its device.

    Raises:
        ArgumentError: For anything but a number or a floating-point tensor; integers are refused as tensors, because
            they are usually indices of a table.
    """
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            raise argument_error(name, f"a tensor of {value.dtype}", "a number or a floating-point tensor")
        return value if value.dtype is torch.float64 else value.to(torch.float64)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise argument_error(name, value, "a number or a floating-point tensor")
    return torch.tensor(float(value), dtype=torch.float64)


def check_range(name: str, value: Tensor, low: float, high: float, what: str = "numbers") -> None:
    """Refuses values outside ``[low, high]``, and those that are not a number.

    Tensors on accelerators, in compiled code and under ``torch.func.vmap`` are not looked at: waiting for them would
    cost more than the work itself.

    Raises:
        ArgumentError: With the first such value.
    """
    if value.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if not value.numel():
        return
    try:
        # By numpy, which takes a few microseconds for a batch's times where four calls of torch take tens.
        numbers = (value.detach() if value.requires_grad else value).numpy()
        least, most = numbers.min(), numbers.max()
    except RuntimeError:
        return
    # A comparison with what is not a number is false.
    if not (least >= low and most <= high):
        outside = ~((value >= low) & (value <= high))
        raise argument_error(name, float(value[outside].flatten()[0]), f"{what} from {low:.6g} to {high:.6g}")


def as_time(t: Time) -> Tensor:
    """Times as float64, checked to lie in [0, 1]."""
    times = as_float64("t", t)
    check_range("t", times, 0.0, 1.0, "times")
    return times


def work_dtype(*values: Tensor) -> torch.dtype:
    """The type to compute in: half precision is widened to float32."""
    dtype = torch.float32
    for value in values:
        if value.dtype != dtype:
            dtype = torch.promote_types(dtype, value.dtype)
    return dtype


def spread(coefficient: Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:
    """Coefficients per batch, frame or token, shaped to multiply a tensor.

    Args:
        coefficient: Of the times' shape: ``[]``, ``[b]``, ``[b, f]``, ...; leads the tensor's shape.
        like: ``[b, f, ...]``.
        dtype: Of the result.

    Raises:
        ArgumentError: If the times' shape does not lead the tensor's.
    """
    shape, rank = tuple(coefficient.shape), coefficient.dim()
    fits = rank <= like.dim() and all(
        size in (1, extent) for size, extent in zip(shape, like.shape[:rank], strict=True)
    )
    if not fits:
        allowed = f"a shape that leads the values' shape {tuple(like.shape)}, each axis equal or 1"
        raise argument_error("t", f"a tensor of shape {shape}", allowed)
    return coefficient.to(device=like.device, dtype=dtype).reshape(shape + (1,) * (like.dim() - rank))


def check_values(name: str, value: Tensor, other: Tensor | None = None) -> None:
    """Refuses what is not a floating-point tensor, or not of the other tensor's shape."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise argument_error(name, got, "a floating-point tensor")
    if other is not None and value.shape != other.shape:
        raise argument_error(name, f"shape {tuple(value.shape)}", f"the other tensor's shape, {tuple(other.shape)}")
