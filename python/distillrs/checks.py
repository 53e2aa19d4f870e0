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


def numbers(name: str, values: object) -> tuple[float, ...]:
    """A sequence of finite numbers as Python's own; a text is not read letter by letter.

    Args:
        name: The argument, as the caller wrote it.
        values: What was passed: a sequence, or a tensor of one axis.

    Raises:
        ArgumentError: It is no such sequence.
    """
    try:
        items: tuple[object, ...] = tuple(values)  # type: ignore[arg-type]  # what has no items is refused below
        # Not float() alone: it reads texts, too.
        texts = any(isinstance(value, str) for value in items)
        found = None if texts else tuple(map(float, items))  # type: ignore[arg-type]  # likewise
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last is a tensor's of several numbers
        found = None
    if found is None:
        raise argument_error(name, values, "a sequence of numbers")
    for value in found:
        check_number(name, value, "a sequence of finite numbers")
    return found


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
