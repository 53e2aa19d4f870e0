"""Which backend serves a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

from torch import Tensor

from distillrs.errors import argument_error
from distillrs.ops import _reference, _rust
from distillrs.ops._rows import DivergenceStatistics, Rows

Backend: TypeAlias = Literal["auto", "torch", "rust", "cuda"]

# (student, rows, gradient or None, with_statistics) -> losses [n], their sum, statistics
DivergenceRows: TypeAlias = Callable[
    [Tensor, Rows, Tensor | None, bool], tuple[Tensor, Tensor, DivergenceStatistics | None]
]


def choose(backend: Backend, student: Tensor, rows: Rows) -> DivergenceRows:
    """The function that serves a call.

    Raises:
        ArgumentError: For a backend that is named and cannot.
    """
    check(backend)
    if backend == "torch":
        return _torch
    reason = _rust.refusal(student, rows)
    if reason is None:
        return _rust.divergence_rows
    if backend == "rust":
        raise argument_error("backend", "'rust' with " + reason[0], reason[1] + ", or backend='torch'")
    return _torch


def check(backend: Backend) -> None:
    """Raises for a name that is none, and for a backend that is not there.

    Raises:
        ArgumentError: For either.
    """
    if backend == "cuda":
        raise argument_error("backend", backend, "'auto', 'torch' or 'rust': there are no CUDA kernels yet")
    if backend not in ("auto", "torch", "rust"):
        raise argument_error("backend", backend, "'auto', 'torch' or 'rust'")


def _torch(
    student: Tensor, rows: Rows, gradient: Tensor | None, with_statistics: bool
) -> tuple[Tensor, Tensor, DivergenceStatistics | None]:
    count = rows.count
    flat = student.reshape(count, student.shape[-1])
    target = None
    if gradient is not None:
        # Where rows of a strided tensor cannot be numbered by one stride, the gradient is made beside it and copied.
        target = gradient.reshape(count, gradient.shape[-1])
    losses, statistics = _reference.divergence_rows(flat, rows, target, with_statistics)
    if gradient is not None and target is not None and count and target.data_ptr() != gradient.data_ptr():
        gradient.copy_(target.reshape(gradient.shape))
    return losses, losses.sum(), statistics
