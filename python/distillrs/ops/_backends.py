"""Which backend serves a call."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from distillrs.checks import check_choice
from distillrs.errors import ArgumentError, KernelCompileError, argument_error
from distillrs.ops import _cuda, _reference, _rust
from distillrs.ops._rows import DivergenceStatistics, Rows

Backend: TypeAlias = Literal["auto", "torch", "rust", "cuda"]

# (student, rows, gradient or None, with_statistics) -> losses [n], their sum, statistics
DivergenceRows: TypeAlias = Callable[
    [Tensor, Rows, Tensor | None, bool], tuple[Tensor, Tensor, DivergenceStatistics | None]
]

_warned: set[str] = set()


def choose(backend: Backend, student: Tensor, rows: Rows) -> DivergenceRows:
    """The function that serves a call.

    Raises:
        ArgumentError: For a backend that is named and cannot.
        KernelCompileError: The CUDA backend was named, and its compiler refuses a source.
    """
    check(backend)
    if backend == "torch":
        return _torch
    refusal = _cuda.divergence_refusal(student, rows)
    if takes_cuda(backend, student.device, refusal, lambda: _cuda.prepare_divergence(student, rows)):
        return _cuda.divergence_rows
    return _rust.divergence_rows if takes_rust(backend, _rust.refusal(student, rows)) else _torch


def takes_rust(backend: Backend, refusal: tuple[str, str] | None) -> bool:
    """Whether the core serves a call that is not the torch backend's by name.

    Args:
        backend: As the caller named it.
        refusal: What the core cannot serve in this call, and what it could.

    Raises:
        ArgumentError: The backend is named and cannot.
    """
    if refusal is not None and backend == "rust":
        raise argument_error("backend", "'rust' with " + refusal[0], refusal[1] + ", or backend='torch'")
    return refusal is None


def takes_cuda(
    backend: Backend, device: torch.device, refusal: tuple[str, str] | None, prepare: Callable[[], None]
) -> bool:
    """Whether the CUDA kernels serve a call.

    Args:
        backend: As the caller named it. "auto" takes the kernels for tensors on a CUDA device, and warns once where it
            cannot because of what is installed.
        device: Of the logits.
        refusal: What the kernels cannot serve in this call, and what they could.
        prepare: Compiles what the call needs.

    Raises:
        ArgumentError: The backend is named and cannot.
        KernelCompileError: It is named, and its compiler refuses a source.
    """
    if backend != "cuda" and (backend != "auto" or device.type != "cuda"):
        return False
    if refusal is not None:
        if backend == "cuda":
            raise argument_error("backend", "'cuda' with " + refusal[0], refusal[1] + ", or backend='torch'")
        return False
    if backend == "cuda":
        prepare()
        return True
    return is_ready(prepare, f"backend='auto' takes torch on {device.type} tensors, which is slower")


def is_ready(prepare: Callable[[], None], otherwise: str) -> bool:
    """Whether the kernels can be had; warns once where they cannot because of what is installed.

    Args:
        prepare: Compiles what a call needs.
        otherwise: What happens without them.
    """
    try:
        prepare()
    except (ArgumentError, KernelCompileError) as error:
        warn_once(f"{otherwise}: {error}")
        return False
    return True


def warn_once(message: str) -> None:
    """Warns, unless it did so before in this process.

    Args:
        message: What to say.
    """
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, stacklevel=2)


def check(backend: Backend) -> None:
    """Raises for a name that is none.

    Raises:
        ArgumentError: It is none.
    """
    check_choice("backend", backend, ("auto", "torch", "rust", "cuda"))


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
