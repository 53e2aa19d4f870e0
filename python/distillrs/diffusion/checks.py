"""Refusals that several parts share."""

from __future__ import annotations

import math

from torch import nn

from distillrs.errors import argument_error


def is_number(value: object) -> bool:
    """Whether it is a finite number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


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
