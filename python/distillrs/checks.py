"""Refusals of numbers that are none, or out of their range, by the argument's name."""

from __future__ import annotations

import math
from typing import TypeGuard

import numpy as np

from distillrs.errors import argument_error


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is one finite number of Python or numpy, and no truth value."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def check_number(
    name: str,
    value: object,
    allowed: str,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> None:
    """Refuses what is not a finite number within its bounds: a text, a truth value, a tensor, an infinity.

    Args:
        name: The argument, as the caller wrote it.
        value: What was passed.
        allowed: What would have been accepted, in words.
        least: Smallest value.
        above: Bound that it must exceed.
        most: Largest value.
        below: Bound that it must stay under.

    Raises:
        ArgumentError: It is not.
    """
    if not is_number(value) or not (
        (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
        and (below is None or value < below)
    ):
        raise argument_error(name, value, allowed)


def check_whole(name: str, value: object, allowed: str, *, least: int, most: int | None = None) -> None:
    """Refuses what is not a whole number within its bounds; arguments are those of :func:`check_number`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise argument_error(name, value, allowed)
    if value < least or (most is not None and value > most):
        raise argument_error(name, value, allowed)
