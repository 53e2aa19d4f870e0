"""What crosses the border to the core where rows are packed and unpacked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor

from distillrs.errors import argument_error
from distillrs.trajectory.buffers import describe, output_tensor

_TOKENS = 1 << 24


def _is_dense(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta


def token_count(tokens: int) -> int:
    """The number of rows, refused where a document cannot have so many."""
    if not 0 <= tokens < _TOKENS:
        raise argument_error("answers", f"{tokens} tokens", f"rows of shape [tokens, ...], fewer than {_TOKENS}")
    return tokens


def integers(name: str, value: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    """The integers of exactly that shape as the core takes them: int64, contiguous, on the CPU."""
    if value is None:
        return None
    if not _is_dense(value) or value.is_floating_point() or value.is_complex() or tuple(value.shape) != shape:
        got = describe(value) if isinstance(value, Tensor) else type(value).__name__
        raise argument_error(name, got, f"integers of shape {list(shape)}")
    return value.detach().to("cpu", torch.int64).contiguous()


def reals(name: str, value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The numbers of exactly that shape as the core takes them: float32, contiguous, on the CPU."""
    if not _is_dense(value) or not value.is_floating_point() or tuple(value.shape) != shape:
        got = describe(value) if isinstance(value, Tensor) else type(value).__name__
        raise argument_error(name, got, f"a floating tensor of shape {list(shape)}")
    return value.detach().to("cpu", torch.float32).contiguous()


def row_numbers(rows: Tensor | Sequence[int]) -> Tensor:
    """Numbers of rows, of any shape, as the core takes them."""
    try:
        numbers = rows if isinstance(rows, Tensor) else torch.as_tensor(rows)
    except (TypeError, ValueError, RuntimeError, OverflowError) as failure:
        raise argument_error("rows", type(rows).__name__, "int64 row numbers") from failure
    if not _is_dense(numbers) or numbers.is_complex():
        got = f"{describe(numbers)}, {numbers.layout}, on {numbers.device}"
        raise argument_error("rows", got, "int64 row numbers")
    if numbers.is_floating_point() or numbers.dtype is torch.bool:
        if numbers.numel():
            raise argument_error("rows", describe(numbers), "int64 row numbers")
        numbers = numbers.long()
    return numbers.detach().to("cpu", torch.int64).contiguous()


def filled(name: str, out: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, pinned: bool) -> Tensor:
    """``out`` if it fits, or a new tensor."""
    if out is None and pinned:
        return torch.empty(shape, dtype=dtype, pin_memory=True)
    return output_tensor(f"out.{name}", out, shape, dtype)
