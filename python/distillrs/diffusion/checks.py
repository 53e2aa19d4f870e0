"""Refusals that several parts share."""

from __future__ import annotations

from torch import nn

from distillrs.checks import is_number
from distillrs.errors import argument_error

__all__ = ["check_adapter", "check_shape", "is_number"]


def check_adapter(name: str, value: object) -> None:
    """Refuses what is no network in its adapter, a plain module for example, whose times would go astray."""
    if not (
        callable(value)
        and hasattr(value, "two_times")
        and hasattr(value, "replaced")
        and isinstance(getattr(value, "module", None), nn.Module)
    ):
        allowed = "a network in its adapter: Network(module, times=...) or DiffusersNetwork(...)"
        raise argument_error(name, type(value).__name__, allowed)


def check_shape(name: str, shape: object, allowed: str = "a tuple of numbers of elements") -> None:
    """Refuses what is no shape."""
    sizes = shape if isinstance(shape, tuple | list) else (None,)
    if not all(isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in sizes):
        raise argument_error(name, shape, allowed)
